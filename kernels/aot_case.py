"""A kernel as it is launched, for the gate that compiles it ahead of time (`aot.py`)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeAlias

import torch

from spiritrt.kernels.registry import configured, read_config, tuned

if TYPE_CHECKING:
    import triton.language as tl
    from triton.runtime.jit import JITFunction

STORED = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "int8": torch.int8,
          "fp8": torch.float8_e4m3fn}  # fmt: skip
NO_GPU = ""  # the name of no tuned file: an op's own sizes, whatever device this machine has
FP8_ARCH = 89  # the first with conversions of e4m3 in hardware

Constant: TypeAlias = "int | float | bool | str | tl.dtype | None"


@dataclass(frozen=True, slots=True)
class AotCase:
    """One kernel as it is launched: `signature` and `constexprs` name all of its arguments between them.

    signature   types of the run-time arguments: "*bf16", "*fp8e4nv", "*i32", "i32", "i64", "fp32" ...
    constexprs  values of the compile-time ones
    aligned     integer arguments that are multiples of 16 at every launch (pointers always are)
    arch        the first chip that can run it; 89 at least where an argument is fp8
    only        the one chip that its sizes were tuned for; 0: any
    """

    name: str
    kernel: "JITFunction"
    signature: Mapping[str, str]
    constexprs: Mapping[str, Constant] = field(default_factory=dict)
    num_warps: int = 4
    num_stages: int = 3
    aligned: tuple[str, ...] = ()
    arch: int = 80
    only: int = 0

    def __post_init__(self) -> None:
        wanted, given = set(self.kernel.arg_names), [*self.signature, *self.constexprs]
        if set(given) != wanted or len(given) != len(wanted):
            wrong = sorted(wanted.symmetric_difference(given) | {name for name in given if given.count(name) > 1})
            raise ValueError(f"{self.name}: arguments missing, unknown or given twice: {', '.join(wrong)}")
        if unknown := set(self.aligned) - set(self.signature):
            raise ValueError(f"{self.name}: aligned names no run-time argument: {', '.join(sorted(unknown))}")
        if self.num_warps not in (1, 2, 4, 8, 16, 32):
            raise ValueError(f"{self.name}: num_warps must be a power of 2 up to 32, got {self.num_warps}")
        if self.num_stages < 1:
            raise ValueError(f"{self.name}: num_stages must be at least 1, got {self.num_stages}")

    def runs_on(self, arch: int) -> bool:
        """Whether the chip has what the case needs."""
        fp8 = any("fp8" in kind for kind in self.signature.values())
        return arch >= max(self.arch, FP8_ARCH if fp8 else 0) and self.only in (0, arch)


def tuned_for(gpu: str | None, op: str, key: str = "") -> dict[str, int]:
    """Block sizes tuned for a GPU; none where there is none to ask for, whatever device this machine has."""
    return tuned(op, key, gpu or NO_GPU)


def tuned_cases(make: Callable[[str | None], Sequence[AotCase]]) -> list[AotCase]:
    """What `make` gives for an op's own sizes (None) and for those of each GPU with a tuned file, where they differ."""
    cases = list(make(None))
    own = {case.name: case for case in cases}
    for gpu in configured():
        arch = read_config(gpu).arch
        cases += [
            replace(case, name=f"{case.name}_{gpu}", only=arch) for case in make(gpu) if case != own.get(case.name)
        ]
    return cases
