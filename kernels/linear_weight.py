"""The weight of a linear layer as it is stored: plain, or quantized with one scale an output channel."""

from dataclasses import dataclass

import torch
from torch import Tensor

HEAD_BLOCK = 64  # output columns that one flag of `needed` stands for
LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
QUANTIZED = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
PLAIN = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True, eq=False)
class LinearWeight:
    """A weight of N outputs and K inputs; `data * scales[:, None]` is what it stands for.

    data    [N, K] float32, float16, bfloat16, or int8 and float8_e4m3fn with scales
    scales  [N] float32, of int8 and float8_e4m3fn only
    bias    [N] float32 (whatever the data), added to the product

    Where a layer is gated (`linear(..., gated=True)`) the gate's N / 2 rows come first, then the up projection's.
    Raises ValueError for shapes or types that do not fit together.
    """

    data: Tensor
    scales: Tensor | None = None
    bias: Tensor | None = None

    def __post_init__(self) -> None:
        if self.data.dim() != 2 or not self.data.is_contiguous():
            raise ValueError(f"data must be contiguous [N, K], got {list(self.data.shape)}")
        if self.data.dtype not in (*PLAIN, *LARGEST):
            names = ", ".join(str(dtype).removeprefix("torch.") for dtype in (*PLAIN, *LARGEST))
            raise ValueError(f"data must be one of {names}, got {self.data.dtype}")
        if (self.scales is not None) != (self.data.dtype in LARGEST):
            raise ValueError(f"scales go with int8 and float8_e4m3fn, got data of {self.data.dtype}")
        for name, tensor in (("scales", self.scales), ("bias", self.bias)):
            if tensor is None:
                continue
            if tensor.dtype != torch.float32 or tensor.shape != (self.outputs,) or not tensor.is_contiguous():
                raise ValueError(
                    f"{name} must be contiguous float32 [{self.outputs}], got {tensor.dtype} {list(tensor.shape)}"
                )
            if tensor.device != self.data.device:
                raise ValueError(f"{name} is on {tensor.device}, and data on {self.data.device}")

    @property
    def outputs(self) -> int:
        return self.data.shape[0]

    @property
    def inner(self) -> int:
        return self.data.shape[1]

    @property
    def bytes(self) -> int:
        """Bytes that a product with the whole weight reads."""
        parts = (self.data, self.scales, self.bias)
        return sum(part.numel() * part.element_size() for part in parts if part is not None)


def quantize(weight: Tensor, kind: str, bias: Tensor | None = None) -> LinearWeight:
    """Rounds a weight [N, K] to "int8" or "fp8" (e4m3), with the scale that puts a row's largest number at the top.

    Raises ValueError for another kind or a weight that holds a number that is not finite.
    """
    if kind not in QUANTIZED:
        raise ValueError(f"weights are quantized to {' or '.join(QUANTIZED)}, got {kind!r}")
    dtype = QUANTIZED[kind]
    wide = weight.detach().float()
    largest = wide.abs().amax(dim=1)
    if not bool(torch.isfinite(largest).all()):
        raise ValueError(f"row {int((~torch.isfinite(largest)).nonzero()[0])} of the weight is not finite")
    scales = torch.where(largest > 0, largest / LARGEST[dtype], 1.0)
    scaled = wide / scales[:, None]
    if dtype == torch.int8:
        scaled = scaled.round()
    return LinearWeight(scaled.clamp(-LARGEST[dtype], LARGEST[dtype]).to(dtype).contiguous(), scales, bias)


def check_linear(x: Tensor, weight: LinearWeight, norm: tuple[Tensor, float] | None, gated: bool,
                 residual: Tensor | None, needed: Tensor | None) -> int:  # fmt: skip
    """Columns of a call's result. Raises ValueError naming what does not fit."""
    if x.dim() != 2 or x.shape[1] != weight.inner or not x.is_contiguous():
        raise ValueError(f"x must be contiguous [T, {weight.inner}], got {list(x.shape)}")
    if gated and weight.outputs % 2:
        raise ValueError(f"gate and up must have as many rows each, got {weight.outputs} together")
    columns = weight.outputs // 2 if gated else weight.outputs
    if norm is not None and norm[0].shape != (weight.inner,):
        raise ValueError(f"the norm's weight must be [{weight.inner}], got {list(norm[0].shape)}")
    if residual is not None and (residual.shape != (len(x), columns) or not residual.is_contiguous()):
        raise ValueError(f"residual must be contiguous [{len(x)}, {columns}], got {list(residual.shape)}")
    blocks = -(-columns // HEAD_BLOCK)
    if needed is not None and (needed.shape != (blocks,) or needed.dtype != torch.uint8):
        raise ValueError(f"needed must be uint8 [{blocks}], got {needed.dtype} {list(needed.shape)}")
    return columns
