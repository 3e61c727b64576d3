"""Spoken answers: both forms of reply, and what counts as right."""

import json
from pathlib import Path

import pytest
from stand_ins import Judge, tone

from spiritrt import Speech, SpiritLM
from spiritrt.evaluation.dialogue import dialogue, reply
from spiritrt.evaluation.set_texts import right_answer, spoken_words
from spiritrt.items import Output
from spiritrt.sampling import GREEDY


@pytest.mark.parametrize(
    ("kind", "question", "answer", "said", "right"),
    [
        ("addition", "What is two plus two?", "That makes four altogether.", "The answer is 4.", True),
        ("addition", "What is twenty plus two?", "It is twenty two.", "That is 22", True),
        ("addition", "What is two plus two?", "That makes four altogether.", "The answer is 14.", False),
        ("spelling", "How do you spell cat?", "It is C, A, T.", "The letters are C-A-T.", True),
        ("count_up", "Count from eight to ten.", "Eight, nine, ten.", "$8.9.10", True),
        ("count_up", "Count from ten to twelve.", "Ten, eleven, twelve.", "Here we go, 101112.", True),
        ("count_up", "Count from ten to twelve.", "Ten, eleven, twelve.", "10, 12, 11", False),
        ("days", "Which day comes after Monday?", "It is Tuesday.", "tuesday comes after monday", True),
        ("days", "Which day comes after Monday?", "It is Tuesday.", "", False),
        ("animal_sounds", "What does a horse do?", "A horse neighs.", "A horse nays.", True),
        ("animal_sounds", "What does a horse do?", "A horse neighs.", "A horse plays.", False),
        ("", "Who wrote it?", "Jane Austen", "I think that was jane austen.", True),
        ("", "Who wrote it?", "Jane Austen", "I think that was Jane.", False),
        ("", "Is it far?", "No", "I do not know that.", False),
        ("", "Is it far?", "No", "Oh no, it is near.", True),
        ("", "How many?", "nine", "There are ninety.", False),
        ("", "How many?", "9.", "There are nine", True),
        ("", "How many?", "...", "There are nine", False),
    ],
)
def test_what_counts_as_right(kind, question, answer, said, right):
    assert right_answer(kind, question, answer, said) == right


def test_words_as_they_are_said():
    assert spoken_words("At 28, twenty-one CATs: OK?") == [
        "at", "twenty", "eight", "twenty", "one", "cats", "o", "k",
    ]  # fmt: skip


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    tone(tmp_path / "q.wav")
    asked = {"audio": "q.wav", "kind": "days", "text": "Which day comes after Monday?", "answer": "It is Tuesday."}
    lines = [{**asked, "id": 1}, {**asked, "id": 2}, {**asked, "id": 3, "kind": "months", "answer": "It is May."}]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def test_a_chain_writes_what_it_heard_and_answers(base_lm, questions: Path, monkeypatch):
    pytest.importorskip("jiwer")
    monkeypatch.setattr(type(base_lm.family.checkpoint), "reply", "chain", raising=False)
    raws = iter(
        [
            "which day comes after Monday A: It is Tuesday.[Speech][Hu409][Hu367][Hu150]",
            "which day A: It is Tuesday.[Speech][Hu409]",
            "nothing",
        ]
    )
    prompts = []
    transcript_flag = base_lm.family.tokenizer.encode("<START Transcript>", bos=False)

    def generate(self, prompt, output="arbitrary", sampling=None, max_new_tokens=200, stop=None, suppress_tokens=()):
        prompts.append(prompt)
        assert set(suppress_tokens) & set(transcript_flag)
        return Output([], [], [], [], next(raws), "end")

    monkeypatch.setattr(SpiritLM, "generate", generate)
    judge = Judge(["It is Tuesday.", "It is Thursday."])
    report = dialogue(base_lm, "m", questions, None, 0, judge, save_to=questions / "made")
    assert prompts[0].startswith("[Speech][Hu") and prompts[0].endswith("[Text]")
    assert report.main.value == pytest.approx(1 / 3) and report.parts["text"].value == pytest.approx(2 / 3)
    # of three times 5 words: none, 3 and, in the reply without "A:", all are wrong
    understood = report.parts["questions as understood"]
    assert understood.value == pytest.approx(8 / 15) and understood.count == 3
    assert report.parts["speech, days"].value == 0.5 and report.parts["speech, months"].value == 0.0
    assert len(judge.heard) == 2 and len(list((questions / "made").glob("*.wav"))) == 2


def test_a_continuation_goes_on_in_speech(base_lm, questions: Path):
    heard, answer, speech = reply(base_lm, Speech(questions / "q.wav"), GREEDY, 8)
    assert heard == answer == "" and isinstance(speech, Speech)
    report = dialogue(base_lm, "m", questions, 1, 0, Judge(["It is Tuesday, or May."]), max_new_tokens=8)
    assert set(report.parts) >= {"speech"} and "text" not in report.parts
