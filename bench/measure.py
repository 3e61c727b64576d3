"""Clocks, quantiles, and what machine a number is from."""

import platform
import time
from collections.abc import Sequence
from pathlib import Path

import torch

import spiritrt
from spiritrt import audio

SOUND_FILES = (".wav", ".flac", ".ogg", ".opus", ".mp3")


class Timed:
    """Stands in front of a native stream and adds up the time inside its calls."""

    def __init__(self, native: object) -> None:
        self._native = native
        self.seconds = 0.0

    def __getattr__(self, name: str) -> object:
        attribute = getattr(self._native, name)
        if not callable(attribute):
            return attribute

        def call(*arguments: object) -> object:
            began = time.perf_counter()
            try:
                return attribute(*arguments)
            finally:
                self.seconds += time.perf_counter() - began

        return call


def quantiles_ms(seconds: Sequence[float]) -> dict[str, float]:
    """Median, p20 and p80 in milliseconds."""
    ordered = sorted(seconds)
    return {
        name: round(1e3 * ordered[min(int(part * len(ordered)), len(ordered) - 1)], 3)
        for name, part in (("p50", 0.5), ("p20", 0.2), ("p80", 0.8))
    }


def machine(device: torch.device) -> dict[str, str | int]:
    """Where a number was measured. Times are CPU time of the process on a CPU, and wall time on a GPU."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    elif info.exists():
        lines = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        name = lines[0] if lines else name
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "spiritrt": spiritrt.__version__,
        "clock": "wall" if device.type == "cuda" else "process CPU time",
    }


def clock(device: torch.device) -> float:
    """Seconds: CPU time of the process, so that other work on the machine does not count; on a GPU wall time."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


def load_clips(folder: Path | None, clips: int, seconds: float) -> list[audio.Samples]:
    """Up to `clips` recordings of `folder` (by default those that are shipped), each cut at `seconds`.

    Raises ValueError for a folder without sound files.
    """
    folder = folder or Path(spiritrt.__file__).parent / "duplex" / "recordings"
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SOUND_FILES)
    if not files:
        raise ValueError(f"{folder} holds no sound files ({', '.join(SOUND_FILES)})")
    chosen = files[:: max(1, len(files) // clips)][:clips]
    return [audio.load(file)[: round(seconds * audio.RATE_HZ)] for file in chosen]
