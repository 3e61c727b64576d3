"""Attention of one new token a row over pages: rotate q and k, append k and v, split-KV decode, combine.

Bytes it must move: the keys and values of every row's context once, 2 * context * KV * D * (1 or 2 bytes): 16.8 MB a
layer for one row of the 7B shape at 1k context in bf16, 3.9 us at 4.3 TB/s. Queries, outputs and partial results are
below 2% of that. Arithmetic is nothing beside it, which decides the shape:

- A program reads one split (a fixed number of positions) of one key-value head of one row for all its query heads, so
  every byte is read once. The new token's key and value never go through memory: the split that owns its position
  writes them to the page and starts its softmax from the registers, so append and attention are one launch.
- The length of a split is fixed by the model's shape alone. Partial results of a split, and the order in which they are
  combined, then do not depend on the number of rows, and a row's bits not on its neighbours. How many programs
  share a row's splits does depend on it: many for few rows, so that one row fills the GPU, few for many.
- The grid knows only the bounds in `AttentionBatch`; a program reads the row's length from the device and steps through
  the splits that are its own. A captured graph is right for every length, and no program is launched to do nothing
  where the rows alone fill the GPU.
- Queries are padded to the 16 rows of the tensor core's tile (`dot`): 15 of 16 products are wasted for MHA, and still
  10% of its rate keeps up with memory. Without `dot` MHA multiplies and adds in registers, which is exact in float32.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

from spiritrt.kernels import attention_torch, reference
from spiritrt.kernels.aot_case import STORED, AotCase, tuned_cases, tuned_for
from spiritrt.kernels.attention_batch import AttentionBatch, cache_supports, check, float8_supports
from spiritrt.kernels.language import INSTALLED, INTERPRETED, tl, triton, triton_supports
from spiritrt.kernels.registry import PRIORITIES, Case, Variant, anywhere, register, tuned

LOG2E = math.log2(math.e)
FLOAT8_TOP = tl.constexpr(448.0)
CHUNK = 16  # splits combined at a time: fixed, because the order of a sum must not depend on the longest row
DEFAULTS = {"split": 128, "block_n": 64, "dot": 1, "programs": 1056, "warps": 4, "stages": 3}
DEFAULTS_NO_DOT = DEFAULTS | {"block_n": 32, "dot": 0}  # wider blocks do not fit the registers


def rotary_attention(qkv: Tensor, cos_sin: Tensor, keys: Tensor, values: Tensor, batch: AttentionBatch, heads: int,
                     scales: Tensor | None = None) -> Tensor:  # fmt: skip
    """Appends one token a row to its slot's pages and attends over all the slot then holds, in Triton.

    qkv       [R, (H + 2 KV) * D]: heads of queries, keys and values before rotation
    cos_sin   [positions, D] float32: cosines and sines of D/2 angles
    keys      [P, page, KV, D]: one layer's pages, and so `values`
    scales    [2, KV] float32, with fp8 pages and only with them: what stored keys and values are to be multiplied by

    Returns [R, H * D] like qkv. Split-KV decode as in Flash-Decoding (Dao et al., 2023). Raises ValueError for shapes
    or types that do not fit together.
    """
    return _decode(qkv, cos_sin, keys, values, batch, heads, scales, fused=False)


def rotary_attention_fused(qkv: Tensor, cos_sin: Tensor, keys: Tensor, values: Tensor, batch: AttentionBatch,
                           heads: int, scales: Tensor | None = None) -> Tensor:  # fmt: skip
    """`rotary_attention` in one launch: of the programs that share a row, the last to finish combines its splits.

    Which that is changes from run to run, what it computes does not. Calls on one device must not overlap.
    """
    return _decode(qkv, cos_sin, keys, values, batch, heads, scales, fused=True)


def _decode(qkv: Tensor, cos_sin: Tensor, keys: Tensor, values: Tensor, batch: AttentionBatch, heads: int,
            scales: Tensor | None, fused: bool) -> Tensor:  # fmt: skip
    kv_heads, head_dim = check(qkv, cos_sin, keys, values, batch, heads, scales)
    rows = batch.rows
    if qkv.shape[0] != rows:
        raise ValueError(f"decode takes one token a row, got {qkv.shape[0]} tokens for {rows} rows")
    set_to = settings(head_dim, kv_heads, heads // kv_heads, qkv.dtype, keys.dtype)
    splits = triton.cdiv(batch.reach, set_to["split"])
    out = torch.empty((rows, heads * head_dim), dtype=qkv.dtype, device=qkv.device)
    partial, weights = partials(out, rows, heads, splits, head_dim)
    rotary_attention_kernel[(kv_heads, min(splits, max(1, set_to["programs"] // (rows * kv_heads))), rows)](
        qkv, cos_sin, keys, values, batch.slots, batch.starts, batch.page_table, scales, partial, weights, out,
        arrivals(qkv.device, triton.next_power_of_2(rows * kv_heads)) if fused and splits > 1 else None,
        LOG2E / math.sqrt(head_dim), batch.page_table.shape[1], splits,
        heads, kv_heads, head_dim, keys.shape[1], block_d(head_dim), set_to["block_g"], set_to["block_n"],
        set_to["split"], CHUNK, bool(set_to["dot"]), splits == 1, INTERPRETED, set_to["stages"],
        num_warps=set_to["warps"],
    )  # fmt: skip
    if splits > 1 and not fused:
        combine_kernel[(heads, rows)](
            partial, weights, batch.starts, out, splits,
            heads, head_dim, block_d(head_dim), set_to["split"], CHUNK, num_warps=set_to["warps"],
        )  # fmt: skip
    return out


@lru_cache
def settings(head_dim: int, kv_heads: int, group: int, dtype: torch.dtype, cache: torch.dtype) -> dict[str, int]:
    """Block sizes of a model's shape: those tuned for the GPU over the defaults. They must not depend on the rows."""
    found = tuned("rotary_attention", shape_key(head_dim, kv_heads, group, cache))
    # float32 MHA: a tile of 16 queries would be 15 of them for nothing, and not on the tensor core
    dot = group > 1 or (found.get("dot", DEFAULTS["dot"]) and dtype != torch.float32)
    chosen = (DEFAULTS if dot else DEFAULTS_NO_DOT) | found | {"dot": int(dot)}
    return chosen | {"block_g": max(16, triton.next_power_of_2(group)) if dot else 1}


def shape_key(head_dim: int, kv_heads: int, group: int, cache: torch.dtype) -> str:
    """Name of a model's shape in the tuned files: d128_kv32_g1_bfloat16."""
    return f"d{head_dim}_kv{kv_heads}_g{group}_{str(cache).removeprefix('torch.')}"


def block_d(head_dim: int) -> int:
    """Width of a tile over head_dim: the next power of 2, the rest masked; 16 at least for the tensor core."""
    return max(16, triton.next_power_of_2(head_dim))


def partials(out: Tensor, tokens: int, heads: int, splits: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """Where splits leave their results and weights; `out` itself where there is one split and nothing to combine."""
    if splits == 1:
        return out, out
    partial = torch.empty((tokens, heads, splits, head_dim), dtype=torch.float32, device=out.device)
    return partial, torch.empty((tokens, heads, splits), dtype=torch.float32, device=out.device)


@lru_cache
def arrivals(device: torch.device, count: int) -> Tensor:
    """Counters of programs that are done, zero between launches: whoever comes last clears them."""
    return torch.zeros(count, dtype=torch.int32, device=device)


def attention_supports(case: Case) -> str | None:
    """Why the Triton kernels of attention cannot run on `case`, or None where they can."""
    return triton_supports(case) or cache_supports(case) or float8_supports(case)


@triton.jit
def load_rotated(p_x, p_cos_sin, o_x, o_position, o_d, m_x, D: tl.constexpr):
    """Vectors of D at offsets o_x [M], rotated to positions o_position [M]: [M, BLOCK_D] float32, 0 where not m_x."""
    HALF: tl.constexpr = D // 2
    o_pair = tl.where(o_d < HALF, o_d + HALF, o_d - HALF)
    p_angle = p_cos_sin + o_position.to(tl.int64)[:, None] * D + (o_d % HALF)[None, :]
    b_x = tl.load(p_x + o_x[:, None] + o_d[None, :], mask=m_x, other=0.0).to(tl.float32)
    b_pair = tl.load(p_x + o_x[:, None] + o_pair[None, :], mask=m_x, other=0.0).to(tl.float32)
    b_cos = tl.load(p_angle, mask=m_x, other=0.0)
    b_sin = tl.load(p_angle + HALF, mask=m_x, other=0.0)
    return b_x * b_cos + tl.where(o_d < HALF, -b_pair, b_pair) * b_sin


@triton.jit
def to_stored(b_x, b_scale, p_pages, SCALED: tl.constexpr):
    """Float32 as the pages hold it."""
    if SCALED:
        b_x = tl.minimum(tl.maximum(b_x / b_scale, -FLOAT8_TOP), FLOAT8_TOP)
    return b_x.to(p_pages.dtype.element_ty)


@triton.jit
def attend_block(b_q, b_k, b_v, b_m, b_l, b_acc, m_qk, scale, UPCAST: tl.constexpr):
    """One step of the online softmax in base 2: queries [M, D] over a block of keys and values [N, D] where m_qk."""
    if UPCAST:
        b_q = b_q.to(tl.float32)
    b_qk = tl.dot(b_q, tl.trans(b_k.to(b_q.dtype)), input_precision="ieee") * scale
    b_qk = tl.where(m_qk, b_qk, float("-inf"))
    b_top = tl.maximum(b_m, tl.max(b_qk, 1))
    # a query that sees nothing in this block nor in one before would give inf - inf
    b_top = tl.where(b_top == float("-inf"), 0.0, b_top)
    b_decay = tl.exp2(b_m - b_top)
    b_p = tl.exp2(b_qk - b_top[:, None])
    b_l = b_l * b_decay + tl.sum(b_p, 1)
    b_acc = tl.dot(b_p.to(b_q.dtype), b_v.to(b_q.dtype), b_acc * b_decay[:, None], input_precision="ieee")
    return b_top, b_l, b_acc


@triton.jit
def place(b_page, o_n, PAGE: tl.constexpr, TOKEN: tl.constexpr):
    """Where the tokens at positions o_n of a slot lie, in elements, int64; b_page are the pages that hold them."""
    return (b_page.to(tl.int64) * PAGE + o_n % PAGE) * TOKEN


@triton.jit
def combine_head(p_partial, p_weights, p_out, o_head, count, splits, D: tl.constexpr, BLOCK_D: tl.constexpr,
                 CHUNK: tl.constexpr):  # fmt: skip
    """The first `count` splits of one head, weighed by their softmax sums, in order."""
    o_d = tl.arange(0, BLOCK_D)
    m_d = o_d < D
    top, total = -float("inf"), 0.0
    b_acc = tl.zeros([BLOCK_D], tl.float32)
    for o_chunk in range(0, count, CHUNK):
        o_s = o_chunk + tl.arange(0, CHUNK)
        m_s = o_s < count
        o_split = o_head * splits + o_s
        b_weight = tl.load(p_weights + o_split, mask=m_s, other=-float("inf"))
        b_part = tl.load(p_partial + o_split[:, None] * D + o_d[None, :], mask=m_s[:, None] & m_d[None, :], other=0.0)
        new_top = tl.maximum(top, tl.max(b_weight, 0))
        decay = tl.exp2(top - new_top)
        b_weight = tl.exp2(b_weight - new_top)
        total = total * decay + tl.sum(b_weight, 0)
        b_acc = b_acc * decay + tl.sum(b_weight[:, None] * b_part, 0)
        top = new_top
    tl.store(p_out + o_head * D + o_d, (b_acc / total).to(p_out.dtype.element_ty), mask=m_d)


# engines cut these out of larger tensors, at any place: one compiled kernel for all
@triton.jit(do_not_specialize=["max_pages", "splits"], do_not_specialize_on_alignment=["p_slots", "p_starts"])
def rotary_attention_kernel(
    p_qkv, p_cos_sin, p_keys, p_values, p_slots, p_starts, p_table, p_scales, p_partial, p_weights, p_out, p_arrived,
    scale, max_pages, splits,
    H: tl.constexpr, KV: tl.constexpr, D: tl.constexpr, PAGE: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_N: tl.constexpr, SPLIT: tl.constexpr, CHUNK: tl.constexpr, DOT: tl.constexpr,
    ONE: tl.constexpr, UPCAST: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Grid (KV, programs a row, R). Writes each split's normalised output and the log2 of its weight.

    With `p_arrived` [R * KV] the last program of a row's head combines its splits; where ONE nothing needs combining.
    """
    G: tl.constexpr = H // KV
    SCALED: tl.constexpr = p_scales is not None
    i_kv, i_z, i_r = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    n_z = tl.num_programs(1)
    start = tl.load(p_starts + i_r)
    slot = tl.load(p_slots + i_r).to(tl.int64)
    if i_z * SPLIT > start:
        return
    p_table += slot * max_pages
    # pages are looked up a block ahead of the keys and values that wait for them
    o_n = i_z * SPLIT + tl.arange(0, BLOCK_N)
    b_page = tl.load(p_table + o_n // PAGE, mask=o_n < start, other=0)

    o_d, o_g, o_one = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_G), tl.arange(0, 1)
    m_d, m_g = o_d < D, o_g < G
    m_q, m_one = m_g[:, None] & m_d[None, :], (o_one == 0)[:, None] & m_d[None, :]
    o_row = i_r * ((H + 2 * KV) * D)
    b_q = load_rotated(p_qkv, p_cos_sin, o_row + (i_kv * G + o_g) * D, o_g * 0 + start, o_d, m_q, D)
    b_k = load_rotated(p_qkv, p_cos_sin, o_row + (H + i_kv + o_one) * D, o_one + start, o_d, m_one, D)
    b_v = tl.load(p_qkv + o_row + (H + KV + i_kv + o_one)[:, None] * D + o_d[None, :], mask=m_one, other=0.0)
    k_scale, v_scale = 1.0, 1.0
    if SCALED:
        k_scale, v_scale = tl.load(p_scales + i_kv), tl.load(p_scales + KV + i_kv)
    scale *= k_scale
    b_k = to_stored(b_k, k_scale, p_keys, SCALED)
    b_v = to_stored(b_v.to(tl.float32), v_scale, p_values, SCALED)
    if DOT and not UPCAST:
        b_q = b_q.to(p_qkv.dtype.element_ty)

    last = start // SPLIT
    for i_s in range(i_z, last + 1, n_z):
        end = tl.minimum(start, (i_s + 1) * SPLIT)
        b_m = tl.zeros([BLOCK_G], tl.float32) - float("inf")
        b_l = tl.zeros([BLOCK_G], tl.float32)
        b_acc = tl.zeros([BLOCK_G, BLOCK_D], tl.float32)
        for o_block in tl.range(i_s * SPLIT, end, BLOCK_N, num_stages=STAGES):
            o_n = o_block + tl.arange(0, BLOCK_N)
            m_n = o_n < end
            m_kv = m_n[:, None] & m_d[None, :]
            o_kv = place(b_page, o_n, PAGE, KV * D)[:, None] + i_kv * D + o_d[None, :]
            b_keys = tl.load(p_keys + o_kv, mask=m_kv, other=0.0)
            b_values = tl.load(p_values + o_kv, mask=m_kv, other=0.0)
            o_next = tl.where(o_block + BLOCK_N < end, o_block + BLOCK_N, (i_s + n_z) * SPLIT) + tl.arange(0, BLOCK_N)
            b_page = tl.load(p_table + o_next // PAGE, mask=o_next < start, other=0)
            if UPCAST:
                b_keys, b_values = b_keys.to(tl.float32), b_values.to(tl.float32)
            if DOT:
                b_m, b_l, b_acc = attend_block(b_q, b_keys, b_values, b_m, b_l, b_acc, m_n[None, :], scale, UPCAST)
            else:
                b_qk = tl.where(m_n, tl.sum(b_q * b_keys.to(tl.float32), 1) * scale, float("-inf"))
                b_top = tl.maximum(b_m, tl.max(b_qk, 0))
                b_decay = tl.exp2(b_m - b_top)
                b_p = tl.exp2(b_qk - b_top)
                b_l = b_l * b_decay + tl.sum(b_p, 0)
                b_acc = b_acc * b_decay[:, None] + tl.sum(b_p[:, None] * b_values.to(tl.float32), 0)[None, :]
                b_m = b_top
        if i_s == last:  # the split of the new token
            o_new = o_one + start
            b_last = tl.load(p_table + o_new // PAGE)
            o_new = place(b_last, o_new, PAGE, KV * D)[:, None] + i_kv * D + o_d[None, :]
            tl.store(p_keys + o_new, b_k, mask=m_one)
            tl.store(p_values + o_new, b_v, mask=m_one)
            b_qk = tl.sum(b_q.to(tl.float32) * b_k.to(tl.float32), 1) * scale
            b_top = tl.maximum(b_m, b_qk)
            b_decay = tl.exp2(b_m - b_top)
            b_p = tl.exp2(b_qk - b_top)
            b_l = b_l * b_decay + b_p
            b_acc = b_acc * b_decay[:, None] + b_p[:, None] * b_v.to(tl.float32)
            b_m = b_top
        b_o = b_acc * v_scale / b_l[:, None]
        o_head = i_r * H + i_kv * G + o_g
        if ONE:
            tl.store(p_partial + o_head[:, None] * D + o_d[None, :], b_o.to(p_partial.dtype.element_ty), mask=m_q)
        else:
            o_split = o_head * splits + i_s
            tl.store(p_partial + o_split[:, None] * D + o_d[None, :], b_o, mask=m_q)
            tl.store(p_weights + o_split, b_m + tl.log2(b_l), mask=m_g)
    if p_arrived is not None:
        tl.debug_barrier()  # what the other threads of this program stored comes before its arrival
        arrived = tl.atomic_add(p_arrived + i_r * KV + i_kv, 1, sem="acq_rel")
        if arrived == tl.minimum(n_z, last + 1) - 1:
            for i_g in range(G):
                o_head = i_r * H + i_kv * G + i_g
                combine_head(p_partial, p_weights, p_out, o_head, last + 1, splits, D, BLOCK_D, CHUNK)
            tl.store(p_arrived + i_r * KV + i_kv, 0)


@triton.jit(do_not_specialize=["splits"], do_not_specialize_on_alignment=["p_positions"])
def combine_kernel(
    p_partial, p_weights, p_positions, p_out, splits,
    H: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, SPLIT: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Grid (H, T): combines the splits of a token at positions[t]."""
    i_h, i_t = tl.program_id(0), tl.program_id(1).to(tl.int64)
    count = tl.load(p_positions + i_t) // SPLIT + 1
    combine_head(p_partial, p_weights, p_out, i_t * H + i_h, count, splits, D, BLOCK_D, CHUNK)


def _aot(gpu: str | None, name: str, cache: str, heads: int, kv_heads: int, head_dim: int, dot: bool = True,
         one: bool = False, fused: bool = False) -> AotCase:  # fmt: skip
    found = tuned_for(gpu, "rotary_attention", shape_key(head_dim, kv_heads, heads // kv_heads, STORED[cache]))
    dot = heads > kv_heads or bool(found.get("dot", dot))
    set_to = (DEFAULTS if dot else DEFAULTS_NO_DOT) | found
    kind = {"bf16": "*bf16", "fp16": "*fp16", "fp8": "*bf16", "fp32": "*fp32"}[cache]
    pages = {"fp8": "*fp8e4nv"}.get(cache, kind)
    given = ({"p_scales": "*fp32"} if cache == "fp8" else {}) | ({"p_arrived": "*i32"} if fused else {})
    return AotCase(
        name,
        rotary_attention_kernel,
        {
            "p_qkv": kind, "p_cos_sin": "*fp32", "p_keys": pages, "p_values": pages, "p_slots": "*i32",
            "p_starts": "*i32", "p_table": "*i32", "p_partial": kind if one else "*fp32",
            "p_weights": kind if one else "*fp32", "p_out": kind, "scale": "fp32", "max_pages": "i32", "splits": "i32",
            **given,
        },
        {
            "H": heads, "KV": kv_heads, "D": head_dim, "PAGE": 16, "BLOCK_D": block_d(head_dim),
            "BLOCK_G": max(16, heads // kv_heads) if dot else 1, "BLOCK_N": set_to["block_n"],
            "SPLIT": set_to["split"], "CHUNK": CHUNK, "DOT": dot, "ONE": one, "UPCAST": False,
            "STAGES": set_to["stages"],
        }
        | {name: None for name in ("p_scales", "p_arrived") if name not in given},
        num_warps=set_to["warps"],
    )  # fmt: skip


def _aot_cases(gpu: str | None) -> list[AotCase]:
    return [
        _aot(gpu, "bf16_mha_128", "bf16", 32, 32, 128),
        _aot(gpu, "bf16_mha_128_no_dot", "bf16", 32, 32, 128, dot=False),
        _aot(gpu, "bf16_mha_128_one_split", "bf16", 32, 32, 128, one=True),
        _aot(gpu, "bf16_mha_128_fused", "bf16", 32, 32, 128, fused=True),
        _aot(gpu, "fp8_mha_128", "fp8", 32, 32, 128),
        _aot(gpu, "fp8_mha_128_no_dot", "fp8", 32, 32, 128, dot=False),
        _aot(gpu, "fp16_gqa_128", "fp16", 32, 8, 128),
        _aot(gpu, "fp8_gqa_96_fused", "fp8", 32, 8, 96, fused=True),
        _aot(gpu, "bf16_gqa_64", "bf16", 16, 4, 64),
        _aot(gpu, "fp32_mha_64", "fp32", 8, 8, 64, dot=False),
        AotCase(
            "combine_bf16_128",
            combine_kernel,
            {"p_partial": "*fp32", "p_weights": "*fp32", "p_positions": "*i32", "p_out": "*bf16", "splits": "i32"},
            {"H": 32, "D": 128, "BLOCK_D": 128, "SPLIT": DEFAULTS["split"], "CHUNK": CHUNK},
        ),
    ]  # fmt: skip


AOT = tuned_cases(_aot_cases) if INSTALLED else []

for _variant in (
    Variant("rotary_attention", "triton", rotary_attention, attention_supports, PRIORITIES["triton"]),
    # to be preferred where the tuned file of a GPU says so
    Variant("rotary_attention", "triton_fused", rotary_attention_fused, attention_supports, 19),
    Variant("rotary_attention", "flash_attn", attention_torch.flash_decode, attention_torch.flash_supports, 15),
    Variant("rotary_attention", "torch", attention_torch.attend_torch, cache_supports, PRIORITIES["torch"]),
    Variant("rotary_attention", "sdpa", attention_torch.attend_sdpa, cache_supports, 5),
    Variant("rotary_attention", "reference", reference.rotary_attention, anywhere, PRIORITIES["reference"]),
):
    register(_variant)
