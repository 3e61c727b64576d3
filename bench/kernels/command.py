"""What `spiritrt bench kernels` does with its options."""

import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console

from spiritrt.bench.environment import ceilings, environment
from spiritrt.bench.kernels.cases import setting
from spiritrt.bench.kernels.report import changes_table, compare, table, write
from spiritrt.bench.kernels.run import Result, Selection, run, select
from spiritrt.bench.kernels.timing import Stopwatch
from spiritrt.bench.shapes import preset
from spiritrt.models.family import usable_device


@dataclass(frozen=True, slots=True)
class Options:
    """Where to run, what, and for how long; files that are None are not written."""

    device: str = "auto"
    preset: str | None = None
    selection: Selection = field(default_factory=Selection)
    cold: bool = True
    repeats: int = 200
    seconds: float = 0.25  # a variant and shape
    minutes: float | None = None
    json: Path | None = None
    plot: Path | None = None
    profile: Path | None = None
    tune: bool = False
    threads: int = 1

    def __post_init__(self) -> None:
        if self.minutes is not None and self.minutes <= 0:
            raise ValueError(f"minutes must be above 0, got {self.minutes}")


def bench_kernels(options: Options, console: Console) -> list[Result]:
    """Measures, prints the table, writes the files. Raises ValueError for a selection of nothing."""
    name = options.device if options.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    device = usable_device(name)
    torch.set_num_threads(options.threads)
    shape = preset(options.preset or ("7b" if device.type == "cuda" else "nano"))
    here = setting(shape, device)
    cases = select(here, options.selection)
    if options.profile is not None:
        from spiritrt.bench.kernels.profile import counters_command, write_trace

        spans = write_trace(here, cases, options.selection, options.profile)
        console.print(f"{options.profile}: {len(spans)} spans, for https://ui.perfetto.dev", soft_wrap=True)
        console.print(counters_command(options.selection, shape.name, options.profile), soft_wrap=True, highlight=False)
        return []
    stopwatch = Stopwatch(device, options.cold, options.seconds, options.repeats)
    limits = ceilings(device, here.activations)
    until = None if options.minutes is None else time.monotonic() + 60 * options.minutes
    if options.tune:
        from spiritrt.bench.kernels.tune import tune

        tune(here, options.selection, stopwatch, limits, console.print, until)
        until = None if options.minutes is None else time.monotonic() + 60 * options.minutes
    errors = Console(stderr=True)
    with errors.status("measuring") as status:
        results = list(run(here, cases, options.selection, stopwatch, limits, until, status.update))
    measured = {(result.op, result.shape, result.dtype) for result in results}
    left = [case.name for case in cases if (case.op, case.shape, case.dtype) not in measured]
    about = {
        **environment(device), "preset": shape.name, "cold": options.cold, "flush_bytes": stopwatch.flush_bytes,
        "floor": "bytes at the rate of ceilings.basis, or operations at that of a product",
    }  # fmt: skip
    if options.json is not None:
        write(options.json, about, limits, results, left)
    if options.plot is not None:
        from spiritrt.bench.kernels.plot import roofline

        roofline(results, limits, str(about["device"]), options.plot)
    console.print(table(results, limits, str(about["device"])))
    for result in results:
        if result.wrong is not None:
            line = f"FAIL {result.op} {result.shape} {result.dtype} {result.variant}: {result.wrong}"
            console.print(line, style="red", soft_wrap=True, markup=False)
    if left:
        console.print(f"not measured, for want of time or of a variant: {len(left)} cases", soft_wrap=True)
    return results


def compare_runs(before: Path, after: Path, fail: float, console: Console) -> bool:
    """Prints what changed; whether every median stays within `fail`, a share, of what it was."""
    changes = compare(before, after)
    console.print(changes_table(changes, fail))
    worse = [change for change in changes if change.ratio > 1 + fail]
    console.print(f"{len(worse)} of {len(changes)} medians are more than {fail:.1%} slower")
    return not worse


def share(text: str) -> float:
    """A share of 1 written as `5%` or `0.05`. Raises ValueError for anything else."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError as error:
        raise ValueError(f"expected a share such as 5%, got {text!r}") from error
    if value < 0:
        raise ValueError(f"expected a share of 0 or more, got {text!r}")
    return value
