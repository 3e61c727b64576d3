"""Times of one call: eager, and inside a CUDA graph, with the caches emptied of its inputs before each."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

CPU_FLUSH_BYTES = 32 << 20  # several times a core's own cache; the shared last level stays warm
CALLS_A_GRAPH = 10
Call = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Times:
    """Quantiles in microseconds over `calls` calls."""

    p50: float
    p20: float
    p80: float
    calls: int


class Stopwatch:
    """Times calls on one device. `cold`: a buffer larger than the cache is read before each call."""

    def __init__(self, device: torch.device, cold: bool = True, seconds: float = 0.25, most: int = 200) -> None:
        """A call is repeated for about `seconds`, at least 5 and at most `most` times."""
        if seconds <= 0 or most < 1:
            raise ValueError(f"seconds and most must be above 0, got {seconds} and {most}")
        self.device, self.cold, self._seconds, self._most = device, cold, seconds, most
        size = CPU_FLUSH_BYTES
        if device.type == "cuda":
            size = 2 * torch.cuda.get_device_properties(device).L2_cache_size
        # read and not written: lines to be written back would cost the call bandwidth
        self._buffer = torch.zeros(size // 4, device=device) if cold else None
        self._flushes_s = None if cold else 0.0  # a graph of flushes alone, once it is measured

    @property
    def flush_bytes(self) -> int:
        return 0 if self._buffer is None else self._buffer.numel() * 4

    def flush(self) -> None:
        if self._buffer is not None:
            self._buffer.amax()

    def eager(self, call: Call) -> Times:
        """The call alone: on CUDA between two events, with its launch queued behind the flush; on a CPU wall time."""
        if self.device.type != "cuda":
            return self._repeat(lambda: self._wall(call), call)
        for _ in range(3):
            call()

        def once() -> float:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self.flush()
            begin.record()
            call()
            end.record()
            end.synchronize()
            return begin.elapsed_time(end) / 1e3

        return self._repeat(once, call)

    def graph(self, call: Call) -> Times:
        """A call among others in one graph: replays of flush and call by turns, less replays of the flushes alone.

        Raises RuntimeError where the call cannot be captured.
        """

        def flush_and_call() -> None:
            self.flush()
            call()

        both = self._capture(flush_and_call)
        if self._flushes_s is None:
            alone = self._capture(self.flush)
            self._flushes_s = self._repeat(lambda: self._replay(alone), alone.replay).p50 / 1e6
        spent = self._flushes_s
        return self._repeat(lambda: (self._replay(both) - spent) / CALLS_A_GRAPH, both.replay)

    def _wall(self, call: Call) -> float:
        self.flush()
        began = time.perf_counter()
        call()
        return time.perf_counter() - began

    def _capture(self, call: Call) -> torch.cuda.CUDAGraph:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(CALLS_A_GRAPH):
                call()
        return graph

    def _replay(self, graph: torch.cuda.CUDAGraph) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3

    def _repeat(self, once: Callable[[], float], warm_up: Call) -> Times:
        warm_up()
        began = time.perf_counter()
        once()
        spent = time.perf_counter() - began
        calls = min(self._most, max(5, int(self._seconds / max(spent, 1e-6))))
        ordered = sorted(once() for _ in range(calls))
        p50, p20, p80 = (round(1e6 * ordered[min(int(part * calls), calls - 1)], 2) for part in (0.5, 0.2, 0.8))
        return Times(p50, p20, p80, calls)
