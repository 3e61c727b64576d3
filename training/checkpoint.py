"""Training state on disk: atomic checkpoints that resume to the same next loss, a time budget and averaged weights."""

import hashlib
import json
import math
import os
import signal
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

State = dict[str, object]


def save_checkpoint(path: Path, state: Mapping[str, object]) -> None:
    """Write `state` and torch's random state to `path`; a kill at any moment leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    random = {"torch_rng": torch.get_rng_state()}
    if torch.cuda.is_available():
        random["cuda_rng"] = torch.cuda.get_rng_state()
    torch.save({**state, **random}, partial)
    os.replace(partial, path)


def load_checkpoint(path: Path) -> State | None:
    """The state saved last, with torch's random state restored; None where nothing was saved yet.

    Raises
    ------
    ValueError
        Where the file is not a training checkpoint.
    """
    if not path.is_file():
        return None
    state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict) or "torch_rng" not in state:
        raise ValueError(f"{path} is not a training checkpoint; delete it to start anew")
    torch.set_rng_state(state["torch_rng"])
    if "cuda_rng" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda_rng"])
    return state


def digest(what: object) -> str:
    """A dozen hexadecimal digits that stand for `what` JSON can hold."""
    return hashlib.blake2b(json.dumps(what, sort_keys=True).encode(), digest_size=6).hexdigest()


def file_digest(*files: Path) -> str:
    """A dozen hexadecimal digits that stand for the bytes of `files`, one after the other."""
    found = hashlib.sha256()
    for file in files:
        found.update(file.read_bytes())
    return found.hexdigest()[:12]


def check_origin(stored: object, wanted: Mapping[str, object], name: str = "the checkpoint") -> None:
    """Raises ValueError naming what differs, where a checkpoint is not of the data and the model that are `wanted`."""
    if not isinstance(stored, dict):
        raise ValueError(f"{name} does not say what it was made of: choose another folder, or move it away")
    differing = [
        f"{key} {_listed(stored.get(key))}, not {_listed(value)}"
        for key, value in wanted.items()
        if stored.get(key) != value
    ]
    if differing:
        raise ValueError(f"{name} is of {'; '.join(differing)}: choose another folder, or move it away")


def _listed(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


@dataclass(frozen=True, slots=True)
class Schedule:
    """Learning rate by step: linear warm-up to `peak`, cosine down to `peak * floor` at `steps`, constant after it."""

    peak: float
    steps: int
    warmup: int = 200
    floor: float = 0.05

    def __post_init__(self) -> None:
        if self.peak <= 0 or self.steps < 1 or self.warmup < 1 or not 0 <= self.floor <= 1:
            raise ValueError(f"bad schedule: {self}")

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        done = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        return self.peak * (self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * done)))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def check_minutes(minutes: float) -> None:
    """Raises ValueError for a budget of 0 minutes or less."""
    if minutes <= 0:
        raise ValueError(f"--minutes must be positive, got {minutes:g}")


class Budget:
    """Wall-clock budget in minutes, `before_s` seconds of which were spent by earlier runs, and a second clock for
    periodic checkpoints.

    As a context it lets Ctrl-C and SIGTERM end the training at the next step, with a checkpoint, instead of at once.
    """

    def __init__(self, minutes: float, save_every_s: float = 120.0, before_s: float = 0.0) -> None:
        check_minutes(minutes)
        self.began = time.monotonic() - before_s
        self.end = self.began + 60 * minutes
        self.save_every_s = save_every_s
        self.next_save = time.monotonic() + save_every_s

    def __enter__(self) -> "Budget":
        self.handlers = {n: signal.signal(n, self._end) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def _end(self, *_: object) -> None:
        self.end = time.monotonic()

    def spent(self) -> bool:
        return time.monotonic() >= self.end

    def spent_s(self) -> float:
        """Seconds of all runs so far."""
        return time.monotonic() - self.began

    def save_due(self) -> bool:
        """True once per `save_every_s` seconds."""
        if time.monotonic() < self.next_save:
            return False
        self.next_save = time.monotonic() + self.save_every_s
        return True


class Average:
    """Exponential moving average of parameters; a young one forgets faster, so that short trainings profit as well."""

    def __init__(self, module: nn.Module, decay: float = 0.999) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"decay must lie in (0, 1), got {decay}")
        self.decay = decay
        self.tensors = {name: p.detach().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        names, parameters = zip(*module.named_parameters(), strict=True)
        torch._foreach_lerp_([self.tensors[name] for name in names], list(parameters), 1 - decay)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Overwrite the parameters of `module` with the averages."""
        for name, p in module.named_parameters():
            p.copy_(self.tensors[name])

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        if tensors.keys() != self.tensors.keys():
            raise ValueError(f"averages of other parameters: {sorted(tensors.keys() ^ self.tensors.keys())[:4]}")
        for name, value in tensors.items():
            self.tensors[name].copy_(value)


def rounded(tensors: Mapping[str, Tensor], dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
    """Floating tensors in `dtype`, as they are shipped."""
    return {k: v.detach().to(dtype) if v.is_floating_point() else v.detach() for k, v in tensors.items()}


def count_parameters(modules: Iterable[nn.Module]) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())
