"""Conversations of scripted people with the runtime: in real time through its asynchronous face, or simulated.

Simulated, the scheduler runs on a clock that passes while it computes and skips what it would wait: latencies and
deadlines are those of a machine that does this work and nothing else, and an hour takes as long as its computing.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from spiritrt.audio import RATE_HZ
from spiritrt.bench.duplex.caller import PACKET_S, Caller, Noticed
from spiritrt.bench.duplex.scripts import Material, script
from spiritrt.bench.duplex.use import GpuUse, GpuWatch, resident_mb
from spiritrt.duplex.call import Call, Full
from spiritrt.duplex.clock import VirtualClock
from spiritrt.duplex.config import SessionConfig
from spiritrt.duplex.runtime import Runtime, RuntimeSession
from spiritrt.duplex.scheduler import Scheduler
from spiritrt.duplex.stages import Stages
from spiritrt.duplex.stats import Stats
from spiritrt.duplex.trace import SpanKind

STAGGER_S = 0.37  # between the beginnings of sessions, lest they all breathe together


@dataclass(frozen=True, slots=True)
class Talk:
    """What is talked: `seconds` of each conversation; `seed` draws scripts and replies. `traces`: where to record."""

    material: Material
    config: SessionConfig
    seconds: float
    scenario: str = "mixed"
    seed: int = 0
    traces: Path | None = None

    def __post_init__(self) -> None:
        if self.seconds <= 0:
            raise ValueError(f"seconds must be positive, got {self.seconds}")

    def caller(self, number: int) -> Caller:
        """The person of a session."""
        seed = 1000 * self.seed + number
        return Caller(script(self.material, self.scenario, self.seconds, seed), seed)

    def config_of(self, number: int) -> SessionConfig:
        """The session's."""
        return replace(self.config, seed=self.config.seed + number)

    def trace_of(self, number: int) -> Path | None:
        """The file for its trace."""
        return self.traces / f"session-{number}.trace" if self.traces else None


@dataclass(slots=True)
class Run:
    """Some sessions' conversations, and what they took. Shares are of one core, or of the time."""

    sessions: int
    seconds: float = 0.0
    noticed: Noticed = field(default_factory=Noticed)
    stats: Stats = field(default_factory=Stats)
    cpu_share: float = 0.0  # of the whole process, the clients' side included
    stages: dict[SpanKind, float] = field(default_factory=dict)  # shares of the engine thread's time
    pages_returned: bool = True
    rss_mb: float = 0.0
    gpu: GpuUse | None = None

    @property
    def busy(self) -> float:
        """Share of the time that the engine thread works."""
        return sum(self.stages.values())


def real_time(stages: Stages, talk: Talk, sessions: int) -> Run:
    """Holds `sessions` conversations at once, through `Runtime`. Their clients run in this process too."""
    callers = [talk.caller(number) for number in range(sessions)]
    run = Run(sessions)
    free = stages.engine.free_pages
    asyncio.run(_converse(stages, talk, callers, run))
    for caller in callers:
        run.noticed.add(caller.noticed)
    run.pages_returned = stages.engine.free_pages == free
    run.rss_mb = resident_mb()
    return run


async def _converse(stages: Stages, talk: Talk, callers: list[Caller], run: Run) -> None:
    async with Runtime(stages, len(callers), admit=False) as runtime:
        scheduler = runtime.scheduler
        with GpuWatch(stages.family.device) as gpu:
            begin, used = time.perf_counter(), time.process_time()
            await asyncio.gather(*(_call(runtime, talk, caller, number) for number, caller in enumerate(callers)))
            run.seconds = time.perf_counter() - begin
            run.cpu_share = (time.process_time() - used) / run.seconds
        run.gpu = gpu.use
        run.stages = {kind: seconds / run.seconds for kind, seconds in scheduler.seconds.items()}
        run.stats.add(scheduler.totals)


async def _call(runtime: Runtime, talk: Talk, caller: Caller, number: int) -> None:
    await asyncio.sleep(STAGGER_S * number)
    async with runtime.session(config=talk.config_of(number), record=talk.trace_of(number)) as session:
        listening = asyncio.create_task(_listen(session, caller))
        call, begin = session.call, time.perf_counter()
        for packet in range(1, packets(talk.seconds) + 1):
            due = begin + packet * PACKET_S
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            now = time.perf_counter()
            samples, position = caller.tick(now)
            caller.sent(1e3 * (now - due), backlog_ms(call))
            try:
                session.played(position)
                await session.send(samples)
            except (ConnectionError, Full):
                break
    await listening


async def _listen(session: RuntimeSession, caller: Caller) -> None:
    async for event in session.events():
        caller.take(event, time.perf_counter())


@dataclass(slots=True)
class _Talking:
    """A simulated client."""

    call: Call
    caller: Caller
    begin: float
    packets: int  # that it will send
    sent: int = 0
    gone: bool = False  # without a word: it sends nothing and takes nothing

    @property
    def due(self) -> float:
        """When its next packet goes out."""
        return self.begin + (self.sent + 1) * PACKET_S


class Simulation:
    """Conversations on a clock of their own; see the module. `timer` says what computing takes."""

    def __init__(self, stages: Stages, timer: Callable[[], float], hung_s: float = 30.0) -> None:
        self.clock = VirtualClock(charged=True, timer=timer)
        self.scheduler = Scheduler(stages, self.clock, admit=False, hung_s=hung_s)
        self.scheduler.warm_up()
        self.scheduler.announce = self._exchange
        self.noticed = Noticed()  # of the calls that are over
        self.computing = 0.0  # seconds
        self._talking: list[_Talking] = []

    @property
    def calls(self) -> int:
        """Those that are open."""
        return len(self._talking)

    @property
    def misses(self) -> int:
        """Deadlines that were missed so far."""
        return len(self.noticed.late) + sum(len(each.caller.noticed.late) for each in self._talking)

    def call(self, caller: Caller, config: SessionConfig, seconds: float, record: Path | None = None) -> Call:
        """Begins a conversation of so many seconds now."""
        call = self.scheduler.open(config, record)
        self._talking.append(_Talking(call, caller, self.clock(), packets(seconds)))
        return call

    def vanish(self, call: Call) -> None:
        """The client of a call is gone, without a word."""
        for each in self._talking:
            each.gone = each.gone or each.call is call

    def advance(self, until: float) -> None:
        """Does one step of work, or waits for what comes next, `until` at the latest."""
        self._exchange()
        began = self.clock()
        with self.clock.running():
            worked = self.scheduler.step()
        self.computing += self.clock() - began
        self._exchange()
        for each in list(self._talking):
            if each.sent == each.packets:
                self.scheduler.close(each.call)
        self._deliver()
        for each in list(self._talking):
            if each.caller.closed:
                self._talking.remove(each)
                self.noticed.add(each.caller.noticed)
        if not worked:
            self.clock.advance_to(min([until, *(each.due for each in self._talking if not each.gone)]))

    def _exchange(self) -> None:
        self._send()  # what went out went before what comes now
        self._deliver()

    def _send(self) -> None:
        now = self.clock()
        for each in self._talking:
            call, caller = each.call, each.caller
            while not each.gone and not call.closed and each.sent < each.packets and each.due <= now:
                samples, position = caller.tick(each.due)
                each.sent += 1
                caller.sent(0.0, backlog_ms(call))
                try:
                    call.played(position)
                    call.send(samples)
                except Full:
                    each.caller.noticed.errors.append("the runtime is ten seconds behind")
                    each.packets = each.sent  # and so it ends
                    each.caller.noticed.closed["overload"] += 1

    def _deliver(self) -> None:
        now = self.clock()
        for each in self._talking:
            if not each.gone or each.call.closed:
                for event in each.call.take_events():
                    each.caller.take(event, now)


def simulated(stages: Stages, talk: Talk, sessions: int, timer: Callable[[], float]) -> Run:
    """Holds `sessions` conversations at once on a `Simulation`."""
    free = stages.engine.free_pages
    simulation = Simulation(stages, timer)
    starts = [STAGGER_S * number for number in range(sessions)]
    used = time.process_time()
    opened = 0
    with GpuWatch(stages.family.device) as gpu:
        while simulation.calls or opened < sessions:
            while opened < sessions and simulation.clock() >= starts[opened]:
                config, trace = talk.config_of(opened), talk.trace_of(opened)
                simulation.call(talk.caller(opened), config, talk.seconds, trace)
                opened += 1
            simulation.advance(starts[opened] if opened < sessions else simulation.clock() + PACKET_S)
    run = Run(sessions, simulation.clock(), simulation.noticed)
    run.stats.add(simulation.scheduler.totals)
    run.cpu_share = (time.process_time() - used) / run.seconds
    run.stages = stage_shares(simulation)
    run.pages_returned = stages.engine.free_pages == free
    run.rss_mb, run.gpu = resident_mb(), gpu.use
    return run


def stage_shares(simulation: Simulation) -> dict[SpanKind, float]:
    """Share of the simulated time that each stage takes: the scheduler's seconds, scaled to what was charged."""
    seconds = simulation.scheduler.seconds
    scale = simulation.computing / max(sum(seconds.values()), 1e-9) / max(simulation.clock(), 1e-9)
    return {kind: scale * value for kind, value in seconds.items()}


def packets(seconds: float) -> int:
    """Packets of the microphone in so much time."""
    return max(1, round(seconds / PACKET_S))


def backlog_ms(call: Call) -> float:
    """Sound that the session has been sent and has not heard."""
    return 1e3 * (call.offered - call.taken) / RATE_HZ
