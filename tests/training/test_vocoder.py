"""Vocoder training: aligned crops, losses, durations, exact resume, export."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from spiritrt.models.checkpoints import find
from spiritrt.models.hubert import Hubert, HubertConfig
from spiritrt.models.vocoder import vocode_frames, vocode_units, vocoder_from_official
from spiritrt.training.checkpoint import count_parameters, load_checkpoint, save_checkpoint
from spiritrt.training.corpora.manifest import UNLABELLED, AudioStore, Clip
from spiritrt.training.discriminators import Discriminators, adversarial_loss, discriminator_loss, feature_loss
from spiritrt.training.encoder import HUBERT_CONFIG
from spiritrt.training.losses import HearingLoss, SpectralLoss, mel_filters
from spiritrt.training.shards import Tokenized
from spiritrt.training.vocoder import VocoderTrainer, build_vocoder, duration_error, export, fit_durations, folded
from spiritrt.training.vocoder_data import (
    OFFICIAL_CONFIG,
    SPEAKERS,
    Codes,
    VocoderData,
    VocoderTraining,
    expressive_config,
    run_lengths,
    speakers_of,
    with_speakers,
)

INVENTORY = [str(n // 10) for n in range(500)]
SMALL = VocoderTraining(duration_steps=20, steps=20, gan_from=1000, batch=1, frames=8, gan_frames=4)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def toy(folder: Path, training: VocoderTraining = SMALL) -> VocoderData:
    """One clip a voice; the sample value in each frame is its unit / 1000."""
    rng = np.random.default_rng(2)
    folder.mkdir(exist_ok=True)
    clips, targets = [], {}
    for speaker in SPEAKERS:
        units = rng.integers(0, 500, 20)
        samples = np.repeat(units / 1000, 640).astype(np.float32)
        clips.append((Clip(speaker, 0, 0, speaker, "neutral", "train"), np.append(samples, np.zeros(80, np.float32))))
        targets[speaker] = units
    AudioStore.write(folder, clips)
    return VocoderData(AudioStore(folder), targets, [], INVENTORY, training)


def test_crops_of_units_and_sound_are_aligned(tmp_path):
    data = toy(tmp_path, VocoderTraining(batch=6, frames=7, gan_frames=4, swap_units=0.0))
    crops = data.batch(0)
    units, speakers, sound = crops.units, crops.speakers, crops.sound
    assert units.shape == (6, 7) and sound.shape == (6, 7 * 640) and speakers.max() < len(SPEAKERS)
    np.testing.assert_allclose(sound.view(6, 7, 640).mean(-1), units / 1000, atol=1e-4)


def test_a_corpus_brings_its_own_voices(tmp_path):
    clips = [(Clip(name, 0, 0, name, "neutral", "train"), np.zeros(12800, np.float32)) for name in ("una", "ada")]
    AudioStore.write(tmp_path, clips)
    store = AudioStore(tmp_path)
    assert speakers_of(store) == ("ada", "una") and speakers_of(store, ["una"]) == ("una",)
    training = VocoderTraining(batch=6, frames=7, gan_frames=4, speakers=speakers_of(store))
    data = VocoderData(store, {name: np.arange(20) for name in ("ada", "una")}, [], INVENTORY, training)
    assert set(data.batch(0).speakers.tolist()) == {0, 1}
    config = with_speakers(OFFICIAL_CONFIG, training.voices)
    assert config["speakers"] == ["ada", "una"]
    assert build_vocoder(config).config.num_speakers == 2
    assert speakers_of(toy(tmp_path / "nano").store) == SPEAKERS
    clips.append((Clip("0", 0, 0, UNLABELLED, "neutral", "train"), np.zeros(640, np.float32)))
    AudioStore.write(tmp_path, clips)
    assert speakers_of(AudioStore(tmp_path)) == ("ada", "una")


def test_other_voices_help_to_learn_and_are_not_exported(tmp_path):
    own, others = SPEAKERS[:1], SPEAKERS[1:]
    training = replace(SMALL, batch=400, speakers=own, others=others, others_share=0.3)
    data = toy(tmp_path, training)
    drawn = np.bincount(data.batch(0).speakers)
    assert drawn[0] / 400 == pytest.approx(0.7, abs=0.07) and len(drawn) == 4 and drawn.min() > 20
    trainer = VocoderTrainer(data, replace(training, batch=1), with_speakers(OFFICIAL_CONFIG, own))
    trainer.step()
    wide = folded(trainer.vocoder, None, with_speakers(OFFICIAL_CONFIG, training.voices))
    export(trainer, tmp_path / "family", [data.targets[own[0]]], [])
    part = find(tmp_path / "family").part("vocoder")
    assert part.config["speakers"] == list(own) and part.config["num_speakers"] == 1
    shipped = vocoder_from_official(part.config, part.load())
    assert len(shipped.spkr.weight) == 1 and wide.config.num_speakers == 4
    for share in (-0.1, 1.0):
        with pytest.raises(ValueError, match=f"others_share.*{share}"):
            VocoderTraining(others_share=share)
    with pytest.raises(ValueError, match="each once"):
        VocoderTraining(others=SPEAKERS[:1])


def test_units_of_the_encoder_replace_targets_by_share(tmp_path):
    training = VocoderTraining(batch=6, frames=7, gan_frames=4, swap_units=0.0, encoder_share=1.0)
    data = toy(tmp_path, training)
    heard = {name: 499 - units for name, units in data.targets.items()}
    crops = VocoderData(data.store, data.targets, [heard], INVENTORY, training).batch(0)
    assert torch.equal(499 - crops.units, (crops.sound.view(6, 7, 640).mean(-1) * 1000).round().long())


def test_swapped_units_stay_in_their_phone(tmp_path):
    data = toy(tmp_path, VocoderTraining(batch=6, frames=7, gan_frames=4, swap_units=1.0))
    units, sound = data.batch(0).units, data.batch(0).sound
    real = (sound.view(6, 7, 640).mean(-1) * 1000).round().long()
    assert torch.equal(units // 10, real // 10) and not torch.equal(units, real)


def test_a_voice_without_data_is_an_error(tmp_path):
    toy(tmp_path)
    with pytest.raises(ValueError, match="no training utterances"):
        VocoderData(AudioStore(tmp_path), {}, [], INVENTORY, SMALL)


def test_spectral_loss_is_zero_on_itself_and_grows_with_distance():
    loss = SpectralLoss()
    n = torch.arange(6400)
    a, b, c = (torch.sin(n * w)[None] * 0.3 for w in (0.2, 0.21, 0.8))
    assert loss(a, a) == 0
    assert 0 < loss(b, a) < loss(c, a)


def test_hearing_loss_is_zero_on_itself_and_leaves_the_encoder_alone():
    torch.manual_seed(0)
    loss = HearingLoss(Hubert(HubertConfig.from_official(HUBERT_CONFIG)))
    real = torch.randn(2, 6400) * 0.1
    made = (real + 0.01 * torch.randn_like(real)).requires_grad_()
    assert loss(real, real) == 0
    near, far = loss(made, real), loss(torch.randn_like(real) * 0.1, real)
    assert 0 < near < far
    near.backward()
    assert made.grad is not None and made.grad.norm() > 0
    assert all(p.grad is None for p in loss.parameters())


def test_mel_filters_cover_the_band():
    filters = mel_filters(24, 512, 16000)
    assert filters.shape == (24, 257) and filters.min() == 0
    assert (filters.sum(0)[5:-5] > 0).all()
    with pytest.raises(ValueError, match="bins"):
        mel_filters(0, 512, 16000)


@pytest.mark.parametrize("samples", [2560, 7680, 7681])
def test_discriminators_tell_made_from_real_after_a_few_steps(samples):
    torch.manual_seed(0)
    judges = Discriminators()
    optimizer = torch.optim.AdamW(judges.parameters(), lr=2e-3)
    real, made = torch.sin(torch.arange(samples) * 0.1)[None] * 0.5, torch.randn(1, samples) * 0.3
    first = None
    for _ in range(8):
        loss = discriminator_loss(judges(made), judges(real))
        first = first if first is not None else float(loss.detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.9 * first
    assert adversarial_loss(judges(made)) > 0 and feature_loss(judges(real), judges(real)) == 0


def test_run_lengths():
    units, frames = run_lengths(np.array([5, 5, 9, 9, 9, 4]))
    assert units.tolist() == [5, 9, 4] and frames.tolist() == [2, 3, 1]
    assert len(run_lengths(np.array([], np.int64))[0]) == 0


def test_durations_are_learnt():
    torch.manual_seed(0)
    vocoder = folded(build_vocoder(), None)
    rng = np.random.default_rng(0)
    # unit u lasts 1 + u % 4 frames
    lines = [np.concatenate([np.full(1 + u % 4, u) for u in rng.permutation(12)]) for _ in range(8)]
    fit_durations(vocoder, lines, seed=1, steps=200, batch=4)
    figures = duration_error(vocoder, lines)
    assert figures["duration_error_frames"] < 0.35 and figures["length_ratio"] == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize(("gan_from", "hears"), [(0, False), (1000, False), (1000, True)])
def test_a_few_steps_learn_and_a_resumed_run_repeats(tmp_path, gan_from, hears):
    training = VocoderTraining(steps=50, gan_from=gan_from, batch=1, frames=8, gan_frames=4)
    data = toy(tmp_path, training)
    torch.manual_seed(0)
    hubert = Hubert(HubertConfig.from_official(HUBERT_CONFIG)) if hears else None
    trainer = VocoderTrainer(data, training, hubert=hubert)
    losses = [trainer.step()["spectral"] for _ in range(8)]
    assert min(losses[-3:]) < losses[0]
    save_checkpoint(tmp_path / "v.ckpt", trainer.state())
    following = [trainer.step() for _ in range(2)]
    resumed = VocoderTrainer(data, training, hubert=hubert)
    state = load_checkpoint(tmp_path / "v.ckpt")
    assert state is not None
    resumed.resume(state)
    assert [resumed.step() for _ in range(2)] == following


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_of_two_batches_has_the_mean_of_their_gradients(tmp_path, precision):
    training = replace(SMALL, gan_from=0, accumulate=2, precision=precision)
    trainer = VocoderTrainer(toy(tmp_path, training), training)
    weight, judge = trainer.vocoder.conv_post.bias, trainer.discriminators.members[0].last.bias
    alone = []
    for index in (0, 1):
        loss, _ = trainer.losses(index, True)
        alone.append(torch.autograd.grad(loss, weight)[0])
    of_judge, judge.grad = judge.grad, None
    seen = []
    for parameter in (weight, judge):
        parameter.register_post_accumulate_grad_hook(lambda p: seen.append((p is weight, p.grad.clone())))
    trainer.discriminators.zero_grad()
    figures = trainer.step()
    made = {own: gradient for own, gradient in seen}
    torch.testing.assert_close(made[True], (alone[0] + alone[1]) / 2, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(made[False], of_judge, rtol=1e-3, atol=1e-5)
    assert trainer.step_index == 1 and {"spectral", "d", "g", "fm"} <= figures.keys()
    with pytest.raises(ValueError, match="accumulate"):
        VocoderTraining(accumulate=0)
    with pytest.raises(ValueError, match="'half'"):
        VocoderTraining(precision="half")


def test_a_vocoder_begins_with_the_sound_of_another_of_its_voices(tmp_path):
    torch.manual_seed(4)
    base = folded(build_vocoder(), None)
    own, others = SPEAKERS[:2], SPEAKERS[2:3]
    training = replace(SMALL, speakers=own, others=others)
    data = toy(tmp_path, training)
    trainer = VocoderTrainer(data, training, with_speakers(OFFICIAL_CONFIG, own), base)
    units = torch.arange(12)
    begun = folded(trainer.vocoder, trainer.average, with_speakers(OFFICIAL_CONFIG, own))
    torch.testing.assert_close(
        vocode_frames(begun, units, speaker=1), vocode_frames(base, units, speaker=1), atol=1e-5, rtol=1e-4
    )


def test_a_state_of_other_voices_or_units_is_refused(tmp_path):
    trainer = VocoderTrainer(toy(tmp_path), SMALL)
    state = trainer.state()
    other = replace(SMALL, speakers=SPEAKERS[::-1])
    with pytest.raises(ValueError, match=f"voices {', '.join(SPEAKERS)}, not {', '.join(SPEAKERS[::-1])}"):
        VocoderTrainer(toy(tmp_path, other), other).resume(state)
    trainer.made_of = trainer.made_of | {"units": "others"}
    with pytest.raises(ValueError, match="not others"):
        trainer.resume(state)
    with pytest.raises(ValueError, match="does not say"):
        trainer.resume({})


def test_a_corpus_without_neutral_or_held_out_lines_can_be_exported(tmp_path):
    assert duration_error(folded(build_vocoder(), None), []) == {}


def test_folding_keeps_the_sound_and_the_export_loads(tmp_path):
    data = toy(tmp_path)
    trainer = VocoderTrainer(data, SMALL)
    trainer.step()
    units = torch.arange(10)
    plain = folded(trainer.vocoder, None)
    with torch.no_grad():
        torch.testing.assert_close(plain(units[None]), trainer.vocoder.eval()(units[None]), atol=1e-5, rtol=1e-4)
    lines = [data.targets[s] for s in SPEAKERS]
    export(trainer, tmp_path / "family", lines, lines)
    part = find(tmp_path / "family").part("vocoder")
    vocoder = vocoder_from_official(part.config, part.load())
    assert part.config["speakers"] == list(SPEAKERS) and count_parameters([vocoder]) <= 4e6
    assert vocode_frames(vocoder, units, speaker=3).shape == (6400,)
    assert len(vocode_units(vocoder, units)) == int(vocoder.durations(units[None]).sum()) * 640


def tokenized(units: np.ndarray) -> Tokenized:
    frames = {"Hu": units, "Pi": np.arange(len(units) // 2), "St": np.arange(len(units) // 25 + 1)}
    return Tokenized("a", "", "x", "train", {k: v.astype(np.uint16) for k, v in frames.items()}, (), np.zeros(0))


def test_pitch_and_style_come_at_the_rate_of_the_units():
    codes = Codes.of(tokenized(np.arange(53)))
    assert codes.units.tolist() == list(range(53))
    assert codes.pitch.tolist() == [min(n // 2, 25) for n in range(53)]
    assert codes.style.tolist() == [0] * 25 + [1] * 25 + [2] * 3


def test_an_expressive_vocoder_begins_with_the_sound_of_a_base_one_and_learns_its_codes(tmp_path):
    plain = toy(tmp_path)
    torch.manual_seed(3)
    base = folded(build_vocoder(), None)
    codes = {name: Codes.of(tokenized(np.asarray(units))) for name, units in plain.targets.items()}
    config = expressive_config(64, 4)
    data = VocoderData(plain.store, {}, [], INVENTORY, SMALL, codes)
    trainer = VocoderTrainer(data, SMALL, config, base)
    crops = data.batch(0)
    assert crops.pitch is not None and crops.style is not None and crops.pitch.shape == crops.units.shape
    with torch.no_grad():
        made = trainer.vocoder.eval()(crops.units, crops.speakers, pitch=crops.pitch, style=crops.style)
        torch.testing.assert_close(made, base(crops.units, crops.speakers), atol=1e-5, rtol=1e-4)
    before = trainer.vocoder.f0_dict.weight.detach().clone()
    assert all(np.isfinite(trainer.step()["spectral"]) for _ in range(2))
    assert not torch.equal(trainer.vocoder.f0_dict.weight, before)
    lines = [codes[s].units for s in SPEAKERS]
    export(trainer, tmp_path / "family", lines, lines)
    part = find(tmp_path / "family").part("vocoder")
    vocoder = vocoder_from_official(part.config, part.load())
    assert (vocoder.config.num_f0_tokens, vocoder.config.num_style_tokens) == (64, 4)
    sound = vocode_frames(vocoder, torch.arange(26), pitch=torch.arange(13), style=torch.tensor([0, 1]))
    assert sound.shape == (26 * 640,)
