"""One training in many processes (`torchrun`): each takes its share of a step's batches, and gradients are summed.

Plain data parallelism, for parts that fit any device; `pretrain` shards a language model's rows as well (FSDP2).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

PATIENCE = timedelta(hours=12)  # for what the first process prepares
Loss = Callable[[int], tuple[Tensor, dict[str, float]]]  # of batch number n, with its figures


@dataclass(frozen=True, slots=True)
class Place:
    """This process among all, and its device."""

    rank: int = 0
    world: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009 (immutable)

    @classmethod
    def take(cls, device: torch.device | None = None) -> Place:
        """From torchrun's environment: NCCL where there are GPUs, else gloo. Alone without it, on `device` or, without
        one, on a GPU where there is one."""
        cuda = torch.cuda.is_available()
        if "RANK" not in os.environ:
            return cls(device=device or torch.device("cuda" if cuda else "cpu"))
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
        if cuda:
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if cuda else "gloo", timeout=PATIENCE)
        return cls(dist.get_rank(), dist.get_world_size(), device)

    @contextmanager
    def first(self) -> Iterator[None]:
        """A part that the first process runs before the others do: they find what it wrote."""
        if self.rank > 0:
            dist.barrier()
        yield
        if self.rank == 0 and self.world > 1:
            dist.barrier()

    def leave(self) -> None:
        """The end of the processes' work together."""
        if self.world > 1:
            dist.destroy_process_group()

    def share(self, step: int, batches: int) -> range:
        """The numbers of this process's batches of a step, of `batches` for all of them together.

        Raises ValueError where there are fewer of them than processes.
        """
        if batches < self.world:
            raise ValueError(f"{self.world} processes need as many batches a step: give --accumulate {self.world}")
        return range(step * batches + self.rank, (step + 1) * batches, self.world)

    def backward(self, loss: Loss, step: int, batches: int) -> dict[str, float]:
        """Gradients of the mean loss over this process's batches of a step, for `step` to sum; the mean figures over
        all processes'.

        Raises ValueError as `share` does.
        """
        figures: dict[str, float] = {}
        for index in self.share(step, batches):
            of_batch, its_figures = loss(index)
            (of_batch / batches).backward()
            for name, value in its_figures.items():
                figures[name] = figures.get(name, 0.0) + value / batches
        return self.sum_figures(figures)

    def step(self, optimizer: torch.optim.Optimizer, clip: float = float("inf")) -> None:
        """One optimizer step on the sum of all processes' gradients, of norm `clip` at most; they are gone after it."""
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self.sum_gradients(trained)
        if clip < float("inf"):
            nn.utils.clip_grad_norm_(trained, clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give every process the sum of all processes' gradients; one that this process lacks counts as zero."""
        if self.world == 1:
            return
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)

    def sum_figures(self, figures: dict[str, float]) -> dict[str, float]:
        """The sum of all processes' figures, which have the same names."""
        if self.world == 1:
            return figures
        values = torch.tensor(list(figures.values()), dtype=torch.float64, device=self.device)
        dist.all_reduce(values)
        return dict(zip(figures, values.tolist(), strict=True))

    def any(self, flag: bool) -> bool:
        """Whether `flag` holds in one of the processes."""
        if self.world == 1:
            return flag
        raised = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(raised)
        return bool(raised)
