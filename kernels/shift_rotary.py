"""Moves kept keys and values to other places of the pages and re-rotates the keys to their new positions.

Rotations compose, so a key at position p becomes the key at p + delta by a rotation of delta * inv_freq, the same for
every token moved: nothing of the text is computed again when the middle of a long call is dropped. Bytes it must move:
keys and values of M tokens in all layers, read once and written once, 1 MiB a token for the 7B shape in bf16. A program
moves all heads of one token of one layer: 8 KB of keys and 8 KB of values, contiguous, with D/2 cosines and sines that
stay in the cache. fp8 keys are rotated as stored: the head's scale is the same before and after, and need not be known.
A key that is moved n times has been rounded n times.
"""

import torch
from torch import Tensor

from spiritrt.kernels import reference
from spiritrt.kernels.aot_case import AotCase, tuned_cases, tuned_for
from spiritrt.kernels.attention_batch import FLOAT8, described, float8_supports, rotate, to_cache
from spiritrt.kernels.language import INSTALLED, tl, triton, triton_supports
from spiritrt.kernels.registry import PRIORITIES, Case, Variant, anywhere, register, tuned
from spiritrt.kernels.rotary_attention import to_stored

DEFAULTS = {"warps": 4}


def shift_rotary(keys: Tensor, values: Tensor, source: Tensor, target: Tensor, delta: int, inv_freq: Tensor) -> None:
    """Moves M tokens of all layers and turns their keys on by `delta` positions, in Triton.

    keys, values [L, P, page, KV, D]; source, target [M] int64 places (page * page_size + offset), which share no page;
    delta the new position minus the old; inv_freq [D/2] the angle a position. Raises ValueError for shapes or types
    that do not fit together.
    """
    check(keys, values, source, target, inv_freq)
    layers, pages, page_size, kv_heads, head_dim = keys.shape
    if not len(source):
        return
    shift_rotary_kernel[(len(source), layers)](
        keys, values, source, target, angles(delta, inv_freq), pages * page_size,
        kv_heads, head_dim, triton.next_power_of_2(kv_heads), triton.next_power_of_2(head_dim // 2),
        triton.next_power_of_2(kv_heads * head_dim), keys.dtype == FLOAT8,
        num_warps=(DEFAULTS | tuned("shift_rotary"))["warps"],
    )  # fmt: skip


def shift_rotary_torch(keys: Tensor, values: Tensor, source: Tensor, target: Tensor, delta: int,
                       inv_freq: Tensor) -> None:  # fmt: skip
    """The same in plain torch, a layer at a time so that the copies stay small."""
    check(keys, values, source, target, inv_freq)
    cos_sin = angles(delta, inv_freq)[None]
    scale = torch.ones(keys.shape[3], device=keys.device) if keys.dtype == FLOAT8 else None
    for k, v in zip(keys.flatten(1, 2), values.flatten(1, 2), strict=True):
        k_bytes, v_bytes = k.view(torch.uint8), v.view(torch.uint8)  # not every device indexes fp8
        v_bytes[target] = v_bytes[source]
        k_bytes[target] = to_cache(rotate(k_bytes[source].view(k.dtype), cos_sin), k.dtype, scale).view(torch.uint8)


def angles(delta: int, inv_freq: Tensor) -> Tensor:
    """Cosines and sines [D] float32 of `delta` positions, in double precision first: delta may be thousands."""
    turned = delta * inv_freq.double()
    return torch.cat((turned.cos(), turned.sin())).float()


def check(keys: Tensor, values: Tensor, source: Tensor, target: Tensor, inv_freq: Tensor) -> None:
    """Raises ValueError naming what does not fit."""
    if keys.dim() != 5 or values.shape != keys.shape or values.dtype != keys.dtype:
        raise ValueError(f"keys and values must be [L, P, page, KV, D] alike: {described(keys)}, {described(values)}")
    if not (keys.is_contiguous() and values.is_contiguous()):
        raise ValueError("keys and values must be contiguous")
    if source.dim() != 1 or source.shape != target.shape or {source.dtype, target.dtype} != {torch.int64}:
        raise ValueError(f"source and target must be int64 [M] alike: {described(source)}, {described(target)}")
    if inv_freq.shape != (keys.shape[-1] // 2,):
        raise ValueError(f"inv_freq must be [{keys.shape[-1] // 2}], got {described(inv_freq)}")


@triton.jit(do_not_specialize=["places"])
def shift_rotary_kernel(
    p_keys, p_values, p_source, p_target, p_cos_sin, places,
    KV: tl.constexpr, D: tl.constexpr, BLOCK_KV: tl.constexpr, BLOCK_HALF: tl.constexpr, BLOCK_C: tl.constexpr,
    CLAMP: tl.constexpr,
):  # fmt: skip
    """Grid (M, L)."""
    HALF: tl.constexpr = D // 2
    i_m, i_l = tl.program_id(0), tl.program_id(1).to(tl.int64)
    o_from = (i_l * places + tl.load(p_source + i_m)) * (KV * D)
    o_to = (i_l * places + tl.load(p_target + i_m)) * (KV * D)
    o_c = tl.arange(0, BLOCK_C)
    b_v = tl.load(p_values + o_from + o_c, mask=o_c < KV * D, other=0.0)
    o_h, o_i = tl.arange(0, BLOCK_KV), tl.arange(0, BLOCK_HALF)
    o_k = o_h[:, None] * D + o_i[None, :]
    m_k = (o_h < KV)[:, None] & (o_i < HALF)[None, :]
    b_low = tl.load(p_keys + o_from + o_k, mask=m_k, other=0.0).to(tl.float32)
    b_high = tl.load(p_keys + o_from + o_k + HALF, mask=m_k, other=0.0).to(tl.float32)
    b_cos = tl.load(p_cos_sin + o_i, mask=o_i < HALF, other=0.0)[None, :]
    b_sin = tl.load(p_cos_sin + HALF + o_i, mask=o_i < HALF, other=0.0)[None, :]
    tl.store(p_values + o_to + o_c, b_v, mask=o_c < KV * D)
    tl.store(p_keys + o_to + o_k, to_stored(b_low * b_cos - b_high * b_sin, 1.0, p_keys, CLAMP), mask=m_k)
    tl.store(p_keys + o_to + o_k + HALF, to_stored(b_high * b_cos + b_low * b_sin, 1.0, p_keys, CLAMP), mask=m_k)


def _supports(case: Case) -> str | None:
    if case.head_dim % 2:
        return f"head_dim {case.head_dim} is odd"
    return triton_supports(case) or float8_supports(case)


def _aot(gpu: str | None, name: str, kind: str, kv_heads: int, head_dim: int) -> AotCase:
    return AotCase(
        name,
        shift_rotary_kernel,
        {"p_keys": kind, "p_values": kind, "p_source": "*i64", "p_target": "*i64", "p_cos_sin": "*fp32",
         "places": "i32"},
        {"KV": kv_heads, "D": head_dim, "BLOCK_KV": triton.next_power_of_2(kv_heads),
         "BLOCK_HALF": triton.next_power_of_2(head_dim // 2), "BLOCK_C": triton.next_power_of_2(kv_heads * head_dim),
         "CLAMP": kind == "*fp8e4nv"},
        num_warps=(DEFAULTS | tuned_for(gpu, "shift_rotary"))["warps"],
    )  # fmt: skip


def _aot_cases(gpu: str | None) -> list[AotCase]:
    return [
        _aot(gpu, "bf16_32x128", "*bf16", 32, 128),
        _aot(gpu, "fp8_32x128", "*fp8e4nv", 32, 128),
        _aot(gpu, "fp16_8x96", "*fp16", 8, 96),
    ]


AOT = tuned_cases(_aot_cases) if INSTALLED else []

for _variant in (
    Variant("shift_rotary", "triton", shift_rotary, _supports, PRIORITIES["triton"]),
    Variant("shift_rotary", "torch", shift_rotary_torch, anywhere, PRIORITIES["torch"]),
    Variant("shift_rotary", "reference", reference.shift_rotary, anywhere, PRIORITIES["reference"]),
):
    register(_variant)
