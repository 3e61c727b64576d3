"""Masked prediction learns hidden frames, resumes exactly; the quantizer learns units through noise."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from spiritrt.models.checkpoints import find
from spiritrt.models.hubert import encode_units, hubert_from_official, quantizer_from_official
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
    hubert = trainer.shipped()
    features = layer_features(hubert, torch.from_numpy(store.read(store.clips["c0"])), 4)
    assert features.shape == (len(targets["c0"]), 256)
    with pytest.raises(ValueError, match="no training clip"):
        Data(store, targets, MaskedTraining(frames=200))


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
    command += ["--layer", "2", "--model", str(tmp_path / "model"), "--stage"]
    monkeypatch.setattr(sys, "argv", [*command, "2"])
    with pytest.raises(FileNotFoundError, match="train the stage before first"):
        main()
    for stage in ("1", "2", "quantizer"):
        monkeypatch.setattr(sys, "argv", [*command, stage])
        main()
    # stage 1 has trained on: its features are others, and what stage 2 learnt from them is too
    monkeypatch.setattr(sys, "argv", [*command, "1", "--steps", "2"])
    main()
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
    units = encode_units(hubert, quantizer, torch.randn(16000) * 0.1)
    assert len(units) == 24 and int(units.max()) < 8
