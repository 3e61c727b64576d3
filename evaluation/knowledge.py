"""MMLU, five shots, by the likelihood of the answers' letters (Hendrycks et al. 2021).

A folder with `dev/SUBJECT_dev.csv` and `test/SUBJECT_test.csv`: no header, question, four choices, the right letter.
"""

import csv
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from spiritrt import Text
from spiritrt.evaluation.context import fitting, left_out_note
from spiritrt.evaluation.likelihood import Scorer
from spiritrt.evaluation.report import Metric, Report, mean_metric, progress
from spiritrt.evaluation.speech_sets import choose

LETTERS = "ABCD"


@dataclass(frozen=True, slots=True)
class Question:
    """A question with four choices; `answer` is the letter of the right one."""

    text: str
    choices: tuple[str, ...]
    answer: str

    def __post_init__(self) -> None:
        if len(self.choices) != len(LETTERS) or self.answer not in LETTERS or len(self.answer) != 1:
            raise ValueError(f"a question needs 4 choices and a letter of {LETTERS}, got {self}")

    def shown(self, answered: bool) -> str:
        """The question as it stands in the prompt, with its answer for a shot."""
        choices = "".join(f"\n{letter}. {choice}" for letter, choice in zip(LETTERS, self.choices, strict=True))
        return f"{self.text}{choices}\nAnswer:" + (f" {self.answer}\n\n" if answered else "")


def read_questions(path: Path) -> list[Question]:
    """Questions of one CSV file. Raises ValueError naming a bad line."""
    questions = []
    with path.open(newline="", encoding="utf-8") as file:
        for number, row in enumerate(csv.reader(file), 1):
            try:
                questions.append(Question(row[0], tuple(row[1:5]), row[5].strip()))
            except (IndexError, ValueError) as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
    return questions


def mmlu(scorer: Scorer, model: str, data: Path, limit: int | None, shots: int = 5, seed: int = 0) -> Report:
    """Accuracy over all questions and by subject; `limit` is the most questions of a subject, drawn by the seed.

    The shots are the first questions of `dev`. Those that do not fit into the model's context are left out from the
    front; a note says in how many prompts.
    """
    subjects = sorted(path.name.removesuffix("_test.csv") for path in (data / "test").glob("*_test.csv"))
    if not subjects:
        raise FileNotFoundError(f"no test/SUBJECT_test.csv in {data}")
    figures: dict[str, Metric] = {}
    lines: list[dict[str, object]] = []
    left_out: list[int] = []
    for subject in progress(subjects, "mmlu"):
        examples = []
        if shots:
            dev = data / "dev" / f"{subject}_dev.csv"
            if not dev.is_file():
                raise FileNotFoundError(f"{dev} is missing: {shots} shots are taken from it; --shots 0 does without")
            examples = read_questions(dev)[:shots]
        right = []
        for question in choose(read_questions(data / "test" / f"{subject}_test.csv"), limit, seed):
            string = partial(_answered, subject, examples, question)
            kept = fitting(scorer.lm, string, len(examples), 1, f"{subject}: {question.text[:60]!r}")
            left_out.append(len(examples) - kept)
            prompt = _prompt(subject, examples[len(examples) - kept :], question)
            scores = scorer.score([Text(prompt)], [Text(f" {letter}") for letter in LETTERS])
            guess = LETTERS[max(range(4), key=lambda i: scores[i].sum)]
            right.append(float(guess == question.answer))
            lines.append({"subject": subject, "question": question.text, "answer": question.answer, "guess": guess})
        figures[subject] = mean_metric("accuracy", right)
    main = mean_metric("accuracy", [float(line["answer"] == line["guess"]) for line in lines])
    notes = left_out_note(left_out, shots)
    settings: dict[str, str | int | float | bool] = {"data": str(data), "shots": shots, "seed": seed, "chance": 0.25}
    return Report("mmlu", model, main, figures, settings, notes, tuple(lines))


def _prompt(subject: str, examples: list[Question], question: Question) -> str:
    title = subject.replace("_", " ")
    return (
        f"The following are multiple choice questions (with answers) about {title}.\n\n"
        + "".join(example.shown(answered=True) for example in examples)
        + question.shown(answered=False)
    )


def _answered(subject: str, examples: list[Question], question: Question, kept: int) -> str:
    """The prompt string with the last `kept` examples and an answer."""
    return f"[Text]{_prompt(subject, examples[len(examples) - kept :], question)} A"
