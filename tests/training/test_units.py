"""Unit targets: phones to frames, sharing of units among phones, clustering."""

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import soundfile
import torch

from spiritrt.training.corpora.manifest import AudioStore, Clip, Utterance, Word, cut_utterances, read_manifest
from spiritrt.training.units import (
    SILENCE,
    UnitPlan,
    frame_count,
    frame_phones,
    k_means,
    phone_class,
    share_units,
    smooth_over_segments,
    write_targets,
    write_units,
)


def utterance(
    phones: list[tuple[str, float, float]], words: list[tuple[str, float, float]], seconds: float
) -> Utterance:
    return Utterance(
        "u1", "text", "af_heart", "neutral", "single", None, "train", "a.wav", 0.0, seconds,
        tuple(Word(*w) for w in words), tuple(phones),
    )  # fmt: skip


def sound(seconds: float, silent: tuple[float, float] | None = None) -> np.ndarray:
    samples = np.sin(np.arange(int(seconds * 16000)) * 0.3).astype(np.float32) * 0.3
    if silent:
        samples[int(silent[0] * 16000) : int(silent[1] * 16000)] = 0
    return samples


@pytest.mark.parametrize(("samples", "frames"), [(0, 0), (719, 0), (720, 1), (1359, 1), (1360, 2), (16000, 24)])
def test_frame_count_is_that_of_the_conv_stack(samples, frames):
    assert frame_count(samples) == frames
    if frames:
        length = samples
        for kernel, stride in [(10, 5)] + [(3, 2)] * 4 + [(2, 2)] * 3:
            length = (length - kernel) // stride + 1
        assert length == frames


@pytest.mark.parametrize(
    ("symbol", "phone"), [("ˈæ", "æ"), ("ˌI", "I"), ("ʤ", "ʤ"), (" ", None), (".", None), (",", None), ("ˈ", None)]
)
def test_phone_class(symbol, phone):
    assert phone_class(symbol) == phone


def test_each_frame_gets_the_phone_that_covers_it():
    u = utterance([("m", 0.0, 0.2), ("ˈA", 0.2, 0.4)], [("may", 0.0, 0.4)], 0.4)
    labels = frame_phones(u, sound(0.4))
    assert labels == ["m"] * 5 + ["A"] * 4
    assert len(labels) == frame_count(6400)


def test_a_sounding_space_is_halved_and_a_silent_one_is_silence():
    phones = [("m", 0.0, 0.16), (" ", 0.16, 0.32), ("n", 0.32, 0.52)]
    words = [("m", 0.0, 0.16), ("n", 0.32, 0.52)]
    assert frame_phones(utterance(phones, words, 0.52), sound(0.52)) == ["m"] * 6 + ["n"] * 6
    paused = frame_phones(utterance(phones, words, 0.52), sound(0.52, (0.16, 0.32)))
    assert paused[4:8] == [SILENCE] * 4 and set(paused[:4]) == {"m"} and set(paused[8:]) == {"n"}


def test_trailing_silence_of_the_last_phone_is_silence():
    u = utterance([("m", 0.0, 0.6)], [("m", 0.0, 0.3)], 0.6)
    assert frame_phones(u, sound(0.6, (0.32, 0.6)))[-6:] == [SILENCE] * 6


def test_a_short_phone_keeps_one_frame():
    phones = [("s", 0.0, 0.19), ("t", 0.19, 0.205), ("ɹ", 0.205, 0.4)]
    labels = frame_phones(utterance(phones, [("str", 0.0, 0.4)], 0.4), sound(0.4))
    assert labels.count("t") == 1


@pytest.mark.parametrize("n_units", [100, 500])
def test_units_are_shared_by_root_of_frame_counts(n_units):
    counts = {SILENCE: 9000, "a": 10000, "b": 2500, "c": 1}
    shares = share_units(counts, UnitPlan(n_units=n_units))
    assert sum(shares.values()) == n_units
    assert shares[SILENCE] == 6 and shares["c"] == 1  # no more than it has frames
    assert shares["a"] / shares["b"] == pytest.approx(2, rel=0.1)


def test_too_few_units_is_an_error():
    with pytest.raises(ValueError, match="too few"):
        share_units({"a": 5, "b": 5, "c": 5}, UnitPlan(n_units=5))


def test_k_means_finds_separate_groups():
    generator = torch.Generator().manual_seed(3)
    middles = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    points = (middles[:, None] + 0.1 * torch.randn(3, 40, 2, generator=generator)).reshape(-1, 2)
    centres = k_means(points, 3, generator)
    assert torch.cdist(middles, centres).min(dim=1).values.max() < 0.2


def test_smoothing_moves_frames_to_the_mean_of_their_run():
    features = np.arange(8, dtype=np.float32).reshape(4, 2)
    smooth = smooth_over_segments(features, ["a", "a", "b", "b"], 1.0)
    assert smooth.tolist() == [[1, 2], [1, 2], [5, 6], [5, 6]]
    assert (smooth_over_segments(features, ["a"] * 4, 0.0) == features).all()


def test_manifest_store_and_units_file_round_trip(tmp_path: Path):
    soundfile.write(tmp_path / "a.wav", sound(1.0), 16000, subtype="FLOAT")
    line = {
        "id": "s1", "text": "hm", "speaker": "af_heart", "style": "neutral", "role": "single", "dialogue": None,
        "split": "test", "file": "a.wav", "offset_s": 0.25, "duration_s": 0.5,
        "words": [{"word": "hm", "start_s": 0.0, "end_s": 0.5}], "phones": [["m", 0.0, 0.5]],
    }  # fmt: skip
    (tmp_path / "manifest.jsonl").write_text(json.dumps(line) + "\n")
    utterances = read_manifest(tmp_path)
    AudioStore.write(tmp_path, cut_utterances(tmp_path, utterances))
    store = AudioStore(tmp_path)
    clip = store.clips["s1"]
    assert clip.length == 8000
    np.testing.assert_allclose(store.read(clip, 100, 50), sound(1.0)[4100:4150], atol=1e-4)
    write_units(tmp_path / "units.jsonl", utterances, lambda _: [3, 3, 4])
    written = json.loads((tmp_path / "units.jsonl").read_text())
    assert written["units"] == [3, 3, 4] and written["words"] == line["words"] and written["split"] == "test"


def clip_of(name: str) -> Clip:
    return Clip(name, 0, 0, "x", "neutral", "train")


def test_a_store_is_the_file_that_numpy_writes(tmp_path: Path):
    rng = np.random.default_rng(0)
    for lengths in ([], [0], [9], [1000, 0, 234_567], [16000] * 70):
        clips = [rng.uniform(-1.1, 1.1, length).astype(np.float32) for length in lengths]
        AudioStore.write(tmp_path, ((clip_of(f"c{n}"), samples) for n, samples in enumerate(clips)))
        whole = np.concatenate([np.zeros(0, np.float32), *clips])
        np.save(tmp_path / "expected.npy", np.clip(np.round(whole * 32768), -32768, 32767).astype(np.int16))
        assert (tmp_path / "audio.npy").read_bytes() == (tmp_path / "expected.npy").read_bytes()
    AudioStore(tmp_path).extend(tmp_path, [(clip_of("more"), clips[0])])
    np.save(
        tmp_path / "expected.npy",
        np.concatenate([np.load(tmp_path / "expected.npy"), AudioStore(tmp_path).samples[:16000]]),
    )
    assert (tmp_path / "audio.npy").read_bytes() == (tmp_path / "expected.npy").read_bytes()
    store = AudioStore(tmp_path)
    assert (store.read(store.clips["more"]) == store.read(store.clips["c0"])).all() and len(store.clips) == 71


def test_a_store_is_written_and_extended_clip_by_clip(tmp_path: Path):
    """Of 6.4 MB, and then of twice as much, never more than a few clips of 0.16 MB (in float32) are in memory."""

    def clips(first: int) -> Iterator[tuple[Clip, np.ndarray]]:
        for number in range(first, first + 80):
            yield clip_of(f"c{number}"), np.full(40_000, number / 200, np.float32)

    tracemalloc.start()
    AudioStore.write(tmp_path, clips(0))
    store = AudioStore(tmp_path)
    store.extend(tmp_path, clips(80))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000
    store = AudioStore(tmp_path)
    assert len(store.samples) == 6_400_000
    assert [store.read(store.clips[f"c{n}"], 39_999)[0] for n in (0, 79, 80, 159)] == pytest.approx(
        [0.0, 0.395, 0.4, 0.795], abs=1e-4
    )


def test_a_store_stays_as_it_was_where_writing_fails(tmp_path: Path):
    AudioStore.write(tmp_path, [(clip_of("a"), sound(0.1))])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="clip 'a' is in the store already"):
        AudioStore(tmp_path).extend(tmp_path, [(clip_of("b"), sound(0.1)), (clip_of("a"), sound(0.2))])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_targets_that_are_written_halfway_leave_those_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "targets.npz"
    write_targets(path, {"a/units": np.arange(3, dtype=np.int16)})

    def torn(file: BinaryIO, **arrays: np.ndarray) -> None:
        file.write(b"PK")
        raise InterruptedError

    monkeypatch.setattr(np, "savez", torn)
    with pytest.raises(InterruptedError):
        write_targets(path, {"b/units": np.arange(3, dtype=np.int16)})
    with np.load(path) as file:
        assert file.files == ["a/units"] and file["a/units"].tolist() == [0, 1, 2]


def test_bad_manifests_are_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="manifest"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.jsonl").write_text('{"id": "x"}\n')
    with pytest.raises(ValueError, match="line 1"):
        read_manifest(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"training\.units"):
        AudioStore(tmp_path)
