"""What `spiritrt bench decode` does with its options, and how its results are shown."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from spiritrt.bench.decode import TOLERANCES, Grid, Report, Timed, bench, cpu_grid
from spiritrt.bench.environment import Ceilings, ceilings, environment
from spiritrt.bench.shapes import preset
from spiritrt.engine.engine import CACHE_FORMATS
from spiritrt.models.family import usable_device

NUMBERS = ("median", "p20-p80", "host", "floor", "share", "tokens/s")


@dataclass(frozen=True, slots=True)
class DecodeOptions:
    """The grid, where empty means the default of the device, and for how long."""

    shape: str | None = None
    device: str = "auto"
    rows: tuple[int, ...] = ()
    contexts: tuple[int, ...] = ()
    weights: tuple[str, ...] = ()
    caches: tuple[str, ...] = ()
    compare: bool = True
    minutes: float | None = None
    threads: int = 1
    json: Path | None = None

    def __post_init__(self) -> None:
        if self.minutes is not None and self.minutes <= 0:
            raise ValueError(f"minutes must be above 0, got {self.minutes}")


def bench_decode(options: DecodeOptions, console: Console) -> bool:
    """Times the grid, prints the table, writes the file; whether every format was right."""
    name = options.device if options.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    device = usable_device(name)
    torch.set_num_threads(options.threads)
    shape = preset(options.shape or ("7b" if device.type == "cuda" else "nano"))
    default = Grid() if device.type == "cuda" else cpu_grid(shape)
    grid = replace(
        default, rows=options.rows or default.rows, contexts=options.contexts or default.contexts,
        weights=options.weights or default.weights, caches=options.caches or default.caches,
    )  # fmt: skip
    limits = ceilings(device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    until = None if options.minutes is None else time.monotonic() + 60 * options.minutes
    about = {**environment(device), "shape": shape.name, "weights": "random", "sampling": "temperature 0.8, top-p 0.95"}

    def keep(report: Report) -> None:
        if options.json is not None:
            write(options.json, about, limits, report)

    with Console(stderr=True).status("measuring") as status:
        report = bench(shape, device, grid, limits, until, options.compare, status.update, keep)
    keep(report)
    console.print(table(report.timed, limits, f"{about['device']}, {shape.name} shape"))
    _print_rest(report, console)
    return all(right(timed) for timed in report.timed)


def write(file: Path, about: dict, limits: Ceilings, report: Report) -> None:
    """All of it as JSON, one cell a line."""
    content = {
        "environment": about, "ceilings": asdict(limits),
        "floor": "bytes of weights, keys and values at the rate of ceilings.basis, or operations at that of a product",
        "logprob_differences": report.logprob_differences, "not_measured": report.not_measured,
    }  # fmt: skip
    cells = ",\n".join(f"  {json.dumps(timed.record())}" for timed in report.timed)
    head = json.dumps(content, indent=1).removesuffix("\n}")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f'{head},\n "cells": [\n{cells}\n ]\n}}\n', encoding="utf-8")


def right(timed: Timed) -> bool:
    """False for a result that is wrong; what does not fit in memory, or is not there, is not wrong."""
    return timed.wrong is None or not timed.wrong.startswith("log-probabilities")


def table(timed: Sequence[Timed], limits: Ceilings, title: str) -> Table:
    """Milliseconds a step, a line a cell: by rows, context, who computes, and formats."""
    shown = Table(title=f"{title}; {limits.described()}; ms a step", title_justify="left")
    for column in ("rows", "context", "by", "weights", "cache", *NUMBERS):
        shown.add_column(column, justify="left" if column in ("by", "weights", "cache") else "right", no_wrap=True)
    for result in sorted(timed, key=_place):
        cell = result.cell
        names = (str(cell.rows), str(cell.context), result.by, cell.weights, cell.cache)
        times = result.times
        if times is None:
            shown.add_row(*names, "-" if right(result) else "[red]FAIL")
            continue
        shown.add_row(
            *names, f"{times.p50:.3f}", f"{times.p20:.3f}-{times.p80:.3f}", _number(times.host_ms),
            _number(result.floor_ms), "-" if result.share is None else f"{result.share:.0%}",
            f"{1e3 * cell.rows / times.p50:.0f}",
        )  # fmt: skip
    return shown


def _place(result: Timed) -> tuple[int, int, bool, str, int, int]:
    cell = result.cell
    formats = list(TOLERANCES).index(cell.weights), list(CACHE_FORMATS).index(cell.cache)
    return cell.rows, cell.context, result.by != "engine", result.by, *formats


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _print_rest(report: Report, console: Console) -> None:
    """Cells without a time, those of one reason together."""
    reasons: dict[str, list[str]] = {}
    for timed in report.timed:
        if timed.wrong is not None:
            reasons.setdefault(timed.wrong, []).append(f"{timed.by} {timed.cell.name}")
    for reason, names in reasons.items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        console.print(f"{', '.join(names[:3])}{more}: {reason}", soft_wrap=True, markup=False, highlight=False)
    if report.not_measured:
        console.print(f"no time was left for {len(report.not_measured)} cells", soft_wrap=True)
