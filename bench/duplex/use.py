"""What a run takes of the machine: memory of the process, and the GPU."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import torch

INTERVAL_MS = 500


def resident_mb() -> float:
    """Memory of this process that is in RAM, in MB. Linux alone; 0 elsewhere."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return 0.0
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def priority() -> str:
    """How the system schedules this process: "normal", with its nice value, or "real time", before all others."""
    if not hasattr(os, "sched_getscheduler"):
        return "unknown"
    policy = os.sched_getscheduler(0)
    if policy in (os.SCHED_FIFO, os.SCHED_RR):
        return f"real time, {os.sched_getparam(0).sched_priority}"
    return f"normal, nice {os.getpriority(os.PRIO_PROCESS, 0)}"


@dataclass(frozen=True, slots=True)
class GpuUse:
    """Means over a run, as `nvidia-smi` says: share of the time that a kernel ran, watts; and memory at most, in MB."""

    busy: float
    watts: float
    memory_mb: float


class GpuWatch:
    """Within `with`, samples a CUDA device twice a second; `use` is then what it did. None elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self.use: GpuUse | None = None
        self._device = device
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> "GpuWatch":
        if self._device.type == "cuda":
            uuid = f"GPU-{torch.cuda.get_device_properties(self._device).uuid}"
            asked = ["--query-gpu=utilization.gpu,power.draw,memory.used", "--format=csv,noheader,nounits"]
            try:
                self._process = subprocess.Popen(
                    ["nvidia-smi", "-i", uuid, *asked, "-lms", str(INTERVAL_MS)],
                    stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                )  # fmt: skip
            except FileNotFoundError:
                return self
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is None:
            return
        self._process.terminate()
        output, _error = self._process.communicate()
        self.use = parse(output)


def parse(output: str) -> GpuUse | None:
    """The means of lines of percent, watts and MB; a line that was cut off, or has no number, does not count."""
    rows: list[tuple[float, ...]] = []
    for line in output.splitlines():
        try:
            row = tuple(float(part) for part in line.split(","))
        except ValueError:
            continue
        if len(row) == 3:
            rows.append(row)
    if not rows:
        return None
    busy, watts, memory = zip(*rows, strict=True)
    return GpuUse(round(mean(busy) / 100, 3), round(mean(watts), 1), max(memory))
