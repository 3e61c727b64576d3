"""RMSNorm of rows, with the residual added on the way.

Bytes it must move: x in and the norm out, and with a residual that in and the sum out: 32 KiB for a row of the 7B shape
in bf16. A few rows are a launch's latency and nothing else, which is why `linear` computes the norm of its input
itself; this op is for a norm with no product behind it. One program a row keeps it in registers: each byte moves once.
"""

import torch
from torch import Tensor

from spiritrt.kernels import reference
from spiritrt.kernels.aot_case import AotCase
from spiritrt.kernels.language import INSTALLED, tl, triton, triton_supports
from spiritrt.kernels.registry import PRIORITIES, Variant, anywhere, register

WIDTH_MAX = 65536  # of a row in registers


@triton.jit
def rms_norm_kernel(p_x, p_residual, p_weight, p_normed, p_summed, width, eps, BLOCK: tl.constexpr):
    i_row = tl.program_id(0).to(tl.int64)
    o_c = tl.arange(0, BLOCK)
    inside = o_c < width
    b_x = tl.load(p_x + i_row * width + o_c, mask=inside, other=0.0).to(tl.float32)
    if p_residual is not None:
        b_x += tl.load(p_residual + i_row * width + o_c, mask=inside, other=0.0).to(tl.float32)
        tl.store(p_summed + i_row * width + o_c, b_x.to(p_summed.dtype.element_ty), mask=inside)
    b_weight = tl.load(p_weight + o_c, mask=inside, other=0.0).to(tl.float32)
    b_normed = b_x * tl.rsqrt(tl.sum(b_x * b_x) / width + eps) * b_weight
    tl.store(p_normed + i_row * width + o_c, b_normed.to(p_normed.dtype.element_ty), mask=inside)


def rms_norm(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(RMSNorm of x + residual, x + residual), both [T, C] like x; the sum is x itself where there is no residual.

    The norm is of the sum before it is rounded to x's dtype. Raises ValueError for shapes that do not fit together.
    """
    _check(x, weight, residual)
    if x.shape[1] > WIDTH_MAX:
        raise ValueError(f"x must be at most {WIDTH_MAX} wide, got {x.shape[1]}")
    normed = torch.empty_like(x)
    summed = x if residual is None else torch.empty_like(x)
    if len(x):
        rms_norm_kernel[(len(x),)](x, residual, weight, normed, summed, x.shape[1], eps, **_blocks(x.shape[1]))
    return normed, summed


def rms_norm_torch(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The same in torch; rounded to x's dtype before the weight multiplies, as Hugging Face's Llama does."""
    _check(x, weight, residual)
    summed = x if residual is None else x + residual
    wide = summed.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight.to(x.dtype) * wide.to(x.dtype), summed


def _check(x: Tensor, weight: Tensor, residual: Tensor | None) -> None:
    if x.dim() != 2 or not x.is_contiguous():
        raise ValueError(f"x must be contiguous [T, C], got {list(x.shape)}")
    if weight.shape != (x.shape[1],) or not weight.is_contiguous():
        raise ValueError(f"weight must be contiguous [{x.shape[1]}], got {list(weight.shape)}")
    if residual is not None and (residual.shape != x.shape or not residual.is_contiguous()):
        raise ValueError(f"residual must be contiguous {list(x.shape)}, got {list(residual.shape)}")


def _blocks(width: int) -> dict[str, int]:
    block = triton.next_power_of_2(width)
    return {"BLOCK": block, "num_warps": min(16, max(1, block // 512))}


def _aot(name: str, kind: str, width: int, residual: bool) -> AotCase:
    signature = {"p_x": kind, "p_weight": kind, "p_normed": kind, "p_summed": kind, "width": "i32", "eps": "fp32"}
    blocks = _blocks(width)
    return AotCase(
        name,
        rms_norm_kernel,
        signature | ({"p_residual": kind} if residual else {}),
        {"BLOCK": blocks["BLOCK"]} | ({} if residual else {"p_residual": None}),
        num_warps=blocks["num_warps"],
        aligned=("width",),
    )


AOT = (
    [
        _aot("bf16_4096", "*bf16", 4096, False),
        _aot("bf16_4096_residual", "*bf16", 4096, True),
        _aot("fp32_256", "*fp32", 256, True),
    ]
    if INSTALLED
    else []
)

for _variant in (
    Variant("rms_norm", "triton", rms_norm, triton_supports, PRIORITIES["triton"]),
    Variant("rms_norm", "torch", rms_norm_torch, anywhere, PRIORITIES["torch"]),
    Variant("rms_norm", "reference", reference.rms_norm, anywhere, PRIORITIES["reference"]),
):
    register(_variant)
