"""The asynchronous face, in real time: sessions in tasks, a thread that computes, and an end that is clean."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

import spiritrt
from spiritrt.duplex import trace
from spiritrt.duplex.client import PACKET_SAMPLES
from spiritrt.duplex.config import SessionConfig, TurnConfig
from spiritrt.duplex.costs import Busy
from spiritrt.duplex.events import AudioOut, Closed, Event, ReplyEnded, SpeechStarted, SpeechStopped, TextOut
from spiritrt.duplex.runtime import Runtime, RuntimeSession
from spiritrt.duplex.script import Line, shipped_lines
from spiritrt.duplex.talk import Conversation, hold_conversation, render, talk

TURNS = TurnConfig(activity="energy", endpoint_ms=400)
CONFIG = SessionConfig(reply="chain", turns=TURNS, max_reply_s=1.0)


@asynccontextmanager
async def running(nano: spiritrt.SpiritLM, sessions: int = 2) -> AsyncIterator[Runtime]:
    async with Runtime(nano.family, sessions=sessions, admit=False) as runtime:
        yield runtime


async def read(session: RuntimeSession) -> list[Event]:
    """All events; everything is played at once."""
    events = []
    async for event in session.events():
        events.append(event)
        if isinstance(event, AudioOut):
            session.played(event.start_sample + len(event.pcm))
    return events


async def ask(session: RuntimeSession) -> None:
    """A question as fast as it is taken, then silence until it is answered."""
    await session.send(np.concatenate([shipped_lines()[0].samples, np.zeros(12000, np.float32)]))
    while session.call.session.state != "listening" or not session.call.session.stats.replies:
        await session.send(np.zeros(PACKET_SAMPLES, np.float32))
        await asyncio.sleep(0.005)


def test_a_question_is_answered_and_the_session_closes(nano: spiritrt.SpiritLM) -> None:
    async def converse() -> list[Event]:
        async with running(nano) as runtime, runtime.session(voice=1, seed=7, config=CONFIG) as session:
            assert (session.config.voice, session.config.seed, session.config.reply) == (1, 7, "chain")
            reader = asyncio.create_task(read(session))
            await asyncio.wait_for(ask(session), 60)
        events = await reader
        with pytest.raises(ConnectionError, match="the session is closed: client"):
            await session.send(np.zeros(320, np.float32))
        return events

    events = asyncio.run(converse())
    kinds = [type(event) for event in events if not isinstance(event, AudioOut | TextOut)]
    assert kinds == [SpeechStarted, SpeechStopped, ReplyEnded, Closed]
    sound = [event for event in events if isinstance(event, AudioOut)]
    assert sound and sound[0].start_sample == 0
    assert any(isinstance(event, TextOut) and event.source == "heard" for event in events)


def test_bad_input_harms_nobody_and_full_houses_refuse(nano: spiritrt.SpiritLM) -> None:
    async def converse() -> None:
        async with running(nano, sessions=1) as runtime, runtime.session(config=CONFIG) as session:
            with pytest.raises(ValueError, match="samples hold nan"):
                await session.send(np.full(10, np.nan, np.float32))
            with pytest.raises(ValueError, match="samples: the peak is 32767 and full scale is 1; divide by 32768"):
                await session.send(np.full(10, 32767, np.float32))
            with pytest.raises(ValueError, match=r"played\(99\): the client has got 0 samples"):
                session.played(99)
            with pytest.raises(Busy, match="all 1 sessions are taken"):
                async with runtime.session(config=CONFIG):
                    pass
            await session.send(np.zeros(320, np.float32))
            await runtime.do(lambda: None)
            assert not session.call.closed

    asyncio.run(converse())


def test_a_sender_waits_while_the_buffer_is_full(nano: spiritrt.SpiritLM) -> None:
    async def converse() -> None:
        async with running(nano) as runtime, runtime.session(config=CONFIG) as session:
            seconds = 30
            await asyncio.wait_for(session.send(np.zeros(16000 * seconds, np.float32)), 60)
            assert session.call.offered == 16000 * seconds
            assert session.call.offered - session.call.taken <= 160000

    asyncio.run(converse())


def test_a_runtime_that_cannot_start_says_why() -> None:
    async def start() -> None:
        async with Runtime("no-such-model"):
            pass

    with pytest.raises(ValueError, match="no-such-model"):
        asyncio.run(start())
    with pytest.raises(ValueError, match="sessions must be at least 1, got 0"):
        Runtime(sessions=0)
    with pytest.raises(ValueError, match=r"activity must be a callable .* got 'energy'; .*TurnConfig\(activity="):
        Runtime(activity="energy")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="endpoint must be a callable that makes a detector, got 600"):
        Runtime(endpoint=600)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the runtime is not running"):
        Runtime().session()


def test_what_is_over_says_so_when_it_is_used_again(nano: spiritrt.SpiritLM, tmp_path: Path) -> None:
    async def converse() -> None:
        async with running(nano) as runtime:
            with pytest.raises(FileNotFoundError, match=r"missing/call\.trace has no folder"):
                async with runtime.session(config=CONFIG, record=tmp_path / "missing" / "call.trace"):
                    pass
            session = runtime.session(config=CONFIG)
            async with session:
                pass
            with pytest.raises(RuntimeError, match="this session was entered before"):
                async with session:
                    pass
            assert not runtime.scheduler.calls
        with pytest.raises(RuntimeError, match="this runtime is closed: make a new Runtime") as refused:
            async with runtime.session(config=CONFIG):
                pass
        assert not isinstance(refused.value, Busy), "there is nothing to wait for"
        with pytest.raises(RuntimeError, match="runs once: make a new Runtime"):
            async with runtime:
                pass

    asyncio.run(converse())


def test_sigterm_under_load_ends_sessions_cleanly_with_whole_traces(nano: spiritrt.SpiritLM, tmp_path: Path) -> None:
    async def converse() -> list[list[Event]]:
        async with running(nano) as runtime:
            runtime.stop_on(signal.SIGTERM, grace_s=5.0)
            sessions = [runtime.session(config=CONFIG, record=tmp_path / f"{n}.trace") for n in range(2)]
            async with sessions[0], sessions[1]:
                readers = [asyncio.create_task(read(session)) for session in sessions]
                sound = np.concatenate([shipped_lines()[0].samples, np.zeros(9000, np.float32)])
                await asyncio.gather(*(session.send(sound) for session in sessions))
                while not any(session.call.session.state == "speaking" for session in sessions):
                    await asyncio.sleep(0.005)
                os.kill(os.getpid(), signal.SIGTERM)
                events = await asyncio.wait_for(asyncio.gather(*readers), 60)
            with pytest.raises(RuntimeError, match=r"the runtime is stopping|this runtime is closed"):
                async with runtime.session(config=CONFIG):
                    pass
        return events

    events = asyncio.run(converse())
    assert [each[-1] for each in events] == [Closed("stopping")] * 2
    assert any(isinstance(event, ReplyEnded) for each in events for event in each), "a running reply is finished"
    assert all(trace.read(tmp_path / f"{number}.trace").whole for number in range(2))


def test_a_conversation_in_real_time_is_reported(nano: spiritrt.SpiritLM, tmp_path: Path) -> None:
    question, short = shipped_lines()[0].samples, shipped_lines()[1].samples
    lines = [Line("a question", question, pause_s=0.1), Line("a word", short, pause_s=0.1)]

    async def converse() -> Conversation:
        conversation = Conversation(lines)
        async with running(nano) as runtime:
            await talk(runtime, conversation, CONFIG, tmp_path / "one.trace")
        return conversation

    report = asyncio.run(converse()).report
    assert report.turns[0].first_audio_ms is not None and report.turns[0].finish
    assert report.stereo.shape == (round(report.seconds * 16000), 2)
    assert np.abs(report.stereo).max(axis=0).min() > 0.01, "both sides are heard"
    assert trace.read(tmp_path / "one.trace").whole


def test_a_simulated_conversation_repeats_exactly(nano: spiritrt.SpiritLM, tmp_path: Path) -> None:
    clips = shipped_lines()
    lines = [clips[0], Line("an interruption", clips[3].samples, interrupt_s=0.3)]
    reports = [hold_conversation(nano.family, lines, CONFIG, real_time=False) for _ in range(2)]
    first, second = reports
    assert [turn.finish for turn in first.turns] == ["interrupted", "length"] or first.turns[0].finish == "interrupted"
    assert first.turns[0].reply_s is not None and first.turns[0].reply_s >= 0.3
    np.testing.assert_array_equal(first.stereo, second.stereo)
    assert first.underruns == 0 and first.stats.interruptions == 1
    text = render(first, tmp_path / "x.wav", tmp_path / "x.trace")
    assert "gives up the floor" in text and "x.trace" in text
    assert first.summary()["stats"]["interruptions"] == 1
