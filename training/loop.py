"""The loop that every training shares: step, log, save, until the steps or the budget are used up."""

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, TextIO

from tqdm import tqdm

from spiritrt.training.checkpoint import Budget, load_checkpoint, save_checkpoint
from spiritrt.training.processes import Place

ALONE = Place()


class Steps(Protocol):
    """What is trained: `step()` makes one optimizer step and returns its figures, `resume(state())` is where it was."""

    step_index: int

    def step(self) -> dict[str, float]: ...

    def state(self) -> dict[str, object]: ...

    def resume(self, state: Mapping[str, object]) -> None: ...


def resume(trainer: Steps, path: Path) -> float:
    """Go on from the checkpoint at `path`, where there is one; how many seconds the runs before have taken."""
    if (state := load_checkpoint(path)) is None:
        return 0.0
    trainer.resume(state)
    return float(state.get("spent_s", 0.0))  # type: ignore[arg-type]


def train(
    trainer: Steps,
    steps: int,
    path: Path,
    log: Path,
    budget: Budget,
    every: int = 100,
    place: Place = ALONE,
) -> None:
    """Step until the budget or `steps` are used up; of many processes the first one writes.

    Checkpoints go to `path`, at the end and whenever the budget says so; mean figures of `every` steps, and of those
    that are left at the end, go to `log`, one JSON line each. Says on standard error where no step was left to make.
    """
    first = place.rank == 0

    def save() -> None:
        if first:
            save_checkpoint(path, {**trainer.state(), "spent_s": budget.spent_s()})

    if trainer.step_index >= steps:
        print(f"{path}: the budget of {steps} steps was spent before: give more --steps", file=sys.stderr)
    elif budget.spent():
        print(f"{path}: the budget of minutes was spent before: give more --minutes", file=sys.stderr)
    progress = tqdm(
        total=steps, initial=trainer.step_index, desc=path.stem, file=sys.stderr, mininterval=10, disable=not first
    )
    sums: dict[str, float] = {}
    began, counted = time.monotonic(), 0

    def log_means(out: TextIO) -> None:
        if first:
            _write_means(out, trainer.step_index, time.monotonic() - began, sums, counted)

    with log.open("a", encoding="utf-8") as out, budget:
        while trainer.step_index < steps and not place.any(budget.spent()):
            for name, value in trainer.step().items():
                sums[name] = sums.get(name, 0.0) + value
            counted += 1
            progress.update()
            if counted == every:
                log_means(out)
                sums, began, counted = {}, time.monotonic(), 0
            if budget.save_due():
                save()
        if counted:
            log_means(out)
    progress.close()
    save()


def _write_means(out: TextIO, step: int, seconds: float, sums: Mapping[str, float], counted: int) -> None:
    line = {"step": step, "s_a_step": round(seconds / counted, 4)}
    out.write(json.dumps(line | {name: round(value / counted, 4) for name, value in sums.items()}) + "\n")
    out.flush()
