"""The device's part of a stream's step, recorded once for each shape and replayed: one launch instead of hundreds."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

WARM_UP_RUNS = 2  # before a capture: libraries choose and load their kernels in the first run of a shape

Inputs = tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class _Recorded:
    inputs: Inputs  # a replay reads these and writes `output`
    output: Tensor
    replay: Callable[[], object]


class StepGraphs:
    """Functions of tensors, each recorded for its key at the first call: as a CUDA graph on a GPU.

    On a CPU there is nothing to record: the same buffers are filled, and the function is called. So everything but the
    capture runs there too.

    A function must not wait for the device nor decide by a tensor's values, and may write only what it owns; it is run
    twice before it is captured, and not during the capture.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._recorded: dict[Hashable, _Recorded] = {}
        self._pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None

    def __len__(self) -> int:
        return len(self._recorded)

    def record(self, key: Hashable, inputs: Inputs, run: Callable[[Inputs], Tensor]) -> None:
        """Records `run` under `key`, with buffers like `inputs`, which it must be harmless to run on."""
        held = tuple(tensor.to(self._device, copy=True) for tensor in inputs)
        if self._pool is None:
            output = run(held)
            self._recorded[key] = _Recorded(held, output, lambda: output.copy_(run(held)))
            return
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_RUNS):
                run(held)
        torch.cuda.current_stream(self._device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # another thread may drive another stream meanwhile: what it allocates is no part of this graph
        with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
            output = run(held)
        self._recorded[key] = _Recorded(held, output, graph.replay)

    def __call__(self, key: Hashable, inputs: Inputs) -> Tensor:
        """Output for `inputs`, which may have fewer rows than recorded; it stands until the next call of `key`."""
        step = self._recorded[key]
        for held, fresh in zip(step.inputs, inputs, strict=True):
            held[: len(fresh)].copy_(fresh, non_blocking=True)
        step.replay()
        return step.output

    def __contains__(self, key: Hashable) -> bool:
        return key in self._recorded
