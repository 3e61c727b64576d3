"""Voice activity and turn settings."""

import numpy as np
import pytest

from spiritrt.duplex.turns import TurnConfig, VoiceActivity


def _speech(ms: int, level: float = 0.1, seed: int = 0) -> np.ndarray:
    return (level * np.random.default_rng(seed).standard_normal(16 * ms)).astype(np.float32)


def test_activity_follows_speech_and_silence_in_any_packets() -> None:
    sound = np.concatenate([np.zeros(8000, np.float32), _speech(500), np.zeros(8000, np.float32)])
    whole = VoiceActivity(TurnConfig()).accept(sound)
    pieces = VoiceActivity(TurnConfig())
    split = [frame for start in range(0, len(sound), 77) for frame in pieces.accept(sound[start : start + 77])]
    assert whole == split
    assert whole == [False] * 25 + [True] * 25 + [False] * 25


def test_steady_background_noise_is_not_speech_for_long() -> None:
    activity = VoiceActivity(TurnConfig())
    activity.accept(np.zeros(1600, np.float32))
    noise = activity.accept(_speech(30000, level=0.003))
    assert not any(noise), "noise at -50 dBFS is below the threshold"
    louder = activity.accept(_speech(200, level=0.2, seed=1))
    assert all(louder)


def test_short_gaps_do_not_end_speech() -> None:
    activity = VoiceActivity(TurnConfig())
    activity.accept(np.zeros(16 * 100, np.float32))
    activity.accept(np.concatenate([_speech(200), np.zeros(16 * 80, np.float32), _speech(200, seed=1)]))
    assert (activity.speech_ms, activity.run_start, activity.steady) == (400, 5, True)
    activity.accept(np.zeros(16 * 140, np.float32))
    assert (activity.speech_ms, activity.silence_ms) == (0, 140)


def test_clicks_are_not_steady_speech() -> None:
    activity = VoiceActivity(TurnConfig())
    activity.accept(np.tile(np.concatenate([_speech(20), np.zeros(16 * 100, np.float32)]), 12))
    assert activity.speech_ms >= 200 and not activity.steady


@pytest.mark.parametrize("name", ["onset_ms", "endpoint_ms", "barge_in_ms"])
def test_times_that_are_no_frames_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a positive multiple of 20, got 30"):
        TurnConfig(**{name: 30})
