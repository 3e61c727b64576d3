"""STSP: records as the public code has them, judges of mood, and four directions on the Expressive model."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from stand_ins import needs_fcpe

from spiritrt.evaluation.sentiment import DIRECTIONS, ProsodyJudge, read_records, speech_judge, stsp, text_judge
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
    assert set(report.parts) == {"S->T", "S->S", "speech inputs"} and len(report.notes) == 2


@pytest.mark.parametrize("load", [text_judge, speech_judge])
def test_a_classifier_folder_must_be_one(load, tmp_path: Path):
    with pytest.raises(ValueError, match="save_pretrained"):
        load(tmp_path)
