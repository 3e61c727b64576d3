"""Clocks, quantiles, clips to measure with, and what machine a number is from."""

import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

import spiritrt
from spiritrt import audio

SOUND_FILES = (".wav", ".flac", ".ogg", ".opus", ".mp3")


class Timed:
    """Stands in front of a native stream and adds up the time inside its calls, without what they call back."""

    def __init__(self, native: object) -> None:
        self._native = native
        self.seconds = 0.0

    def __getattr__(self, name: str) -> object:
        attribute = getattr(self._native, name)
        if not callable(attribute):
            return attribute

        def call(*arguments: object) -> object:
            arguments = tuple(self._outside(each) if callable(each) else each for each in arguments)
            began = time.perf_counter()
            try:
                return attribute(*arguments)
            finally:
                self.seconds += time.perf_counter() - began

        return call

    def _outside(self, function: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            began = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                self.seconds -= time.perf_counter() - began

        return call


def time_steps(
    step: Callable[[int], None], native: Timed, warm: int, steps: int, device: torch.device
) -> dict[str, float]:
    """Times of `step(number)`, after `warm` of them: `clock`'s quantiles, the shortest by the wall, Python's share."""
    times: list[float] = []
    wall: list[float] = []
    native_seconds = 0.0
    for number in range(warm + steps):
        native.seconds = 0.0
        began, wall_began = clock(device), time.perf_counter()
        step(number)
        wall_seconds = time.perf_counter() - wall_began
        if number >= warm:
            times.append(clock(device) - began)
            wall.append(wall_seconds)
            native_seconds += native.seconds
    return {
        **quantiles_ms(times),
        "wall_min": round(1e3 * min(wall), 3),
        "python_share": round(1 - native_seconds / sum(wall), 4),
    }


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Lets an operation, or the slots of a stream's step, use so many threads meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)


def slots_over_one(measure: Callable[[int], dict[str, float]], slots: Sequence[int], device: torch.device) -> dict:
    """`measure(slots)` for each of `slots`, with one thread and with two, and what 8 slots cost over one.

    With one thread a step is what the machine computes in it (CPU time, median); with two it is how long it takes
    (wall time, the shortest, for whatever else runs on the machine makes two threads wait).
    """
    with threads(1):
        one = {str(count): measure(count) for count in slots}
    result: dict = {"by_slots": one}
    ratios = {"one_thread": round(one["8"]["p50"] / one["1"]["p50"], 2)} if {"1", "8"} <= set(one) else {}
    if device.type == "cpu" and (os.cpu_count() or 1) > 1:
        with threads(2):
            two = {str(count): measure(count) for count in slots}
        result["by_slots_two_threads"] = two
        if ratios:
            ratios["two_threads"] = round(two["8"]["wall_min"] / two["1"]["wall_min"], 2)
    return result | {"eight_slots_over_one": ratios}


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


def load_clips(folder: Path | None, clips: int, seconds: float) -> dict[str, list[audio.Samples]]:
    """Up to `clips` recordings of `folder` (by default those that are shipped), each cut at `seconds`.

    They are taken evenly from its subfolders, whose names are the keys ("" for the folder itself).

    Raises ValueError for a folder without sound files.
    """
    folder = folder or Path(spiritrt.__file__).parent / "duplex" / "recordings"
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SOUND_FILES)
    if not files:
        raise ValueError(f"{folder} holds no sound files ({', '.join(SOUND_FILES)})")
    groups: dict[str, list[audio.Samples]] = {}
    for file in files[:: max(1, len(files) // clips)][:clips]:
        name = file.relative_to(folder).parts[0] if file.parent != folder else ""
        groups.setdefault(name, []).append(audio.load(file)[: round(seconds * audio.RATE_HZ)])
    return groups
