"""The F0 VQ-VAE learns contours, uses its codes, resumes exactly, and ships an encoder that takes Hz."""

import json
from dataclasses import replace
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


def test_a_state_of_another_corpus_or_tracker_is_refused():
    def fresh(**made_of: str) -> PitchTrainer:
        return PitchTrainer(PitchData(contours(4, 0), TRAINING, made_of), TRAINING)

    state = fresh(tracker="fcpe", utterances="a1").state()
    fresh(tracker="fcpe", utterances="a1").resume(state)
    with pytest.raises(ValueError, match="is of tracker fcpe, not yaapt:"):
        fresh(tracker="yaapt", utterances="a1").resume(state)
    with pytest.raises(ValueError, match="is of utterances a1, not b2:"):
        fresh(tracker="fcpe", utterances="b2").resume(state)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_of_two_batches_has_the_mean_of_their_gradients(precision: str):
    training = replace(TRAINING, precision=precision, accumulate=2)
    trainer = PitchTrainer(PitchData(contours(4, 0), training), training)
    weight = trainer.decoder.layers[0].weight
    alone = []
    for index in (0, 1):
        loss, *_ = trainer.loss(index)
        alone.append(torch.autograd.grad(loss, weight)[0])
    seen: list[torch.Tensor] = []
    weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))
    figures = trainer.step()
    torch.testing.assert_close(seen[-1], (alone[0] + alone[1]) / 2, rtol=1e-3, atol=1e-6)
    assert trainer.step_index == 1 and figures["loss"] > 0
    # the codebook has followed both batches: its use began with those of one
    codes = training.accumulate * training.batch * training.frames // 16
    began = codes / training.accumulate
    assert float(trainer.use.sum()) == pytest.approx(training.decay * began + (1 - training.decay) * codes)
    assert all(p.dtype == torch.float32 for p in trainer.quantizer.parameters())


def test_bf16_learns_the_same_losses_within_its_precision():
    losses = []
    for precision in ("fp32", "bf16"):
        training = replace(TRAINING, precision=precision)
        trainer = PitchTrainer(PitchData(contours(4, 0), training), training)
        losses.append([trainer.step()["loss"] for _ in range(4)])
    assert losses[0] != losses[1]
    np.testing.assert_allclose(losses[0], losses[1], rtol=0.05)


def test_codes_that_nothing_uses_begin_again():
    trainer = PitchTrainer(PitchData(contours(4, 0), TRAINING), TRAINING)
    trainer.step()
    trainer.codes[5] = 1e3
    trainer.use[5] = 0
    trainer.sums[5] = 0
    trainer.step()
    assert trainer.codes[5].abs().max() < 100


class Tracker:
    """Counts what it tracks; stops after `most`."""

    def __init__(self, most: int = 1000) -> None:
        self.calls, self.most = 0, most

    def __call__(self, waveform: torch.Tensor) -> PitchTrack:
        if self.calls == self.most:
            raise InterruptedError
        self.calls += 1
        frames = len(waveform) // 80 + 1
        return PitchTrack(torch.linspace(100, 200, frames), torch.ones(frames))


def make_corpus(folder: Path, count: int, **changes: float) -> None:
    """Noise of a second each, the last one held out; `changes` are made in the first line."""
    lines: list[dict[str, object]] = []
    for number in range(count):
        soundfile.write(folder / f"{number}.wav", 0.1 * np.random.default_rng(number).standard_normal(16000), 16000)
        split = "test" if number + 1 == count else "train"
        lines.append(
            {"id": f"u{number}", "audio": f"{number}.wav", "text": "x", "speaker": "s", "split": split, "words": []}
        )
    lines[0] |= changes
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_utterances_are_tracked_once(tmp_path: Path):
    make_corpus(tmp_path, 2)
    tracker = Tracker()
    made_of = []
    for _ in range(2):
        train, held_out, origin = track_corpora([tmp_path], tracker, "a", tmp_path / "f0.npz")
        assert len(train) == len(held_out) == 1 and train[0].shape == (2, 201)
        assert abs(float(train[0][0].mean())) < 1e-3
        made_of.append(origin)
    assert tracker.calls == 2 and made_of[0] == made_of[1]
    assert {path.name for path in tmp_path.glob("*.npz*")} == {"f0.npz"}


def test_f0_of_another_tracker_sound_or_cut_is_made_anew(tmp_path: Path):
    make_corpus(tmp_path, 3)
    tracker, cache = Tracker(), tmp_path / "f0.npz"
    origins = [track_corpora([tmp_path], tracker, "a", cache)[2]]
    origins.append(track_corpora([tmp_path], tracker, "b", cache)[2])
    assert tracker.calls == 6
    # the first utterance under its old id: another sound of the same length, then a part of it
    soundfile.write(tmp_path / "0.wav", 0.1 * np.random.default_rng(9).standard_normal(16000), 16000)
    origins.append(track_corpora([tmp_path], tracker, "b", cache)[2])
    assert tracker.calls == 7
    make_corpus(tmp_path, 3, duration_s=0.5)
    train, _, origin = track_corpora([tmp_path], tracker, "b", cache)
    assert tracker.calls == 8 and train[0].shape == (2, 101)
    assert len({json.dumps(one) for one in (*origins, origin)}) == 4
    assert track_corpora([tmp_path], tracker, "a", cache)[2]["tracker"] == "a" and tracker.calls == 9


def test_a_kill_leaves_the_f0_that_was_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make_corpus(tmp_path, 6)
    cache = tmp_path / "f0.npz"
    monkeypatch.setattr(pitch, "SAVE_EVERY", 2)
    with pytest.raises(InterruptedError):
        track_corpora([tmp_path], Tracker(3), "a", cache)  # two of three are saved

    def torn(path: Path, **arrays: np.ndarray) -> None:
        path.write_bytes(b"half")
        raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", torn)
        with pytest.raises(InterruptedError):
            track_corpora([tmp_path], Tracker(), "a", cache)
    tracker = Tracker()
    train, held_out, _ = track_corpora([tmp_path], tracker, "a", cache)
    assert tracker.calls == 4 and len(train) == 5 and len(held_out) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": 100}, "multiple of 16"),
        ({"decay": 1.0}, "decay"),
        ({"commitment": -1}, "neg"),
        ({"accumulate": 0}, "accumulate must be at least 1, got 0"),
    ],
)
def test_bad_settings_are_named(changes: dict[str, float], message: str):
    with pytest.raises(ValueError, match=message):
        PitchTraining(**changes)
    with pytest.raises(ValueError, match="precision must be one of"):
        PitchTraining(precision="fp8")
    with pytest.raises(ValueError, match="the longest has 400"):
        PitchData(contours(1, 0), PitchTraining(frames=512))
