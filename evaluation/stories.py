"""StoryCloze and Topic-StoryCloze: which of two endings follows a story, within and across modalities.

Three layouts. A CSV file as the Story Cloze Test comes (`InputSentence1` ... `RandomFifthSentenceQuiz2`,
`AnswerRightEnding`): text alone. A folder of whole spoken stories, `ID_correct.wav` and `ID_incorrect.wav`: speech
alone, scored as a whole. A folder with `stories.jsonl`, which has everything:

    {"id": "7", "prompt": {"text": "...", "audio": "7_prompt.ogg"}, "right": {...}, "wrong": {...}}

Lines that tell one story, each with another wrong ending, are averaged before stories are.
"""

import csv
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from spiritrt import Speech, Text
from spiritrt.evaluation.likelihood import Comparison, Item, Scorer, accuracies
from spiritrt.evaluation.report import Metric, Report, progress
from spiritrt.evaluation.speech_sets import choose_groups

DIRECTIONS = {"T": ("text", "text"), "S": ("speech", "speech"), "T->S": ("text", "speech"), "S->T": ("speech", "text")}


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of a story, as text, as a recording, or both."""

    text: str | None = None
    audio: Path | None = None

    def has(self, modality: str) -> bool:
        return (self.text if modality == "text" else self.audio) is not None

    @property
    def content(self) -> str | Path | None:
        """What tells it from other parts: its words, or its recording where the words are not known."""
        return self.audio if self.text is None else self.text

    def item(self, modality: str, scorer: Scorer, after_text: bool = False) -> Item:
        """The part as an item; text after text begins with a space."""
        if modality == "text":
            assert self.text is not None
            return Text(f" {self.text}" if after_text else self.text)
        assert self.audio is not None
        return scorer.speech(self.audio)


@dataclass(frozen=True, slots=True)
class Story:
    """The beginning (None where the endings are whole stories) and two endings."""

    id: str
    prompt: Part | None
    right: Part
    wrong: Part

    @property
    def group(self) -> tuple[str | Path | None, ...]:
        """What the story is averaged within: the same beginning with the same right ending."""
        return (None if self.prompt is None else self.prompt.content, self.right.content)

    def can(self, direction: str) -> bool:
        before, after = DIRECTIONS[direction]
        if not (self.right.has(after) and self.wrong.has(after)):
            return False
        return before == after if self.prompt is None else self.prompt.has(before)


def read_stories(path: Path) -> list[Story]:
    """Stories in any of the layouts. Raises FileNotFoundError where there are none, ValueError for a bad line."""
    if path.is_file() and path.suffix == ".csv":
        return _from_csv(path)
    if (path / "stories.jsonl").is_file():
        return _from_lines(path / "stories.jsonl")
    tables = sorted(path.glob("*.csv")) if path.is_dir() else []
    if len(tables) == 1:
        return _from_csv(tables[0])
    stories = []
    for right in sorted(path.glob("*_correct.*")):
        name = right.stem.removesuffix("_correct")
        wrong = right.with_name(f"{name}_incorrect{right.suffix}")
        if not wrong.is_file():
            raise ValueError(f"{right} has no partner {wrong.name}")
        stories.append(Story(name, None, Part(audio=right), Part(audio=wrong)))
    if not stories:
        raise FileNotFoundError(
            f"no stories at {path}: give a CSV file, or a folder with stories.jsonl or ID_correct.wav"
        )
    return stories


def _from_csv(path: Path) -> list[Story]:
    stories = []
    with path.open(newline="", encoding="utf-8") as file:
        for number, row in enumerate(csv.DictReader(file), 2):
            try:
                prompt = " ".join(row[f"InputSentence{i}"].strip() for i in range(1, 5))
                endings = [row["RandomFifthSentenceQuiz1"].strip(), row["RandomFifthSentenceQuiz2"].strip()]
                right = int(row["AnswerRightEnding"])
                parts = Part(endings[right - 1]), Part(endings[2 - right])
            except (KeyError, ValueError, IndexError, AttributeError) as error:
                raise ValueError(f"{path}, line {number}: {type(error).__name__}: {error}") from error
            stories.append(Story(row.get("InputStoryid") or str(number), Part(prompt), *parts))
    if not stories:
        raise ValueError(f"{path} holds no stories")
    return stories


def _from_lines(path: Path) -> list[Story]:
    stories = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            entry = json.loads(line)
            parts = [
                Part(entry[name].get("text"), path.parent / entry[name]["audio"] if entry[name].get("audio") else None)
                for name in ("prompt", "right", "wrong")
            ]
            stories.append(Story(str(entry["id"]), *parts))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{path}, line {number}: {type(error).__name__}: {error}") from error
    if not stories:
        raise ValueError(f"{path} holds no stories")
    return stories


def judge(scorer: Scorer, story: Story, direction: str) -> Comparison:
    """Whether the right ending is likelier in a direction."""
    before, after = DIRECTIONS[direction]
    prompt: list[Text | Speech] = [] if story.prompt is None else [story.prompt.item(before, scorer)]
    follows = before == after == "text" and bool(prompt)
    right, wrong = scorer.score(prompt, [part.item(after, scorer, follows) for part in (story.right, story.wrong)])
    return Comparison.of(right, wrong)


def against_others(stories: Sequence[Story], count: int, seed: int = 0) -> list[Story]:
    """Each distinct story `count` times, its wrong ending the right one of another story, drawn without repetition.

    Stories, and endings, of the same words count once. Which wrong ending a story happens to have is most of the noise
    of a small set.
    """
    distinct: dict[object, Story] = {}
    endings: dict[object, Part] = {}
    for story in stories:
        distinct.setdefault(story.group, story)
        endings.setdefault(story.right.content, story.right)
    crossed = []
    for at, story in enumerate(distinct.values()):
        others = [part for content, part in endings.items() if content != story.right.content]
        drawn = random.Random(f"{seed}-{at}").sample(others, min(count, len(others)))
        crossed += [replace(story, id=f"{story.id}/{n}", wrong=wrong) for n, wrong in enumerate(drawn)]
    return crossed


def storycloze(scorer: Scorer, model: str, data: Path, limit: int | None, others: int = 0, seed: int = 0) -> Report:
    """Accuracy by mean and by sum in every direction that the data has; the main figure is S (else the first), mean.

    Count and spread are of distinct stories, over whose wrong endings the mean is taken first. `limit` is the most
    distinct stories, drawn by the seed. With `others` every story meets so many other stories' endings (of all the
    data) instead of its own wrong ones. Raises ValueError where no direction can be scored.
    """
    stories = read_stories(data)
    if others:
        stories = against_others(stories, others, seed)
    stories = choose_groups(stories, lambda story: story.group, limit, seed)
    figures: dict[str, Metric] = {}
    lines: list[dict[str, object]] = []
    notes = []
    for direction in DIRECTIONS:
        able = [story for story in stories if story.can(direction)]
        if not able:
            notes.append(f"{direction}: the data has not both sides of it")
            continue
        results = [judge(scorer, story, direction) for story in progress(able, direction)]
        for kind, metric in accuracies(results, [story.group for story in able]).items():
            figures[f"{direction} {kind}"] = metric
        lines += [
            {"id": story.id, "direction": direction, "mean": result.mean, "sum": result.sum}
            for story, result in zip(able, results, strict=True)
        ]
    if not figures:
        raise ValueError(f"{data}: no story has a right and a wrong ending of one modality with what comes before")
    main = figures.get("S mean") or next(iter(figures.values()))
    settings: dict[str, str | int | float | bool] = {"data": str(data), "others": others, "seed": seed, "chance": 0.5}
    return Report("storycloze", model, main, figures, settings, tuple(notes), tuple(lines))
