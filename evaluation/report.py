"""What an evaluation found: figures with their count and spread, as a table and as JSON."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

RESAMPLES = 1000
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure under its usual name (`accuracy`, `wer`, ...), over `count` items, with its standard error `spread`."""

    name: str
    value: float
    count: int
    spread: float

    def as_json(self) -> dict[str, float | int]:
        return {self.name: round(self.value, 6), "count": self.count, "spread": round(self.spread, 6)}


def mean_metric(name: str, values: Sequence[float]) -> Metric:
    """Mean of one value an item, and the standard error of the mean. Raises ValueError for no values."""
    if not len(values):
        raise ValueError(f"no items to take the {name} of")
    array = np.asarray(values, float)
    spread = float(array.std(ddof=1) / len(array) ** 0.5) if len(array) > 1 else 0.0
    return Metric(name, float(array.mean()), len(array), spread)


def rate_metric(name: str, errors: Sequence[float], totals: Sequence[float], seed: int = 0) -> Metric:
    """Sum of errors over sum of totals (such as word errors over words), spread by bootstrap over the items.

    The spread is the standard deviation over 1000 seeded resamples. Raises ValueError where there is nothing to divide
    by.
    """
    above, below = np.asarray(errors, float), np.asarray(totals, float)
    if not len(below) or below.sum() <= 0:
        raise ValueError(f"no items to take the {name} of")
    drawn = np.random.default_rng(seed).integers(len(below), size=(RESAMPLES, len(below)))
    under = below[drawn].sum(axis=1)
    rates = above[drawn].sum(axis=1)[under > 0] / under[under > 0]
    return Metric(name, float(above.sum() / below.sum()), len(below), float(rates.std()) if len(rates) else 0.0)


@dataclass(frozen=True, slots=True)
class Report:
    """The result of one evaluation: its main figure, the figures of its parts, and one line an item.

    `settings` says how it was done, with the accuracy of guessing as `chance` where it is known; `notes` says what was
    left out and why. `on` names the data for the title.
    """

    name: str
    model: str
    main: Metric
    parts: dict[str, Metric] = field(default_factory=dict)
    settings: dict[str, str | int | float | bool] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    lines: tuple[dict[str, object], ...] = ()
    on: str = ""

    def as_json(self) -> dict[str, object]:
        """`summary` holds the main figure by its name, `count` and `spread`, and the same of each of the parts."""
        summary: dict[str, object] = dict(self.main.as_json())
        if self.parts:
            summary["parts"] = {part: metric.as_json() for part, metric in self.parts.items()}
        return {
            "evaluation": self.name, "model": self.model, "summary": summary, "settings": self.settings,
            "notes": list(self.notes), "lines": list(self.lines),
        }  # fmt: skip

    def write(self, path: Path) -> None:
        """Write the JSON; folders on the way are made."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.as_json(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def show(self, console: Console) -> None:
        """Print the table: the main figure, by its part's name where it is one's, then the other parts."""
        table = Table(title=escape(", ".join(filter(None, (self.name, self.model, self.on)))))
        chance = self.settings.get("chance")
        columns = ("", "metric", "value", "± standard error", *(() if chance is None else ("chance",)), "items")
        for column in columns:
            table.add_column(column, justify="left" if column in ("", "metric") else "right")
        same = [part for part, metric in self.parts.items() if metric is self.main]
        same = (same or [part for part, metric in self.parts.items() if metric == self.main])[:1]
        rows = {": ".join(["main figure", *same]): self.main}
        rows |= {part: metric for part, metric in self.parts.items() if part not in same}
        for label, metric in rows.items():
            shown = f"{100 * metric.value:.1f}%" if metric.name in PERCENT else f"{metric.value:.3f}"
            spread = f"{100 * metric.spread:.1f}" if metric.name in PERCENT else f"{metric.spread:.3f}"
            guessed = () if chance is None else (f"{100 * float(chance):.1f}%" if metric.name == "accuracy" else "",)
            table.add_row(escape(label), metric.name, shown, spread, *guessed, str(metric.count))
        console.print(table)
        for note in self.notes:
            console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)


PERCENT = frozenset({"accuracy", "wer", "cer", "wer_difference", "f0_frame_error", "style_accuracy"})


def progress(items: Sequence[T], name: str) -> Iterable[T]:
    """The items, with a progress bar on standard error that goes away at the end."""
    return track(items, name, console=Console(stderr=True), transient=True)
