"""What every op computes, in plain float32 torch: the truth for tests and benchmarks, and the slowest variant."""

import torch
from torch import Tensor

from spiritrt.kernels.attention_batch import AttentionBatch
from spiritrt.kernels.linear_weight import LinearWeight, check_linear
from spiritrt.kernels.noise import gumbel
from spiritrt.kernels.sampling_state import SMALLEST_TEMPERATURE, SamplingState, pack, unpack
from spiritrt.kernels.unit_frames import ARRIVED, BEGIN, END, KNOWN, SLOT, SOURCE, TICKS, FramePlan, FrameTokens


def rotary_prefill(qkv: Tensor, cos_sin: Tensor, keys: Tensor, values: Tensor, batch: AttentionBatch, heads: int,
                   scales: Tensor | None = None) -> Tensor:  # fmt: skip
    """Rotates q and k, appends k and v to the pages as stored there, attends causally to all the slot then holds."""
    page_size, kv_heads, head_dim = keys.shape[1:]
    k_scale, v_scale = (1.0, 1.0) if scales is None else (scales[0, :, None], scales[1, :, None])
    flat_keys, flat_values = keys.view(-1, kv_heads, head_dim), values.view(-1, kv_heads, head_dim)
    q, k, v = qkv.float().view(-1, heads + 2 * kv_heads, head_dim).split((heads, kv_heads, kv_heads), dim=1)
    out, offsets = torch.empty_like(q), batch.offsets.tolist()
    for row, (slot, start) in enumerate(zip(batch.slots.tolist(), batch.starts.tolist(), strict=True)):
        new = slice(offsets[row], offsets[row + 1])
        positions = torch.arange(start + new.stop - new.start, device=qkv.device)
        at = batch.page_table[slot, positions // page_size].long() * page_size + positions % page_size
        flat_keys[at[start:]] = to_storage(rotate(k[new], cos_sin[positions[start:]]) / k_scale, keys.dtype)
        flat_values[at[start:]] = to_storage(v[new] / v_scale, values.dtype)
        held_k = (flat_keys[at].float() * k_scale).repeat_interleave(heads // kv_heads, dim=1)
        held_v = (flat_values[at].float() * v_scale).repeat_interleave(heads // kv_heads, dim=1)
        scores = torch.einsum("qhd,khd->hqk", rotate(q[new], cos_sin[positions[start:]]), held_k) / head_dim**0.5
        scores = scores.masked_fill(positions > positions[start:, None], -torch.inf)
        out[new] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), held_v)
    return out.reshape(len(out), -1).to(qkv.dtype)


def rotary_attention(qkv: Tensor, cos_sin: Tensor, keys: Tensor, values: Tensor, batch: AttentionBatch, heads: int,
                     scales: Tensor | None = None) -> Tensor:  # fmt: skip
    """`rotary_prefill` of one token a row."""
    return rotary_prefill(qkv, cos_sin, keys, values, batch, heads, scales)


def shift_rotary(keys: Tensor, values: Tensor, source: Tensor, target: Tensor, delta: int, inv_freq: Tensor) -> None:
    """Copies tokens of keys, values [L, P, page, KV, D] from places source to target, keys turned on by delta."""
    flat_keys, flat_values = keys.flatten(1, 2), values.flatten(1, 2)
    angles = delta * inv_freq.double()
    cos_sin = torch.cat((angles.cos(), angles.sin())).float()
    for layer in range(len(keys)):
        flat_values[layer][target] = flat_values[layer][source]
        flat_keys[layer][target] = to_storage(rotate(flat_keys[layer][source].float(), cos_sin[None]), keys.dtype)


def rotate(x: Tensor, cos_sin: Tensor) -> Tensor:
    """Rotates x [T, heads, D] by the angles of cos_sin [T, D] (D/2 cosines, D/2 sines); the halves of D pair up."""
    cos, sin = cos_sin[:, None].chunk(2, dim=-1)
    low, high = x.chunk(2, dim=-1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1)


def to_storage(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Rounds; fp8 e4m3 has no infinity, so what is too large for it becomes the largest number."""
    return (x.clamp(-448.0, 448.0) if dtype == torch.float8_e4m3fn else x).to(dtype)


def sampling(logits: Tensor, state: SamplingState, slots: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Draws an id a row and feeds it back, see `spiritrt.kernels.sampling`; rows of a negative slot are left alone."""
    vocab = logits.shape[1]
    ids = torch.zeros(len(slots), dtype=torch.int64, device=logits.device)
    logprobs = torch.zeros(len(slots), device=logits.device)
    for row, slot in enumerate(slots.tolist()):
        if slot < 0:
            continue
        raw, allowed = logits[row].float(), unpack(state.masks[int(state.mask[slot])], vocab)
        ids[row] = draw(raw, allowed, unpack(state.seen[slot], vocab), int(state.seed[slot]), int(positions[row]),
                        float(state.temperature[slot]), int(state.top_k[slot]), float(state.top_p[slot]),
                        float(state.min_p[slot]), float(state.penalty[slot]))  # fmt: skip
        normaliser = (raw if state.full[slot] else raw[allowed]).logsumexp(0)
        logprobs[row] = raw[ids[row]] - normaliser
        state.last_ids[slot] = ids[row]
        marked = unpack(state.seen[slot], vocab)
        marked[ids[row]] = True
        state.seen[slot] = pack(marked)
    return ids, logprobs


def draw(logits: Tensor, allowed: Tensor, seen: Tensor, seed: int, position: int, temperature: float, top_k: int,
         top_p: float, min_p: float, penalty: float) -> int:  # fmt: skip
    """The id that `logits` [V] float32 give at a position; `allowed` and `seen` are [V] bool, the seed is signed."""
    # device tensors: torch may multiply by the reciprocal of a Python number
    divisor, factor = logits.new_tensor(max(temperature, SMALLEST_TEMPERATURE)), logits.new_tensor(penalty)
    penalised = torch.where(logits > 0, logits / factor, logits * factor)
    scores = torch.where(seen, penalised, logits).masked_fill(~allowed, -torch.inf)
    if temperature == 0:
        return int(scores.argmax())
    # the distance to the best: a small temperature would overflow on the logits themselves
    scores = (scores - scores.max()) / divisor
    keep = allowed
    if 0 < top_k < len(scores):
        keep = keep & (scores >= scores.topk(top_k).values[-1])
    mass = scores.exp() * keep
    if top_p < 1:
        ordered, order = scores.sort(descending=True)
        before = mass[order].double().cumsum(0) - mass[order]
        greater = torch.searchsorted(-ordered, -scores)  # how many ids are strictly more likely
        keep = keep & (before[greater] < top_p * mass.double().sum())
    keep = keep & (scores.exp() >= min_p)
    ids = keep.nonzero()[:, 0]
    return int(ids[(scores[ids] + gumbel(ids.new_tensor(seed), ids.new_tensor(position), ids)).argmax()])


def embed(ids: Tensor, table: Tensor, slots: Tensor | None = None, last_ids: Tensor | None = None) -> Tensor:
    """Rows of `table` [V, C] for `ids` [T]; a negative id t stands for `last_ids[slots[t]]`, or 0 if that slot is."""
    if slots is not None and last_ids is not None:
        fed = last_ids[slots.clamp(min=0).long()].masked_fill(slots < 0, 0)
        ids = torch.where(ids < 0, fed, ids)
    return table[ids]


def embed_norm(ids: Tensor, table: Tensor, weight: Tensor, eps: float, slots: Tensor | None = None,
               last_ids: Tensor | None = None) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`embed`, and the rows with RMSNorm (`weight` [C], `eps`) applied."""
    x = embed(ids, table, slots, last_ids)
    normed = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps) * weight.float()
    return x, normed.to(x.dtype)


def embed_frames(codes: Tensor, plan: FramePlan, held: Tensor, firsts: tuple[int, int, int], table: Tensor,
                 weight: Tensor, eps: float, lengths: Tensor, page_table: Tensor,
                 page_size: int) -> FrameTokens:  # fmt: skip
    """Merges the frames of `plan` and embeds the tokens, see `spiritrt.kernels.embedding`."""
    capacity = held.shape[2]
    ids, positions, page_slots = (torch.full((len(plan.numbers), plan.width), -1) for _ in range(3))
    counts = torch.zeros(len(plan.numbers), dtype=torch.int32)
    for row, numbers in enumerate(plan.numbers.tolist()):
        slot, tokens = numbers[SLOT], []
        for kind in range(3):
            source, known, arrived, begin, end = (numbers[at + kind] for at in (SOURCE, KNOWN, ARRIVED, BEGIN, END))
            for new in range(known, arrived):
                held[slot, kind, new % capacity] = codes[source + new - known]
            ring = held[slot, kind].tolist()
            for frame in range(begin, end):
                code, before = ring[frame % capacity], ring[(frame - 1) % capacity]
                if kind == 0 or frame == 0 or code != before:
                    tokens.append((frame * TICKS[kind], kind, firsts[kind] + code))
        for place, (_, _, token) in enumerate(sorted(tokens)):
            position = int(lengths[slot]) + place
            ids[row, place], positions[row, place] = token, position
            if position < page_table.shape[1] * page_size:
                page_slots[row, place] = page_table[slot, position // page_size] * page_size + position % page_size
        counts[row] = len(tokens)
        lengths[slot] += len(tokens)
    ids, positions, page_slots, counts = (made.to(table.device) for made in (ids, positions, page_slots, counts))
    x, normed = embed_norm(ids.clamp(min=0).flatten(), table, weight, eps)
    empty = (ids < 0).flatten()[:, None]
    return FrameTokens(ids, positions, page_slots, counts, x.masked_fill(empty, 0), normed.masked_fill(empty, 0))


def rms_norm(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(RMSNorm of the sum, x + residual); the sum is x itself where there is no residual."""
    summed = x if residual is None else (x.float() + residual.float()).to(x.dtype)
    wide = summed.float() if residual is None else x.float() + residual.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight.float()
    return normed.to(x.dtype), summed


def linear(x: Tensor, weight: LinearWeight, norm: tuple[Tensor, float] | None = None, gated: bool = False,
           residual: Tensor | None = None, needed: Tensor | None = None) -> Tensor:  # fmt: skip
    """Norm, product, bias, gate and residual in float32; `needed` only says what may be left out, and is not read."""
    check_linear(x, weight, norm, gated, residual, needed)
    wide = x.float() if norm is None else rms_norm(x.float(), *norm)[0]
    matrix = weight.data.float() if weight.scales is None else weight.data.float() * weight.scales[:, None]
    out = torch.nn.functional.linear(wide, matrix, weight.bias)
    if gated:
        gate, up = out.chunk(2, dim=-1)
        out = torch.nn.functional.silu(gate) * up
    if residual is not None:
        out = out + residual.float()
    return out.to(x.dtype)
