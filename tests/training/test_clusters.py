"""More speech under the same unit ids: clusters are saved, recovered from targets, and a store is extended."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from spiritrt.training import extend_units
from spiritrt.training.clusters import SILENCE, Clusters
from spiritrt.training.corpora.manifest import AudioStore, Clip
from spiritrt.training.encoder_data import read_targets
from spiritrt.training.units import UnitClassifier, UnitPlan, frame_count, make_clusters

PHONES = ("a", "b", SILENCE)
WIDTH = 12


def made_up_features(rng: np.random.Generator, clips: int) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """Clips of 40 frames; a phone has two well separated kinds of frames."""
    middles = rng.normal(size=(len(PHONES), 2, WIDTH)) * 6
    features, phones = {}, {}
    for clip in range(clips):
        owners = np.repeat(rng.integers(0, len(PHONES), 10), 4)
        kinds = np.repeat(rng.integers(0, 2, 10), 4)
        features[f"c{clip}"] = (middles[owners, kinds] + 0.1 * rng.normal(size=(40, WIDTH))).astype(np.float32)
        phones[f"c{clip}"] = [PHONES[owner] for owner in owners]
    return features, phones


def test_recovered_clusters_assign_as_the_first_ones_did(tmp_path: Path):
    features, phones = made_up_features(np.random.default_rng(0), 8)
    plan = UnitPlan(n_units=6, silence_units=2, pca_dims=4, segment_share=0.3)
    clusters = make_clusters(features, phones, plan, torch.Generator().manual_seed(1))
    units = {i: clusters.assign(features[i], phones[i]) for i in features}
    for clip, row in units.items():
        assert [clusters.inventory[unit] for unit in row] == phones[clip]
    assert len(set(np.concatenate(list(units.values())))) == 6
    recovered = Clusters.recovered(features, units, clusters.inventory, 0.3, 4, seed=9)
    for clip, row in units.items():
        assert (recovered.assign(features[clip], phones[clip]) == row).all()
    recovered.save(tmp_path / "clusters.npz")
    loaded = Clusters.load(tmp_path / "clusters.npz")
    assert loaded.inventory == clusters.inventory and (loaded.centres == recovered.centres).all()
    # a phone that the first corpus had not is silence
    silences = np.flatnonzero(np.array(loaded.inventory) == SILENCE)
    assert set(loaded.assign(features["c0"][:3], ["x"] * 3)) <= set(silences)


def test_clusters_that_do_not_fit_are_an_error(tmp_path: Path):
    with pytest.raises(ValueError, match="do not fit"):
        Clusters(("a", "b"), np.zeros((4, 2), np.float32), np.zeros((3, 2), np.float32), 0.5)
    with pytest.raises(FileNotFoundError, match=r"training\.units"):
        Clusters.load(tmp_path / "clusters.npz")


class SpectrumTeacher:
    """Stands in for Whisper: the log spectrum under each frame."""

    width = 513

    def __init__(self, threads: int = 1) -> None:
        pass

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        frames = np.stack([samples[t * 640 : t * 640 + 720] for t in range(frame_count(len(samples)))])
        return np.log(np.abs(np.fft.rfft(frames, 1024)) + 1e-3).astype(np.float32)


def test_a_corpus_is_added_with_the_unit_ids_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(extend_units, "Teacher", SpectrumTeacher)
    rng = np.random.default_rng(3)
    hum, hiss = 0.3 * np.sin(np.arange(8000) * 0.05), 0.3 * rng.standard_normal(8000)
    work, corpus = tmp_path / "work", tmp_path / "corpus"
    work.mkdir()
    corpus.mkdir()
    AudioStore.write(work, [(Clip("old", 0, 0, "af_heart", "neutral", "train"), np.r_[hum, hiss].astype(np.float32))])
    old = np.repeat([0, 1], [12, 12]).astype(np.int16)
    np.savez(work / "targets.npz", **{"old/units": old})
    (work / "inventory.json").write_text('["m", "s"]')
    (work / "units.jsonl").write_text('{"id": "old", "units": [0]}\n')
    soundfile.write(corpus / "a.wav", np.r_[hiss, hum, hum], 16000)
    line = {
        "id": "new", "text": "sum", "speaker": "x", "style": "neutral", "role": "single", "dialogue": None,
        "split": "train", "file": "a.wav", "offset_s": 0.0, "duration_s": 1.5,
        "words": [{"word": "sum", "start_s": 0.0, "end_s": 1.5}], "phones": [["s", 0.0, 0.5], ["m", 0.5, 1.5]],
    }  # fmt: skip
    (corpus / "manifest.jsonl").write_text(json.dumps(line) + "\n")
    plan = UnitPlan(n_units=2, pca_dims=3)
    torch.save(UnitClassifier(513, 2).state_dict(), work / "unit_classifier.pt")
    assert extend_units.extend(work, [corpus], plan, "nano")["utterances"] == 1
    (fresh,) = map(json.loads, (work / "fresh_units.jsonl").read_text().splitlines())
    assert fresh["id"] == "new" and len(fresh["units"]) == 37 and fresh["words"][0]["word"] == "sum"
    assert read_targets(work / "targets.npz", 0.5)["new"].units.shape == (37, 3)
    targets = read_targets(work / "targets.npz")
    assert targets["old"].units[:, 0].tolist() == old.tolist()
    made = targets["new"].units[:, 0].tolist()
    assert len(made) == 37 and made[:12] == [1] * 12 and made[13:] == [0] * 24
    store = AudioStore(work)
    np.testing.assert_allclose(store.read(store.clips["new"], 8000, 100), hum[:100], atol=1e-3)
    np.testing.assert_allclose(store.read(store.clips["old"], 0, 100), hum[:100], atol=1e-3)
    assert [json.loads(text)["id"] for text in (work / "units.jsonl").read_text().splitlines()] == ["old", "new"]
    with pytest.raises(ValueError, match="already"):
        extend_units.extend(work, [corpus], plan)
