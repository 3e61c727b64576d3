"""What `spiritrt bench duplex` does with its options."""

import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console

from spiritrt.bench.duplex import plots, report
from spiritrt.bench.duplex.drive import Run, Talk, real_time, simulated
from spiritrt.bench.duplex.figures import DEFINITIONS, Goals, counted, goals_of, record, summary
from spiritrt.bench.duplex.limit import Limit, find_limit
from spiritrt.bench.duplex.scripts import material_of
from spiritrt.bench.duplex.shape import random_stages
from spiritrt.bench.duplex.soak import Soak, soak
from spiritrt.bench.duplex.use import priority
from spiritrt.bench.environment import environment
from spiritrt.duplex.config import ReplyPolicy, SessionConfig, TurnConfig
from spiritrt.duplex.stages import Stages
from spiritrt.engine.forward import kernel_choices
from spiritrt.models.family import Family, usable_device

NUMBERS = re.compile(r"\[[-+.\de,\s]+\]")
LIMIT_ON_CPU, LIMIT_ON_GPU = 16, 256  # sessions that --find-limit tries at most, unless it is told


@dataclass(frozen=True, slots=True)
class DuplexOptions:
    """See the command. `shape` in place of a model's language model: random weights."""

    model: str = "nano"
    shape: str | None = None
    audio: Path | None = None
    sessions: tuple[int, ...] = (1,)
    seconds: float = 60.0
    scenario: str = "mixed"
    simulated: bool = False
    find_limit: bool = False
    soak: bool = False
    reply: str | None = None
    activity: str = "silero"
    context_tokens: int | None = None
    max_reply_s: float = 12.0
    seed: int = 0
    device: str = "cpu"
    weights: str = "auto"
    cache: str = "auto"
    kernels: tuple[str, ...] = ()
    minutes: float | None = None
    json: Path | None = None
    html: Path | None = None
    plot: Path | None = None
    traces: Path | None = None

    def __post_init__(self) -> None:
        if not self.sessions or min(self.sessions) < 1:
            raise ValueError(f"sessions must be at least 1, got {', '.join(map(str, self.sessions)) or 'none'}")
        if self.seconds <= 0:
            raise ValueError(f"seconds must be positive, got {self.seconds}")
        if self.minutes is not None and self.minutes <= 0:
            raise ValueError(f"minutes must be above 0, got {self.minutes}")
        if self.reply not in (None, "continuation", "chain"):
            raise ValueError(f"reply must be continuation or chain, which sound, got {self.reply!r}")
        if self.soak and self.find_limit:
            raise ValueError("--soak and --find-limit are two benches: ask for one")

    @property
    def device_type(self) -> str:
        return usable_device(self.device).type


@dataclass(slots=True)
class Results:
    """All that was measured, and what was not for want of time."""

    runs: list[Run] = field(default_factory=list)
    limit: Limit | None = None
    soak: Soak | None = None
    not_measured: list[int] = field(default_factory=list)  # sessions


def bench_duplex(options: DuplexOptions, console: Console) -> bool:
    """Runs what is asked for, prints it and writes the files; whether nothing was left behind."""
    torch.set_num_threads(1)
    until = None if options.minutes is None else time.monotonic() + 60 * options.minutes
    goals = goals_of(options.device)
    most = max(options.sessions)
    if options.find_limit and most == 1:
        most = LIMIT_ON_CPU if options.device_type == "cpu" else LIMIT_ON_GPU
    if options.traces is not None:
        options.traces.mkdir(parents=True, exist_ok=True)
    with Console(stderr=True).status("loading") as status:
        about = environment(usable_device(options.device))  # the code that runs, whatever is committed meanwhile
        stages = stages_of(options, most)
        talk = Talk(
            material_of(options.audio), config_of(options, stages), options.seconds, options.scenario, options.seed,
            options.traces,
        )  # fmt: skip
        results = measure(options, stages, talk, most, goals, until, status.update)
    result = assembled(options, stages, results, goals, about)
    records = result["runs"]
    console.print(report.table(records, f"{result['model']} on {result['environment']['device']}; {result['clock']}"))
    for each in records:
        if each["broken"]:
            what = f"{counted(each['sessions'], 'session')}: {'; '.join(each['broken'])}"
            console.print(what, soft_wrap=True, highlight=False)
    if results.limit is not None:
        console.print(report.limit_in_words(result["limit"], result["clock"]), soft_wrap=True, highlight=False)
    if results.soak is not None:
        console.print(report.soak_in_words(result["soak"]), soft_wrap=True, highlight=False)
    if results.not_measured:
        console.print(f"no time was left for {', '.join(map(str, results.not_measured))} sessions", highlight=False)
    write(options, result, goals)
    return all(run.pages_returned for run in results.runs) and (results.soak is None or results.soak.ok)


def numbers(words: str) -> tuple[int, ...]:
    """The numbers in words like `1,2,4`. Raises ValueError for any other form."""
    try:
        return tuple(int(word) for word in words.split(","))
    except ValueError:
        raise ValueError(f"sessions must be numbers such as 1,2,4, got {words!r}") from None


def measure(
    options: DuplexOptions,
    stages: Stages,
    talk: Talk,
    most: int,
    goals: Goals,
    until: float | None,
    tell: Callable[[str], None],
) -> Results:
    """Runs what is asked for, until the clock (`time.monotonic`) says `until`."""
    timer = timer_of(options)

    def run(sessions: int) -> Run:
        tell(f"{sessions} sessions, {talk.seconds:.0f} s")
        return simulated(stages, talk, sessions, timer) if options.simulated else real_time(stages, talk, sessions)

    results = Results()
    if options.soak:
        results.soak = soak(stages, talk, most, timer, tell)
        results.runs = [results.soak.run]
    elif options.find_limit:
        results.limit = find_limit(run, most, goals, tell)
        results.runs = results.limit.runs
    else:
        for sessions in options.sessions:
            if results.runs and until is not None and time.monotonic() + talk.seconds > until:
                results.not_measured.append(sessions)
            else:
                results.runs.append(run(sessions))
    return results


def stages_of(options: DuplexOptions, sessions: int) -> Stages:
    """The models, with room for so many sessions."""
    family = Family.load(options.model, options.device, progress=False)
    kernels = kernel_choices(options.kernels)
    if options.shape is None:
        return Stages.load(family, sessions, weights=options.weights, cache=options.cache, kernels=kernels)
    return random_stages(
        family, options.shape, sessions, weights=options.weights, cache=options.cache, kernels=kernels
    )  # fmt: skip


def config_of(options: DuplexOptions, stages: Stages) -> SessionConfig:
    """How sessions talk: as the model is trained to, unless it is said otherwise."""
    chain = stages.language.chain if options.reply is None else options.reply == "chain"
    policy: ReplyPolicy = "chain" if chain else "continuation"
    return SessionConfig(
        policy,
        seed=options.seed,
        turns=TurnConfig(activity=options.activity),
        context_tokens=options.context_tokens,
        max_reply_s=options.max_reply_s,
    )


def timer_of(options: DuplexOptions) -> Callable[[], float]:
    """What computing takes in simulated time: the thread's own on a CPU, lest other programs count."""
    return time.thread_time if options.device_type == "cpu" else time.perf_counter


def assembled(options: DuplexOptions, stages: Stages, results: Results, goals: Goals, about: dict) -> dict:
    """The file of `--json`."""
    records = [record(run, goals) for run in results.runs]
    clock = "in real time"
    if options.simulated or options.soak:
        spent = "CPU time of the thread" if options.device_type == "cpu" else "wall time"
        clock = f"simulated: computing is charged ({spent}), waiting is skipped"
    source = f"recordings of {options.audio}" if options.audio else "the shipped recordings"
    return {
        "summary": summary(records),
        "model": options.model if options.shape is None else f"{options.shape} shape, random weights",
        "clock": clock,
        "talk": f"{options.scenario} talk over {source}, {options.seconds:.0f} s a run, seed {options.seed}",
        "environment": {
            **about,
            "clock": "wall" if clock == "in real time" else clock,
            "priority": priority(),
        },
        "running": {**stages.running, "activity": options.activity},
        "goals": {
            "first_audio_p50_ms": goals.first_audio_p50,
            "first_audio_p99_ms": goals.first_audio_p99,
            "silence_p99_ms": goals.silence_p99,
        },
        "definitions": DEFINITIONS,
        "limit": results.limit.record() if results.limit else None,
        "soak": results.soak.record() if results.soak else None,
        "not_measured": results.not_measured,
        "runs": records,
    }


def write(options: DuplexOptions, result: dict, goals: Goals) -> None:
    """The files that were asked for."""
    if options.json is not None:
        _save(options.json, dumped(result).encode())
    if options.html is None and options.plot is None:
        return
    pictures = pictures_of(result, goals)
    if options.plot is not None:
        _save(options.plot, next(iter(pictures.values())))
    if options.html is not None:
        _save(options.html, report.page(result, pictures).encode())


def dumped(result: dict) -> str:
    """JSON, each list of numbers on one line."""
    return NUMBERS.sub(lambda found: re.sub(r"\s+", " ", found[0]), json.dumps(result, indent=1)) + "\n"


def pictures_of(result: dict, goals: Goals) -> dict[str, bytes]:
    """PNGs by caption, the most telling first."""
    records: Sequence[dict] = result["runs"]
    pictures = {}
    if result["soak"]:
        pictures["Memory, pages, misses"] = plots.soak(result["soak"])
    if result["limit"]:
        pictures["Latencies and misses over sessions"] = plots.limit(records, goals)
    pictures["How long people waited"] = plots.latencies(records, goals, result["model"])
    pictures["Sound and time"] = plots.sound_and_time(records)
    return pictures


def _save(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
