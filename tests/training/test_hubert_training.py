"""Masked prediction learns hidden frames, resumes exactly; the quantizer learns units through noise."""

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml

from spiritrt.models.checkpoints import find
from spiritrt.models.hubert import Hubert, encode_units, hubert_from_official, quantizer_from_official
from spiritrt.training.augment import Augmentation
from spiritrt.training.corpora.manifest import AudioStore, Clip
from spiritrt.training.hubert import (
    Clusters,
    Data,
    MaskedTrainer,
    MaskedTraining,
    QuantizerTrainer,
    cluster_store,
    layer_features,
    main,
    mask_spans,
    spectral_features,
)

QUIET = Augmentation(speed_share=0, channel_share=0, room_share=0, noise_share=1.0, snr_range_db=(20, 30))
TRAINING = MaskedTraining(steps=30, batch=2, frames=20, lr=2e-3, dropout=0.0, augmentation=QUIET)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> AudioStore:
    """Clips of four tones, 200 ms each, that follow each other in one order."""
    folder = tmp_path_factory.mktemp("store")
    items = []
    for number in range(3):
        tones = [np.sin(np.arange(3200) * (0.1 + 0.25 * ((number + i) % 4))) for i in range(16)]
        items.append(
            (Clip(f"c{number}", 0, 0, "s", "neutral", "train"), (0.3 * np.concatenate(tones)).astype(np.float32))
        )
    AudioStore.write(folder, items)
    return AudioStore(folder)


@pytest.fixture(scope="module")
def targets(store: AudioStore, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    return cluster_store(store, spectral_features, 6, tmp_path_factory.mktemp("targets") / "t.npz", 1)


def test_hidden_frames_are_spans_of_about_the_share():
    training = MaskedTraining(frames=100, mask_share=0.5, mask_frames=5)
    mask = mask_spans(200, training, np.random.default_rng(0))
    assert float(mask.float().mean()) == pytest.approx(0.5, abs=0.05)
    runs = np.diff(np.flatnonzero(np.diff(np.pad(mask[0].numpy().astype(int), 1)) != 0))[::2]
    assert runs.min() >= 5
    with pytest.raises(ValueError, match="mask_share"):
        MaskedTraining(mask_share=1.0)
    with pytest.raises(ValueError, match="layer must lie"):
        MaskedTraining(layer=9)


def test_clusters_follow_the_sound_and_are_kept(store: AudioStore, targets: dict[str, np.ndarray], tmp_path: Path):
    # tones come again every four, and so do their clusters
    inside = [targets["c0"][5 * i + 2] for i in range(8)]
    assert len(set(inside[:4])) >= 3 and inside[:4] == inside[4:]
    calls = []

    def features_of(samples: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return spectral_features(samples)

    first = cluster_store(store, features_of, 4, tmp_path / "t.npz", 1)
    again = cluster_store(store, features_of, 4, tmp_path / "t.npz", 1)
    assert len(calls) == 3 and all((first[i] == again[i]).all() for i in first)
    with pytest.raises(ValueError, match="k-means"):
        Clusters.fit([torch.randn(3, 4)], 5, 0)


def test_masked_prediction_learns_and_resumes(store: AudioStore, targets: dict[str, np.ndarray], tmp_path: Path):
    def fresh() -> MaskedTrainer:
        return MaskedTrainer(Data(store, targets, TRAINING), TRAINING, 6)

    trainer = fresh()
    figures = [trainer.step() for _ in range(TRAINING.steps)]
    assert np.mean([f["accuracy"] for f in figures[-8:]]) > 0.4 > np.mean([f["accuracy"] for f in figures[:4]])
    first = fresh()
    assert [first.step()["loss"] for _ in range(2)] == [f["loss"] for f in figures[:2]]
    torch.save(first.state(), tmp_path / "state")
    second = fresh()
    second.resume(torch.load(tmp_path / "state", weights_only=True))
    assert [second.step()["loss"] for _ in range(2)] == [f["loss"] for f in figures[2:4]]
    with pytest.raises(ValueError, match="is of encoder_layers 5, not 6:"):
        other = replace(TRAINING, shape={"encoder_layers": 6})
        MaskedTrainer(Data(store, targets, other), other, 6).resume(torch.load(tmp_path / "state", weights_only=True))
    hubert = trainer.shipped()
    features = layer_features(hubert, torch.from_numpy(store.read(store.clips["c0"])), 4)
    assert features.shape == (len(targets["c0"]), 256)
    with pytest.raises(ValueError, match="no training clip"):
        Data(store, targets, MaskedTraining(frames=200))


@pytest.mark.parametrize("kind", [MaskedTrainer, QuantizerTrainer])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_of_two_batches_has_the_mean_of_their_gradients(
    store: AudioStore, targets: dict[str, np.ndarray], kind: type, precision: str
):
    training = replace(TRAINING, precision=precision, accumulate=2)
    data = Data(store, targets, training)
    masked = MaskedTrainer(data, training, 6)
    trainer = masked if kind is MaskedTrainer else QuantizerTrainer(data, masked.shipped(), training, 6)
    trainer.model.train()
    weight = masked.model["head"].weight if kind is MaskedTrainer else trainer.model[0].weight
    alone = [torch.autograd.grad(trainer.loss(index)[0], weight)[0] for index in (0, 1)]
    seen: list[torch.Tensor] = []
    weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))
    figures = trainer.step()
    torch.testing.assert_close(seen[-1], (alone[0] + alone[1]) / 2, rtol=1e-3, atol=1e-6)
    assert trainer.step_index == 1 and figures["loss"] > 0
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())


@pytest.mark.parametrize("kind", [MaskedTrainer, QuantizerTrainer])
def test_bf16_learns_the_same_losses_within_its_precision(
    store: AudioStore, targets: dict[str, np.ndarray], kind: type
):
    losses = []
    for precision in ("fp32", "bf16"):
        training = replace(TRAINING, precision=precision)
        data = Data(store, targets, training)
        masked = MaskedTrainer(data, training, 6)
        trainer = masked if kind is MaskedTrainer else QuantizerTrainer(data, masked.shipped(), training, 6)
        losses.append([trainer.step()["loss"] for _ in range(3)])
    assert losses[0] != losses[1]
    np.testing.assert_allclose(losses[0], losses[1], rtol=0.03)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accumulate": 0}, "accumulate must be at least 1, got 0"),
        ({"precision": "fp8"}, "precision must be one of"),
        ({"shape": {"encoder_layer": 12, "width": 3}}, r"unknown keys \['encoder_layer', 'width'\]; known are"),
        ({"shape": {"encoder_layers": 3}}, "layer must lie in 1..3, got 4"),
        ({"shape": {"encoder_layers": "12"}}, "'encoder_layers' must be of type int"),
        (
            {"shape": {"conv_feature_layers": "[(64, 10, 5)] + [(64, 3, 2)] * 4 + [(64, 2, 2)] * 2"}},
            "not of 400 every 320",
        ),
    ],
)
def test_bad_settings_are_named(changes: Mapping[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        MaskedTraining(**changes)


def test_the_shape_may_be_that_of_a_base_model():
    """HuBERT base, with a last convolution more so that it makes 25 frames a second."""
    shape: dict[str, object] = {
        "extractor_mode": "default", "conv_bias": False, "encoder_layers": 12, "encoder_embed_dim": 768,
        "encoder_ffn_embed_dim": 3072, "encoder_attention_heads": 12, "layer_norm_first": False, "conv_pos": 128,
        "conv_feature_layers": "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512, 2, 2)] * 3", "required_seq_len_multiple": 2,
    }  # fmt: skip
    training = MaskedTraining(layer=11, shape=shape)
    with torch.device("meta"):
        hubert = Hubert(training.hubert)
    assert len(hubert.encoder.layers) == 12 and 90e6 < sum(p.numel() for p in hubert.parameters()) < 100e6


def test_a_resumed_quantizer_repeats_and_other_units_are_refused(
    store: AudioStore, targets: dict[str, np.ndarray], tmp_path: Path
):
    hubert = MaskedTrainer(Data(store, targets, TRAINING), TRAINING, 6).shipped()

    def fresh(units: dict[str, np.ndarray]) -> QuantizerTrainer:
        return QuantizerTrainer(Data(store, units, TRAINING), hubert, TRAINING, 6)

    whole = fresh(targets)
    losses = [whole.step()["loss"] for _ in range(4)]
    first = fresh(targets)
    assert [first.step()["loss"] for _ in range(2)] == losses[:2]
    torch.save(first.state(), tmp_path / "state")
    state = torch.load(tmp_path / "state", weights_only=True)
    second = fresh(targets)
    second.resume(state)
    assert [second.step()["loss"] for _ in range(2)] == losses[2:]
    with pytest.raises(ValueError, match="is of targets"):
        fresh({name: (row + 1) % 6 for name, row in targets.items()}).resume(state)


def test_the_quantizer_learns_units_through_noise(store: AudioStore, targets: dict[str, np.ndarray]):
    training = MaskedTraining(steps=40, batch=2, frames=30, lr=3e-3, layer=1, augmented_share=1.0, augmentation=QUIET)
    data = Data(store, targets, training)
    trainer = QuantizerTrainer(data, MaskedTrainer(data, training, 6).shipped(), training, 6)
    figures = [trainer.step() for _ in range(40)]
    assert figures[-1]["loss"] < 0.5 * figures[0]["loss"] and figures[-1]["accuracy"] > 0.6


def test_the_stages_end_in_a_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(0)
    lines = []
    for number in range(3):
        soundfile.write(tmp_path / f"{number}.wav", 0.2 * np.sin(np.cumsum(rng.uniform(0.02, 0.8, 56000))), 16000)
        lines.append({"id": f"u{number}", "audio": f"{number}.wav", "text": "x", "speaker": "s", "words": []})
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = ["hubert", "--corpus", str(tmp_path), "--out", str(tmp_path / "work"), "--clusters", "8", "--steps", "1"]
    shape = {"encoder_layers": 3, "encoder_embed_dim": 128, "encoder_ffn_embed_dim": 64}
    (tmp_path / "shape.yaml").write_text(yaml.safe_dump(shape))
    command += ["--shape", str(tmp_path / "shape.yaml")]
    command += ["--layer", "2", "--model", str(tmp_path / "model"), "--stage"]
    monkeypatch.setattr(sys, "argv", [*command, "2"])
    with pytest.raises(FileNotFoundError, match="train the stage before first"):
        main()
    for stage in ("1", "2", "quantizer"):
        monkeypatch.setattr(sys, "argv", [*command, stage])
        main()
    (tmp_path / "shape.yaml").write_text(yaml.safe_dump(shape | {"encoder_layers": 2}))
    for stage, file in (("1", "the checkpoint"), ("2", str(tmp_path / "work" / "stage_1.ckpt"))):
        monkeypatch.setattr(sys, "argv", [*command, stage])
        with pytest.raises(ValueError, match=f"{file} is of encoder_layers 3, not 2:"):
            main()
    (tmp_path / "shape.yaml").write_text("- encoder_layers")
    with pytest.raises(ValueError, match=r"shape.yaml: not a mapping"):
        main()
    (tmp_path / "shape.yaml").write_text(yaml.safe_dump(shape))
    # stage 1 has trained on: its features are others, and what stage 2 learnt from them is too
    stage = tmp_path / "work" / "stage_1.ckpt"
    before_s = torch.load(stage, weights_only=True)["spent_s"]
    monkeypatch.setattr(sys, "argv", [*command, "1", "--steps", "2"])
    main()
    assert torch.load(stage, weights_only=True)["spent_s"] > before_s  # --minutes are of all runs
    monkeypatch.setattr(sys, "argv", [*command, "2"])
    with pytest.raises(ValueError, match="the checkpoint is of targets"):
        main()
    (tmp_path / "manifest.jsonl").write_text(json.dumps(lines[0]) + "\n")
    with pytest.raises(SystemExit):
        main()
    checkpoint = find(str(tmp_path / "model"))
    hubert, quantizer = (
        make(checkpoint.part(name).config, checkpoint.part(name).load())
        for name, make in (("hubert", hubert_from_official), ("quantizer", quantizer_from_official))
    )
    assert checkpoint.part("hubert").config["output_layer"] == 2
    assert shape.items() <= checkpoint.part("hubert").config["model_cfg"].items()
    units = encode_units(hubert, quantizer, torch.randn(16000) * 0.1)
    assert len(units) == 24 and int(units.max()) < 8
