"""Curves of trainings: their logs (JSON lines with a step) as a plot, and as TensorBoard events.

python -m spiritrt.training.curves build/nano/*.log --png curves.png --tensorboard build/nano/events
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

from spiritrt.training.arguments import launch

Curves = dict[str, list[tuple[int, float]]]


def read_log(path: Path) -> Curves:
    """Every figure of a log by name, as (step, value); of lines that repeat a step, the last counts.

    A line that was cut off at the end, by a kill, is left out. Raises ValueError for another line that is no JSON
    object with a step.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    figures: dict[str, dict[int, float]] = defaultdict(dict)
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            step = int(entry["step"])
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                break
            raise ValueError(f"{path}, line {number}: not a log line with a step: {line[:60]!r}") from error
        for name, value in entry.items():
            if name != "step" and isinstance(value, int | float):
                figures[name][step] = float(value)
    return {name: sorted(values.items()) for name, values in figures.items()}


def plot(logs: dict[str, Curves], path: Path) -> None:
    """One panel a figure, one line a log, as PNG. Needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = sorted({name for curves in logs.values() for name in curves})
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(5 * columns, 3 * rows), squeeze=False, layout="constrained")
    for place, axis in enumerate(axes.flat):
        axis.set_visible(place < len(names))
        if place >= len(names):
            continue
        for log, curves in logs.items():
            if points := curves.get(names[place]):
                axis.plot(*zip(*points, strict=True), label=log)
        axis.set(title=names[place], xlabel="step")
        axis.legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def write_events(logs: dict[str, Curves], folder: Path) -> None:
    """TensorBoard event files, one run a log. Raises ImportError where tensorboard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(f"TensorBoard events need tensorboard: pip install tensorboard ({error})") from error
    for log, curves in logs.items():
        with SummaryWriter(str(folder / log)) as writer:
            for name, points in curves.items():
                for step, value in points:
                    writer.add_scalar(name, value, step)


def main() -> None:
    parser = argparse.ArgumentParser(description="Plot training logs, and write them for TensorBoard.")
    parser.add_argument("logs", type=Path, nargs="+", help="log files of trainings (JSON lines)")
    parser.add_argument("--png", type=Path, help="plot of every figure (needs matplotlib)")
    parser.add_argument("--tensorboard", type=Path, help="folder for event files (needs tensorboard)")
    args = parser.parse_args()
    logs = {path.stem: read_log(path) for path in args.logs}
    if not any(logs.values()):
        raise SystemExit("the logs are empty")
    if args.png is not None:
        plot(logs, args.png)
    if args.tensorboard is not None:
        write_events(logs, args.tensorboard)
    last = {log: {name: points[-1][1] for name, points in curves.items()} for log, curves in logs.items()}
    print(json.dumps(last, indent=1))


if __name__ == "__main__":
    launch(main)
