"""Hours of calls, simulated: does anything grow, is anything kept, is anybody late?

One call lasts from beginning to end, far beyond the context window. The others open and close all the time, some while
they are spoken to, and some clients vanish without a word.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from spiritrt.bench.duplex.caller import Caller
from spiritrt.bench.duplex.drive import Run, Simulation, Talk, stage_shares
from spiritrt.bench.duplex.scripts import script
from spiritrt.bench.duplex.use import resident_mb
from spiritrt.duplex.call import Call
from spiritrt.duplex.stages import Stages

CALL_S = (20.0, 180.0)  # length of a call that is not the long one
PAUSE_S = (0.5, 5.0)  # before the next one
VANISHING = 0.05  # share of the clients
HUNG_S = 10.0  # a client that is gone keeps its session for so long
START_UP_S = 60.0  # before memory is said to have a level


@dataclass(frozen=True, slots=True)
class Sample:
    """What there was at a moment."""

    at_s: float
    rss_mb: float
    free_pages: int
    calls: int
    opened: int
    misses: int


@dataclass(slots=True)
class Soak:
    """What came of it. `run` has the figures of all calls together."""

    run: Run
    pages: int = 0  # that were free before
    samples: list[Sample] = field(default_factory=list)
    opened: int = 0
    vanished: int = 0
    reaped: int = 0
    errors: int = 0
    evicted_tokens: int = 0

    def record(self) -> dict:
        """As JSON has it: memory at the start (after a minute), in the middle and at the end."""
        level = [sample for sample in self.samples if sample.at_s >= min(START_UP_S, self.samples[-1].at_s / 2)]
        start, middle, end = level[0], level[len(level) // 2], level[-1]
        return {
            "seconds": round(self.run.seconds, 1),
            "call_seconds": round(self.run.stats.heard_samples / 16000, 1),
            "opened": self.opened,
            "vanished": self.vanished,
            "reaped": self.reaped,
            "errors": self.errors,
            "evicted_tokens": self.evicted_tokens,
            "rss_mb": {"start": start.rss_mb, "middle": middle.rss_mb, "end": end.rss_mb},
            "pages": {"before": self.pages, "after": self.samples[-1].free_pages},
            "deadline_misses": len(self.run.noticed.late),
            "misses_after_start_up": self.samples[-1].misses - start.misses,
            "ok": self.ok,
            "samples": [asdict(sample) for sample in self.samples],
        }

    @property
    def ok(self) -> bool:
        """Whether all was given back and nothing went wrong that was not meant to."""
        return self.samples[-1].free_pages == self.pages and not self.errors and self.reaped == self.vanished


@dataclass(slots=True)
class _Line:
    """One of the lines on which calls come in."""

    call: Call | None = None
    free_at: float = 0.0
    ends_at: float = 0.0
    vanishes: bool = False


def soak(
    stages: Stages,
    talk: Talk,
    sessions: int,
    timer: Callable[[], float],
    tell: Callable[[str], None] = lambda line: None,
) -> Soak:
    """Keeps `sessions` lines busy for `talk.seconds`, on a clock of its own."""
    rng = np.random.default_rng(talk.seed)
    free = stages.engine.free_pages
    simulation = Simulation(stages, timer, HUNG_S)
    result = Soak(Run(sessions), free)
    lines = [_Line(free_at=0.37 * number) for number in range(sessions)]
    # samples of it stay the same size however long it takes
    every = max(1.0, talk.seconds / 120)
    next_sample = 0.0
    while simulation.clock() < talk.seconds or simulation.calls:
        now = simulation.clock()
        for number, line in enumerate(lines):
            _serve(line, number == 0, now, simulation, talk, result, rng)
        if now >= next_sample:
            result.samples.append(_sample(simulation, stages, result))
            tell(f"{now / 60:.1f} of {talk.seconds / 60:.1f} minutes, {result.samples[-1]}")
            next_sample += every
        waits = [line.free_at for line in lines if line.call is None and now < line.free_at < talk.seconds]
        leaves = [line.ends_at for line in lines if line.call is not None and line.vanishes]
        simulation.advance(min([*waits, *leaves, now + every]))
    result.samples.append(_sample(simulation, stages, result))
    run = result.run
    run.seconds, run.noticed = simulation.clock(), simulation.noticed
    run.noticed.closed["hung"] -= result.vanished  # as it was meant
    run.noticed.closed["client"] += result.vanished
    run.stats.add(simulation.scheduler.totals)
    run.stages = stage_shares(simulation)
    run.cpu_share = simulation.computing / run.seconds
    run.rss_mb, run.pages_returned = resident_mb(), stages.engine.free_pages == free
    result.reaped, result.errors = simulation.scheduler.hung, simulation.scheduler.errors
    result.evicted_tokens = run.stats.evicted_tokens
    return result


def _serve(
    line: _Line, long: bool, now: float, simulation: Simulation, talk: Talk, result: Soak, rng: np.random.Generator
) -> None:
    """Opens the next call of a line where it is time, and lets a client vanish."""
    call = line.call
    if call is not None and line.vanishes and now >= line.ends_at:
        simulation.vanish(call)
        line.vanishes = False
        result.vanished += 1
    if call is not None and call.closed:
        line.call, line.free_at = None, now + rng.uniform(*PAUSE_S)
    if line.call is not None or now < line.free_at or now >= talk.seconds:
        return
    seconds = talk.seconds - now if long else min(rng.uniform(*CALL_S), talk.seconds - now)
    line.vanishes = not long and rng.random() < VANISHING and now + seconds + HUNG_S < talk.seconds
    line.ends_at = now + seconds
    seed = 1000 * talk.seed + result.opened
    caller = Caller(script(talk.material, talk.scenario, seconds, seed), seed)
    config = replace(talk.config, seed=talk.config.seed + result.opened)
    # who vanishes would have had more to say
    line.call = simulation.call(caller, config, seconds + (HUNG_S if line.vanishes else 0.0))
    result.opened += 1


def _sample(simulation: Simulation, stages: Stages, result: Soak) -> Sample:
    return Sample(
        round(simulation.clock(), 1),
        round(resident_mb(), 1),
        stages.engine.free_pages,
        simulation.calls,
        result.opened,
        simulation.misses,
    )
