"""Decode steps of the engine with random weights: time a step against the floor, and beside `transformers`.

The contexts are not computed: slots are given pages of random keys and values, so that a cell takes a second and not
the prefill of its half a million tokens. Before a format is timed its log-probabilities are compared with those of the
plain PyTorch model on the same weights.
"""

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import pairwise, product
from statistics import median
from typing import TypeVar

import torch

from spiritrt.bench.environment import Ceilings
from spiritrt.bench.shapes import Preset
from spiritrt.engine.engine import CACHE_FORMATS, Engine
from spiritrt.engine.masks import EVERYTHING
from spiritrt.engine.steps import Row
from spiritrt.engine.weights import pack, random_tensors, unpack
from spiritrt.models.llama import Llama, LlamaConfig
from spiritrt.sampling import Sampling

T = TypeVar("T")
STEPS, WARM_STEPS = 24, 4
SPARE = STEPS + WARM_STEPS + 8  # tokens of a slot beyond its context
SCORED = 24  # tokens that a format is judged by
MEMORY_LEFT = 4 << 30  # bytes that stay free beside the pages of a CUDA device
# mean difference of a log-probability from the plain model's: what rounding costs with random weights, twice over
TOLERANCES = {"fp32": 1e-3, "fp16": 0.02, "bf16": 0.05, "int8": 0.1, "fp8": 0.3}
SAMPLING = Sampling(temperature=0.8, top_p=0.95)


@dataclass(frozen=True, slots=True)
class Cell:
    """One combination to time: rows of one new token each, with `context` tokens before."""

    rows: int
    context: int
    weights: str
    cache: str

    def __post_init__(self) -> None:
        if min(self.rows, self.context) < 1:
            raise ValueError(f"rows and context must be at least 1, got {self.rows} and {self.context}")
        if self.weights not in TOLERANCES:
            raise ValueError(f"weights must be one of {', '.join(TOLERANCES)}, got {self.weights!r}")
        if self.cache not in CACHE_FORMATS:
            raise ValueError(f"cache must be one of {', '.join(CACHE_FORMATS)}, got {self.cache!r}")

    @property
    def name(self) -> str:
        return f"rows={self.rows} context={self.context} weights={self.weights} cache={self.cache}"


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Milliseconds a step; `host_ms` is the part of the caller's thread."""

    p50: float
    p20: float
    p80: float
    host_ms: float | None = None

    @classmethod
    def of(cls, seconds: Sequence[float], host_seconds: Sequence[float] = ()) -> "StepTimes":
        """Quantiles of steps that took so long."""
        ordered = sorted(1e3 * value for value in seconds)
        p50, p20, p80 = (round(ordered[int(part * len(ordered))], 4) for part in (0.5, 0.2, 0.8))
        return cls(p50, p20, p80, round(1e3 * median(host_seconds), 4) if host_seconds else None)


@dataclass(frozen=True, slots=True)
class Timed:
    """What a cell took; `wrong` says why it has no times."""

    cell: Cell
    by: str = "engine"
    times: StepTimes | None = None
    floor_ms: float | None = None
    bytes: int | None = None
    wrong: str | None = None

    @property
    def share(self) -> float | None:
        return None if self.times is None or self.floor_ms is None else self.floor_ms / self.times.p50

    def finished(self, result: StepTimes | str) -> "Timed":
        """The same with its times, or with why there are none."""
        return replace(self, wrong=result) if isinstance(result, str) else replace(self, times=result)

    def record(self) -> dict:
        """The fields as JSON has them."""
        fields = {"by": self.by, **asdict(self.cell), "floor_ms": self.floor_ms, "bytes": self.bytes}
        if self.times is None:
            return {**fields, "wrong": self.wrong}
        return {**fields, **asdict(self.times), "share": None if self.share is None else round(self.share, 4)}


@dataclass(frozen=True, slots=True)
class Grid:
    """All combinations. Formats that the device cannot run are left out by `bench`, with their reason."""

    rows: tuple[int, ...] = (1, 4, 16, 32, 64, 128)
    contexts: tuple[int, ...] = (256, 1024, 4096)
    weights: tuple[str, ...] = ("bf16", "int8", "fp8")
    caches: tuple[str, ...] = ("bf16", "fp8")

    def cells(self, weights: str, cache: str) -> list[Cell]:
        """Cells of one pair of formats: 1 row at the middle context, then the largest, then the rest."""
        middle = self.contexts[len(self.contexts) // 2]
        found = [Cell(rows, context, weights, cache) for rows, context in product(self.rows, self.contexts)]
        order = sorted(self.rows, key=lambda rows: (rows != 1, -rows))
        return sorted(found, key=lambda cell: (cell.context != middle, order.index(cell.rows), cell.context))


@dataclass(frozen=True, slots=True)
class Report:
    """What was timed, what was not for want of time, and how far each format is from the plain model."""

    timed: list[Timed] = field(default_factory=list)
    not_measured: list[str] = field(default_factory=list)
    logprob_differences: dict[str, float] = field(default_factory=dict)


def cpu_grid(preset: Preset) -> Grid:
    """What makes sense on a CPU: few rows, the formats that its kernels take."""
    context = preset.config.max_position_embeddings
    contexts = tuple(c for c in (64, 256, 1024) if c + SPARE < context)
    return Grid((1, 4, 16), contexts, ("fp32", "bf16", "int8"), ("fp32", "bf16"))


def bench(
    preset: Preset,
    device: torch.device,
    grid: Grid,
    limits: Ceilings,
    until: float | None = None,
    compare: bool = True,
    tell: Callable[[str], None] = lambda line: None,
    keep: Callable[[Report], None] = lambda report: None,
) -> Report:
    """Times the grid, until the clock (`time.monotonic`) says `until`; `compare` brings `transformers` in beside it.

    `keep` gets what there is after each pair of formats, should the run be ended.
    """
    from spiritrt.bench.transformers_decode import COMPILED, EAGER, beside

    report = Report()
    config = replace(preset.config, max_position_embeddings=max(grid.contexts) + SPARE)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    ids = torch.randint(0, config.vocab_size, (SCORED,), generator=torch.Generator().manual_seed(1)).tolist()
    judge = attempt(lambda: judged(config, dtype, device, ids))
    pairs = sorted(product(grid.weights, grid.caches), key=lambda pair: _order(pair, grid))
    for position, (weights, cache) in enumerate(pairs):
        cells = grid.cells(weights, cache)
        if late(until):
            report.not_measured.extend(cell.name for cell in cells)
            continue
        tell(f"weights {weights}, cache {cache}")
        report.timed.extend(group(config, dtype, device, cells, limits, judge, ids, report, until))
        if compare and position == 0:  # where it matters most, and before the clock runs out
            report.timed.extend(beside(config, dtype, device, cells, judge, ids, EAGER, until, tell))
        keep(report)
    if compare:
        cells = grid.cells(*pairs[0])
        report.timed.extend(beside(config, dtype, device, cells, judge, ids, COMPILED, until, tell))
        keep(report)
    return report


def group(
    config: LlamaConfig, dtype: torch.dtype, device: torch.device, cells: Sequence[Cell], limits: Ceilings,
    judge: list[float] | str, ids: Sequence[int], report: Report, until: float | None,
) -> Iterator[Timed]:  # fmt: skip
    """Cells of one pair of formats, on one engine; where it cannot be built each of them says why."""
    weights, cache = cells[0].weights, cells[0].cache
    made = attempt(lambda: build(config, dtype, device, weights, cache, cells))
    if isinstance(made, str):
        yield from (Timed(cell, wrong=made) for cell in cells)
        return
    engine = made
    difference = difference_from(judge, partial(engine_score, engine, ids))
    if isinstance(difference, float):
        report.logprob_differences[f"weights={weights} cache={cache}"] = difference
    wrong = wrong_by(difference, max(TOLERANCES[weights], TOLERANCES[cache]))
    if wrong is not None:
        yield from (Timed(cell, wrong=wrong) for cell in cells)
        return
    fill(engine)
    for cell in cells:
        if late(until):
            report.not_measured.append(cell.name)
            continue
        moved, flops = step_cost(engine, cell)
        floor = Timed(cell, floor_ms=round(1e3 * limits.floor_s(moved, flops), 4), bytes=moved)
        if moved_tokens(cell) > engine.cache.config.pages * engine.cache.config.page_size:
            yield replace(floor, wrong=f"out of memory: {moved_tokens(cell)} tokens of keys and values do not fit")
            continue
        yield floor.finished(attempt(partial(steps, engine, cell)))


def build(
    config: LlamaConfig, dtype: torch.dtype, device: torch.device, weights: str, cache: str, cells: Sequence[Cell]
) -> Engine:
    """An engine with random weights and pages for the largest cell, or as many as there is memory for."""
    packed = pack(config, random_tensors(config, dtype, str(device)), weights, device)
    model = unpack(config, packed, dtype)
    token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * CACHE_FORMATS[cache].itemsize
    tokens = max(moved_tokens(cell) for cell in cells)
    if device.type == "cuda":
        gc.collect()  # what the engine before it held
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info(device)[0] - MEMORY_LEFT
        tokens = max(config.max_position_embeddings, min(tokens, free // token))
    rows = sorted({cell.rows for cell in cells})
    return Engine(
        model, slots=rows[-1], tokens=tokens, cache=cache, buckets=rows if device.type == "cuda" else (), progress=False
    )


def judged(config: LlamaConfig, dtype: torch.dtype, device: torch.device, ids: Sequence[int]) -> list[float]:
    """Log-probabilities of ids[1:] by the plain model in the type of the activations."""
    with torch.device("meta"):
        llama = Llama(config)
    llama.load_state_dict(dict(random_tensors(config, dtype, str(device))), assign=True)
    with torch.inference_mode():
        logits = llama(torch.tensor([list(ids)], device=device))[0].float()
    targets = torch.tensor(ids[1:], device=device)
    return torch.log_softmax(logits[:-1], dim=-1).gather(1, targets[:, None])[:, 0].tolist()


def difference_from(judge: list[float] | str, score: Callable[[], list[float]]) -> float | str:
    """Mean distance of log-probabilities from the judge's, or why it is not known."""
    if isinstance(judge, str):
        return f"not compared with the plain model: {judge}"
    found = attempt(score)
    if isinstance(found, str):
        return found
    return sum(abs(a - b) for a, b in zip(found, judge, strict=True)) / len(judge)


def engine_score(engine: Engine, ids: Sequence[int]) -> list[float]:
    """The engine's log-probabilities of ids[1:]."""
    slot = engine.open()
    try:
        return engine.score(slot, ids)
    finally:
        engine.close(slot)


def wrong_by(difference: float | str, allowed: float) -> str | None:
    """What is wrong with a format that is so far from the plain model, if anything is; NaN is wrong."""
    if isinstance(difference, str):
        return difference
    if difference <= allowed:
        return None
    return f"log-probabilities are off by {difference:.3g} on average, and {allowed} is allowed"


@torch.inference_mode()
def fill(engine: Engine) -> None:
    """Random keys and values in all pages, so that no row attends to what is not finite, nor to zeros."""
    for pool in (engine.cache.keys, engine.cache.values):
        for layer in pool:
            for pages in layer.split(4096):
                pages.copy_(torch.randn(pages.shape, device=pages.device, dtype=torch.float32))


def steps(engine: Engine, cell: Cell) -> StepTimes:
    """Times of steps, each fed by the one before and its ids read one step late, as a server does."""
    slots = [engine.open() for _ in range(cell.rows)]
    try:
        return _timed_steps(engine, cell, slots)
    finally:
        for slot in slots:
            engine.close(slot)


def _timed_steps(engine: Engine, cell: Cell, slots: Sequence[int]) -> StepTimes:
    for slot in slots:
        engine.set_sampling(slot, replace(SAMPLING, seed=slot), EVERYTHING)
    engine.cache.reserve([(slot, cell.context) for slot in slots])
    engine.step([Row(slot, (1,)) for slot in slots]).ids  # noqa: B018
    rows = [Row(slot) for slot in slots]
    before = engine.step(rows)
    done: list[float] = []
    host: list[float] = []
    for _ in range(WARM_STEPS + STEPS):
        began = time.perf_counter()
        step = engine.step(rows)
        host.append(time.perf_counter() - began)
        assert len(before.ids) == cell.rows
        done.append(time.perf_counter())
        before = step
    assert len(before.ids) == cell.rows
    spent = [b - a for a, b in pairwise(done[WARM_STEPS - 1 :])]
    return StepTimes.of(spent, host[WARM_STEPS:])


def step_cost(engine: Engine, cell: Cell) -> tuple[int, int]:
    """Bytes that a step must move, weights and keys and values; and its multiplications and additions."""
    model, config = engine.weights, engine.config
    linear = [weight for layer in model.layers for weight in (layer.qkv, layer.out, layer.gate_up, layer.down)]
    linear.append(model.head)
    weights = sum(weight.bytes for weight in linear)
    tokens = cell.rows * (cell.context + 1)
    products = sum(weight.data.numel() for weight in linear)
    attended = 2 * config.num_hidden_layers * config.num_attention_heads * config.head_dim
    return weights + tokens * engine.cache.config.token_bytes, 2 * cell.rows * products + 2 * tokens * attended


def moved_tokens(cell: Cell) -> int:
    """Tokens of keys and values that a cell needs a place for."""
    return cell.rows * (cell.context + SPARE)


def attempt(call: Callable[[], T]) -> T | str:
    """What the call returns, or why it could not: a cell that does not fit or run is a result of the bench."""
    try:
        return call()
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return "out of memory"
    except Exception as error:
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def late(until: float | None) -> bool:
    return until is not None and time.monotonic() > until


def _order(pair: tuple[str, str], grid: Grid) -> tuple[int, int]:
    """Plain first, then one of both quantized, then the rest."""
    weights, cache = grid.weights.index(pair[0]), grid.caches.index(pair[1])
    return weights + 2 * cache, weights
