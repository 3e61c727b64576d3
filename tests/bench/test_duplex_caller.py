"""The scripted people of the duplex bench: what they say, what their loudspeaker plays, what they notice."""

from pathlib import Path

import numpy as np
import pytest

from spiritrt import audio
from spiritrt.audio import RATE_HZ
from spiritrt.bench.duplex.caller import PACKET_S, Caller, Noticed, Playout
from spiritrt.bench.duplex.scripts import SCENARIOS, material_of, noise_burst, script
from spiritrt.duplex.client import PACKET_SAMPLES
from spiritrt.duplex.events import (
    AudioOut,
    Closed,
    Ducked,
    Error,
    Interrupted,
    ReplyEnded,
    Resumed,
    SpeechStarted,
    SpeechStopped,
)
from spiritrt.duplex.script import Line


def packet(start: int, ms: int) -> AudioOut:
    return AudioOut(np.zeros(ms * RATE_HZ // 1000, np.float32), (), start)


def test_a_script_is_the_same_for_the_same_seed_and_has_all_kinds_of_lines() -> None:
    material = material_of(None)
    lines = script(material, "mixed", 300.0, seed=3)
    again, other = script(material, "mixed", 300.0, seed=3), script(material, "mixed", 300.0, seed=4)
    assert [(line.name, line.pause_s, line.interrupt_s) for line in lines] == [
        (line.name, line.pause_s, line.interrupt_s) for line in again
    ]
    assert [line.name for line in lines] != [line.name for line in other]
    names = {line.name for line in lines}
    assert {"noise", "backchannel.flac", "question.flac"} <= names
    assert any(line.interrupt_s and line.name in ("question.flac", "interruption.flac") for line in lines)
    assert any(line.pause_s > 2 for line in lines)
    points = [line.interrupt_s for line in lines if line.interrupt_s]
    assert len(set(points)) == len(points) and 0.1 <= min(points) < max(points) <= 2.5
    assert sum(len(line.samples) for line in lines) / RATE_HZ + sum(line.pause_s for line in lines) >= 300


def test_scenarios_hold_what_they_say() -> None:
    material = material_of(None)
    assert all(line.interrupt_s is None for line in script(material, "turns", 100.0, 0))
    assert "noise" in {line.name for line in script(material, "noise", 100.0, 0)}
    assert "noise" not in {line.name for line in script(material, "backchannels", 100.0, 0)}
    with pytest.raises(ValueError, match=r"scenario must be one of mixed, turns, .*, got 'shouting'"):
        script(material, "shouting", 10.0, 0)
    assert set(SCENARIOS) == {"mixed", "turns", "interruptions", "backchannels", "noise", "silence"}


def test_a_folder_is_sorted_by_length_and_lends_a_backchannel(tmp_path: Path) -> None:
    audio.save(tmp_path / "deep" / "long.wav", np.full(20 * RATE_HZ, 0.1, np.float32))
    material = material_of(tmp_path)
    assert [len(turn.samples) for turn in material.turns] == [12 * RATE_HZ]
    assert [each.name for each in material.backchannels] == ["backchannel.flac"]
    audio.save(tmp_path / "yes.wav", np.full(RATE_HZ // 4, 0.1, np.float32))
    assert [each.name for each in material_of(tmp_path).backchannels] == ["yes.wav"]
    (tmp_path / "deep" / "long.wav").unlink()
    with pytest.raises(ValueError, match=r"holds no recording of 0\.7 s or more"):
        material_of(tmp_path)


def test_a_knock_is_short_and_dies_away() -> None:
    for seed in range(20):
        burst = noise_burst(np.random.default_rng(seed))
        assert 0.05 < len(burst) / RATE_HZ < 0.26 and 0.04 < np.abs(burst).max() <= 0.41
        first, last = np.split(burst[: len(burst) // 2 * 2], 2)
        assert np.square(first).mean() > np.square(last).mean()


def test_a_loudspeaker_plays_on_until_it_has_no_more() -> None:
    playout = Playout()
    assert playout.take(packet(0, 80), 1.0) is None
    playout.advance(1.05)
    assert (playout.position, playout.heard, playout.left) == (800, 800, 480)
    assert playout.take(packet(1280, 80), 1.06) is None
    playout.advance(1.3)
    assert playout.position == 2560
    # it was dry from 1.16 on
    assert playout.take(packet(2560, 80), 1.2) == pytest.approx(0.04)
    assert playout.take(packet(3840, 80), 1.2 + 0.0815) is None  # 1.5 ms late: nobody notices
    playout.take(ReplyEnded(0, "end", 5120), 2.0)
    assert playout.heard == 0 and playout.position == 5120


def test_a_ducked_loudspeaker_keeps_its_place_and_an_interrupted_one_its_silence() -> None:
    playout = Playout()
    playout.take(packet(0, 400), 0.0)
    playout.take(Ducked(0), 0.1)
    playout.advance(0.7)
    assert playout.position == 1600
    playout.take(Resumed(0, 1600), 0.8)
    playout.advance(0.9)
    assert playout.position == 3200
    playout.take(Ducked(0), 0.9)
    playout.take(Interrupted(0, 200.0, 3200), 1.0)
    playout.advance(2.0)
    assert (playout.position, playout.left, playout.in_reply) == (3200, 0, False)
    # the next reply begins where the last was handed out to, and is never late for it
    assert playout.take(packet(6400, 80), 5.0) is None
    assert playout.position == 6400


def caller(seconds: float) -> Caller:
    """One who is silent, and whose packets up to then have been sent on time."""
    made = Caller([Line("nothing", np.zeros(PACKET_SAMPLES, np.float32), pause_s=1e9)])
    for number in range(round(seconds / PACKET_S)):
        made.tick((number + 1) * PACKET_S)
        made.sent(1.5, 20.0)
    return made


def test_latencies_count_from_the_packet_that_decided() -> None:
    person = caller(2.0)
    person.take(SpeechStarted(9600, 8000), 0.61)
    # sample 16000 is the last of the packet sent at 1.0 s; the person fell silent at 0.4 s
    person.take(SpeechStopped(16000, 6400), 1.03)
    person.take(packet(0, 80), 1.05)
    person.take(packet(1280, 80), 1.06)
    noticed = person.noticed
    assert noticed.end_of_turn_to_audio.tolist() == [pytest.approx(50)]
    assert noticed.silence_to_audio.tolist() == [pytest.approx(650)]
    assert noticed.lead.tolist() == [pytest.approx(70)] and noticed.jitter.tolist() == [pytest.approx(70)]
    # the decision lies inside the packet that is sent at 1.12 s
    person.take(Ducked(17900), 1.125)
    assert noticed.barge_in_to_silence.tolist() == [pytest.approx(5)]
    person.take(Resumed(20480, 1200), 1.29)
    assert noticed.resume.tolist() == [pytest.approx(10)]
    assert (noticed.turns, noticed.packets, len(noticed.late)) == (1, 2, 0)
    assert noticed.backlog.tolist() == [20.0, 20.0] and noticed.sent_late.tolist() == [1.5, 1.5]


def test_a_reply_that_resumes_without_sound_sounds_with_the_next_packet() -> None:
    person = caller(2.0)
    person.take(SpeechStopped(8000, 6400), 0.5)
    person.take(packet(0, 80), 0.52)
    person.take(Ducked(12800), 0.81)
    person.take(Resumed(16000, 1280), 1.0)
    assert not person.noticed.resume
    person.take(packet(1280, 80), 1.04)
    assert person.noticed.resume.tolist() == [pytest.approx(40)]
    assert not person.noticed.late


def test_an_interruption_is_timed_from_its_onset_and_a_late_packet_is_a_miss() -> None:
    person = caller(2.0)
    person.take(SpeechStopped(8000, 6400), 0.5)
    person.take(packet(0, 80), 0.52)
    person.take(packet(1280, 400), 0.7)
    assert person.noticed.late.tolist() == [pytest.approx(100)]
    person.take(Ducked(14400), 0.92)
    person.take(Interrupted(19200, 200.0, 3200), 1.23)
    person.take(SpeechStarted(19200, 12800), 1.23)
    person.take(Error("broken"), 1.3)
    person.take(Closed("error"), 1.3)
    noticed = person.noticed
    assert noticed.onset_to_silence.tolist() == [pytest.approx(120)]
    assert noticed.interrupted.tolist() == [pytest.approx(30)]
    assert noticed.replies == {"interrupted": 1} and noticed.closed == {"error": 1} and noticed.errors == ["broken"]
    assert person.over
    together = Noticed()
    together.add(noticed)
    together.add(noticed)
    assert together.late.tolist() == noticed.late.tolist() * 2 and together.replies["interrupted"] == 2


def test_a_room_is_never_silent() -> None:
    samples, position = Caller([Line("nothing", np.zeros(PACKET_SAMPLES, np.float32))]).tick(0.02)
    level_db = 10 * np.log10(np.square(samples).mean())
    assert len(samples) == PACKET_SAMPLES and -66 < level_db < -58 and position == 0
