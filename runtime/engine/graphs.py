"""CUDA graphs of a step, one a bucket of rows, captured when the engine starts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)
WARM_UPS = 2  # kernels are compiled and workspaces taken before anything is recorded

Drawn = tuple[Tensor, Tensor]  # ids [bucket] int64, log-probabilities [bucket] float32


@dataclass(frozen=True, slots=True)
class CapturedStep:
    """A step of so many decode rows, recorded; `drawn` is written anew by every replay."""

    graph: torch.cuda.CUDAGraph
    drawn: Drawn

    def replay(self) -> Drawn:
        self.graph.replay()
        return self.drawn


def buckets_for(slots: int) -> tuple[int, ...]:
    """The buckets that steps of up to so many rows use; more rows than the largest take several steps."""
    return tuple(size for size in BUCKETS if size < 2 * slots)


def capture(run: Callable[[int], Drawn], buckets: Sequence[int], progress: bool) -> dict[int, CapturedStep]:
    """Records `run(bucket)`, a step of rows that all only fill up, for each bucket; graphs share their memory.

    `run` must neither wait for the device nor upload anything. A bar goes to standard error with `progress`.
    """
    captured: dict[int, CapturedStep] = {}
    pool = torch.cuda.graph_pool_handle()
    console = Console(stderr=True)
    shown = progress and console.is_terminal
    # so that the smaller ones fit into the memory of the largest
    largest_first = sorted(buckets, reverse=True)
    for bucket in track(largest_first, "capturing graphs", console=console, disable=not shown, transient=True):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                run(bucket)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            drawn = run(bucket)
        captured[bucket] = CapturedStep(graph, drawn)
    return captured
