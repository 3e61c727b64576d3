"""Voice activity, runs of speech, and where a turn ends."""

import numpy as np
import pytest

from spiritrt.duplex import silero
from spiritrt.duplex.config import EchoConfig, TurnConfig
from spiritrt.duplex.echo import EchoGate
from spiritrt.duplex.script import shipped_lines
from spiritrt.duplex.silero import silero_activity
from spiritrt.duplex.turns import EnergyActivity, SilenceEndpoint, SpeechRun, Windows, activity_named

WINDOW = 320


def noise(ms: int, level: float = 0.1, seed: int = 0) -> np.ndarray:
    return (level * np.random.default_rng(seed).standard_normal(16 * ms)).astype(np.float32)


def silence(ms: int) -> np.ndarray:
    return np.zeros(16 * ms, np.float32)


def run_over(*parts: tuple[int, bool], config: TurnConfig | None = None) -> SpeechRun:
    """A run after so many ms of speech or silence, in windows of 20 ms."""
    run = SpeechRun(config or TurnConfig(), WINDOW)
    for ms, speech in parts:
        for _ in range(ms // 20):
            run.accept(0.9 if speech else 0.1)
    return run


@pytest.mark.parametrize("name", ["energy", "silero"])
def test_speech_is_told_from_silence_in_any_packets(name: str) -> None:
    speech = shipped_lines()[2].samples[8000:40000]
    sound = np.concatenate([silence(800), speech, silence(800)])
    whole = Windows(activity_named(name)()).accept(sound)
    windows = Windows(activity_named(name)())
    split = [each for start in range(0, len(sound), 777) for each in windows.accept(sound[start : start + 777])]
    assert whole == split
    active = np.array(whole) >= 0.5
    first, last = int(len(active) * 800 / 3600), int(len(active) * 2800 / 3600)
    assert not active[: first - 1].any() and active[first:last].mean() > 0.6 and not active[last + 5 :].any()


def test_silero_hears_no_speech_in_loud_noise_where_energy_does() -> None:
    sound = np.concatenate([silence(300), noise(1500, 0.3)])
    judged = {name: Windows(activity_named(name)()).accept(sound) for name in ("energy", "silero")}
    assert max(judged["energy"]) == 1 and max(judged["silero"]) < 0.5


def test_each_session_has_a_network_state_of_its_own() -> None:
    make = silero_activity()
    sound = shipped_lines()[0].samples[:8192]
    alone = Windows(make()).accept(sound)
    one, other = Windows(make()), Windows(make())
    beside = []
    for start in range(0, len(sound), 512):
        beside += one.accept(sound[start : start + 512])
        other.accept(noise(32, seed=start))
    assert beside == alone


def test_a_missing_package_is_named_with_the_way_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silero, "find_spec", lambda name: None)
    silero_activity.cache_clear()
    with pytest.raises(ValueError, match=r"needs onnxruntime and silero_vad: pip install onnxruntime .*--no-deps"):
        activity_named("silero")
    with pytest.raises(ValueError, match="activity must be 'silero' or 'energy', got 'ears'"):
        activity_named("ears")
    with pytest.raises(ValueError, match="activity must be 'silero' or 'energy', got 'ears'"):
        TurnConfig(activity="ears")


def test_steady_background_noise_is_not_speech_by_energy() -> None:
    ears = Windows(EnergyActivity())
    ears.accept(silence(100))
    assert not any(ears.accept(noise(3000, 0.003))), "noise at -50 dBFS is below the threshold"
    assert all(ears.accept(noise(200, 0.2)))


def test_short_gaps_do_not_end_a_run() -> None:
    run = run_over((100, False), (200, True), (80, False), (200, True))
    assert (run.speech, run.start, run.steady, run.confirmed_end) == (6400, 1600, True, 9280)
    run = run_over((200, True), (140, False))
    assert (run.speech, run.confirmed_end) == (0, 3200)


def test_clicks_are_no_speech() -> None:
    run = run_over(*[(20, True), (100, False)] * 12)
    assert run.speech >= 3200 and not run.confirmed and run.confirmed_end == 0


def test_hysteresis_keeps_a_run_that_grows_doubtful() -> None:
    run = SpeechRun(TurnConfig(threshold=0.5), WINDOW)
    assert [run.accept(p) for p in (0.45, 0.6, 0.45, 0.3)] == [False, True, True, False]


def test_silence_ends_a_turn_after_a_likely_end() -> None:
    endpoint = SilenceEndpoint(pause_ms=200, endpoint_ms=600)
    assert [endpoint.accept(silence(20), False, ms) for ms in (0, 180, 200, 580, 600)] == [
        "",
        "",
        "pause",
        "pause",
        "end",
    ]


def test_the_echo_gate_knows_what_is_being_played() -> None:
    gate = EchoGate(EchoConfig(cancelled=False, gain_db=-6.0, margin_db=6.0, reach_ms=100))
    loud, quiet = noise(32, 0.2), noise(32, 0.02)
    assert gate.passes(quiet, 0, 0, playing=True), "nothing is played yet"
    gate.hand_out(0, noise(1000, 0.1))
    assert gate.passes(loud, 512, 0, playing=True) and not gate.passes(quiet, 1024, 8000, playing=True)
    assert not gate.passes(quiet, 2048, 16000, playing=False), "the room still rings"
    assert gate.passes(quiet, 16000, 16000, playing=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"onset_ms": 0}, "onset_ms must be positive, got 0"),
        ({"threshold": 1.0}, "threshold must be between 0 and 1, got 1.0"),
        ({"pause_ms": 90}, "pause_ms must be above 100"),
        ({"pause_ms": 700}, "from tail_ms to endpoint_ms, got 700 with tail_ms 120 and endpoint_ms 600"),
        ({"duck_ms": 500}, "duck_ms 500 must not exceed barge_in_ms 320"),
        ({"tail_ms": -1}, "tail_ms must be from 0 to 1000, got -1"),
    ],
)
def test_turn_settings_are_checked(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TurnConfig(**settings)


def test_echo_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="reach_ms must be above 0"):
        EchoConfig(reach_ms=0)
    with pytest.raises(ValueError, match="gain_db must be from -60 to 60 dB, got 99"):
        EchoConfig(gain_db=99)
