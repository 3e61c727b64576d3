"""Encoder training: crops stay aligned with their targets, a step learns, a resumed run repeats, an export loads."""

import json
import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from spiritrt.models.checkpoints import find
from spiritrt.models.hubert import Hubert, HubertConfig, encode_units, hubert_from_official, quantizer_from_official
from spiritrt.training.augment import Augmentation, augment, change_speed
from spiritrt.training.checkpoint import Budget, Schedule, count_parameters, load_checkpoint, save_checkpoint
from spiritrt.training.corpora.manifest import AudioStore, Clip, of_units
from spiritrt.training.encoder import HUBERT_CONFIG, N_UNITS, EncoderTrainer, export, frame_spectra
from spiritrt.training.encoder_data import (
    EncoderData,
    EncoderTraining,
    Targets,
    chunked_attention,
    read_targets,
    source_frames,
)
from spiritrt.training.loop import train
from spiritrt.training.units import frame_count

QUIET = Augmentation(speed_share=0, channel_share=0, noise_share=0, peak_range_db=(-3.0, -3.0))
SILENCE_UNIT = 9


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def toy(folder: Path, augmentation: Augmentation = QUIET, **settings: float | str) -> EncoderData:
    """Two clips of tones, 200 ms each; the unit is the number of the tone."""
    rng = np.random.default_rng(1)
    clips, targets = [], {}
    for name in ("x", "y"):
        tones = rng.integers(0, 4, 15)
        samples = np.concatenate([0.3 * np.sin(np.arange(3200) * (0.1 + 0.2 * tone)) for tone in tones])
        clips.append((Clip(name, 0, 0, "af_heart", "neutral", "train"), samples.astype(np.float32)))
        units = np.repeat(tones, 5)[: frame_count(len(samples)), None]
        targets[name] = Targets(units, np.ones(units.shape, np.float32))
    AudioStore.write(folder, clips)
    training = EncoderTraining(
        steps=10_000,
        batch_frames=20,
        crop_frames=(20,),
        augmentation=augmentation,
        dropout=0.0,
        clean_steps=1,
        **settings,
    )
    inventory = [str(n // 10) for n in range(N_UNITS)]
    return EncoderData(AudioStore(folder), targets, inventory, SILENCE_UNIT, training)


@pytest.mark.parametrize("speed", [0.8, 1.0, 1.25])
def test_source_frames_follow_the_speed(speed):
    frames = source_frames(10, 1280, speed)
    centre_s = (1280 + (np.arange(10) * 640 + 360) * speed) / 16000
    assert np.abs(frames * 0.04 + 0.0225 - centre_s).max() <= 0.02 + 1e-9


@pytest.mark.parametrize("silence_share", [0.0, 1.0])
def test_crops_stay_aligned_with_their_targets(tmp_path, silence_share):
    data = toy(tmp_path, silence_share=silence_share, jitter_samples=0)
    rng = np.random.default_rng(5)
    silent_frames = 0
    for _ in range(12):
        sound, units, probs = data.crop(data.labelled[0], 20, rng)
        assert sound.shape == (19 * 640 + 720,) and (probs.sum(-1) == 1).all()
        for t in range(20):
            middle = sound[t * 640 + 310 : t * 640 + 410]
            if units[t, 0] == SILENCE_UNIT:
                silent_frames += 1
                assert np.abs(middle).max() < 0.05 or t in (0, 19) or units[t - 1, 0] != units[min(t + 1, 19), 0]
                continue
            # cycles in the middle of the frame tell the tone, unless a change falls there
            if 0 < t < 19 and units[t - 1, 0] == units[t, 0] == units[t + 1, 0]:
                crossings = (np.diff(np.sign(middle)) != 0).sum()
                assert crossings == pytest.approx((0.1 + 0.2 * units[t, 0]) * 100 / np.pi, abs=2)
    assert (silent_frames > 0) == (silence_share == 1.0)


def test_batches_depend_on_seed_and_step_only(tmp_path):
    data = toy(tmp_path, Augmentation())
    first, again, other = data.batch(3), data.batch(3), data.batch(4)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_augmentation_keeps_length_level_and_finiteness():
    rng = np.random.default_rng(0)
    a = Augmentation(channel_share=1, noise_share=1, telephone_share=0.5, room_share=0.5)
    for n in (720, 5001, 16000):
        made = augment(rng.standard_normal(n).astype(np.float32) * 0.1, a, rng)
        assert made.shape == (n,) and made.dtype == np.float32 and np.isfinite(made).all()
        assert 10 ** (-30.5 / 20) < np.abs(made).max() <= 1
    assert np.isfinite(augment(np.zeros(4000, np.float32), a, rng)).all()
    assert len(change_speed(np.zeros(16000, np.float32), 1.25)) == pytest.approx(12800, abs=2)


def test_a_few_steps_learn_and_a_resumed_run_repeats(tmp_path):
    data = toy(tmp_path)
    trainer = EncoderTrainer(data, data.training)
    losses = [trainer.step()["loss"] for _ in range(12)]
    assert min(losses[-3:]) < losses[0] - 0.1
    save_checkpoint(tmp_path / "e.ckpt", trainer.state())
    following = [trainer.step()["loss"] for _ in range(2)]
    resumed = EncoderTrainer(data, data.training)
    state = load_checkpoint(tmp_path / "e.ckpt")
    assert state is not None
    resumed.resume(state)
    assert [resumed.step()["loss"] for _ in range(2)] == following


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_of_two_batches_has_the_mean_of_their_gradients(tmp_path, precision):
    data = toy(tmp_path, precision=precision, accumulate=2)
    trainer = EncoderTrainer(data, data.training)
    trainer.model.train()
    alone = []
    for index in (0, 1):
        loss, _ = trainer.loss(index)
        alone.append(torch.autograd.grad(loss, trainer.model["quantizer"][0].weight)[0])
    seen = []
    trainer.model["quantizer"][0].weight.register_post_accumulate_grad_hook(
        lambda weight: seen.append(weight.grad.clone())
    )
    figures = trainer.step()
    torch.testing.assert_close(seen[-1], (alone[0] + alone[1]) / 2, rtol=1e-3, atol=1e-6)
    assert trainer.step_index == 1 and figures["loss"] > 0
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())
    for bad in ({"precision": "fp8"}, {"accumulate": 0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            EncoderTraining(**bad)


def test_bf16_learns_the_same_losses_within_its_precision(tmp_path):
    losses = []
    for precision in ("fp32", "bf16"):
        data = toy(tmp_path, precision=precision)
        trainer = EncoderTrainer(data, data.training)
        losses.append([trainer.step()["loss"] for _ in range(4)])
    assert losses[0] != losses[1]
    np.testing.assert_allclose(losses[0], losses[1], rtol=0.03)


def test_an_encoder_begins_with_that_of_a_family_of_the_same_units(tmp_path):
    data = toy(tmp_path)
    first = EncoderTrainer(data, data.training)
    first.step()
    hubert, quantizer = export(first, tmp_path / "family")
    second = EncoderTrainer(data, data.training)
    with pytest.raises(ValueError, match="does not name them"):
        second.begin_from(find(tmp_path / "family"))
    inventory = tmp_path / "family" / "inventory.json"
    inventory.write_text(json.dumps([str(n // 10) for n in range(N_UNITS)]))
    second.begin_from(find(tmp_path / "family"))
    waveform = torch.from_numpy(data.store.read(data.labelled[0]))
    assert torch.equal(encode_units(*second.shipped(), waveform), encode_units(hubert, quantizer, waveform))
    assert second.step()["loss"] > 0
    inventory.write_text(json.dumps(["a"] * N_UNITS))
    with pytest.raises(ValueError, match="other units"):
        second.begin_from(find(tmp_path / "family"))


def test_a_state_of_other_units_is_refused(tmp_path):
    data = toy(tmp_path)
    trainer = EncoderTrainer(data, data.training)
    state = trainer.state()
    data.made_of = {"units": "others"}
    with pytest.raises(ValueError, match="not others: choose another folder"):
        trainer.resume(state)


def test_chunked_attention_sees_its_chunk_and_a_bounded_future():
    mask = chunked_attention(10, chunk=4, look_ahead=2)
    assert mask[0].tolist() == mask[3].tolist() == [True] * 6 + [False] * 4
    assert mask[4].tolist() == [True] * 10
    assert torch.equal(chunked_attention(5, 1, 0), torch.ones(5, 5).tril().bool())
    torch.manual_seed(0)
    encoder = Hubert(HubertConfig.from_official(HUBERT_CONFIG | {"output_layer": 1})).eval().encoder
    x = torch.randn(1, 40, 256)
    other = torch.cat([x[:, :30], torch.randn(1, 10, 256)], dim=1)
    near, whole = (encoder(x, sees) - encoder(other, sees) for sees in (chunked_attention(40, 4, 8), None))
    # the positional convolution of 16 reaches 8 frames back by itself
    assert near[:, :8].abs().max() < 1e-5 < whole[:, :8].abs().max()


def test_a_share_of_the_steps_has_the_attention_of_a_stream(tmp_path):
    steps = [toy(tmp_path, chunked_share=share).sees(step, 20) for share in (0.0, 0.5, 1.0) for step in range(40)]
    assert all(mask is None for mask in steps[:40]) and all(mask is not None for mask in steps[80:])
    assert 10 < sum(mask is not None for mask in steps[40:80]) < 30
    with pytest.raises(ValueError, match="chunked_share"):
        EncoderTraining(chunked_share=1.5)


def test_export_loads_and_gives_the_same_units(tmp_path):
    data = toy(tmp_path)
    trainer = EncoderTrainer(data, data.training)
    for _ in range(3):
        trainer.step()
    hubert, quantizer = export(trainer, tmp_path / "family")
    assert count_parameters([hubert, quantizer]) <= 4e6
    family = find(tmp_path / "family")
    loaded = hubert_from_official(family.part("hubert").config, family.part("hubert").load())
    head = quantizer_from_official(family.part("quantizer").config, family.part("quantizer").load())
    waveform = torch.from_numpy(data.store.read(data.labelled[0]))
    units = encode_units(loaded, head, waveform)
    assert torch.equal(units, encode_units(hubert, quantizer, waveform))
    assert len(units) == frame_count(len(waveform)) and units.max() < N_UNITS
    with torch.no_grad():
        assert head(loaded(torch.zeros(1, 16000)))[..., N_UNITS].max() < -1000


def test_frame_spectra_are_one_row_a_frame_and_free_of_level():
    torch.manual_seed(0)
    sound = torch.randn(2, 5 * 640 + 80) * torch.linspace(0.1, 1, 5 * 640 + 80)
    spectra = frame_spectra(sound)
    assert spectra.shape == (2, 5, 128)
    torch.testing.assert_close(frame_spectra(sound * 0.5), spectra, atol=0.02, rtol=0.02)
    assert (spectra.mean(-1).diff(dim=1) > 0).all()  # it grows louder


def test_sigterm_ends_a_training_with_a_checkpoint(tmp_path):
    data = toy(tmp_path)
    trainer = EncoderTrainer(data, data.training)
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    train(trainer, trainer.training.steps, tmp_path / "e.ckpt", tmp_path / "e.log", Budget(5))
    state = load_checkpoint(tmp_path / "e.ckpt")
    assert state is not None and state["step"] == trainer.step_index < 60


def test_the_last_steps_are_logged_and_a_spent_budget_is_said(tmp_path, capsys):
    data = toy(tmp_path)
    trainer = EncoderTrainer(data, data.training)
    for steps in (5, 5):
        train(trainer, steps, tmp_path / "e.ckpt", tmp_path / "e.log", Budget(5), every=3)
    lines = [json.loads(line) for line in (tmp_path / "e.log").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 5] and all(line["loss"] > 0 for line in lines)
    assert capsys.readouterr().err.count("e.ckpt: the budget of 5 steps was spent before: give more --steps") == 1


def test_schedule_warms_up_and_decays():
    schedule = Schedule(1e-3, 1000, warmup=100, floor=0.1)
    assert schedule(0) == pytest.approx(1e-5) and schedule(99) == pytest.approx(1e-3)
    assert schedule(1000) == pytest.approx(1e-4) and schedule(5000) == pytest.approx(1e-4)
    with pytest.raises(ValueError, match="schedule"):
        Schedule(0.0, 10)


def test_the_teacher_shares_the_targets_of_labelled_speech(tmp_path):
    tops, sure = np.array([[3, 4], [4, 3]], np.int16), np.array([[0.75, 0.25], [0.5, 0.5]], np.float16)
    arrays = {f"{name}/top_{kind}": a for name in ("said", "a/b") for kind, a in (("units", tops), ("probs", sure))}
    np.savez(tmp_path / "targets.npz", **arrays, **{"said/units": np.array([7, 3], np.int16)})
    exact = read_targets(tmp_path / "targets.npz")
    assert exact["said"].units.tolist() == [[7], [3]] and exact["said"].probs.tolist() == [[1], [1]]
    shared = read_targets(tmp_path / "targets.npz", 0.4)
    assert shared["said"].units.tolist() == [[7, 3, 4], [3, 4, 3]]
    np.testing.assert_allclose(shared["said"].probs, [[0.6, 0.3, 0.1], [0.6, 0.2, 0.2]], rtol=1e-6)
    for targets in (exact, shared):
        assert targets["a/b"].units.tolist() == tops.tolist() and targets["a/b"].probs.tolist() == sure.tolist()
    with pytest.raises(ValueError, match=r"teacher_share.*1\.5"):
        EncoderTraining(teacher_share=1.5)


def test_missing_or_foreign_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"training\.units"):
        read_targets(tmp_path / "targets.npz")
    with pytest.raises(FileNotFoundError, match=r"no inventory\.json in .*training\.units"):
        of_units(tmp_path / "inventory.json")
    assert load_checkpoint(tmp_path / "none.ckpt") is None
    torch.save({"a": 1}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="not a training checkpoint"):
        load_checkpoint(tmp_path / "other.ckpt")
