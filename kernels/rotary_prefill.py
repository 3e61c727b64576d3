"""Attention of rows that bring several tokens, over the pages that decode reads: rotate, append, attend, combine.

Bytes it must move: like decode the keys and values of every row's context, 16.8 MB a layer for one row of the 7B shape
at 1k context in bf16, and little else while rows are short: a listening session brings a few tokens a step, a prompt
128. So it is decode with a taller tile, and shares its splits, its online softmax and its combining:

- One launch rotates the keys and writes keys and values of all new tokens to their pages. Attention then reads
  everything from there: many tiles need a new key, and none may read it before it is written.
- Short rows (at most 16 tokens) take tiles of 16 queries and are bound by memory. Longer rows take tiles of 64, which
  on Hopper are warp-group products, and read keys and values a quarter as often. Query heads that share a key-value
  head share its tile. Which tile a row takes follows from its own length, and not from the longest: where there may be
  long rows both kernels run, and each skips what is the other's.
- A split is a fixed 512 positions, for the reasons given for decode; longer, because every query leaves a partial
  result of 4 * D bytes a split.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

from spiritrt.kernels import attention_torch, reference
from spiritrt.kernels.aot_case import STORED, AotCase, tuned_cases, tuned_for
from spiritrt.kernels.attention_batch import AttentionBatch, cache_supports, check
from spiritrt.kernels.language import INSTALLED, INTERPRETED, tl, triton
from spiritrt.kernels.registry import PRIORITIES, Variant, anywhere, register, tuned
from spiritrt.kernels.rotary_attention import (
    CHUNK,
    LOG2E,
    attend_block,
    attention_supports,
    block_d,
    combine_kernel,
    load_rotated,
    partials,
    place,
    shape_key,
    to_stored,
)

SHORT = 16  # new tokens of a row that still takes the low tile
LOW, TALL = 16, 64  # queries a tile
APPEND_HEADS = 8  # heads a program of the append writes
# 64 positions a block do not fit the registers of a tall tile
DEFAULTS = {"split": 512, "low_block_n": 64, "tall_block_n": 32, "warps": 4, "stages": 3}


def rotary_prefill(qkv: Tensor, cos_sin: Tensor, keys: Tensor, values: Tensor, batch: AttentionBatch, heads: int,
                   scales: Tensor | None = None) -> Tensor:  # fmt: skip
    """Appends every row's new tokens to its slot's pages and attends causally over all the slot then holds, in Triton.

    Arguments are those of `rotary_attention`, with qkv [T, (H + 2 KV) * D] and as many tokens a row as `batch` says.
    Returns [T, H * D] like qkv. Raises ValueError for shapes or types that do not fit together.
    """
    kv_heads, head_dim = check(qkv, cos_sin, keys, values, batch, heads, scales)
    tokens, rows, page_size, group = qkv.shape[0], batch.rows, keys.shape[1], heads // kv_heads
    set_to = settings(head_dim, kv_heads, group, keys.dtype)
    splits = triton.cdiv(batch.reach, set_to["split"])
    out = torch.empty((tokens, heads * head_dim), dtype=qkv.dtype, device=qkv.device)
    positions = torch.empty(tokens, dtype=torch.int32, device=qkv.device)
    partial, weights = partials(out, tokens, heads, splits, head_dim)
    block_kv, max_pages = min(APPEND_HEADS, triton.next_power_of_2(kv_heads)), batch.page_table.shape[1]
    append_kernel[(tokens, triton.cdiv(kv_heads, block_kv))](
        qkv, cos_sin, keys, values, batch.slots, batch.starts, batch.offsets, batch.page_table, scales, positions,
        max_pages, rows,
        heads, kv_heads, head_dim, page_size, block_d(head_dim), block_kv, num_warps=4,
    )  # fmt: skip
    block_g = triton.next_power_of_2(group)
    for least, most, height, block_n in (
        (1, SHORT, LOW, set_to["low_block_n"]), (SHORT + 1, batch.longest, TALL, set_to["tall_block_n"])
    ):  # fmt: skip
        if batch.longest < least:
            break
        block_m = max(height, block_g)
        tiles = triton.cdiv(min(most, batch.longest), block_m // block_g)
        rotary_prefill_kernel[(kv_heads, splits, rows * tiles)](
            qkv, cos_sin, keys, values, batch.slots, batch.starts, batch.offsets, batch.page_table, scales, partial,
            weights, LOG2E / math.sqrt(head_dim), max_pages, splits, tiles, least, most,
            heads, kv_heads, head_dim, page_size, block_d(head_dim), block_g, block_m, block_n,
            set_to["split"], splits == 1, INTERPRETED, set_to["stages"], num_warps=set_to["warps"],
        )  # fmt: skip
    if splits > 1:
        combine_kernel[(heads, tokens)](
            partial, weights, positions, out, splits,
            heads, head_dim, block_d(head_dim), set_to["split"], CHUNK, num_warps=4,
        )  # fmt: skip
    return out


@lru_cache
def settings(head_dim: int, kv_heads: int, group: int, cache: torch.dtype) -> dict[str, int]:
    """Block sizes of a model's shape: those tuned for the GPU over the defaults. They must not depend on the rows."""
    return DEFAULTS | tuned("rotary_prefill", shape_key(head_dim, kv_heads, group, cache))


@triton.jit(
    do_not_specialize=["max_pages", "rows"], do_not_specialize_on_alignment=["p_slots", "p_starts", "p_offsets"]
)
def append_kernel(
    p_qkv, p_cos_sin, p_keys, p_values, p_slots, p_starts, p_offsets, p_table, p_scales, p_positions, max_pages, rows,
    H: tl.constexpr, KV: tl.constexpr, D: tl.constexpr, PAGE: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_KV: tl.constexpr,
):  # fmt: skip
    """Grid (T, blocks of key-value heads). Writes one token's keys and values, and its position."""
    SCALED: tl.constexpr = p_scales is not None
    i_t, i_b = tl.program_id(0).to(tl.int64), tl.program_id(1)
    i_r = 0
    for o_block in range(0, rows, 128):  # the row of a token: how many rows end before it
        o_r = o_block + tl.arange(0, 128)
        b_end = tl.load(p_offsets + o_r + 1, mask=o_r < rows, other=2147483647)
        i_r += tl.sum((b_end <= i_t).to(tl.int32), 0)
    position = tl.load(p_starts + i_r) + (i_t - tl.load(p_offsets + i_r)).to(tl.int32)
    p_table += tl.load(p_slots + i_r).to(tl.int64) * max_pages

    o_h, o_d = i_b * BLOCK_KV + tl.arange(0, BLOCK_KV), tl.arange(0, BLOCK_D)
    m_x = (o_h < KV)[:, None] & (o_d < D)[None, :]
    o_k = i_t * ((H + 2 * KV) * D) + (H + o_h) * D
    b_k = load_rotated(p_qkv, p_cos_sin, o_k, o_h * 0 + position, o_d, m_x, D)
    b_v = tl.load(p_qkv + (o_k + KV * D)[:, None] + o_d[None, :], mask=m_x, other=0.0).to(tl.float32)
    k_scale, v_scale = 1.0, 1.0
    if SCALED:
        k_scale = tl.load(p_scales + o_h, mask=o_h < KV, other=1.0)[:, None]
        v_scale = tl.load(p_scales + KV + o_h, mask=o_h < KV, other=1.0)[:, None]
    o_new = place(tl.load(p_table + position // PAGE), position, PAGE, KV * D) + o_h * D
    tl.store(p_keys + o_new[:, None] + o_d[None, :], to_stored(b_k, k_scale, p_keys, SCALED), mask=m_x)
    tl.store(p_values + o_new[:, None] + o_d[None, :], to_stored(b_v, v_scale, p_values, SCALED), mask=m_x)
    if i_b == 0:
        tl.store(p_positions + i_t, position)


@triton.jit(
    do_not_specialize=["max_pages", "splits", "tiles", "least", "most"],
    do_not_specialize_on_alignment=["p_slots", "p_starts", "p_offsets"],
)
def rotary_prefill_kernel(
    p_qkv, p_cos_sin, p_keys, p_values, p_slots, p_starts, p_offsets, p_table, p_scales, p_partial, p_weights,
    scale, max_pages, splits, tiles, least, most,
    H: tl.constexpr, KV: tl.constexpr, D: tl.constexpr, PAGE: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SPLIT: tl.constexpr, ONE: tl.constexpr,
    UPCAST: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Grid (KV, splits, R * tiles), for the rows of `least` to `most` new tokens. A tile is queries times heads."""
    G: tl.constexpr = H // KV
    BLOCK_Q: tl.constexpr = BLOCK_M // BLOCK_G
    SCALED: tl.constexpr = p_scales is not None
    i_kv, i_s = tl.program_id(0), tl.program_id(1)
    i_r, i_tile = tl.program_id(2) // tiles, tl.program_id(2) % tiles
    first = tl.load(p_offsets + i_r)
    count = tl.load(p_offsets + i_r + 1) - first
    start = tl.load(p_starts + i_r)
    end = tl.minimum((i_s + 1) * SPLIT, start + tl.minimum(count, (i_tile + 1) * BLOCK_Q))
    if (count < least) | (count > most) | (i_tile * BLOCK_Q >= count) | (i_s * SPLIT >= end):
        return
    p_table += tl.load(p_slots + i_r).to(tl.int64) * max_pages
    # pages are looked up a block ahead of the keys and values that wait for them
    o_n = i_s * SPLIT + tl.arange(0, BLOCK_N)
    b_page = tl.load(p_table + o_n // PAGE, mask=o_n < end, other=0)
    o_m, o_d = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    o_q, o_g = i_tile * BLOCK_Q + o_m // BLOCK_G, o_m % BLOCK_G
    m_m, m_d = (o_q < count) & (o_g < G), o_d < D
    m_q = m_m[:, None] & m_d[None, :]
    o_token = (first + o_q).to(tl.int64)
    o_head = i_kv * G + o_g
    b_q = load_rotated(p_qkv, p_cos_sin, o_token * ((H + 2 * KV) * D) + o_head * D, start + o_q, o_d, m_q, D)
    if not UPCAST:
        b_q = b_q.to(p_qkv.dtype.element_ty)
    v_scale = 1.0
    if SCALED:
        scale *= tl.load(p_scales + i_kv)
        v_scale = tl.load(p_scales + KV + i_kv)

    b_m = tl.zeros([BLOCK_M], tl.float32) - float("inf")
    b_l = tl.zeros([BLOCK_M], tl.float32)
    b_acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for o_block in tl.range(i_s * SPLIT, end, BLOCK_N, num_stages=STAGES):
        o_n = o_block + tl.arange(0, BLOCK_N)
        m_n = o_n < end
        m_kv = m_n[:, None] & m_d[None, :]
        o_kv = place(b_page, o_n, PAGE, KV * D)[:, None] + i_kv * D + o_d[None, :]
        b_k = tl.load(p_keys + o_kv, mask=m_kv, other=0.0)
        b_v = tl.load(p_values + o_kv, mask=m_kv, other=0.0)
        b_page = tl.load(p_table + (o_n + BLOCK_N) // PAGE, mask=o_n + BLOCK_N < end, other=0)
        if UPCAST:
            b_k, b_v = b_k.to(tl.float32), b_v.to(tl.float32)
        m_qk = m_n[None, :] & (o_n[None, :] <= (start + o_q)[:, None])
        b_m, b_l, b_acc = attend_block(b_q, b_k, b_v, b_m, b_l, b_acc, m_qk, scale, UPCAST)
    b_sum = tl.maximum(b_l, 1e-30)  # 0 for queries that lie before the split: nobody reads what they leave
    b_o = b_acc * v_scale / b_sum[:, None]
    o_out = o_token * H + o_head
    if ONE:
        tl.store(p_partial + o_out[:, None] * D + o_d[None, :], b_o.to(p_partial.dtype.element_ty), mask=m_q)
    else:
        o_split = o_out * splits + i_s
        tl.store(p_partial + o_split[:, None] * D + o_d[None, :], b_o, mask=m_q)
        tl.store(p_weights + o_split, b_m + tl.log2(b_sum), mask=m_m)


def _aot(gpu: str | None, name: str, cache: str, heads: int, kv_heads: int, head_dim: int, height: int,
         one: bool = False) -> AotCase:  # fmt: skip
    key = shape_key(head_dim, kv_heads, heads // kv_heads, STORED[cache])
    set_to = DEFAULTS | tuned_for(gpu, "rotary_prefill", key)
    kind = {"bf16": "*bf16", "fp16": "*fp16", "fp8": "*bf16"}[cache]
    pages = {"fp8": "*fp8e4nv"}.get(cache, kind)
    scales = {"p_scales": "*fp32"} if cache == "fp8" else {}
    return AotCase(
        name,
        rotary_prefill_kernel,
        {
            "p_qkv": kind, "p_cos_sin": "*fp32", "p_keys": pages, "p_values": pages, "p_slots": "*i32",
            "p_starts": "*i32", "p_offsets": "*i32", "p_table": "*i32", "p_partial": kind if one else "*fp32",
            "p_weights": kind if one else "*fp32", "scale": "fp32", "max_pages": "i32", "splits": "i32",
            "tiles": "i32", "least": "i32", "most": "i32",
            **scales,
        },
        {
            "H": heads, "KV": kv_heads, "D": head_dim, "PAGE": 16, "BLOCK_D": block_d(head_dim),
            "BLOCK_G": triton.next_power_of_2(heads // kv_heads), "BLOCK_M": height,
            "BLOCK_N": set_to["low_block_n" if height == LOW else "tall_block_n"],
            "SPLIT": set_to["split"], "ONE": one, "UPCAST": False, "STAGES": set_to["stages"],
        }
        | ({} if scales else {"p_scales": None}),
        num_warps=set_to["warps"],
    )  # fmt: skip


def _aot_append(name: str, pages: str, scaled: bool) -> AotCase:
    scales = {"p_scales": "*fp32"} if scaled else {}
    return AotCase(
        name,
        append_kernel,
        {
            "p_qkv": "*bf16", "p_cos_sin": "*fp32", "p_keys": pages, "p_values": pages, "p_slots": "*i32",
            "p_starts": "*i32", "p_offsets": "*i32", "p_table": "*i32", "p_positions": "*i32", "max_pages": "i32",
            "rows": "i32", **scales,
        },
        {"H": 32, "KV": 32, "D": 128, "PAGE": 16, "BLOCK_D": 128, "BLOCK_KV": APPEND_HEADS}
        | ({} if scaled else {"p_scales": None}),
    )  # fmt: skip


def _aot_cases(gpu: str | None) -> list[AotCase]:
    return [
        _aot(gpu, "bf16_mha_128_low", "bf16", 32, 32, 128, LOW),
        _aot(gpu, "bf16_mha_128_tall", "bf16", 32, 32, 128, TALL),
        _aot(gpu, "bf16_mha_128_tall_one_split", "bf16", 32, 32, 128, TALL, one=True),
        _aot(gpu, "fp8_mha_128_low", "fp8", 32, 32, 128, LOW),
        _aot(gpu, "fp8_mha_128_tall", "fp8", 32, 32, 128, TALL),
        _aot(gpu, "fp16_gqa_128_tall", "fp16", 32, 8, 128, TALL),
        _aot(gpu, "fp8_gqa_96_low", "fp8", 32, 8, 96, LOW),
        _aot(gpu, "bf16_gqa_64_tall", "bf16", 16, 4, 64, TALL),
        _aot_append("append_bf16", "*bf16", scaled=False),
        _aot_append("append_fp8", "*fp8e4nv", scaled=True),
    ]  # fmt: skip


AOT = tuned_cases(_aot_cases) if INSTALLED else []

for _variant in (
    Variant("rotary_prefill", "triton", rotary_prefill, attention_supports, PRIORITIES["triton"]),
    Variant("rotary_prefill", "flash_attn", attention_torch.flash_prefill, attention_torch.flash_supports, 15),
    Variant("rotary_prefill", "torch", attention_torch.attend_torch, cache_supports, PRIORITIES["torch"]),
    Variant("rotary_prefill", "sdpa", attention_torch.attend_sdpa, cache_supports, 5),
    Variant("rotary_prefill", "reference", reference.rotary_prefill, anywhere, PRIORITIES["reference"]),
):
    register(_variant)
