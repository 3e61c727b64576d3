"""Runs cases: every variant first against the reference, then, where it is right, against the clock."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import torch

from spiritrt.bench.environment import Ceilings
from spiritrt.bench.kernels import (
    embedding,
    linear,
    rms_norm,
    rotary_attention,
    rotary_prefill,
    sampling,
    shift_rotary,
)
from spiritrt.bench.kernels.cases import BenchCase, Problem, Setting
from spiritrt.bench.kernels.timing import Stopwatch, Times
from spiritrt.kernels.registry import Variant, variants

STEMS = (linear, rotary_attention, sampling, embedding, rotary_prefill, rms_norm, shift_rotary)
REFERENCE = "reference"


@dataclass(frozen=True, slots=True)
class Selection:
    """Which cases and variants to run: empty is all. A shape is selected by words of its name: `qkv rows=1`."""

    ops: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()
    shapes: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()

    def takes(self, case: BenchCase) -> bool:
        return (
            (not self.ops or case.op in self.ops)
            and (not self.shapes or any(set(words.split()) <= set(case.shape.split()) for words in self.shapes))
            and (not self.dtypes or case.dtype in self.dtypes)
        )


@dataclass(frozen=True, slots=True)
class Result:
    """One variant on one case. `wrong` says why it has no times; `error` is its distance from the reference.

    share is the floor over the median, in a graph where there is one.
    """

    op: str
    shape: str
    dtype: str
    variant: str
    bytes: int
    flops: int
    floor_us: float
    wrong: str | None = None
    error: float | None = None
    eager: Times | None = None
    graph: Times | None = None
    no_graph: str | None = None

    @property
    def best(self) -> Times | None:
        return self.graph or self.eager

    @property
    def share(self) -> float | None:
        return None if self.best is None else self.floor_us / max(self.best.p50, 1e-3)

    @property
    def gb_s(self) -> float | None:
        return None if self.best is None else self.bytes / max(self.best.p50, 1e-3) / 1e3

    def record(self) -> dict:
        """The fields as JSON has them, rates included."""
        rates = {"gb_s": self.gb_s, "share": self.share}
        return {**asdict(self), **{name: value and round(value, 4) for name, value in rates.items()}}


def select(here: Setting, selection: Selection) -> list[BenchCase]:
    """Cases of all ops, the most important first. Raises ValueError where there is none."""
    known = [case for stem in STEMS for case in stem.cases(here)]
    chosen = sorted((case for case in known if selection.takes(case)), key=lambda case: case.importance)
    if not chosen:
        ops = ", ".join(dict.fromkeys(case.op for case in known))
        dtypes = ", ".join(dict.fromkeys(case.dtype for case in known))
        asked = " and ".join(
            f"{name} {' or '.join(values)}"
            for name, values in (("op", selection.ops), ("shape", selection.shapes), ("type", selection.dtypes))
            if values
        )
        raise ValueError(
            f"no case has {asked}: there are ops {ops}; types {dtypes}; and shapes such as {known[0].shape!r}"
        )
    names = {variant.name: variant.supports(case.case) for case in chosen for variant in variants(case.op)}
    for name in selection.variants:
        if name not in names:
            raise ValueError(f"no variant {name!r} of what is selected: there are {', '.join(sorted(names))}")
        if all(name not in {variant.name for variant in supported(case, selection)} for case in chosen):
            raise ValueError(f"variant {name!r} cannot run here: {names[name]}")
    return chosen


def supported(case: BenchCase, selection: Selection) -> list[Variant]:
    """The selected variants that can run a case.

    Only what is asked for by name runs of the reference, and of Triton on a CPU, where it is an interpreter.
    """
    found = [variant for variant in variants(case.op) if variant.supports(case.case) is None]
    if selection.variants:
        return [variant for variant in found if variant.name in selection.variants]
    slow = (REFERENCE, "triton") if case.case.device == "cpu" else (REFERENCE,)
    return [variant for variant in found if not variant.name.startswith(slow)]


def run(
    here: Setting,
    cases: Sequence[BenchCase],
    selection: Selection,
    stopwatch: Stopwatch,
    limits: Ceilings,
    until: float | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Iterator[Result]:
    """Every selected variant on every case, until the clock (`time.monotonic`) says `until`."""
    for case in cases:
        if until is not None and time.monotonic() > until:
            return
        chosen = supported(case, selection)
        if not chosen:
            continue
        tell(case.name)
        try:
            expected = expectation(case)
            for variant in chosen:
                yield measure(here, case, variant, expected, stopwatch, limits)
        except torch.OutOfMemoryError:  # the case is among those that were not measured
            torch.cuda.empty_cache()


def expectation(case: BenchCase) -> list[torch.Tensor]:
    """What the reference gives and writes."""
    problem = case.make()
    known = {variant.name: variant for variant in variants(case.op)}
    with torch.inference_mode():
        return problem.results(known[REFERENCE].fn(*problem.arguments))


def measure(
    here: Setting,
    case: BenchCase,
    variant: Variant,
    expected: Sequence[torch.Tensor],
    stopwatch: Stopwatch,
    limits: Ceilings,
) -> Result:
    """One variant on one case. What it raises is a finding about it, and the bench goes on."""
    floor_us = round(1e6 * limits.floor_s(case.bytes, case.flops), 3)
    result = Result(case.op, case.shape, case.dtype, variant.name, case.bytes, case.flops, floor_us)
    with torch.inference_mode():
        try:
            problem = case.make()
            error, wrong = distance(problem.results(variant.fn(*problem.arguments)), expected, case.tolerance)
        except Exception as raised:
            return replace(
                result, wrong=f"{type(raised).__name__}: {str(raised).splitlines()[0] if str(raised) else ''}"
            )
        result = replace(result, error=error, wrong=wrong)
        if wrong is not None:
            return result
        call = _call(variant, problem)
        result = replace(result, eager=stopwatch.eager(call))
        if here.device.type != "cuda" or variant.name == REFERENCE:
            return result
        try:
            return replace(result, graph=stopwatch.graph(call))
        except RuntimeError as raised:
            return replace(result, no_graph=str(raised).splitlines()[0])


def distance(
    found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], tolerance: float
) -> tuple[float | None, str | None]:
    """The largest ||found - expected|| / ||expected|| of all tensors, and what is wrong where it is beyond `tolerance`.

    Integers must be equal. NaN is never within a tolerance.
    """
    if [tensor.shape for tensor in found] != [tensor.shape for tensor in expected]:
        return None, f"shapes {[tuple(t.shape) for t in found]}, expected {[tuple(t.shape) for t in expected]}"
    worst = 0.0
    for index, (mine, theirs) in enumerate(zip(found, expected, strict=True)):
        if not theirs.dtype.is_floating_point:
            if unequal := int((mine != theirs).sum()):
                return None, f"result {index}: {unequal} of {theirs.numel()} integers differ"
            continue
        off = (mine.float() - theirs.float()).norm() / theirs.float().norm().clamp(min=1e-12)
        error = float(off)
        if not error <= tolerance:
            return error, f"result {index} is off by {error:.2e}, and {tolerance:.0e} is allowed"
        worst = max(worst, error)
    return float(f"{worst:.3g}"), None


def _call(variant: Variant, problem: Problem) -> Callable[[], object]:
    return lambda: variant.fn(*problem.arguments)
