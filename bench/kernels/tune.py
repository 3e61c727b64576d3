"""Finds block sizes and variants for the GPU at hand and writes them where the registry reads them.

One size is varied at a time from the defaults on, until no change helps: a product of all of them would compile for
hours. Every candidate must be right before its time counts. Sizes that decide in which order something is summed are
among those tuned, but hold for every number of rows, so that a row's bits still do not depend on its neighbours.
"""

import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import torch

from spiritrt.bench.environment import Ceilings
from spiritrt.bench.kernels.cases import NAMES, BenchCase, Setting
from spiritrt.bench.kernels.linear import layers
from spiritrt.bench.kernels.run import Selection, expectation, measure, select
from spiritrt.bench.kernels.timing import Stopwatch
from spiritrt.kernels import linear, registry, rotary_attention
from spiritrt.kernels.registry import GpuConfig, Variant, variants

Sizes = dict[str, int]
GAIN = 0.97  # a candidate must be so much faster: below that it is noise
# whose results for a row are the same whatever the other rows are, which products of cuBLAS are not
STEADY = ("triton",)


@dataclass(frozen=True, slots=True)
class Target:
    """Sizes under one key of the tuned file, and the cases they are tuned for: those with `words` in their shape."""

    key: str = ""
    dtype: str = ""
    words: str = ""


@dataclass(frozen=True, slots=True)
class Tunable:
    """What can be tuned of a variant: candidates of each size, and the entry of the tuned file that has them."""

    op: str
    candidates: Mapping[str, tuple[int, ...]]
    targets: Callable[[Setting], Sequence[Target]]
    variant: str = "triton"
    entry: str = ""

    @property
    def name(self) -> str:
        return self.entry or self.op


def tunables() -> list[Tunable]:
    attention = {"warps": (2, 4, 8), "stages": (1, 2, 3, 4)}
    return [
        Tunable("linear", {"block_n": (16, 32, 64), "block_k": (32, 64, 128, 256), "warps": (2, 4, 8),
                "stages": (0, 3, 4, 6)}, _linear_targets),
        Tunable("rotary_attention", {"block_n": (32, 64, 128), "split": (64, 128, 256, 512), "dot": (0, 1),
                "programs": (528, 1056, 2112), **attention}, _attention_targets),
        Tunable("rotary_prefill", {"low_block_n": (32, 64, 128), "tall_block_n": (32, 64, 128),
                "split": (256, 512, 1024), **attention}, _attention_targets),
        Tunable("sampling", {"BLOCK": (1024, 2048, 4096, 8192), "num_warps": (4, 8, 16, 32)}, _any_shape),
        Tunable("shift_rotary", {"warps": (1, 2, 4, 8)}, _any_shape),
        Tunable("linear", {"block_n": (4, 8, 16), "block_k": (256, 512, 1024), "warps": (2, 4, 8),
                "stages": (2, 3, 4)}, _linear_targets, "triton_gemv", "linear_gemv"),
    ]  # fmt: skip


def tune(
    here: Setting, selection: Selection, stopwatch: Stopwatch, limits: Ceilings, tell: Callable[[str], None],
    until: float | None = None,
) -> GpuConfig:  # fmt: skip
    """Tunes the selected ops and writes `kernels/configs/<gpu>.json` after each, until the clock says `until`.

    Raises ValueError without a GPU.
    """
    if here.device.type != "cuda":
        raise ValueError("tuning is for CUDA devices: on a CPU there are no block sizes to choose")
    gpu = registry.gpu_name()
    major, minor = torch.cuda.get_device_capability(here.device)
    best = replace(registry.read_config(gpu), arch=10 * major + minor)
    for tunable in tunables():
        if selection.ops and tunable.op not in selection.ops:
            continue
        for target in tunable.targets(here):
            if late(until):
                tell(f"no time was left for {tunable.name} {target.key}")
                continue
            try:
                found, gain = tune_sizes(here, tunable, target, best, stopwatch, limits, until)
                best = with_sizes(best, tunable.name, target.key, found)
                tell(f"{tunable.name} {target.key or 'any shape'}: {found or 'the defaults'}, {gain:.1%} faster")
            finally:
                store(gpu, best)
    best = replace(best, variants={**best.variants, **steady_winners(here, selection, stopwatch, limits)})
    store(gpu, best)
    return best


def tune_sizes(
    here: Setting, tunable: Tunable, target: Target, known: GpuConfig, stopwatch: Stopwatch, limits: Ceilings,
    until: float | None,
) -> tuple[Sizes, float]:  # fmt: skip
    """What is better than the op's own sizes, beginning with those that are `known`; and the share of time it saves."""
    variant = next(found for found in variants(tunable.op) if found.name == tunable.variant)
    cases = [case for case in representative(here, tunable.op, target) if variant.supports(case.case) is None]
    gpu = registry.gpu_name()

    def evaluate(sizes: Sizes) -> float:
        if late(until):
            return math.inf
        store(gpu, with_sizes(known, tunable.name, target.key, sizes))
        return cost(here, variant, cases, stopwatch, limits)

    return descend(known.tuned.get(tunable.name, {}).get(target.key, {}), tunable.candidates, evaluate)


def with_sizes(config: GpuConfig, op: str, key: str, sizes: Sizes) -> GpuConfig:
    """The same with other sizes of one op and key; none leave the op its own."""
    keys = {**config.tuned.get(op, {}), key: sizes}
    return replace(config, tuned={**config.tuned, op: {key: sizes for key, sizes in keys.items() if sizes}})


def descend(
    start: Sizes, candidates: Mapping[str, Sequence[int]], evaluate: Callable[[Sizes], float]
) -> tuple[Sizes, float]:
    """Sizes that `evaluate` likes best, one changed at a time, and the share of the cost that they save."""
    known: dict[tuple[tuple[str, int], ...], float] = {}

    def price(sizes: Sizes) -> float:
        key = tuple(sorted(sizes.items()))
        if key not in known:
            known[key] = evaluate(sizes)
        return known[key]

    first = price(start)
    best, lowest = dict(start), first
    changed = True
    while changed:
        changed = False
        for name, values in candidates.items():
            for value in values:
                trial = best | {name: value}
                paid = price(trial)
                if paid < lowest * GAIN:
                    best, lowest, changed = trial, paid, True
    return best, 0.0 if math.isinf(first) else 1 - lowest / first


def cost(here: Setting, variant: Variant, cases: Sequence[BenchCase], stopwatch: Stopwatch, limits: Ceilings) -> float:
    """Geometric mean of time over floor; infinite where a case is wrong or does not run."""
    total = 0.0
    for case in cases:
        result = measure(here, case, variant, expectation(case), stopwatch, limits)
        if result.best is None:
            return math.inf
        total += math.log(result.best.p50 / result.floor_us)
    return math.exp(total / len(cases))


def representative(here: Setting, op: str, target: Target | None = None) -> list[BenchCase]:
    """The most important cases of an op, or of a part of it; four at most."""
    if target is None:
        return select(here, Selection(ops=(op,)))[:4]
    dtypes, shapes = (target.dtype,) if target.dtype else (), (target.words,) if target.words else ()
    return select(here, Selection((op,), (), shapes, dtypes))[:4]


def steady_winners(here: Setting, selection: Selection, stopwatch: Stopwatch, limits: Ceilings) -> dict[str, str]:
    """The fastest variant of each op that has several which run everywhere and to the same bits beside any rows."""
    winners: dict[str, str] = {}
    for op in selection.ops or registry.ops():
        every = select(here, Selection(ops=(op,)))  # of any number of rows: one variant serves them all
        rivals = [
            variant for variant in variants(op)
            if variant.name.startswith(STEADY) and all(variant.supports(case.case) is None for case in every)
        ]  # fmt: skip
        if len(rivals) > 1:
            costs = [(cost(here, rival, representative(here, op), stopwatch, limits), rival.name) for rival in rivals]
            winners[op] = min(costs)[1]
    return winners


def late(until: float | None) -> bool:
    return until is not None and time.monotonic() > until


def store(gpu: str, config: GpuConfig) -> None:
    """Writes the tuned file and makes every op read it again."""
    registry.CONFIGS.mkdir(exist_ok=True)
    file = registry.CONFIGS / f"{gpu}.json"
    file.write_text(json.dumps(asdict(config), indent=1) + "\n", encoding="utf-8")
    for name, module in list(sys.modules.items()):
        if name.startswith("spiritrt.kernels"):
            for value in list(vars(module).values()):
                if hasattr(value, "cache_clear"):
                    value.cache_clear()


def _any_shape(here: Setting) -> list[Target]:
    return [Target()]


def _attention_targets(here: Setting) -> list[Target]:
    config = here.preset.config
    group = config.num_attention_heads // config.num_key_value_heads
    return [
        Target(rotary_attention.shape_key(config.head_dim, config.num_key_value_heads, group, cache), NAMES[cache])
        for cache in here.caches
    ]


def _linear_targets(here: Setting) -> list[Target]:
    return [
        Target(linear.shape_key(layer.columns, layer.inner, weights), NAMES[weights], layer.name)
        for layer in layers(here) if layer.name != "speech_head" for weights in here.weights
    ]  # fmt: skip
