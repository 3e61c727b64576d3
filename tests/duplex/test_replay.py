"""Traces: what is in them, and that a session repeats from one, alone and beside others, to the last bit."""

import gzip
import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from call_rig import Caller, run
from typer.testing import CliRunner

import spiritrt
from spiritrt.cli import app
from spiritrt.duplex import trace
from spiritrt.duplex.clock import VirtualClock
from spiritrt.duplex.config import EchoConfig, SessionConfig, TurnConfig
from spiritrt.duplex.events import AudioOut, Ducked, TextOut
from spiritrt.duplex.replay import ReplayError, replay
from spiritrt.duplex.scheduler import Scheduler
from spiritrt.duplex.script import RECORDINGS, shipped_lines
from spiritrt.duplex.stages import Stages
from spiritrt.duplex.timeline import ROWS, export
from spiritrt.duplex.trace import Full, Happened, Heard, Over, Played, Recorder, Sound, Span, Trace

SESSIONS, TOGETHER = 20, 8
QUESTION = RECORDINGS / "question.flac"


@pytest.fixture(scope="module")
def stages(nano: spiritrt.SpiritLM) -> Stages:
    return Stages.load(nano.family, TOGETHER)


@pytest.fixture(scope="module")
def recorded(stages: Stages, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Conversations with interruptions and backchannels at random points, on a machine that is often too slow."""
    folder = tmp_path_factory.mktemp("traces")
    draw = random.Random(0)
    lines = [line.samples for line in shipped_lines()]
    clock = VirtualClock()
    scheduler = Scheduler(stages, clock, admit=False)
    kinds = set()
    for first in range(0, SESSIONS, TOGETHER):
        callers = []
        for number in range(first, min(first + TOGETHER, SESSIONS)):
            second = lines[1 if number in (0, 4, 13) else 3]
            parts = [lines[0], np.zeros(draw.randrange(15000, 24000), np.float32), second]
            sound = np.concatenate([np.zeros(3200, np.float32), *parts, np.zeros(40000, np.float32)])
            config = SessionConfig(
                reply=("chain", "continuation", "text")[number % 3],  # type: ignore[arg-type]
                seed=number,
                max_reply_s=2.0,
                think_ahead=number != 4,
                revise=number in (6, 7),
                turns=TurnConfig(activity="silero" if number % 10 == 0 else "energy"),
                echo=EchoConfig(cancelled=number != 3, gain_db=-40.0),
            )
            callers.append(Caller(scheduler.open(config, folder / f"{number}.trace"), sound))
        run(scheduler, clock, callers, slow=draw)
        for caller in callers:
            scheduler.close(caller.call)
            kinds |= set(caller.kinds())
    assert {"Interrupted", "Resumed", "ReplyEnded", "Ducked"} <= kinds, "the conversations are worth replaying"
    return [folder / f"{number}.trace" for number in range(SESSIONS)]


def test_sessions_repeat_to_the_last_bit_alone_and_together(stages: Stages, recorded: list[Path]) -> None:
    traces = [trace.read(file) for file in recorded]
    assert all(each.whole for each in traces)
    for first in range(0, SESSIONS, TOGETHER):
        group = traces[first : first + TOGETHER]
        for each, beside in zip(group, replay(group, stages), strict=True):
            assert beside.same, beside.differences
            assert beside.samples or each.config.reply == "text"
            (alone,) = replay([each], stages)
            assert alone.same, alone.differences
            np.testing.assert_array_equal(alone.model, beside.model)


def test_a_replay_says_what_differs(stages: Stages, recorded: list[Path]) -> None:
    one = trace.read(recorded[0])
    one.config = replace(one.config, seed=99, temperature=1.5)  # surely another reply
    try:
        (result,) = replay([one], stages)
    except ReplayError as error:  # another reply may be shorter than what was played of it
        assert "of a reply were played" in str(error) or "ended that is not over" in str(error)
    else:
        assert not result.same and result.differences


def test_the_command_replays_and_exports(recorded: list[Path], tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["replay", str(recorded[2]), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["same"] is True
    done = CliRunner().invoke(app, ["trace", str(recorded[1]), "-o", str(tmp_path / "call.json"), "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout)["events"] > 100


def test_a_conversation_with_a_prefix_and_other_weights_replays_as_it_was_recorded(tmp_path: Path) -> None:
    one, other, prefix = tmp_path / "one.trace", tmp_path / "other.trace", tmp_path / "prefix.jsonl"
    prefix.write_text(json.dumps({"audio": str(QUESTION), "text": "what A: that", "reply": str(QUESTION)}) + "\n")
    talk = ["talk", str(QUESTION), "--simulated", "--activity", "energy", "--weights", "int8", "--prefix", str(prefix)]
    done = CliRunner().invoke(app, [*talk, "-o", str(tmp_path / "one.wav"), "--trace", str(one)])
    assert done.exit_code == 0, done.output
    recorded = trace.read(one)
    assert recorded.running["weights"] == "int8" and int(recorded.running["prefix"]) > 20
    done = CliRunner().invoke(app, ["replay", str(one), "--prefix", str(prefix), "--json"])
    assert done.exit_code == 0, done.output
    (session,) = json.loads(done.stdout)["sessions"]
    assert session["same"] and session["packets"] and not session["recorded_on"]
    done = CliRunner().invoke(app, ["replay", str(one)])
    assert str(done.exception) == f"recorded with a few-shot prefix: give --prefix FILE, as for {one}"
    prefix.write_text(json.dumps({"text": "what A: that"}) + "\n")
    done = CliRunner().invoke(app, ["replay", str(one), "--weights", "fp32", "--prefix", str(prefix)])
    said = f"{done.output} {done.exception}"  # the traces may part so far that it cannot go on
    assert "recorded with weights_choice int8, and now fp32" in said and "with prefix " in said
    recorder(other).close(0.0, "client", ())
    rewritten = gzip.compress(gzip.decompress(other.read_bytes()).replace(b'"nano"', b'"base"'))
    other.write_bytes(rewritten)
    done = CliRunner().invoke(app, ["replay", str(one), str(other)])
    assert done.exit_code and "the traces are of base and nano" in str(done.exception or done.output)


def test_an_export_has_a_row_for_every_stage(recorded: list[Path]) -> None:
    one = trace.read(recorded[1])
    exported = export(one)["traceEvents"]
    slices = [event for event in exported if event["ph"] == "X"]
    assert {ROWS[event["tid"]] for event in slices} == set(ROWS) - {"session"}
    assert all(event["dur"] >= 0 for event in slices)
    heard = sum(event["args"]["samples"] for event in slices if ROWS[event["tid"]] == "microphone")
    assert heard == sum(len(record.samples) for record in one.records if isinstance(record, Heard))
    names = {event["name"] for event in exported if event["ph"] == "i"}
    assert {"SpeechStarted", "SpeechStopped", "played", "closed: client"} <= names


def test_an_export_shows_what_a_client_plays_and_what_came_late() -> None:
    def sound(at: float, start: int) -> Sound:
        return Sound(at, start, 8000, b"", (1, 2))

    def heard(at: float) -> Heard:
        return Heard(at, np.zeros(320, np.float32))

    records = [
        heard(1.0), heard(1.001), Span(1.0, 1.1, "decode", 1.05, 2),
        sound(1.0, 0), Happened(1.2, "Ducked", {}), Happened(2.0, "Resumed", {}), sound(2.1, 8000),
        sound(3.0, 16000), Happened(3.1, "Ducked", {}), Happened(3.3, "Interrupted", {}),
        sound(4.0, 24000), Happened(4.5, "ReplyEnded", {}),
    ]  # fmt: skip
    exported = export(Trace(SessionConfig(), {"model": "nano"}, records))["traceEvents"]  # type: ignore[arg-type]
    assert min(event["ts"] for event in exported if "ts" in event) == 0
    slices = [
        (ROWS[event["tid"]], round(event["ts"] / 1e6 + 0.98, 3), round(event["dur"] / 1e6, 3), event["args"])
        for event in exported
        if event["ph"] == "X"
    ]
    played = [(at, seconds, args["start_sample"]) for row, at, seconds, args in slices if row == "playout"]
    assert played == [
        (1.0, 0.2, 0), (2.0, 0.3, 3200), (2.3, 0.5, 8000), (3.0, 0.1, 16000), (4.0, 0.5, 24000)
    ]  # fmt: skip
    assert [(at, seconds) for row, at, seconds, _ in slices if row == "microphone"] == [(0.98, 0.02), (1.0, 0.001)]
    marks = {event["name"]: event for event in exported if event["ph"] == "i"}
    assert round(marks["miss"]["args"]["by_ms"]) == 200 and round(marks["miss"]["ts"] / 1e6 + 0.98, 3) == 3.0
    assert round(marks["late"]["args"]["by_ms"]) == 50 and sum(event["name"] == "miss" for event in exported) == 1
    dues = [args.get("due_s") for row, *_, args in slices if row == "playout"]
    assert dues == [None, None, pytest.approx(1.32), pytest.approx(1.82), None]


def recorder(file: Path, **settings: int) -> Recorder:
    return Recorder(file, SessionConfig(seed=3, turns=TurnConfig(onset_ms=100)), {"model": "nano"}, **settings)


def test_a_folder_that_is_not_there_is_named_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing/one\.trace has no folder to go into: mkdir -p .*/missing$"):
        recorder(tmp_path / "missing" / "one.trace")
    assert not list(tmp_path.iterdir())


def test_a_trace_gives_back_what_was_written(tmp_path: Path) -> None:
    file = tmp_path / "one.trace"
    written = recorder(file)
    draw = np.random.default_rng(0)
    sixteen = (draw.integers(-32768, 32767, 500) / 32768).astype(np.float32)
    exact = draw.standard_normal(500).astype(np.float32)
    written.hear(0.5, sixteen)
    written.hear(0.6, exact)
    written.played(0.7, 1234)
    written.over(0.8)
    written.span("decode", 0.8, 0.9, 1.0, 3)
    written.event(0.9, AudioOut(exact, (5, 6), 640))
    written.event(0.9, TextOut("hé", "reply"))
    written.event(0.9, Ducked(at=77))
    written.close(1.0, "client", (1, 2, 3))
    read = trace.read(file)
    assert read.config == SessionConfig(seed=3, turns=TurnConfig(onset_ms=100)) and read.whole
    first, second, *others = read.records
    assert isinstance(first, Heard) and isinstance(second, Heard)
    np.testing.assert_array_equal(first.samples, sixteen)
    np.testing.assert_array_equal(second.samples, exact)
    assert others[:3] == [Played(0.7, 1234), Over(0.8), Span(0.8, 0.9, "decode", 1.0, 3)]
    assert others[3] == Sound(0.9, 640, 500, trace.digest(exact), (5, 6))
    assert [others[n].fields for n in (4, 5)] == [{"text": "hé", "source": "reply"}, {"at": 77}]  # type: ignore[union-attr]
    assert others[6] == trace.Ended(1.0, "client", (1, 2, 3))


def test_a_trace_stops_at_its_bound_and_says_so(tmp_path: Path) -> None:
    file = tmp_path / "one.trace"
    written = recorder(file, most_bytes=5000)
    for number in range(100):
        written.hear(number, np.zeros(320, np.float32))
    written.close(100.0, "client", ())
    read = trace.read(file)
    assert sum(isinstance(record, Full) for record in read.records) == 1 and not read.whole
    assert len(read.records) < 12


def test_a_disk_that_is_full_ends_the_trace_and_not_the_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = recorder(tmp_path / "one.trace")
    written.hear(0.0, np.zeros(320, np.float32))

    def full(data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(written._file, "write", full)
    written.hear(0.1, np.zeros(320, np.float32))
    monkeypatch.undo()
    written.over(0.2)
    written.close(0.3, "client", ())
    assert len(trace.read(tmp_path / "one.trace").records) == 1


def test_a_trace_that_was_cut_off_is_read_as_far_as_it_goes(recorded: list[Path], tmp_path: Path) -> None:
    whole = recorded[0].read_bytes()
    (tmp_path / "cut.trace").write_bytes(whole[: len(whole) // 2])
    read = trace.read(tmp_path / "cut.trace")
    assert len(read.records) > 10 and not read.whole


@pytest.mark.parametrize(
    "content", [b"no gzip", gzip.compress(b"no json\n"), gzip.compress(b'{"spiritrt_trace": 9}\n')]
)
def test_what_is_no_trace_is_refused(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "x.trace"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.trace is not a trace: "):
        trace.read(file)


def test_a_trace_of_something_that_never_was_is_refused(stages: Stages) -> None:
    impossible = Trace(
        SessionConfig(reply="chain", turns=TurnConfig(activity="energy")), {"model": "nano"}, [Played(0.0, 5)]
    )
    with pytest.raises(ReplayError, match="5 samples of a reply were played, which has fewer"):
        replay([impossible], stages)
