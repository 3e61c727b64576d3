"""Rows of a step and the pages they read and write: what every variant of attention shares, in plain torch.

Nothing here waits for the device, and no shape depends on what is on it, so that a CUDA graph may hold all of it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from spiritrt.kernels.registry import Case

FLOAT8 = torch.float8_e4m3fn
FLOAT8_MAX = 448.0
FLOAT8_CAPABILITY = (8, 9)  # the first that converts e4m3 in hardware
HEAD_DIM_MAX = 256


@dataclass(frozen=True, slots=True)
class AttentionBatch:
    """Where the new tokens of a step belong.

    slots       [R] int32: the slot of each row
    starts      [R] int32: tokens the slot held before, which is the position of the row's first new token
    offsets     [R + 1] int32: row r brings tokens offsets[r]:offsets[r + 1] of the step, one at least, from 0 to all
    page_table  [S, max_pages] int32: pages of each slot in order; entries past its last page may hold anything
    longest     at least the new tokens of any row
    reach       at least starts + new tokens of any row, at most max_pages * page_size. In a CUDA graph both bounds
                must hold at every replay: give the capacity of a slot as `reach` and the graph stays right

    No two rows share a slot, but for rows that only fill a bucket: these may all name a spare slot with a page of its
    own, at start 0; what they compute is finite and means nothing. Raises ValueError for shapes or types that do not
    fit together.
    """

    slots: Tensor
    starts: Tensor
    offsets: Tensor
    page_table: Tensor
    longest: int
    reach: int

    def __post_init__(self) -> None:
        rows = self.slots.shape[0]
        wanted = {"slots": (rows,), "starts": (rows,), "offsets": (rows + 1,), "page_table": self.page_table.shape}
        for name, shape in wanted.items():
            tensor = getattr(self, name)
            if tensor.dtype != torch.int32 or tensor.shape != shape or not tensor.is_contiguous():
                raise ValueError(f"{name} must be contiguous int32 of shape {tuple(shape)}, got {described(tensor)}")
        if rows < 1 or self.page_table.dim() != 2:
            raise ValueError(f"rows and slots are needed, got {rows} rows, page_table {described(self.page_table)}")
        if self.longest < 1 or self.reach < self.longest:
            raise ValueError(f"1 <= longest <= reach is needed, got longest {self.longest}, reach {self.reach}")

    @property
    def rows(self) -> int:
        return self.slots.shape[0]


def check(qkv: Tensor, cos_sin: Tensor, keys: Tensor, values: Tensor, batch: AttentionBatch, heads: int,
          scales: Tensor | None) -> tuple[int, int]:  # fmt: skip
    """Key-value heads and head_dim of a call. Raises ValueError naming what does not fit."""
    if keys.dim() != 4 or values.shape != keys.shape or values.dtype != keys.dtype:
        raise ValueError(f"keys and values must be [P, page, KV, D] alike: {described(keys)}, {described(values)}")
    _, page_size, kv_heads, head_dim = keys.shape
    if head_dim % 2 or head_dim > HEAD_DIM_MAX:
        raise ValueError(f"head_dim must be even and at most {HEAD_DIM_MAX}, got {head_dim}")
    if heads < 1 or heads % kv_heads:
        raise ValueError(f"heads must be a multiple of the {kv_heads} key-value heads, got {heads}")
    if qkv.dim() != 2 or qkv.shape[1] != (heads + 2 * kv_heads) * head_dim:
        raise ValueError(f"qkv must be [T, {(heads + 2 * kv_heads) * head_dim}], got {described(qkv)}")
    if cos_sin.dtype != torch.float32 or cos_sin.dim() != 2 or cos_sin.shape[1] != head_dim:
        raise ValueError(f"cos_sin must be float32 [positions, {head_dim}], got {described(cos_sin)}")
    if not (qkv.is_contiguous() and cos_sin.is_contiguous() and keys.is_contiguous() and values.is_contiguous()):
        raise ValueError("qkv, cos_sin, keys and values must be contiguous")
    if (scales is not None) != (keys.dtype == FLOAT8):
        raise ValueError(f"scales go with keys of {FLOAT8} and only with them, got keys of {keys.dtype}")
    if scales is not None and (scales.shape != (2, kv_heads) or scales.dtype != torch.float32):
        raise ValueError(f"scales must be float32 [2, {kv_heads}], got {described(scales)}")
    if batch.reach > batch.page_table.shape[1] * page_size:
        raise ValueError(f"reach {batch.reach} is beyond a slot's {batch.page_table.shape[1]} pages of {page_size}")
    return kv_heads, head_dim


def described(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}"


def cache_supports(case: Case) -> str | None:
    """Why keys and values of `case.cache` cannot go with its activations and device, or None where they can."""
    if case.head_dim % 2 or case.head_dim > HEAD_DIM_MAX:
        return f"head_dim {case.head_dim} is odd or above {HEAD_DIM_MAX}"
    if case.cache is None or case.cache == case.dtype or case.dtype == torch.float32:
        return None
    if case.cache != FLOAT8:
        return f"keys of {case.cache} with activations of {case.dtype}"
    return None


def float8_supports(case: Case) -> str | None:
    """Why kernels that convert e4m3 in hardware cannot, or None where they can."""
    if case.cache == FLOAT8 and case.capability is not None and case.capability < FLOAT8_CAPABILITY:
        return f"fp8 keys need compute capability 8.9, got {case.capability[0]}.{case.capability[1]}"
    return None


def to_cache(x: Tensor, dtype: torch.dtype, scale: Tensor | None) -> Tensor:
    """Rounds x [..., KV, D] to what the cache stores: divided by the head's scale [KV] and clamped where it is fp8."""
    if scale is None:
        return x.to(dtype)
    return (x / scale[:, None]).clamp(-FLOAT8_MAX, FLOAT8_MAX).to(dtype)


def rotate(x: Tensor, cos_sin: Tensor) -> Tensor:
    """Rotates x [T, heads, D] by cos_sin [T, D] in float32; the halves of D pair up, as in Hugging Face's Llama."""
    half = x.shape[-1] // 2
    cos, sin = cos_sin[:, None, :half], cos_sin[:, None, half:]
    low, high = x[..., :half].float(), x[..., half:].float()
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1)


def rotate_append(qkv: Tensor, cos_sin: Tensor, keys: Tensor, values: Tensor, batch: AttentionBatch, heads: int,
                  scales: Tensor | None) -> Tensor:  # fmt: skip
    """Rotates queries and keys, writes keys and values to their pages; returns the queries [T, H, D] in float32."""
    kv_heads, head_dim = keys.shape[2:]
    tokens = torch.arange(qkv.shape[0], dtype=torch.int32, device=qkv.device)
    rows = torch.searchsorted(batch.offsets[1:], tokens, right=True, out_int32=True)
    positions = batch.starts[rows] + tokens - batch.offsets[rows]
    q, k, v = qkv.view(-1, heads + 2 * kv_heads, head_dim).split((heads, kv_heads, kv_heads), dim=1)
    angles = cos_sin[positions]
    at = token_places(batch, rows, positions, keys.shape[1])
    k_scale, v_scale = (None, None) if scales is None else scales
    for pages, x, scale in ((keys, rotate(k, angles), k_scale), (values, v.float(), v_scale)):
        # as bytes, because indexing fp8 is not implemented on every device
        flat = pages.view(-1, kv_heads, head_dim).view(torch.uint8)
        flat[at] = to_cache(x, pages.dtype, scale).view(torch.uint8)
    return rotate(q, angles)


def token_places(batch: AttentionBatch, rows: Tensor, positions: Tensor, page_size: int) -> Tensor:
    """Index page * page_size + offset, int64, of positions in the slots of `rows`; both of one shape."""
    page = batch.page_table[batch.slots[rows], positions // page_size]
    return page.long() * page_size + positions % page_size


def gather(pages: Tensor, batch: AttentionBatch, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """All that `reach` may hold of each row: [R, KV, N, D], N a multiple of the page size.

    Places where a row has no token yet are zero: pages are never cleared, and what lies there may not be finite.
    """
    page_size, kv_heads, head_dim = pages.shape[1:]
    count = -(-batch.reach // page_size)
    table = batch.page_table[batch.slots, :count].clamp(0, pages.shape[0] - 1)
    held = pages.view(torch.uint8)[table].view(pages.dtype).view(batch.rows, -1, kv_heads, head_dim)
    taken = held.to(dtype) if scale is None else (held.float() * scale[:, None]).to(dtype)
    length = batch.starts + batch.offsets[1:] - batch.offsets[:-1]
    empty = torch.arange(taken.shape[1], device=pages.device) >= length[:, None]
    return taken.masked_fill(empty[:, :, None, None], 0).transpose(1, 2)
