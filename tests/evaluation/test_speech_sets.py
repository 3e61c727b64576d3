"""Spoken data in its public layouts."""

from pathlib import Path

import pytest
from stand_ins import tone

from spiritrt.evaluation.speech_sets import choose, choose_groups, read_labelled, read_librispeech, read_questions


def test_librispeech(librispeech: Path):
    read = read_librispeech(librispeech)
    assert [(item.id, item.text, item.speaker) for item in read][:3] == [
        ("1272-7-0000", "GOOD", "1272"), ("1272-7-0001", "GOOD GOOD", "1272"), ("84-7-0000", "GOOD", "84"),
    ]  # fmt: skip
    assert all(item.audio.is_file() for item in read) and len(read) == 5
    read[0].audio.unlink()
    with pytest.raises(FileNotFoundError, match="1272-7-0000"):
        read_librispeech(librispeech)
    with pytest.raises(FileNotFoundError, match=r"trans\.txt"):
        read_librispeech(librispeech / "dev-clean")


def test_a_folder_a_label(tmp_path: Path):
    tone(tmp_path / "lights" / "a-1.wav")
    with pytest.raises(FileNotFoundError, match="two or more"):
        read_labelled(tmp_path)
    tone(tmp_path / "music" / "b-1.wav")
    (tmp_path / "music" / "notes.txt").write_text("not a sound")
    for place in ("_background_noise_", ".cache"):
        tone(tmp_path / place / "c-1.wav")
    assert [(item.id, item.text, item.speaker) for item in read_labelled(tmp_path)] == [
        ("lights/a-1", "lights", "a"), ("music/b-1", "music", "b"),
    ]  # fmt: skip


def test_questions(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"questions\.jsonl"):
        read_questions(tmp_path)
    (tmp_path / "questions.jsonl").write_text('{"id": 1, "audio": "../q.wav", "text": "a?", "answer": "b"}\n')
    (item,) = read_questions(tmp_path)
    assert (item.id, item.kind, item.audio) == ("1", "", tmp_path / "../q.wav")
    (tmp_path / "questions.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(ValueError, match="line 1"):
        read_questions(tmp_path)


def test_a_choice_is_a_function_of_the_seed():
    items = list(range(50))
    assert choose(items, 5, 1) == choose(items, 5, 1) != choose(items, 5, 2)
    assert choose(items, 5, 1) == sorted(choose(items, 5, 1))
    assert choose(items, None, 1) == choose(items, 50, 1) == items
    with pytest.raises(ValueError, match="limit"):
        choose(items, 0, 1)


def test_a_choice_of_groups_keeps_them_whole():
    items = list(range(50))
    drawn = choose_groups(items, lambda item: item % 10, 3, 1)
    assert drawn == sorted(drawn) and len(drawn) == 15 and len({item % 10 for item in drawn}) == 3
    assert choose_groups(items, lambda item: item % 10, None, 1) == items
