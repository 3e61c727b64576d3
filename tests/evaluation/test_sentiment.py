"""STSP: records as the public code has them, judges of mood, and four directions on the Expressive model."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from stand_ins import needs_fcpe

from spiritrt import SpiritLM
from spiritrt.evaluation.sentiment import (
    DIRECTIONS,
    ProsodyJudge,
    asked_about,
    read_records,
    speech_judge,
    stsp,
    stsp_sampling,
    text_judge,
)
from spiritrt.items import Output
from spiritrt.models.family import Family
from spiritrt.models.pitch import FcpeTracker


def voice(path: Path, swing: float, syllables: float, seconds: float = 1.2, hz: float = 150.0) -> np.ndarray:
    """A buzz whose pitch swings by a share, in so many syllables a second."""
    t = np.arange(int(16000 * seconds)) / 16000
    phase = 2 * np.pi * np.cumsum(hz * (1 + swing * np.sin(2 * np.pi * 1.5 * t))) / 16000
    samples = sum(np.sin(k * phase) / k for k in range(1, 15)) * (0.6 + 0.4 * np.sin(2 * np.pi * syllables * t))
    samples = (0.2 * samples).astype(np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, 16000)
    return samples


SETTINGS = {"amused": (0.3, 6.0), "neutral": (0.1, 4.0), "sad": (0.01, 2.0)}


@pytest.fixture
def records(tmp_path: Path) -> Path:
    lines = []
    for split, hz in (("train", 150.0), ("test", 110.0)):
        for emotion, (swing, syllables) in SETTINGS.items():
            name = f"emov/{split}/{emotion}.wav"
            voice(tmp_path / name, swing, syllables, hz=hz)
            lines.append({"id": len(lines), "wav_path": name, "emotion": emotion, "split": split, "text": "So sad."})
    lines += [{"id": 9, "wav_path": "x.wav", "emotion": "sleepy", "split": "test"}]
    (tmp_path / "records_emov.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def test_records_without_one_of_the_moods_are_left_out(records: Path, tmp_path: Path):
    read = read_records(records)
    assert [record.mood for record in read] == ["positive", "neutral", "negative"] * 2
    assert sum(record.split == "test" for record in read) == 3
    (tmp_path / "records_other.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(ValueError, match="line 1"):
        read_records(records)
    with pytest.raises(FileNotFoundError, match="records"):
        read_records(tmp_path / "emov")


def write_lines(path: Path, *lines: dict[str, object]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize("field", ["text", "transcription", "asr"])
def test_words_stand_in_any_of_three_fields(tmp_path: Path, field: str):
    line = {"id": 1, "wav_path": "a.wav", "emotion": "happy", "split": "test"}
    write_lines(tmp_path / "records.jsonl", {**line, field: "Hello."}, {**line, "id": 2, "wav_path": "b.wav"})
    assert [record.text for record in read_records(tmp_path)] == ["Hello.", None]


def test_a_recording_of_several_files_counts_once(tmp_path: Path):
    """The public demo records are lines of the test records as well."""
    angry = {"id": -5, "wav_path": "emov/a.wav", "emotion": "angry", "split": "demo"}
    amused = {"id": 6, "wav_path": "emov/b.wav", "emotion": "amused", "split": "test", "asr": "Ha."}
    write_lines(tmp_path / "records_emov_demo.jsonl", angry, {k: v for k, v in amused.items() if k != "asr"})
    write_lines(tmp_path / "records_emov_test.jsonl", {**angry, "split": "test"}, amused)
    read = read_records(tmp_path)
    assert [(r.id, r.mood, r.split, r.text) for r in read] == [
        ("-5", "negative", "test", None), ("6", "positive", "test", "Ha."),
    ]  # fmt: skip
    write_lines(tmp_path / "records_other.jsonl", {**amused, "wav_path": "c.wav"})
    with pytest.raises(ValueError, match=r"records_other.*line 1.*id 6 is .*b\.wav"):
        read_records(tmp_path)


def test_the_data_may_be_one_file(tmp_path: Path):
    line = {"id": 1, "wav_path": "a.wav", "emotion": "happy", "split": "dev"}
    for split in ("train", "dev", "test"):
        write_lines(
            tmp_path / f"records_{split}.jsonl", {**line, "id": split, "wav_path": f"{split}.wav", "split": split}
        )
    assert [record.id for record in asked_about(read_records(tmp_path))] == ["test"]
    (record,) = asked_about(read_records(tmp_path / "records_dev.jsonl"))
    assert record.id == "dev" and record.audio == tmp_path / "dev.wav"
    with pytest.raises(ValueError, match="split 'test' or 'dev'"):
        read_records(tmp_path / "records_train.jsonl")


@needs_fcpe
def test_a_file_is_judged_by_the_examples_beside_it(expressive_lm, records: Path):
    lines = [json.loads(line) for line in (records / "records_emov.jsonl").read_text().splitlines()]
    (records / "records_emov.jsonl").unlink()
    for split in ("train", "test"):
        write_lines(records / f"records_emov_{split}.jsonl", *(line for line in lines if line["split"] == split))
    report = stsp(expressive_lm, "m", records / "records_emov_test.jsonl", None, 0, lambda _: "neutral", None, 4)
    assert report.parts["speech inputs"].value == 1.0 and report.parts["speech inputs"].count == 3


def test_a_missing_pitch_tracker_is_said_before_anything_is_judged(base_lm, expressive_lm, records: Path, monkeypatch):
    def missing(self):
        raise ImportError("FcpeTracker needs torchfcpe")

    judged = []
    monkeypatch.setattr(Family, "pitch_tracker", property(missing))
    with pytest.raises(ImportError, match="torchfcpe"):
        stsp(base_lm, "m", records, 1, 0)
    with pytest.raises(ImportError, match="torchfcpe"):
        stsp(expressive_lm, "m", records, 1, 0, judge_speech=judged.append)
    assert not judged
    # a Base model with a judge of its own needs none
    assert stsp(base_lm, "m", records, 1, 0, judge_speech=lambda _: "neutral", max_new_tokens=4).main.count == 4


def test_sampling_is_that_of_the_public_code(base_lm, records: Path, monkeypatch):
    asked = []

    def generate(self, prompt, output="arbitrary", sampling=None, max_new_tokens=0):
        asked.append((sampling.temperature, sampling.top_p, max_new_tokens))
        return Output([], [], [], [], "", "length")

    monkeypatch.setattr(SpiritLM, "generate", generate)
    report = stsp(base_lm, "m", records, 1, 0, judge_speech=lambda _: "neutral")
    assert set(asked) == {(0.9, 0.95, 200)} and report.settings["max_new_tokens"] == 200
    monkeypatch.setattr(type(base_lm.family.checkpoint), "reply", "chain", raising=False)
    assert stsp_sampling(base_lm, 0).temperature == 0.8
    asked.clear()
    stsp(base_lm, "m", records, 1, 0, judge_speech=lambda _: "neutral")
    assert set(asked) == {(0.8, 0.95, 120)}


@needs_fcpe
def test_prosody_tells_moods_apart_in_another_voice(records: Path):
    examples = [(voice(records / "x.wav", *SETTINGS[e]), m) for e, m in zip(
        SETTINGS, ("positive", "neutral", "negative"), strict=True)]  # fmt: skip
    judge = ProsodyJudge(examples, FcpeTracker())
    assert [judge(voice(records / "y.wav", *SETTINGS[e], hz=220.0)) for e in SETTINGS] == [m for _, m in examples]
    with pytest.raises(ValueError, match="no examples of neutral"):
        ProsodyJudge(examples[:1] + examples[2:], FcpeTracker())


@needs_fcpe
def test_four_directions_on_the_expressive_model(expressive_lm, records: Path):
    report = stsp(expressive_lm, "m", records, None, 0, judge_text=lambda _: "negative", max_new_tokens=12)
    assert {*DIRECTIONS, "speech inputs", "text inputs"} == set(report.parts)
    # the text judge always says negative, which one of three records is
    assert report.parts["T->T"].value == report.parts["S->T"].value == pytest.approx(1 / 3)
    assert report.parts["speech inputs"].value == 1.0 and report.main.count == 12
    again = stsp(expressive_lm, "m", records, None, 0, judge_text=lambda _: "negative", max_new_tokens=12)
    assert again.lines == report.lines


def test_records_without_text_have_speech_directions_alone(expressive_lm, records: Path):
    lines = [json.loads(line) for line in (records / "records_emov.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("text", None)
    (records / "records_emov.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    report = stsp(expressive_lm, "m", records, 1, 0, judge_speech=lambda _: "neutral", max_new_tokens=4)
    assert set(report.parts) == {"S->T", "S->S", "speech inputs"} and report.settings["directions"] == "S->T S->S"
    (note,) = report.notes
    assert note.startswith("the mean is of S->T and S->S alone, 2 of 4 directions") and "1 of 1 records" in note


def test_records_of_which_some_have_words_say_so(base_lm, records: Path):
    lines = [json.loads(line) for line in (records / "records_emov.jsonl").read_text().splitlines()]
    lines[3].pop("text")
    write_lines(records / "records_emov.jsonl", *lines)
    report = stsp(base_lm, "m", records, None, 0, judge_speech=lambda _: "neutral", max_new_tokens=4)
    assert report.parts["T->S"].count == 2 and report.parts["S->S"].count == 3
    (note,) = report.notes
    assert "weigh less in the mean (1 of 3 records" in note


@pytest.mark.parametrize("load", [text_judge, speech_judge])
def test_a_classifier_folder_must_be_one(load, tmp_path: Path):
    with pytest.raises(ValueError, match="save_pretrained"):
        load(tmp_path)
