"""Attention over pages without kernels of our own: plain torch, torch's fused attention, and flash-attn.

`torch` and `sdpa` gather a copy of every row's pages, so they move the keys and values three times (read, written, read
again); they run anywhere, and in a CUDA graph. flash-attn reads pages in place, where they are a multiple of 256 tokens
long. All three take the new tokens of any number of rows, so that one function serves decode and prefill.
"""

import importlib.util
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from spiritrt.kernels.attention_batch import FLOAT8, AttentionBatch, cache_supports, check, gather, rotate_append
from spiritrt.kernels.registry import Case

FLASH_PAGE = 256  # flash-attn 2 reads pages of a multiple of this many tokens
FLASH_CAPABILITY = (8, 0)


def attend_torch(qkv: Tensor, cos_sin: Tensor, keys: Tensor, values: Tensor, batch: AttentionBatch, heads: int,
                 scales: Tensor | None = None) -> Tensor:  # fmt: skip
    """Signature of `rotary_attention` and `rotary_prefill`; products in the type of qkv, softmax in float32."""
    return _attend_gathered(_plain, qkv, cos_sin, keys, values, batch, heads, scales)


def attend_sdpa(qkv: Tensor, cos_sin: Tensor, keys: Tensor, values: Tensor, batch: AttentionBatch, heads: int,
                scales: Tensor | None = None) -> Tensor:  # fmt: skip
    """The same over `torch.nn.functional.scaled_dot_product_attention`."""
    return _attend_gathered(_fused, qkv, cos_sin, keys, values, batch, heads, scales)


def flash_decode(qkv: Tensor, cos_sin: Tensor, keys: Tensor, values: Tensor, batch: AttentionBatch, heads: int,
                 scales: Tensor | None = None) -> Tensor:  # fmt: skip
    """`rotary_attention` over `flash_attn_with_kvcache`, which picks its splits by the batch: bits depend on it."""
    from flash_attn import flash_attn_with_kvcache

    _check_flash(qkv, cos_sin, keys, values, batch, heads, scales)
    q = rotate_append(qkv, cos_sin, keys, values, batch, heads, None).to(qkv.dtype)
    out = flash_attn_with_kvcache(
        q[:, None], keys, values, cache_seqlens=batch.starts + 1, block_table=batch.page_table[batch.slots], causal=True
    )
    return out.reshape(q.shape[0], -1)


def flash_prefill(qkv: Tensor, cos_sin: Tensor, keys: Tensor, values: Tensor, batch: AttentionBatch, heads: int,
                  scales: Tensor | None = None) -> Tensor:  # fmt: skip
    """`rotary_prefill` over `flash_attn_varlen_func`."""
    from flash_attn import flash_attn_varlen_func

    _check_flash(qkv, cos_sin, keys, values, batch, heads, scales)
    q = rotate_append(qkv, cos_sin, keys, values, batch, heads, None).to(qkv.dtype)
    lengths = batch.starts + batch.offsets[1:] - batch.offsets[:-1]
    ends = F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    out = flash_attn_varlen_func(
        q, keys, values, batch.offsets, ends, batch.longest, batch.reach,
        causal=True, block_table=batch.page_table[batch.slots],
    )  # fmt: skip
    return out.reshape(q.shape[0], -1)


def flash_supports(case: Case) -> str | None:
    """Why flash-attn cannot run on `case`, or None where it can."""
    if importlib.util.find_spec("flash_attn") is None:
        return "flash-attn is not installed (pip install flash-attn)"
    if case.device != "cuda":
        return "flash-attn runs on CUDA only"
    if case.capability is not None and case.capability < FLASH_CAPABILITY:
        return f"flash-attn needs compute capability 8.0, got {case.capability[0]}.{case.capability[1]}"
    if case.cache == FLOAT8:
        return "flash-attn 2 reads no fp8 pages"
    if case.dtype not in (torch.float16, torch.bfloat16):
        return f"flash-attn takes float16 and bfloat16, got {case.dtype}"
    if not case.page_size or case.page_size % FLASH_PAGE:
        return f"flash-attn needs pages of a multiple of {FLASH_PAGE} tokens, got {case.page_size}"
    return cache_supports(case)


def _attend_gathered(core: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor], qkv: Tensor, cos_sin: Tensor,
                     keys: Tensor, values: Tensor, batch: AttentionBatch, heads: int,
                     scales: Tensor | None) -> Tensor:  # fmt: skip
    """Pads the rows to the longest, attends with `core`, and takes the padding out again."""
    check(qkv, cos_sin, keys, values, batch, heads, scales)
    q = rotate_append(qkv, cos_sin, keys, values, batch, heads, scales).to(qkv.dtype)
    k_scale, v_scale = (None, None) if scales is None else scales
    k, v = gather(keys, batch, k_scale, qkv.dtype), gather(values, batch, v_scale, qkv.dtype)  # [R, KV, N, D]
    steps = torch.arange(batch.longest, device=qkv.device)
    at = (batch.offsets[:-1, None] + steps).clamp(max=q.shape[0] - 1)  # [R, longest]
    seen = torch.arange(k.shape[2], device=qkv.device) <= (batch.starts[:, None] + steps)[..., None]
    padded = core(q[at].transpose(1, 2), k, v, seen[:, None]).transpose(1, 2)  # [R, longest, H, D]
    tokens = torch.arange(q.shape[0], dtype=torch.int32, device=qkv.device)
    rows = torch.searchsorted(batch.offsets[1:], tokens, right=True, out_int32=True)
    return padded[rows, tokens - batch.offsets[rows]].reshape(q.shape[0], -1)


def _plain(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """q [R, H, M, D], k and v [R, KV, N, D], seen [R, 1, M, N] -> [R, H, M, D]."""
    group = q.shape[1] // k.shape[1]
    grouped = q.unflatten(1, (-1, group)).flatten(2, 3)  # [R, KV, G * M, D]: no copy of k for each of its query heads
    scores = (grouped @ k.transpose(-1, -2)).float() / math.sqrt(q.shape[-1])
    weights = scores.masked_fill(~seen.repeat(1, 1, group, 1), -math.inf).softmax(-1).to(v.dtype)
    return (weights @ v).unflatten(2, (group, -1)).flatten(1, 2)


def _fused(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=q.shape[1] != k.shape[1])


def _check_flash(qkv: Tensor, cos_sin: Tensor, keys: Tensor, values: Tensor, batch: AttentionBatch, heads: int,
                 scales: Tensor | None) -> None:  # fmt: skip
    check(qkv, cos_sin, keys, values, batch, heads, scales)
    if keys.shape[1] % FLASH_PAGE:
        raise ValueError(f"flash-attn needs pages of a multiple of {FLASH_PAGE} tokens, got {keys.shape[1]}")
