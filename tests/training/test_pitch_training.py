"""The F0 VQ-VAE learns contours, uses its codes, resumes exactly, and ships an encoder that takes Hz."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from spiritrt.models.checkpoints import find, save_part
from spiritrt.models.pitch import PitchQuantizerConfig, PitchTrack, pitch_quantizer_from_official
from spiritrt.training import pitch
from spiritrt.training.pitch import OFFICIAL_CONFIG, PitchData, PitchTrainer, PitchTraining, evaluate, track_corpora

TRAINING = PitchTraining(steps=160, batch=8, frames=128, lr=3e-3)


def contours(count: int, seed: int) -> list[np.ndarray]:
    """Slow rises and falls around 0 Hz, with unvoiced stretches."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        t = np.arange(400) / 200
        f0 = 40 * np.sin(2 * np.pi * rng.uniform(0.3, 1.0) * t + rng.uniform(0, 6))
        voiced = (np.sin(2 * np.pi * rng.uniform(0.5, 1.5) * t + rng.uniform(0, 6)) > -0.5).astype(float)
        made.append(np.stack([f0, voiced]).astype(np.float32))
    return made


@pytest.fixture(scope="module")
def trained() -> PitchTrainer:
    trainer = PitchTrainer(PitchData(contours(12, 0), TRAINING), TRAINING)
    for _ in range(TRAINING.steps):
        trainer.step()
    return trainer


def test_it_learns_contours_of_others_and_uses_its_codes(trained: PitchTrainer):
    held_out = contours(6, 1)
    figures = evaluate(trained, held_out)
    flat = float(np.mean([np.abs(row[0][row[1] > 0.5]).mean() for row in held_out]))
    assert figures["f0_error_hz"] < 0.5 * flat
    assert figures["voicing_error"] < 0.25 and figures["codes_used"] > 5


def test_what_is_shipped_takes_hz_and_loads(trained: PitchTrainer, tmp_path: Path):
    save_part(tmp_path / "model", "pitch", OFFICIAL_CONFIG, trained.shipped())
    part = find(str(tmp_path / "model")).part("pitch")
    quantizer = pitch_quantizer_from_official(part.config, part.load())
    (row,) = contours(1, 2)
    given = torch.from_numpy(row)[None]
    scaled = given.clone()
    scaled[:, 0] /= pitch.SCALE_HZ
    with torch.inference_mode():
        assert torch.equal(quantizer(given).argmax(-1), trained.quantizer(scaled).argmax(-1))
    assert quantizer.config == PitchQuantizerConfig.from_official(OFFICIAL_CONFIG)
    assert quantizer.config.frames_per_code == 16


def test_a_resumed_run_repeats(tmp_path: Path):
    def fresh() -> PitchTrainer:
        return PitchTrainer(PitchData(contours(4, 0), TRAINING), TRAINING)

    whole = fresh()
    losses = [whole.step()["loss"] for _ in range(6)]
    first = fresh()
    assert [first.step()["loss"] for _ in range(3)] == losses[:3]
    torch.save(first.state(), tmp_path / "state")
    second = fresh()
    second.resume(torch.load(tmp_path / "state", weights_only=True))
    assert [second.step()["loss"] for _ in range(3)] == losses[3:]


def test_codes_that_nothing_uses_begin_again():
    trainer = PitchTrainer(PitchData(contours(4, 0), TRAINING), TRAINING)
    trainer.step()
    trainer.codes[5] = 1e3
    trainer.use[5] = 0
    trainer.sums[5] = 0
    trainer.step()
    assert trainer.codes[5].abs().max() < 100


def test_corpora_are_tracked_once(tmp_path: Path):
    soundfile.write(tmp_path / "a.wav", 0.1 * np.random.default_rng(0).standard_normal(16000), 16000)
    lines = [
        {"id": name, "audio": "a.wav", "text": "x", "speaker": "s", "split": split, "words": []}
        for name, split in (("a", "train"), ("b", "test"))
    ]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    calls = []

    def tracker(waveform: torch.Tensor) -> PitchTrack:
        calls.append(len(waveform))
        frames = len(waveform) // 80 + 1
        return PitchTrack(torch.linspace(100, 200, frames), torch.ones(frames))

    for _ in range(2):
        train, held_out = track_corpora([tmp_path], tracker, tmp_path / "f0.npz")
        assert len(train) == len(held_out) == 1 and train[0].shape == (2, 201)
        assert abs(float(train[0][0].mean())) < 1e-3
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"frames": 100}, "multiple of 16"), ({"decay": 1.0}, "decay"), ({"commitment": -1}, "neg")],
)
def test_bad_settings_are_named(changes: dict[str, float], message: str):
    with pytest.raises(ValueError, match=message):
        PitchTraining(**changes)
    with pytest.raises(ValueError, match="the longest has 400"):
        PitchData(contours(1, 0), PitchTraining(frames=512))
