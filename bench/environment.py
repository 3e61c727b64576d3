"""What numbers of wall time are measured on: versions, commit, and what the machine can do at most."""

import importlib.metadata
import importlib.util
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from spiritrt.bench.measure import machine


def environment(device: torch.device) -> dict[str, str | int | float | bool]:
    """Where and of which code numbers of wall time are: `machine`, versions, and the commit."""
    about: dict[str, str | int | float | bool] = {
        **machine(device), "clock": "wall", "python": platform.python_version(), **commit()
    }  # fmt: skip
    if importlib.util.find_spec("triton") is not None:
        about["triton"] = importlib.metadata.version("triton")
    if device.type == "cuda":
        about["cuda"] = str(torch.version.cuda)
        about["capability"] = "{}.{}".format(*torch.cuda.get_device_capability(device))
    return about


def commit() -> dict[str, str | bool]:
    """The commit that this code lies in, and whether it was changed since; `unknown` outside a repository."""
    folder = Path(__file__).parent
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True)
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--", "bench", "csrc", "kernels", "runtime"],
            cwd=folder.parent, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return {"commit": "unknown", "changed": False}
    return {"commit": found.stdout.strip()[:12], "changed": bool(changed.stdout.strip())}


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What a device can do at most, as measured: `copy` and `read` in bytes a second, `flops` a second.

    `basis` names the rate that floors are made of: a CUDA device's copy; on a CPU, where the data of a step stays in
    the last-level cache and is read, the faster of the two there.
    """

    copy: float
    read: float
    flops: float
    basis: str = "copy"

    def __post_init__(self) -> None:
        if self.basis not in ("copy", "read"):
            raise ValueError(f"basis must be 'copy' or 'read', got {self.basis!r}")

    @property
    def bandwidth(self) -> float:
        """Bytes a second of the floors."""
        return self.copy if self.basis == "copy" else self.read

    def floor_s(self, moved: int, flops: int = 0) -> float:
        """Seconds that moving so many bytes, or computing so much, takes at least."""
        return max(moved / self.bandwidth, flops / self.flops)

    def described(self) -> str:
        """In a line, for titles."""
        rates = f"copy {self.copy / 1e9:.1f} GB/s, read {self.read / 1e9:.1f} GB/s"
        return f"{rates}, product {self.flops / 1e12:.2f} TFLOP/s; floors are by the rate of a {self.basis}"


CPU_BYTES = 16 << 20  # beyond a core's own cache, within the last level
CUDA_BYTES = 1 << 30


def ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """A large copy (bytes read and written), a large sum, and a product of `dtype` matrices, each at its fastest."""
    size, side = (CUDA_BYTES, 8192) if device.type == "cuda" else (CPU_BYTES, 1024)
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    copy_s, read_s, product_s = (
        _fastest_s(call, device)
        for call in (lambda: target.copy_(source), lambda: source.sum(), lambda: torch.mm(left, right))
    )
    copy, read = 2 * size / copy_s, size / read_s
    basis = "copy" if device.type == "cuda" or copy > read else "read"
    return Ceilings(copy, read, 2 * side**3 / product_s, basis)


def _fastest_s(call: Callable[[], object], device: torch.device, repeats: int = 15) -> float:
    calls = 10 if device.type == "cuda" else 1  # so that waiting for the device does not count
    times = []
    for _ in range(repeats + 2):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        for _ in range(calls):
            call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append((time.perf_counter() - began) / calls)
    return min(times[2:])
