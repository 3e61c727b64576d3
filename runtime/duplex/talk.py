"""`spiritrt talk`: a scripted person talks with a model, through the runtime, and numbers say what happened."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from spiritrt.audio import RATE_HZ, Samples
from spiritrt.duplex.client import PACKET_SAMPLES, Loudspeaker, ScriptedPerson
from spiritrt.duplex.clock import VirtualClock
from spiritrt.duplex.config import SessionConfig
from spiritrt.duplex.events import (
    AudioOut,
    Closed,
    Ducked,
    Error,
    Event,
    Interrupted,
    ReplyEnded,
    Resumed,
    SpeechStarted,
    SpeechStopped,
    TextOut,
)
from spiritrt.duplex.runtime import Runtime, RuntimeSession
from spiritrt.duplex.scheduler import Scheduler
from spiritrt.duplex.script import Line
from spiritrt.duplex.stages import Stages
from spiritrt.duplex.stats import Stats
from spiritrt.models.family import Family

LONGEST_S = 600.0  # a conversation that does not end by then is ended


@dataclass(slots=True)
class Turn:
    """A turn of the person and what came of it; times in seconds since the start. None: it did not happen."""

    began_s: float
    endpoint_s: float | None = None
    heard_text: str = ""
    reply_text: str = ""
    first_audio_ms: float | None = None  # endpoint decided -> first sound at the loudspeaker
    response_ms: float | None = None  # the person fell silent -> the same; the endpoint's silence is part of it
    reply_s: float | None = None  # length of the reply that was heard
    silent_ms: float | None = None  # speech over the reply began -> loudspeaker silent
    resumed_ms: float | None = None  # false alarm decided -> loudspeaker sounds again
    finish: str = ""  # why the reply ended


@dataclass(slots=True)
class Report:
    """A finished conversation. `stereo` [N, 2]: left the person, right the model, at 16 kHz."""

    turns: list[Turn] = field(default_factory=list)
    seconds: float = 0.0
    underruns: int = 0  # packets at which the loudspeaker ran dry within a reply
    busy: float = 0.0  # share of the time that the machine computed
    stats: Stats = field(default_factory=Stats)
    timeline: list[tuple[float, str, str]] = field(default_factory=list)
    stereo: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.float32))

    def summary(self) -> dict:
        """The numbers and texts of the report, ready for JSON."""
        return {
            "turns": [asdict(turn) for turn in self.turns],
            "seconds": round(self.seconds, 3),
            "underruns": self.underruns,
            "busy": round(self.busy, 3),
            "stats": asdict(self.stats),
        }


class Conversation:
    """The person's side of a session: what is said and heard in each packet, and what is noted of it."""

    def __init__(self, lines: Sequence[Line]) -> None:
        self.report = Report()
        self._person = ScriptedPerson(lines)
        self._loudspeaker = Loudspeaker()
        self._sides: list[tuple[Samples, Samples]] = []
        self._endpoint_s = self._silent_s = self._resumed_s = 0.0
        self._waits_for_sound = self._waits_to_resume = False
        self._said = 0
        self.closed = False

    @property
    def over(self) -> bool:
        """Whether there is nothing left to say or hear."""
        return self.closed or self._person.over or len(self._sides) * PACKET_SAMPLES > LONGEST_S * RATE_HZ

    def tick(self) -> tuple[Samples, int]:
        """The next packet of the microphone, and the loudspeaker's output position at its beginning."""
        person = self._person.tick(self._loudspeaker.heard)
        position = self._loudspeaker.position
        model = self._loudspeaker.tick()
        self._sides.append((person, model))
        for seconds, name, length in self._person.said[self._said :]:
            self._note(seconds, "person", f"{name} ({length:.1f} s)")
        self._said = len(self._person.said)
        return person, position

    def take(self, event: Event, now_s: float) -> None:
        """An event of the session."""
        self._person.take(event)
        self._loudspeaker.take(event)
        turns = self.report.turns
        if isinstance(event, SpeechStarted):
            turns.append(Turn(event.began / RATE_HZ))
            self._note(now_s, "person", f"heard speaking since {event.began / RATE_HZ:.2f} s")
        elif isinstance(event, SpeechStopped):
            turns[-1].endpoint_s = self._endpoint_s = now_s
            self._silent_s = event.ended / RATE_HZ
            self._waits_for_sound = True
            self._note(now_s, "turn", f"endpoint; speech ended at {self._silent_s:.2f} s")
        elif isinstance(event, TextOut):
            if event.source == "heard":
                turns[-1].heard_text = event.text
                self._note(now_s, "model", f"heard: {event.text!r}")
            else:
                turns[-1].reply_text += event.text
        elif isinstance(event, AudioOut):
            self._take_sound(turns[-1], now_s)
        elif isinstance(event, Ducked):
            turns[-1].silent_ms = 1000 * (now_s - event.at / RATE_HZ)
            self._note(now_s, "model", "falls silent: somebody speaks over it")
        elif isinstance(event, Resumed):
            self._waits_to_resume, self._resumed_s = True, now_s
            turns[-1].silent_ms = None
            self._note(now_s, "model", f"goes on from its sample {event.sample}: that was no interruption")
        elif isinstance(event, Interrupted):
            turns[-1].finish, turns[-1].reply_s = "interrupted", event.heard / RATE_HZ
            self._note(now_s, "model", f"gives up the floor; {event.heard_ms / 1000:.2f} s of the reply were heard")
        elif isinstance(event, ReplyEnded):
            turns[-1].finish, turns[-1].reply_s = event.reason, event.samples / RATE_HZ
            self._note(now_s, "model", f"ends after {event.samples / RATE_HZ:.2f} s ({event.reason})")
        elif isinstance(event, Error):
            self._note(now_s, "error", event.message)
        elif isinstance(event, Closed):
            self.closed = True

    def finish(self, stats: Stats, busy: float) -> Report:
        """The report of all that happened."""
        report = self.report
        if self._sides:
            report.stereo = np.stack([np.concatenate(side) for side in zip(*self._sides, strict=True)], axis=1)
        report.seconds = len(report.stereo) / RATE_HZ
        report.underruns, report.stats, report.busy = self._loudspeaker.underruns, stats, busy
        return report

    def _take_sound(self, turn: Turn, now_s: float) -> None:
        if self._waits_for_sound:
            turn.first_audio_ms = 1000 * (now_s - self._endpoint_s)
            turn.response_ms = 1000 * (now_s - self._silent_s)
            answers = f"answers: {turn.reply_text!r}, " if turn.reply_text else ""
            self._note(now_s, "model", f"{answers}first sound {turn.first_audio_ms:.0f} ms after the endpoint")
        self._waits_for_sound = False

    def _note(self, seconds: float, who: str, what: str) -> None:
        self.report.timeline.append((seconds, who, what))


async def talk(runtime: Runtime, conversation: Conversation, config: SessionConfig, record: Path | None) -> Report:
    """Holds a conversation in real time."""
    async with runtime.session(config=config, record=record) as session:
        begin, used = time.perf_counter(), time.process_time()
        listening = asyncio.create_task(_listen(session, conversation, begin))
        packet = 0
        while not conversation.over:
            packet += 1  # a microphone hands a packet over when it has all of it
            await asyncio.sleep(max(0.0, begin + packet * PACKET_SAMPLES / RATE_HZ - time.perf_counter()))
            samples, position = conversation.tick()
            session.played(position)
            await session.send(samples)
        busy = (time.process_time() - used) / (time.perf_counter() - begin)
        stats = session.call.session.stats
    await listening
    return conversation.finish(stats, busy)


async def _listen(session: RuntimeSession, conversation: Conversation, begin: float) -> None:
    async for event in session.events():
        conversation.take(event, time.perf_counter() - begin)


def simulate(
    scheduler: Scheduler, clock: VirtualClock, conversation: Conversation, config: SessionConfig, record: Path | None
) -> Report:
    """Holds a conversation as fast as it goes, on a scheduler whose clock this is."""
    call = scheduler.open(config, record)
    begin, used, packet = clock(), time.process_time(), 0
    while not conversation.over:
        packet += 1
        clock.advance_to(begin + packet * PACKET_SAMPLES / RATE_HZ)
        samples, position = conversation.tick()
        call.played(position)
        call.send(samples)
        worked = True
        while worked and clock() < begin + (packet + 1) * PACKET_SAMPLES / RATE_HZ:
            with clock.running():
                worked = scheduler.step()
            for event in call.take_events():
                conversation.take(event, clock() - begin)
    scheduler.close(call)
    return conversation.finish(call.session.stats, (time.process_time() - used) / max(clock() - begin, 1e-9))


def hold_conversation(
    family: Family,
    lines: Sequence[Line],
    config: SessionConfig,
    real_time: bool,
    record: Path | None = None,
    weights: str = "auto",
    kernels: Mapping[str, str] | None = None,
    prefix: Path | None = None,
) -> Report:
    """Says `lines` to a family, in real time or as fast as it goes; `record` names a file for the trace."""
    conversation = Conversation(lines)
    if real_time:
        return asyncio.run(_real_time(family, conversation, config, record, weights, kernels, prefix))
    clock = VirtualClock()
    scheduler = Scheduler(Stages.load(family, 1, weights=weights, kernels=kernels, prefix=prefix), clock)
    return simulate(scheduler, clock, conversation, config, record)


async def _real_time(
    family: Family,
    conversation: Conversation,
    config: SessionConfig,
    record: Path | None,
    weights: str,
    kernels: Mapping[str, str] | None,
    prefix: Path | None,
) -> Report:
    async with Runtime(family, sessions=1, weights=weights, kernels=kernels, prefix=prefix) as runtime:
        runtime.stop_on()
        return await talk(runtime, conversation, config, record)


def render(report: Report, out: Path, trace: Path | None = None) -> str:
    """The report as text: what happened when, then the numbers."""
    lines = [f"{seconds:7.2f} s  {who:6}  {what}" for seconds, who, what in sorted(report.timeline, key=lambda e: e[0])]
    lines.append("" if report.turns else "nothing was heard: the recordings hold no speech")
    for number, turn in enumerate(report.turns, start=1):
        reply = "no reply"
        if turn.first_audio_ms is not None and turn.response_ms is not None:
            reply = f"first audio {turn.first_audio_ms:.0f} ms after the endpoint"
            reply += f" ({turn.response_ms:.0f} ms after the person fell silent)"
        if turn.reply_s is not None:
            reply += f", {turn.reply_s:.1f} s of reply heard ({turn.finish})"
        if turn.silent_ms is not None:
            reply += f", silent {turn.silent_ms:.0f} ms after speech over it was certain"
        heard = f"heard {turn.heard_text!r}, said {turn.reply_text!r}; " if turn.heard_text or turn.reply_text else ""
        lines.append(f"turn {number}: {heard}{reply}")
    stats = report.stats
    lines.append(
        f"{report.seconds:.1f} s of conversation, computing {100 * report.busy:.0f}% of the time; "
        f"{report.underruns} underruns, {stats.interruptions} interruptions, {stats.false_alarms} false alarms"
    )
    lines.append(
        f"{stats.drawn_tokens} tokens drawn, {stats.wasted_tokens} of them thought ahead in vain, "
        f"{stats.unheard_tokens} cut off unheard"
    )
    lines.append(f"wrote {out} (left: person, right: model)" + (f" and {trace}" if trace else ""))
    return "\n".join(lines)
