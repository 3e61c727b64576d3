"""Results as JSON lines, as a table, and one run against another."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from spiritrt.bench.environment import Ceilings
from spiritrt.bench.kernels.run import Result

Key = tuple[str, str, str, str, str]  # op, shape, type, variant, eager or graph


@dataclass(frozen=True, slots=True)
class Change:
    """A median in microseconds before and after; `wrong` where the variant is not right any more."""

    key: Key
    before: float
    after: float | None
    wrong: str | None = None

    @property
    def ratio(self) -> float:
        return float("inf") if self.after is None else self.after / self.before


def write(
    file: Path, about: dict, limits: Ceilings, results: Iterable[Result], not_measured: Sequence[str] = ()
) -> None:
    """The first line says where the numbers are from, each other line is one variant on one shape."""
    head = {"environment": about, "ceilings": asdict(limits), "not_measured": list(not_measured)}
    lines = [head, *(result.record() for result in results)]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def read(file: Path) -> tuple[dict, list[dict]]:
    """Head and results of a file of `write`. Raises ValueError where it is none."""
    try:
        head, *results = (json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line)
        if "environment" not in head:
            raise ValueError("its first line has no environment")
    except ValueError as error:
        raise ValueError(f"{file} holds no results of `spiritrt bench kernels`: {error}") from error
    return head, results


def table(results: Sequence[Result], limits: Ceilings, device: str) -> Table:
    """Medians in microseconds with p20 and p80, and the share of the floor."""
    shown = Table(title=f"{device}; {limits.described()}; times in µs", title_justify="left")
    in_graph = any(result.graph is not None for result in results)
    for column in ("op", "shape", "type", "variant"):
        shown.add_column(column, no_wrap=True)
    for column in ("eager", "p20-p80", *(("graph", "p20-p80") if in_graph else ()), "floor", "GB/s", "share", "off by"):
        shown.add_column(column, justify="right", no_wrap=True)
    for result in results:
        names = (result.op, result.shape, result.dtype, result.variant)
        if result.wrong is not None:
            shown.add_row(*names, "[red]FAIL", end_section=False)
            continue
        cells = []
        for times in (result.eager, result.graph) if in_graph else (result.eager,):
            cells += ["-", "-"] if times is None else [f"{times.p50:.1f}", f"{times.p20:.1f}-{times.p80:.1f}"]
        share = f"{result.share:.0%}" if result.share is not None else "-"
        shown.add_row(*names, *cells, f"{result.floor_us:.1f}", f"{result.gb_s:.1f}", share, f"{result.error:.1e}")
    return shown


def compare(before: Path, after: Path) -> list[Change]:
    """Medians that both files have, and what was right before and is wrong after; the worst first."""
    old, new = (_medians(read(file)[1]) for file in (before, after))
    wrong = {_names(line): line["wrong"] for line in read(after)[1] if line["wrong"] is not None}
    changes = [Change(key, value, new[key]) for key, value in old.items() if key in new]
    changes += [Change(key, value, None, wrong[key[:4]]) for key, value in old.items() if key[:4] in wrong]
    if not changes:
        raise ValueError(f"{before} and {after} have no case in common")
    return sorted(changes, key=lambda change: -change.ratio)


def changes_table(changes: Sequence[Change], fail: float, most: int = 40) -> Table:
    """The worst and the best changes; those beyond `fail` in red."""
    edge = most // 2
    shown = changes if len(changes) <= most else [*changes[:edge], *changes[-edge:]]
    table = Table(title=f"{len(changes)} medians in common; times in µs", title_justify="left")
    for column in ("op", "shape", "type", "variant", "mode"):
        table.add_column(column, no_wrap=True)
    for column in ("before", "after", "change"):
        table.add_column(column, justify="right")
    for change in shown:
        after = "FAIL" if change.after is None else f"{change.after:.1f}"
        text = change.wrong or f"{change.ratio - 1:+.1%}"
        table.add_row(*change.key, f"{change.before:.1f}", after, f"[red]{text}" if change.ratio > 1 + fail else text)
    return table


def _medians(lines: Sequence[dict]) -> dict[Key, float]:
    return {
        (*_names(line), mode): line[mode]["p50"]
        for line in lines for mode in ("eager", "graph") if line[mode] is not None
    }  # fmt: skip


def _names(line: dict) -> tuple[str, str, str, str]:
    return line["op"], line["shape"], line["dtype"], line["variant"]
