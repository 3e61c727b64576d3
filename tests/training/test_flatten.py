"""Speech on one note: the pitch is gone, the timing is not."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from spiritrt.training import flatten
from spiritrt.training.corpora.manifest import AudioStore, Clip

RATE_HZ = 16000


def aligned(sound: np.ndarray, level: float = 0.02) -> float:
    """Mean correlation of each loud frame of 40 ms with the loudest of `sound`."""
    frames = sound[: len(sound) // 640 * 640].reshape(-1, 640)
    loud = frames[frames.std(axis=1) > level]
    loudest = loud[np.argmax(loud.std(axis=1))]
    return float(np.mean([np.corrcoef(frame, loudest)[0, 1] for frame in loud[1:-1]]))


def gliding(seconds: float, first_hz: float, last_hz: float) -> np.ndarray:
    """A buzz whose pitch glides, with silence of a fifth of its time on either side."""
    hz = np.linspace(first_hz, last_hz, int(seconds * RATE_HZ))
    phase = 2 * np.pi * np.cumsum(hz) / RATE_HZ
    buzz = 0.1 * sum(np.sin(k * phase) / k for k in range(1, 20))
    quiet = np.zeros(len(buzz) // 5)
    return np.concatenate([quiet, buzz, quiet])


def test_the_note_is_a_whole_number_of_periods_a_unit():
    assert flatten.note(np.array([0.0, 140.0, 143.0, 150.0, 0.0])) == 150
    assert flatten.note(np.array([5.0])) == 25
    with pytest.raises(ValueError, match="nothing is voiced"):
        flatten.note(np.zeros(4))


def test_every_clip_comes_out_on_its_voices_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("pyworld", reason="comes with the train extra")
    clips = [
        (Clip("a", 0, 0, "low", "neutral", "train"), gliding(1.0, 90, 130)),
        (Clip("b", 0, 0, "low", "neutral", "train"), gliding(0.8, 120, 95)),
        (Clip("c", 0, 0, "high", "neutral", "train"), gliding(1.0, 180, 260)),
    ]
    AudioStore.write(tmp_path, ((clip, sound.astype(np.float32)) for clip, sound in clips))
    monkeypatch.setattr(sys, "argv", ["flatten", "--out", str(tmp_path)])
    flatten.main()
    store = AudioStore(tmp_path / "flat")
    assert store.clips.keys() == {"a", "b", "c"}
    monkeypatch.setattr(sys, "argv", ["flatten", "--out", str(tmp_path), "--speakers", "high", "--others-from", "2"])
    flatten.main()
    assert [clip.id for clip in AudioStore(tmp_path / "flat").clips.values()] == ["c", "a", "b"]
    sys.argv[-1] = "3"
    flatten.main()
    assert AudioStore(tmp_path / "flat").clips.keys() == {"c"}
    monkeypatch.setattr(sys, "argv", ["flatten", "--out", str(tmp_path)])
    flatten.main()
    store = AudioStore(tmp_path / "flat")
    for (clip, before), hz in zip(clips, (100, 100, 225), strict=True):
        sound = store.read(store.clips[clip.id]).astype(np.float64)
        assert len(sound) == len(before)
        f0, _ = flatten.pitch(sound)
        assert np.isclose(f0[f0 > 0], hz, rtol=0.02).mean() > 0.95  # all but the first and last periods
        assert np.abs(sound[: len(before) // 10]).max() < 0.01  # silence stays where it was


def test_more_clips_join_on_the_notes_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("pyworld", reason="comes with the train extra")
    clip, sound = Clip("a", 0, 0, "low", "neutral", "train"), gliding(0.8, 90, 110).astype(np.float32)
    AudioStore.write(tmp_path, [(clip, sound)])
    monkeypatch.setattr(sys, "argv", ["flatten", "--out", str(tmp_path)])
    flatten.main()
    before = AudioStore(tmp_path / "flat").read(AudioStore(tmp_path / "flat").clips["a"])
    higher = Clip("b", 0, 0, "low", "neutral", "train"), gliding(0.8, 180, 260).astype(np.float32)
    other = Clip("c", 0, 0, "new", "neutral", "train"), gliding(0.8, 180, 260).astype(np.float32)
    AudioStore(tmp_path).extend(tmp_path, [higher, other])
    monkeypatch.setattr(sys, "argv", ["flatten", "--out", str(tmp_path), "--more"])
    flatten.main()
    store = AudioStore(tmp_path / "flat")
    assert list(store.clips) == ["a", "b", "c"] and np.array_equal(store.read(store.clips["a"]), before)
    assert json.loads((tmp_path / "flat" / "notes.json").read_text()) == {"low": 100.0, "new": 225.0}
    f0, _ = flatten.pitch(store.read(store.clips["b"]).astype(np.float64))
    assert np.isclose(f0[f0 > 0], 100, rtol=0.02).mean() > 0.9


def test_pulses_stand_at_the_same_places_of_every_unit():
    pytest.importorskip("pyworld", reason="comes with the train extra")
    # two voiced stretches with a pause that is no whole number of periods
    sound = np.concatenate([gliding(0.6, 90, 110), np.zeros(333), gliding(0.6, 120, 95)])
    made = flatten.flattened(sound, *flatten.pitch(sound), 100.0)
    assert aligned(made) > 0.8 > 0.3 > aligned(sound)


def test_an_unknown_voice_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    AudioStore.write(tmp_path, [(Clip("a", 0, 0, "low", "neutral", "train"), np.zeros(1600, np.float32))])
    monkeypatch.setattr(sys, "argv", ["flatten", "--out", str(tmp_path), "--speakers", "lwo"])
    with pytest.raises(ValueError, match=r"no training utterances of \['lwo'\]: the speakers are low"):
        flatten.main()
    assert json.loads((tmp_path / "audio.json").read_text())[0]["speaker"] == "low"
