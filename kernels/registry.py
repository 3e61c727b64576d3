"""Which variants of an op there are, what each supports, and which one runs.

Every op has several variants with one signature: a float32 reference, one in plain torch that runs anywhere, our own
for CPU and CUDA, and those of other packages where installed. A choice comes from the call, else from the environment
(`SPIRITRT_KERNEL_<OP>`), else from the tuned file of the GPU (`kernels/configs/<gpu>.json`), else it is "auto": the
supported variant of highest priority. Choose once, when a model is loaded, not in a step.
"""

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

AUTO = "auto"
PREFIX = "SPIRITRT_KERNEL_"  # of the environment variables that choose a variant, followed by the op
CONFIGS = Path(__file__).parent / "configs"
PRIORITIES = {"cpu": 30, "triton": 20, "torch": 10, "reference": 0}  # the usual ones


class KernelError(ValueError):
    """A variant that does not exist, or that cannot run where it was asked to."""


@dataclass(frozen=True, slots=True)
class Case:
    """What a variant is asked to run on; a field that does not matter to an op keeps its default.

    `dtype` is that of the activations, `weights` the storage of a linear layer's weight, `cache` that of keys and
    values. `head_dim`, `rows` and `page_size` (tokens) are 0 where not said. `capability` is the CUDA device's.
    """

    device: str
    dtype: torch.dtype
    capability: tuple[int, int] | None = None
    weights: torch.dtype | None = None
    cache: torch.dtype | None = None
    head_dim: int = 0
    rows: int = 0
    page_size: int = 0

    def __post_init__(self) -> None:
        if self.device not in ("cpu", "cuda"):
            raise KernelError(f"a kernel's device must be 'cpu' or 'cuda', got {self.device!r}")
        for name in ("head_dim", "rows", "page_size"):
            if getattr(self, name) < 0:
                raise KernelError(f"{name} must not be negative, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Variant:
    """One implementation of an op. `supports` says why it cannot run on a case, or None where it can."""

    op: str
    name: str
    fn: Callable
    supports: Callable[[Case], str | None]
    priority: int

    def __post_init__(self) -> None:
        for name in (self.op, self.name):
            if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
                raise KernelError(f"names of ops and variants are lower case with underscores, got {name!r}")
        if self.name == AUTO:
            raise KernelError(f"{AUTO!r} is the choice of the best variant, and cannot be the name of one")


_variants: dict[str, dict[str, Variant]] = {}


def register(variant: Variant) -> None:
    """Adds a variant. Raises KernelError where its op has one of that name."""
    known = _variants.setdefault(variant.op, {})
    if variant.name in known:
        raise KernelError(f"{variant.op} has a variant {variant.name!r} already")
    known[variant.name] = variant


def ops() -> list[str]:
    """Names of all ops."""
    return sorted(_variants)


def variants(op: str) -> list[Variant]:
    """Variants of an op, highest priority first. Raises KernelError for an op that does not exist."""
    if op not in _variants:
        raise KernelError(f"there is no op {op!r}: there are {', '.join(ops())}")
    return sorted(_variants[op].values(), key=lambda variant: (-variant.priority, variant.name))


def case_of(tensor: torch.Tensor, weights: torch.dtype | None = None, cache: torch.dtype | None = None,
            head_dim: int = 0, rows: int = 0, page_size: int = 0) -> Case:  # fmt: skip
    """The case of activations like `tensor`."""
    capability = torch.cuda.get_device_capability(tensor.device) if tensor.is_cuda else None
    return Case(tensor.device.type, tensor.dtype, capability, weights, cache, head_dim, rows, page_size)


def choose(op: str, case: Case, choice: str = AUTO) -> Variant:
    """The variant of `op` to run on `case`.

    Where `choice` is "auto" the environment and the GPU's tuned file are asked, in this order. Raises KernelError
    with the reason where a choice cannot run, or where "auto" finds nothing that can.
    """
    known = variants(op)
    source = "asked for"
    variable = PREFIX + op.upper()
    for name in os.environ:
        if name.startswith(PREFIX) and name.removeprefix(PREFIX).lower() not in _variants:
            raise KernelError(f"{name} is set, and there is no such op: there are {', '.join(ops())}")
    if choice == AUTO and os.environ.get(variable, AUTO) != AUTO:
        choice, source = os.environ[variable], f"asked for by {variable}"
    if choice == AUTO and case.device == "cuda":
        gpu = gpu_name()
        choice, source = read_config(gpu).variants.get(op, AUTO), f"asked for by {CONFIGS.name}/{gpu}.json"
    if choice != AUTO:
        for variant in known:
            if variant.name == choice:
                reason = variant.supports(case)
                if reason is not None:
                    raise KernelError(f"{op}: variant {choice!r}, {source}, cannot run here: {reason}")
                return variant
        names = ", ".join(variant.name for variant in known)
        raise KernelError(f"{op}: there is no variant {choice!r}, {source}: there are {names}")
    reasons = []
    for variant in known:
        # on a CPU Triton means its interpreter, which is for tests: it runs only where asked for
        if case.device == "cpu" and variant.name.startswith("triton"):
            continue
        reason = variant.supports(case)
        if reason is None:
            return variant
        reasons.append(f"{variant.name}: {reason}")
    raise KernelError(f"{op}: no variant runs on {case}: {'; '.join(reasons)}")


@dataclass(frozen=True, slots=True)
class GpuConfig:
    """What was found best on one GPU: `variants` by op, and block sizes by op and key of a shape ("" for any).

    `arch` is its compute capability, such as 90, which the ahead-of-time gate compiles these sizes for; 0: all.
    """

    variants: dict[str, str]
    tuned: dict[str, dict[str, dict[str, int]]]
    arch: int = 0


def gpu_name(device: int | None = None) -> str:
    """Name of a CUDA device as the tuned files are named, such as `NVIDIA_H200`."""
    return _slug(torch.cuda.current_device() if device is None else device)


@lru_cache
def _slug(device: int) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", torch.cuda.get_device_name(device)).strip("_")


@lru_cache
def read_config(gpu: str) -> GpuConfig:
    """The tuned file of a GPU, empty where there is none. Raises KernelError where it cannot be read."""
    path = CONFIGS / f"{gpu}.json"
    if not path.is_file():
        return GpuConfig({}, {})
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return GpuConfig(dict(content.get("variants", {})), dict(content.get("tuned", {})), int(content.get("arch", 0)))
    except (ValueError, AttributeError, TypeError) as error:
        raise KernelError(f"{path} is no tuned file: {error}") from error


def configured() -> list[str]:
    """The GPUs that have a tuned file."""
    return sorted(file.stem for file in CONFIGS.glob("*.json"))


def tuned(op: str, key: str = "", gpu: str | None = None) -> dict[str, int]:
    """Block sizes of an op on a GPU (default: the current CUDA device), those for `key` before those for any shape.

    Empty where nothing was tuned or no GPU is there: the op's file holds the defaults.
    """
    if gpu is None:
        if not torch.cuda.is_available():
            return {}
        gpu = gpu_name()
    entries = read_config(gpu).tuned.get(op, {})
    return entries.get("", {}) | entries.get(key, {})


def anywhere(case: Case) -> str | None:
    """`supports` of a variant that runs on every case."""
    return None
