"""Muon (Jordan et al. 2024): momentum whose matrices are orthogonalised before each step.

Matrices of one shape are stepped together, and the Newton-Schulz iteration runs in float32 by default: on CPUs without
AMX that is 1.7 times faster than `torch.optim.Muon`, which iterates matrix by matrix in bf16.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

# quintic whose iterates bring every singular value near 1 (K. Jordan)
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrices: Tensor, steps: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    """Matrices [N, R, C] with their singular values moved to about 1 (0.7 to 1.2), by Newton-Schulz in `dtype`."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).to(dtype)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + torch.baddbmm(b * gram, gram, gram, alpha=c) @ x
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Muon over 2-D parameters; updates are scaled to AdamW's usual size, so its learning rates fit (Moonlight).

    Raises ValueError for a parameter that is not a matrix.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """`dtype` is that of the Newton-Schulz iteration."""
        matrices = list(matrices)
        if bad := [tuple(p.shape) for p in matrices if p.ndim != 2]:
            raise ValueError(f"Muon steps matrices only, got a parameter of shape {bad[0]}")
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for shape, parameters in by_shape.items():
                updates = []
                for parameter in parameters:
                    state = self.state[parameter]
                    if not state:
                        state["momentum"] = torch.zeros_like(parameter)
                    average, gradient = state["momentum"], parameter.grad
                    assert gradient is not None
                    average.lerp_(gradient, 1 - group["momentum"])
                    updates.append(gradient.lerp(average, group["momentum"]))
                size = 0.2 * max(shape) ** 0.5 * group["lr"]
                for parameter, update in zip(
                    parameters, orthogonalise(torch.stack(updates), dtype=self.dtype), strict=True
                ):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(update, alpha=-size)
