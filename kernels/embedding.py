"""Rows of the embedding table, with the first RMSNorm, for ids, for ids just sampled, and for raw unit frames.

    embedding(ids [T] int64, table [V, C], slots [T] int32, last_ids [S] int64) -> x [T, C]
    embed_norm(ids, table, weight [C], eps, slots, last_ids) -> (x [T, C], normed [T, C])
    embed_frames(codes, plan, held, firsts, table, weight, eps, lengths, page_table, page_size) -> FrameTokens

A negative id t stands for `last_ids[slots[t]]`, which sampling wrote: the step feeds itself. There is little bandwidth
to win (T rows are read and written, 16 KB a token at C = 4096); the worth is to be one launch inside the graph.

`embed_frames` takes unit frames as the encoders give them: it deduplicates HuBERT units and pitch codes, merges the
streams by time (ties: style, pitch, HuBERT), maps codes to ids, gathers and norms rows, and writes positions and page
slots, in one launch. How many tokens are left is known on the device alone, so row r's lie at r * M of M places each,
padded at the end. Attention may run over the padding: it comes after the row's tokens, so that these do not see it, and
what it leaves in the pages is overwritten by the tokens to come; only pages must be reserved for it.
"""

import torch
from torch import Tensor

from spiritrt.kernels import reference
from spiritrt.kernels.aot_case import AotCase
from spiritrt.kernels.language import INSTALLED, tl, triton, triton_supports
from spiritrt.kernels.registry import PRIORITIES, Variant, anywhere, register
from spiritrt.kernels.unit_frames import (
    ARRIVED,
    BEGIN,
    COLUMNS,
    END,
    KNOWN,
    SLOT,
    SOURCE,
    TICKS,
    FramePlan,
    FrameTokens,
)

STYLE_TICKS, PITCH_TICKS, HUBERT_TICKS = (tl.constexpr(ticks) for ticks in TICKS)
AT_SOURCE, AT_KNOWN, AT_ARRIVED, AT_BEGIN, AT_END, AT_COLUMNS = (
    tl.constexpr(column) for column in (SOURCE, KNOWN, ARRIVED, BEGIN, END, COLUMNS)
)
FAR = tl.constexpr(2**62)  # the time of what is no token


@triton.jit
def gather_row(p_table, p_weight, p_x, p_normed, row, to, keep, width, eps, BLOCK: tl.constexpr, NORM: tl.constexpr):
    o = tl.arange(0, BLOCK)
    b_x = tl.load(p_table + row * width + o, mask=(o < width) & keep, other=0.0)
    tl.store(p_x + to * width + o, b_x, mask=o < width)
    if NORM:
        b_x = b_x.to(tl.float32)
        b_w = tl.load(p_weight + o, mask=o < width, other=0.0).to(tl.float32)
        b_normed = b_x * tl.rsqrt(tl.sum(b_x * b_x, 0) / width + eps) * b_w
        tl.store(p_normed + to * width + o, b_normed.to(p_normed.dtype.element_ty), mask=o < width)


@triton.jit
def embed_kernel(
    p_ids, p_slots, p_last_ids, p_table, p_weight, p_x, p_normed, width, eps,
    FED: tl.constexpr, NORM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    i_t = tl.program_id(0).to(tl.int64)
    row = tl.load(p_ids + i_t)
    if FED:
        slot = tl.load(p_slots + i_t).to(tl.int64)
        fed = tl.load(p_last_ids + slot, mask=slot >= 0, other=0)
        row = tl.where(row < 0, fed, row)
    gather_row(p_table, p_weight, p_x, p_normed, row, i_t, True, width, eps, BLOCK, NORM)


@triton.jit
def load_code(p_codes, p_held, source, frame, known, capacity, mask):
    """Codes of frames: of this step from `p_codes`, of earlier ones from the slot's ring."""
    new = tl.load(p_codes + source + frame - known, mask=mask & (frame >= known), other=0)
    return tl.where(frame >= known, new, tl.load(p_held + frame % capacity, mask=mask & (frame < known), other=0))


@triton.jit
def frames_kernel(
    p_codes, p_plan, p_held, p_table, p_weight, p_lengths, p_page_table, p_ids, p_positions, p_page_slots, p_counts,
    p_x, p_normed, first_style, first_pitch, first_hubert, capacity, max_pages, page_size, places, width, eps,
    FRAMES: tl.constexpr, PLACES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    i_r, i_m = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    p_row = p_plan + i_r * AT_COLUMNS
    slot = tl.load(p_row)

    # one entry a frame to merge: FRAMES of style, of pitch, of HuBERT, and as many of none
    o = tl.arange(0, 4 * FRAMES)
    kind = o // FRAMES
    real = kind < 3
    begin = tl.load(p_row + AT_BEGIN + kind, mask=real, other=0)
    known = tl.load(p_row + AT_KNOWN + kind, mask=real, other=0)
    source = tl.load(p_row + AT_SOURCE + kind, mask=real, other=0)
    frame = begin + o % FRAMES
    real = real & (frame < tl.load(p_row + AT_END + kind, mask=real, other=0))
    p_ring = p_held + (slot * 3 + kind) * capacity
    code = load_code(p_codes, p_ring, source, frame, known, capacity, real)
    before = load_code(p_codes, p_ring, source, frame - 1, known, capacity, real & (frame > 0) & (kind > 0))
    token = real & ((kind == 0) | (frame == 0) | (code != before))
    ticks = tl.where(kind == 0, STYLE_TICKS, tl.where(kind == 1, PITCH_TICKS, HUBERT_TICKS))
    time = tl.where(token, (frame * ticks) * 4 + kind, FAR)
    rank = tl.sum((time[None, :] < time[:, None]).to(tl.int32), 1)
    count = tl.sum(token.to(tl.int32), 0)

    first = tl.where(kind == 0, first_style, tl.where(kind == 1, first_pitch, first_hubert))
    row = tl.sum(tl.where(token & (rank == i_m), first + code, 0), 0).to(tl.int64)
    i_t = i_r * places + i_m
    tl.store(p_ids + i_t, tl.where(i_m < count, row, -1))
    gather_row(p_table, p_weight, p_x, p_normed, row, i_t, i_m < count, width, eps, BLOCK, True)

    # what is kept for the next step: no other program reads what is written here
    if i_m == 0:
        start = tl.load(p_lengths + slot)
        o_m = tl.arange(0, PLACES)
        position = start + o_m.to(tl.int64)
        inside = (o_m < count) & (position < max_pages * page_size)
        page = tl.load(p_page_table + slot * max_pages + position // page_size, mask=inside, other=0).to(tl.int64)
        p_to = i_r * places + o_m
        tl.store(p_positions + p_to, tl.where(o_m < count, position, -1), mask=o_m < places)
        at = tl.where(inside, page * page_size + position % page_size, -1)
        tl.store(p_page_slots + p_to, at, mask=o_m < places)
        tl.store(p_counts + i_r, count)
        tl.debug_barrier()  # every thread has read `start` by then
        tl.store(p_lengths + slot, start + count)
        for i_k in range(3):
            arrived, was = tl.load(p_row + AT_ARRIVED + i_k), tl.load(p_row + AT_KNOWN + i_k)
            source_k = tl.load(p_row + AT_SOURCE + i_k)
            for new in range(was, arrived):
                tl.store(p_held + (slot * 3 + i_k) * capacity + new % capacity, tl.load(p_codes + source_k + new - was))


def embedding_triton(ids: Tensor, table: Tensor, slots: Tensor | None = None, last_ids: Tensor | None = None) -> Tensor:
    """One program a token."""
    x = torch.empty(len(ids), table.shape[1], dtype=table.dtype, device=table.device)
    _launch(ids, table, None, 0.0, slots, last_ids, x, x)
    return x


def embed_norm_triton(
    ids: Tensor, table: Tensor, weight: Tensor, eps: float, slots: Tensor | None = None, last_ids: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One program a token."""
    x = torch.empty(len(ids), table.shape[1], dtype=table.dtype, device=table.device)
    normed = torch.empty_like(x)
    _launch(ids, table, weight, eps, slots, last_ids, x, normed)
    return x, normed


def _launch(
    ids: Tensor, table: Tensor, weight: Tensor | None, eps: float, slots: Tensor | None, last_ids: Tensor | None,
    x: Tensor, normed: Tensor,
) -> None:  # fmt: skip
    block = triton.next_power_of_2(table.shape[1])
    if len(ids):
        embed_kernel[(len(ids),)](
            ids, ids if slots is None else slots, ids if last_ids is None else last_ids, table,
            table if weight is None else weight, x, normed, table.shape[1], eps,
            FED=slots is not None and last_ids is not None, NORM=weight is not None, BLOCK=block,
            num_warps=warps(block),
        )  # fmt: skip


def warps(block: int) -> int:
    """8 values a thread, 1 to 8 warps."""
    return min(max(block // 256, 1), 8)


def embed_frames_triton(
    codes: Tensor, plan: FramePlan, held: Tensor, firsts: tuple[int, int, int], table: Tensor, weight: Tensor,
    eps: float, lengths: Tensor, page_table: Tensor, page_size: int,
) -> FrameTokens:  # fmt: skip
    """One program a place: each merges its row again, which is less work than a launch."""
    rows, places, width = len(plan.numbers), plan.width, table.shape[1]
    shape, device, block = (rows, places), table.device, triton.next_power_of_2(table.shape[1])
    tokens = FrameTokens(
        ids=torch.empty(shape, dtype=torch.int64, device=device),
        positions=torch.empty(shape, dtype=torch.int64, device=device),
        page_slots=torch.empty(shape, dtype=torch.int64, device=device),
        counts=torch.empty(rows, dtype=torch.int32, device=device),
        x=torch.empty(rows * places, width, dtype=table.dtype, device=device),
        normed=torch.empty(rows * places, width, dtype=table.dtype, device=device),
    )
    if rows:
        frames_kernel[shape](
            codes, plan.numbers, held, table, weight, lengths, page_table, tokens.ids, tokens.positions,
            tokens.page_slots, tokens.counts, tokens.x, tokens.normed, *firsts, held.shape[2], page_table.shape[1],
            page_size, places, width, eps, FRAMES=triton.next_power_of_2(plan.frames),
            PLACES=triton.next_power_of_2(places), BLOCK=block, num_warps=warps(block),
        )  # fmt: skip
    return tokens


def embed_frames_torch(
    codes: Tensor, plan: FramePlan, held: Tensor, firsts: tuple[int, int, int], table: Tensor, weight: Tensor,
    eps: float, lengths: Tensor, page_table: Tensor, page_size: int,
) -> FrameTokens:  # fmt: skip
    """All rows at once; runs anywhere and does not wait for the device."""
    numbers, device = plan.numbers, table.device
    slots, capacity = numbers[:, SLOT], held.shape[2]
    source, known, arrived, begin, end = (numbers[:, at : at + 3, None] for at in (SOURCE, KNOWN, ARRIVED, BEGIN, END))
    kinds = torch.arange(3, device=device)[:, None]
    padded = torch.cat((codes, codes.new_zeros(1)))  # so that an index out of use has something to point at

    def code_of(frame: Tensor) -> Tensor:
        fresh = padded[(source + frame - known).clamp(0, len(codes))]
        return torch.where(frame >= known, fresh, held[slots[:, None, None], kinds, frame % capacity])

    frame = begin + torch.arange(plan.frames, device=device)  # [R, 3, F]
    code = code_of(frame)
    changed = (kinds == 0) | (frame == 0) | (code != code_of(frame - 1))
    token = ((frame < end) & changed).flatten(1)
    time = (frame * torch.tensor(TICKS, device=device)[:, None] * 4 + kinds).flatten(1)
    # what is no token gets a rank beyond the last place
    rank = (token[:, None, :] & (time[:, None, :] < time[:, :, None])).sum(-1).masked_fill(~token, plan.width)
    ids = (code + torch.tensor(firsts, device=device)[:, None]).flatten(1)
    placed = torch.full((len(slots), plan.width + 1), -1, dtype=torch.int64, device=device)
    placed = placed.scatter_(1, rank, ids.long())[:, :-1].contiguous()
    counts = token.sum(1)
    places = torch.arange(plan.width, device=device)
    real = places < counts[:, None]
    placed = placed.masked_fill(~real, -1)
    positions = lengths[slots][:, None] + places
    inside = real & (positions < page_table.shape[1] * page_size)
    pages = page_table[slots].long().gather(1, (positions // page_size).clamp(max=page_table.shape[1] - 1))
    at = (pages * page_size + positions % page_size).masked_fill(~inside, -1)
    x, normed = reference.embed_norm(placed.clamp(min=0).flatten(), table, weight, eps)
    lengths.index_add_(0, slots, counts.to(lengths.dtype))
    new = known + torch.arange(capacity, device=device)
    old = held[slots[:, None, None], kinds, new % capacity]
    held[slots[:, None, None], kinds, new % capacity] = torch.where(new < arrived, code_of(new).to(held.dtype), old)
    empty = ~real.flatten()[:, None]
    return FrameTokens(placed, positions.masked_fill(~real, -1), at, counts.to(torch.int32),
                       x.masked_fill(empty, 0), normed.masked_fill(empty, 0))  # fmt: skip


def _aot(name: str, fed: bool, norm: bool) -> AotCase:
    signature = {"p_ids": "*i64", "p_slots": "*i32", "p_last_ids": "*i64", "p_table": "*bf16", "p_weight": "*bf16",
                 "p_x": "*bf16", "p_normed": "*bf16", "width": "i32", "eps": "fp32"}  # fmt: skip
    return AotCase(name, embed_kernel, signature, {"FED": fed, "NORM": norm, "BLOCK": 4096}, warps(4096),
                   aligned=("width",))  # fmt: skip


AOT = [
    _aot("ids", fed=True, norm=False),
    _aot("ids_norm", fed=True, norm=True),
    AotCase(
        "frames",
        frames_kernel,
        {
            "p_codes": "*i32", "p_plan": "*i64", "p_held": "*i32", "p_table": "*bf16", "p_weight": "*bf16",
            "p_lengths": "*i32", "p_page_table": "*i32", "p_ids": "*i64", "p_positions": "*i64",
            "p_page_slots": "*i64", "p_counts": "*i32", "p_x": "*bf16", "p_normed": "*bf16", "first_style": "i32",
            "first_pitch": "i32", "first_hubert": "i32", "capacity": "i32", "max_pages": "i32", "page_size": "i32",
            "places": "i32", "width": "i32", "eps": "fp32",
        },
        {"FRAMES": 16, "PLACES": 32, "BLOCK": 4096},
        warps(4096),
        aligned=("width",),
    ),
] if INSTALLED else []  # fmt: skip

for _op, _triton, _torch, _reference in (
    ("embedding", embedding_triton, reference.embed, reference.embed),
    ("embed_norm", embed_norm_triton, reference.embed_norm, reference.embed_norm),
    ("embed_frames", embed_frames_triton, embed_frames_torch, reference.embed_frames),
):
    register(Variant(_op, "triton", _triton, triton_supports, PRIORITIES["triton"]))
    register(Variant(_op, "torch", _torch, anywhere, PRIORITIES["torch"]))
    register(Variant(_op, "reference", _reference, anywhere, PRIORITIES["reference"]))
