"""Pitch and style streams against offline."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import spiritrt
from spiritrt.duplex.prosody import PitchStream, StyleStream
from spiritrt.models.pitch import PitchQuantizer, PitchTrack, encode_pitch, pitch_quantizer_from_official
from spiritrt.models.style import StyleClassifier, encode_style, style_classifier_from_official

GOLDEN = Path(__file__).parents[1] / "data/golden/checkpoints/speech_tokenizer"


class LevelTracker:
    """F0 that follows the loudness of each 5 ms, voiced where it is loud: a tracker without context."""

    def __call__(self, waveform: Tensor) -> PitchTrack:
        assert len(waveform) >= 1280
        level = torch.stack([part.abs().mean() for part in waveform[: len(waveform) // 80 * 80].split(80)])
        level = torch.cat([level, level[-1:]])
        return PitchTrack(80 + 400 * level, (level > 0.05).float())


@pytest.fixture(scope="module")
def quantizer() -> PitchQuantizer:
    config = yaml.safe_load((GOLDEN / "vqvae_f0_quantizer/config.yaml").read_text())
    return pitch_quantizer_from_official(config, _weights(GOLDEN / "vqvae_f0_quantizer/model.pt"))


@pytest.fixture(scope="module")
def classifier() -> StyleClassifier:
    torch.set_num_threads(1)
    folder = GOLDEN / "style_encoder_w2v2"
    return style_classifier_from_official(
        json.loads((folder / "config.json").read_text()), _weights(folder / "pytorch_model.bin")
    )


def _weights(file: Path) -> dict[str, Tensor]:
    loaded = torch.load(file, weights_only=True)
    return loaded.get("model", loaded)


def _sound(samples: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    envelope = np.repeat(generator.uniform(0, 0.3, samples // 2000 + 1), 2000)[:samples]
    return (envelope * generator.standard_normal(samples)).astype(np.float32)


def _stream(stream: PitchStream | StyleStream, sound: np.ndarray, packet: int) -> list[int]:
    codes: list[int] = []
    for start in range(0, len(sound), packet):
        codes += stream.accept(sound[start : start + packet])
    codes += stream.flush()
    stream.reset()
    return codes


@settings(max_examples=20, deadline=None)
@given(samples=st.integers(0, 40000), packet=st.sampled_from([160, 1000, 7777]))
def test_pitch_codes_do_not_depend_on_the_split_and_are_as_many_as_offline(
    quantizer: PitchQuantizer, samples: int, packet: int
) -> None:
    sound = _sound(samples)
    stream = PitchStream(LevelTracker(), quantizer)
    codes = _stream(stream, sound, packet)
    assert codes == _stream(stream, sound, 99999)
    offline = encode_pitch(LevelTracker(), quantizer, torch.from_numpy(sound)) if samples >= 1280 else []
    assert len(codes) == len(offline)


def test_pitch_with_everything_in_its_window_is_offline(quantizer: PitchQuantizer) -> None:
    sound = _sound(30000)
    stream = PitchStream(LevelTracker(), quantizer, chunk_ms=8000)
    assert _stream(stream, sound, 333) == encode_pitch(LevelTracker(), quantizer, torch.from_numpy(sound)).tolist()


@pytest.mark.parametrize("level", [0.0, 1e-4])
def test_silence_and_noise_give_codes(quantizer: PitchQuantizer, classifier: StyleClassifier, level: float) -> None:
    sound = (level * np.random.default_rng(0).standard_normal(20000)).astype(np.float32)
    pitch = _stream(PitchStream(LevelTracker(), quantizer, chunk_ms=80, look_ahead_ms=0), sound, 1280)
    style = _stream(StyleStream(classifier), sound, 1280)
    assert len(pitch) == 15 and all(0 <= code < 64 for code in pitch)
    assert len(style) == 2 and all(0 <= code < 100 for code in style)


@pytest.mark.parametrize("level", [0.0, 1e-3])
def test_the_real_tracker_gives_codes_for_silence_and_noise(expressive_lm: spiritrt.SpiritLM, level: float) -> None:
    """Nothing is voiced, so there is no mean F0 to subtract; the first windows are as short as windows get."""
    family = expressive_lm.family
    sound = (level * np.random.default_rng(0).standard_normal(8000)).astype(np.float32)
    stream = PitchStream(family.pitch_tracker, family.pitch_quantizer, chunk_ms=80, look_ahead_ms=0)
    codes = _stream(stream, sound, 640)
    assert len(codes) == 6 and all(0 <= code < 64 for code in codes)


def test_the_first_80_ms_have_a_pitch_code(quantizer: PitchQuantizer) -> None:
    stream = PitchStream(LevelTracker(), quantizer, chunk_ms=80, look_ahead_ms=0)
    assert stream.accept(_sound(1279)) == []
    assert len(stream.accept(_sound(1))) == 1
    assert stream.flush() == []


@settings(max_examples=10, deadline=None)
@given(samples=st.integers(0, 60000), packet=st.sampled_from([320, 5000]))
def test_styles_do_not_depend_on_the_split_and_are_as_many_as_offline(
    classifier: StyleClassifier, samples: int, packet: int
) -> None:
    sound = _sound(samples)
    stream = StyleStream(classifier)
    codes = _stream(stream, sound, packet)
    assert codes == _stream(stream, sound, 99999)
    shortest = classifier.config.receptive_samples
    assert len(codes) == (len(encode_style(classifier, torch.from_numpy(sound))) if samples >= shortest else 0)


def test_style_comes_lag_ms_into_its_second(classifier: StyleClassifier) -> None:
    stream = StyleStream(classifier, lag_ms=200)
    counts = [len(stream.accept(part)) for part in np.split(_sound(32000), 20)]
    assert [100 * i for i, count in enumerate(counts, start=1) if count] == [200, 1200]


def test_flush_leaves_out_what_comes_after_the_end(quantizer: PitchQuantizer, classifier: StyleClassifier) -> None:
    sound = _sound(40000)
    pitch = PitchStream(LevelTracker(), quantizer, chunk_ms=8000)
    pitch.accept(sound)
    assert pitch.flush(20000) == encode_pitch(LevelTracker(), quantizer, torch.from_numpy(sound[:20000])).tolist()
    style = StyleStream(classifier)
    committed = style.accept(sound)
    assert len(committed + style.flush(20000)) == 3  # what was committed stays


def test_a_buffer_can_be_used_again(quantizer: PitchQuantizer, classifier: StyleClassifier) -> None:
    sound = _sound(24000)
    buffer = np.zeros(800, np.float32)
    for stream in (PitchStream(LevelTracker(), quantizer), StyleStream(classifier)):
        expected = _stream(stream, sound, 800)
        codes: list[int] = []
        for start in range(0, len(sound), 800):
            buffer[:] = sound[start : start + 800]
            codes += stream.accept(buffer)
        assert codes + stream.flush() == expected


def test_bad_input_is_named(quantizer: PitchQuantizer, classifier: StyleClassifier) -> None:
    stream = PitchStream(LevelTracker(), quantizer)
    with pytest.raises(ValueError, match="samples hold nan at position 1"):
        stream.accept(np.array([0, np.nan], np.float32))
    with pytest.raises(ValueError, match="samples must be float32"):
        stream.accept(np.zeros(4))
    with pytest.raises(ValueError, match="chunk_ms must be a multiple of 80 from 80 on, got 40"):
        PitchStream(LevelTracker(), quantizer, chunk_ms=40)
    with pytest.raises(ValueError, match="lag_ms from 40 to 1000, got 3 and 10"):
        StyleStream(classifier, lag_ms=10)
