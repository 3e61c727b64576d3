"""Draws the next id of each row: filters, Gumbel noise, log-probability, and the id fed back, in one launch.

    sampling(logits [R, V], state, slots [R] int32, positions [R] int64) -> (ids [R] int64, logprobs [R] float32)

The rule, of row r with s = slots[r], in this order; `reference.draw` is its judge:
  penalty      scores of ids in `seen[s]` are divided (positive) or multiplied (negative) by `penalty[s]`
  mask         only ids of bit set `masks[mask[s]]` stay
  temperature  scores become (score - best) / temperature; at 0 the best score wins, and of equals the lowest id
  top-k        keeps scores not below the k-th best
  top-p        keeps an id while the mass of strictly better scores is below top_p of what top-k left
  min-p        keeps probabilities not below min_p times the best
  draw         the largest of score + Gumbel noise (`noise.py`), which depends on (seed, position, id) alone
The log-probability is of the raw logits, over all V ids where `full[s]`, else over the allowed ones. Columns of
`logits` that are neither allowed nor needed for that are never read. `last_ids[s]` and `seen[s]` take the id. A row
with a negative slot is padding: it gives id 0 and log-probability 0, and no slot is written. Rows that share a slot
leave the id of any of them. Every mask must allow at least one id, which `SamplingState.set_mask` sees to.

It must read R * V logits once, 130 KB a row at V = 32,512: nothing beside the head's weights. What counts is latency,
so nothing is sorted. All filters keep the ids above some score, so the winner among the kept ids is the winner among
all candidates as soon as it is itself kept: draw among all; if the winner fails a filter, so does everything that is
not better: drop these and draw again. With top-p 0.95 the first draw stands in at least 95% of the steps. (FlashInfer's
rejection sampling rests on the same order, but draws anew each time: its ids are not a function of seed and position.)
Only where top-k and top-p are both on is the k-th score itself needed, by bisection on its bits.

The noise is exact in float64, which is slow on most chips: it is first computed in float32, to within `NEAR`, and in
float64 only for the blocks that hold near-winners, where there are two.
"""

import torch
from torch import Tensor

from spiritrt.kernels import reference
from spiritrt.kernels.aot_case import AotCase, tuned_cases, tuned_for
from spiritrt.kernels.language import INSTALLED, tl, triton, triton_supports
from spiritrt.kernels.noise import LARGEST, ROUNDER, gumbel
from spiritrt.kernels.registry import PRIORITIES, Variant, anywhere, gpu_name, register, tuned
from spiritrt.kernels.sampling_state import SMALLEST_TEMPERATURE, WORD, SamplingState, pack, unpack

DEFAULTS = {"BLOCK": 4096, "num_warps": 16}


NEAR = tl.constexpr(2.0**-12)  # the float32 noise is closer than this to the exact one; measured: 2e-5
NOISE_MAX = tl.constexpr(LARGEST)
TINY = tl.constexpr(SMALLEST_TEMPERATURE)
MAGIC = tl.constexpr(ROUNDER)
INFINITY_BITS = tl.constexpr(0x7F800000)


@triton.jit
def load_allowed(p_allowed, o, vocab):
    words = tl.load(p_allowed + o // 32, mask=o < vocab, other=0)
    return ((words >> (o % 32)) & 1) != 0


@triton.jit
def penalise(b_raw, p_seen, o, vocab, penalty):
    words = tl.load(p_seen + o // 32, mask=o < vocab, other=0)
    b_penalised = tl.where(b_raw > 0, tl.div_rn(b_raw, penalty), b_raw * penalty)
    return tl.where(((words >> (o % 32)) & 1) != 0, b_penalised, b_raw)


@triton.jit
def load_scaled(p_row, p_allowed, p_seen, o, vocab, penalty, best, temperature):
    """(score - best) / temperature of allowed ids, -inf elsewhere."""
    allowed = load_allowed(p_allowed, o, vocab)
    b_raw = tl.load(p_row + o, mask=allowed, other=0.0).to(tl.float32)
    b_score = penalise(b_raw, p_seen, o, vocab, penalty)
    return tl.where(allowed, tl.div_rn(b_score - best, temperature), -float("inf"))


@triton.jit
def decay(b_x, b_best, inverse):
    """exp((x - best) * inverse), which is 0 where both are -inf."""
    return tl.exp((b_x - tl.where(b_best == -float("inf"), 0.0, b_best)) * inverse)


@triton.jit
def philox_bits(seed, position, start, BLOCK: tl.constexpr):
    """Upper 24 bits of the words of ids start .. start + BLOCK; a counter gives the words of four ids."""
    o = start // 4 + tl.arange(0, BLOCK // 4)
    zero = tl.zeros([BLOCK // 4], dtype=tl.int32)
    low, high = zero + position.to(tl.int32), zero + (position >> 32).to(tl.int32)
    w0, w1, w2, w3 = tl.philox(seed, low, high, o, zero)
    words = tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))
    return (words.to(tl.uint32, bitcast=True) >> 8).to(tl.int32)


@triton.jit
def rough_gumbel(bits):
    """The noise in float32. Above a half, 1 - u is exact where u is not."""
    u = (bits.to(tl.float32) + 0.5) * (2.0**-24)
    v = ((16777216 - bits).to(tl.float32) - 0.5) * (2.0**-24)
    series = v * (1.0 + v * (0.5 + v * (1.0 / 3 + v * (0.25 + v * 0.2))))
    e = tl.where(bits < 8388608, -tl.log(u), tl.where(v < 0.05, series, -tl.log(1.0 - v)))
    return -tl.log(e)


@triton.jit
def exact_gumbel(bits):
    u = (bits.to(tl.float64) + 0.5) * (2.0**-24)
    noise = -tl.log(-tl.log(u))
    return ((noise + MAGIC) - MAGIC).to(tl.float32)


@triton.jit
def sampling_kernel(
    p_logits, p_slots, p_positions, p_mask, p_masks, p_seed, p_temperature, p_top_k, p_top_p, p_min_p, p_penalty,
    p_all_seen, p_last_ids, p_full, p_ids, p_logprobs, vocab, words,
    BLOCK: tl.constexpr,
):  # fmt: skip
    i_r = tl.program_id(0).to(tl.int64)
    slot = tl.load(p_slots + i_r).to(tl.int64)
    if slot < 0:
        tl.store(p_ids + i_r, tl.zeros([], dtype=tl.int64))
        tl.store(p_logprobs + i_r, 0.0)
        return
    p_row = p_logits + i_r * vocab
    p_allowed = p_masks + tl.load(p_mask + slot).to(tl.int64) * words
    p_seen = p_all_seen + slot * words
    position, seed = tl.load(p_positions + i_r), tl.load(p_seed + slot)
    temperature, penalty = tl.load(p_temperature + slot), tl.load(p_penalty + slot)
    top_k, top_p, min_p = tl.load(p_top_k + slot), tl.load(p_top_p + slot), tl.load(p_min_p + slot)
    full = tl.load(p_full + slot) != 0

    # one pass, each lane for itself: the best allowed score, the mass of the allowed, the normaliser of the raw logits
    scale = tl.maximum(temperature, TINY)
    inverse = 1.0 / scale
    lanes = tl.arange(0, BLOCK)
    b_best = tl.full([BLOCK], -float("inf"), tl.float32)
    b_pick, b_mass = tl.zeros([BLOCK], tl.int32), tl.zeros([BLOCK], tl.float32)
    b_raw_best, b_raw_mass = b_best, b_mass
    for start in range(0, vocab, BLOCK):
        o = start + lanes
        allowed = load_allowed(p_allowed, o, vocab)
        b_raw = tl.load(p_row + o, mask=(o < vocab) & (allowed | full), other=-float("inf")).to(tl.float32)
        b_score = tl.where(allowed, penalise(b_raw, p_seen, o, vocab, penalty), -float("inf"))
        b_pick = tl.where(b_score > b_best, o, b_pick)
        b_new = tl.maximum(b_best, b_score)
        b_mass = b_mass * decay(b_best, b_new, inverse) + decay(b_score, b_new, inverse)
        b_best = b_new
        b_new = tl.maximum(b_raw_best, b_raw)
        b_raw_mass = b_raw_mass * decay(b_raw_best, b_new, 1.0) + decay(b_raw, b_new, 1.0)
        b_raw_best = b_new
    best, raw_best = tl.max(b_best, 0), tl.max(b_raw_best, 0)
    pick = tl.min(tl.where(b_best == best, b_pick, vocab - 1), 0)
    total = tl.sum(b_mass * decay(b_best, best, inverse), 0)
    raw_total = tl.sum(b_raw_mass * decay(b_raw_best, raw_best, 1.0), 0)

    if temperature > 0:
        if (top_k > 0) & (top_p < 1):
            # the k-th smallest distance to the best: the bits of floats from 0 up are in the order of the floats;
            # what is banned or no id at all is infinitely far
            low, high = 0, INFINITY_BITS
            while low < high:
                middle = low + (high - low) // 2
                b_count = tl.zeros([BLOCK], tl.int32)
                for start in range(0, vocab, BLOCK):
                    b_scaled = load_scaled(p_row, p_allowed, p_seen, start + lanes, vocab, penalty, best, scale)
                    b_count += ((0.0 - b_scaled).to(tl.int32, bitcast=True) <= middle).to(tl.int32)
                enough = tl.sum(b_count, 0) >= top_k
                high = tl.where(enough, middle, high)
                low = tl.where(enough, low, middle + 1)
            b_mass = tl.zeros([BLOCK], tl.float32)
            for start in range(0, vocab, BLOCK):
                b_scaled = load_scaled(p_row, p_allowed, p_seen, start + lanes, vocab, penalty, best, scale)
                b_mass += tl.where((0.0 - b_scaled).to(tl.int32, bitcast=True) <= high, tl.exp(b_scaled), 0.0)
            total = tl.sum(b_mass, 0)

        floor = -float("inf")  # only what is better is still a candidate
        searching = 1
        while searching > 0:
            # the winner by rough noise, and how near the second comes
            winner, first, second = pick, -float("inf"), -float("inf")
            for start in range(0, vocab, BLOCK):
                o = start + lanes
                b_scaled = load_scaled(p_row, p_allowed, p_seen, o, vocab, penalty, best, scale)
                b_scaled = tl.where(b_scaled > floor, b_scaled, -float("inf"))
                # noise is bounded: most blocks of a peaked row cannot hold the winner
                if tl.max(b_scaled, 0) + NOISE_MAX > first - 2 * NEAR:
                    b_noisy = b_scaled + rough_gumbel(philox_bits(seed, position, start, BLOCK))
                    block_first, block_winner = tl.max(b_noisy, 0, return_indices=True)
                    block_second = tl.max(tl.where(o == start + block_winner, -float("inf"), b_noisy), 0)
                    second = tl.maximum(tl.maximum(second, block_second), tl.minimum(first, block_first))
                    if block_first > first:
                        first, winner = block_first, start + block_winner
            if (second >= first - 2 * NEAR) & (second > -float("inf")):
                edge = first - 2 * NEAR
                first = -float("inf")
                for start in range(0, vocab, BLOCK):
                    o = start + lanes
                    b_scaled = load_scaled(p_row, p_allowed, p_seen, o, vocab, penalty, best, scale)
                    b_scaled = tl.where(b_scaled > floor, b_scaled, -float("inf"))
                    bits = philox_bits(seed, position, start, BLOCK)
                    near = b_scaled + rough_gumbel(bits) >= edge
                    if tl.max(near.to(tl.int32), 0) > 0:
                        b_noisy = tl.where(near, b_scaled + exact_gumbel(bits), -float("inf"))
                        block_first, block_winner = tl.max(b_noisy, 0, return_indices=True)
                        if block_first > first:
                            first, winner = block_first, start + block_winner

            # does the winner pass the filters?
            o_w = winner + tl.arange(0, 1)
            scaled = tl.max(load_scaled(p_row, p_allowed, p_seen, o_w, vocab, penalty, best, scale), 0)
            passes = tl.exp(scaled) >= min_p
            if passes & ((top_k > 0) | (top_p < 1)):
                b_mass, b_count = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.int32)
                for start in range(0, vocab, BLOCK):
                    b_scaled = load_scaled(p_row, p_allowed, p_seen, start + lanes, vocab, penalty, best, scale)
                    b_mass += tl.where(b_scaled > scaled, tl.exp(b_scaled), 0.0)
                    b_count += (b_scaled > scaled).to(tl.int32)
                enough = (top_k > 0) & (tl.sum(b_count, 0) >= top_k)
                passes = (enough == 0) & ((top_p >= 1) | (tl.sum(b_mass, 0) < top_p * total))
            # the best id always passes; a row that holds NaN must end too
            if passes | (scaled >= 0) | (scaled <= floor) | (scaled != scaled) | (first == -float("inf")):
                pick = winner
                searching = 0
            else:
                floor = scaled

    logprob = tl.load(p_row + pick).to(tl.float32) - raw_best - tl.log(raw_total)
    tl.store(p_ids + i_r, pick.to(tl.int64))
    tl.store(p_logprobs + i_r, logprob)
    tl.store(p_last_ids + slot, pick.to(tl.int64))
    p_word = p_seen + pick // 32
    tl.store(p_word, tl.load(p_word) | (1 << (pick % 32)))


def sampling_triton(logits: Tensor, state: SamplingState, slots: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """One program a row."""
    rows, vocab = logits.shape
    assert logits.is_contiguous() and state.masks.shape[1] == -(-vocab // WORD)
    ids = torch.empty(rows, dtype=torch.int64, device=logits.device)
    logprobs = torch.empty(rows, dtype=torch.float32, device=logits.device)
    if rows:
        block = DEFAULTS | tuned("sampling", gpu=gpu_name(logits.device.index)) if logits.is_cuda else DEFAULTS
        sampling_kernel[(rows,)](
            logits, slots, positions, state.mask, state.masks, state.seed, state.temperature, state.top_k,
            state.top_p, state.min_p, state.penalty, state.seen, state.last_ids, state.full, ids, logprobs,
            vocab, state.masks.shape[1], BLOCK=min(block["BLOCK"], triton.next_power_of_2(max(vocab, 32))),
            num_warps=block["num_warps"],
        )  # fmt: skip
    return ids, logprobs


def sampling_torch(logits: Tensor, state: SamplingState, slots: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """All rows at once, by sorting; runs anywhere and does not wait for the device."""
    vocab = logits.shape[1]
    rows = slots.clamp(min=0).long()
    allowed, seen = unpack(state.masks[state.mask[rows].long()], vocab), unpack(state.seen[rows], vocab)
    raw, penalty = logits.float(), state.penalty[rows, None]
    penalised = torch.where(raw > 0, raw / penalty, raw * penalty)
    scores = torch.where(seen, penalised, raw).masked_fill(~allowed, -torch.inf)
    best, greedy = scores.max(-1, keepdim=True).values, scores.argmax(-1)
    scaled = (scores - best) / state.temperature[rows, None].clamp(min=SMALLEST_TEMPERATURE)
    ordered = scaled.sort(-1, descending=True).values
    top_k = state.top_k[rows, None].long()
    last = ordered.gather(-1, (torch.where(top_k > 0, top_k, vocab).clamp(max=vocab) - 1))
    mass = (ordered.exp() * (ordered >= last)).double().cumsum(-1)
    # mass of what is strictly better than each, of the ordered scores
    firsts = torch.searchsorted(-ordered, -ordered)
    before = torch.nn.functional.pad(mass, (1, 0)).gather(-1, firsts)
    top_p = state.top_p[rows, None]
    kept = (ordered >= last) & ((top_p >= 1) | (before < top_p * mass[:, -1:]))
    kept &= ordered.exp() >= state.min_p[rows, None]
    edge = ordered.masked_fill(~kept, torch.inf).min(-1, keepdim=True).values
    ids = torch.arange(vocab, device=logits.device)
    noisy = (scaled + gumbel(state.seed[rows, None], positions[:, None], ids)).masked_fill(scaled < edge, -torch.inf)
    drawn = torch.where(state.temperature[rows] == 0, greedy, noisy.masked_fill(~allowed, -torch.inf).argmax(-1))
    counted = raw.masked_fill(~(allowed | state.full[rows, None]), -torch.inf)
    logprobs = raw.gather(-1, drawn[:, None])[:, 0] - counted.logsumexp(-1)
    real = slots >= 0
    drawn, logprobs = drawn * real, logprobs.masked_fill(~real, 0)
    # padding writes to a slot beyond the last
    target = torch.where(real, rows, len(state.mask))
    last_ids, marked = state.last_ids.new_zeros(len(state.mask) + 1), state.seen[rows] | pack(ids == drawn[:, None])
    last_ids[:-1] = state.last_ids
    state.last_ids.copy_(last_ids.index_copy(0, target, drawn)[:-1])
    state.seen.copy_(torch.nn.functional.pad(state.seen, (0, 0, 0, 1)).index_copy(0, target, marked)[:-1])
    return drawn, logprobs


SIGNATURE = {
    "p_slots": "*i32", "p_positions": "*i64", "p_mask": "*i32", "p_masks": "*i32", "p_seed": "*i64",
    "p_temperature": "*fp32", "p_top_k": "*i32", "p_top_p": "*fp32", "p_min_p": "*fp32", "p_penalty": "*fp32",
    "p_all_seen": "*i32", "p_last_ids": "*i64", "p_full": "*i1", "p_ids": "*i64", "p_logprobs": "*fp32",
    "vocab": "i32", "words": "i32",
}  # fmt: skip


def _aot_cases(gpu: str | None) -> list[AotCase]:
    sizes = DEFAULTS | tuned_for(gpu, "sampling")
    return [
        AotCase(kind, sampling_kernel, {"p_logits": f"*{kind}", **SIGNATURE}, {"BLOCK": sizes["BLOCK"]},
                num_warps=sizes["num_warps"])
        for kind in ("bf16", "fp32")
    ]  # fmt: skip


AOT = tuned_cases(_aot_cases) if INSTALLED else []

register(Variant("sampling", "triton", sampling_triton, triton_supports, PRIORITIES["triton"]))
register(Variant("sampling", "torch", sampling_torch, anywhere, PRIORITIES["torch"]))
register(Variant("sampling", "reference", reference.sampling, anywhere, PRIORITIES["reference"]))
