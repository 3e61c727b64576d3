"""The resampler of a live stream: no seams, no drift, whatever the packets."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spiritrt.audio import Resampler, resample

RATES = [8000, 24000, 44100, 48000]
PAIRS = [(rate, 16000) for rate in RATES] + [(16000, rate) for rate in RATES]


def _stream(resampler: Resampler, sound: np.ndarray, packet: int) -> np.ndarray:
    packets = [resampler.accept(sound[start : start + packet]) for start in range(0, len(sound), packet)]
    return np.concatenate([*packets, resampler.flush()])


@settings(max_examples=30, deadline=None)
@given(pair=st.sampled_from(PAIRS), samples=st.integers(0, 20000), packet=st.integers(1, 4000), seed=st.integers(0, 9))
def test_any_packets_give_the_whole_sound_resampled(
    pair: tuple[int, int], samples: int, packet: int, seed: int
) -> None:
    sound = np.random.default_rng(seed).standard_normal(samples).astype(np.float32)
    resampler = Resampler(*pair)
    packet = max(packet, samples // 50)
    for _ in range(2):  # a flush begins anew
        streamed = _stream(resampler, sound, packet)
        whole = resample(sound, *pair)
        assert abs(len(streamed) - len(whole)) <= 1
        both = min(len(streamed), len(whole))
        np.testing.assert_allclose(streamed[:both], whole[:both], atol=1e-5)


@pytest.mark.parametrize(("from_hz", "to_hz"), PAIRS)
def test_a_tone_has_no_clicks_and_no_drift_over_10_minutes(from_hz: int, to_hz: int) -> None:
    packet = from_hz // 50
    resampler = Resampler(from_hz, to_hz)
    made = 0
    worst = 0.0
    for number in range(600 * 50):
        tone = np.sin(2 * np.pi * 500 / from_hz * np.arange(number * packet, (number + 1) * packet)).astype(np.float32)
        out = resampler.accept(tone)
        # a second in, and every 10 s after it: the phase is that of the time that went by
        if 50 <= number % 500 < 60 and len(out):
            expected = np.sin(2 * np.pi * 500 / to_hz * np.arange(made, made + len(out)))
            worst = max(worst, np.abs(out - expected).max())
        made += len(out)
    assert made + len(resampler.flush()) == pytest.approx(600 * to_hz, abs=1)
    assert worst <= 1e-4


def test_equal_rates_pass_and_reset_forgets() -> None:
    sound = np.arange(5, dtype=np.float32)
    assert np.array_equal(_stream(Resampler(16000, 16000), sound, 2), sound)
    resampler = Resampler(48000, 16000)
    resampler.accept(np.ones(5000, np.float32))
    resampler.reset()
    assert not np.concatenate([resampler.accept(np.zeros(9000, np.float32)), resampler.flush()]).any()


def test_bad_input_is_named_and_nothing_of_it_kept() -> None:
    with pytest.raises(ValueError, match="rate must be 4000 to 384000 Hz, got 0"):
        Resampler(16000, 0)
    resampler = Resampler(8000, 16000)
    for samples, message in (
        (np.zeros((2, 2), np.float32), "samples must be float32"),
        (np.zeros(2, np.int16), "got int16"),
        (np.array([1, np.inf], np.float32), "samples hold inf at position 1"),
    ):
        with pytest.raises(ValueError, match=message):
            resampler.accept(samples)
    zeros = np.zeros(800, np.float32)
    assert not np.concatenate([resampler.accept(zeros), resampler.flush()]).any()
