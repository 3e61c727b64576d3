"""The CPU's own variants of all ops, in C++ (`csrc/cpu_*`): float32 activations, weights in float32, bf16 or int8.

A decode step reads every weight and the keys and values once, 21 MB of weights for nano in float32, and the CPU's
vector units keep up with its caches; so the kernels read each byte once for all rows of a step, and fuse the rest.
A row's result has the same bits alone, beside others, in a prefill of any length, and on any number of threads: sums
run in one fixed order, and threads share out outputs. So do AVX2 and AVX-512 among each other; a CPU with neither
rounds a product before it is added, and differs in the last bits.
"""

import torch
from torch import Tensor

from spiritrt import _C
from spiritrt.kernels.attention_batch import AttentionBatch
from spiritrt.kernels.linear_weight import LinearWeight
from spiritrt.kernels.registry import PRIORITIES, Case, Variant, register
from spiritrt.kernels.sampling_state import SamplingState

WEIGHTS = (torch.float32, torch.bfloat16, torch.int8)
CACHES = (torch.float32, torch.bfloat16)
TABLES = (torch.float32, torch.bfloat16, torch.float16)
HEAD_DIM_MAX = 256


def rms_norm(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(RMSNorm of x [T, C] plus residual, their sum); weight [C]. Raises ValueError for what does not fit."""
    return _C.cpu_rms_norm(x, weight, eps, residual)


def linear(x: Tensor, weight: LinearWeight, norm: tuple[Tensor, float] | None = None, gated: bool = False,
           residual: Tensor | None = None, needed: Tensor | None = None) -> Tensor:  # fmt: skip
    """The op `linear` (see `spiritrt.kernels.linear`). Raises ValueError for what does not fit."""
    gain, eps = (None, 0.0) if norm is None else norm
    return _C.cpu_linear(x, weight.data, weight.scales, weight.bias, gain, eps, gated, residual, needed)


def embed(ids: Tensor, table: Tensor, slots: Tensor | None = None, last_ids: Tensor | None = None) -> Tensor:
    """Rows of `table` [V, C] in float32; a negative id t stands for last_ids[slots[t]]."""
    return _C.cpu_embed(ids, table, slots, last_ids)


def embed_norm(ids: Tensor, table: Tensor, weight: Tensor, eps: float, slots: Tensor | None = None,
               last_ids: Tensor | None = None) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`embed`, and the rows with RMSNorm applied."""
    x = _C.cpu_embed(ids, table, slots, last_ids)
    return x, _C.cpu_rms_norm(x, weight, eps, None)[0]


def rotary_attention(qkv: Tensor, cos_sin: Tensor, keys: Tensor, values: Tensor, batch: AttentionBatch, heads: int,
                     scales: Tensor | None = None) -> Tensor:  # fmt: skip
    """The ops `rotary_attention` and `rotary_prefill`: rows of any length. Raises ValueError for what does not fit.

    A row that does not fit its slot's pages raises before anything is written.
    """
    if scales is not None:
        raise ValueError("the CPU's pages are float32 or bfloat16 and take no scales")
    return _C.cpu_rotary_attention(
        qkv, cos_sin, keys, values, batch.slots, batch.starts, batch.offsets, batch.page_table, heads
    )


def shift_rotary(keys: Tensor, values: Tensor, source: Tensor, target: Tensor, delta: int, inv_freq: Tensor) -> None:
    """Moves tokens [M] from places `source` to `target` in all layers, and turns their keys by `delta` positions."""
    _C.cpu_shift_rotary(keys, values, source, target, delta, inv_freq)


def sampling(logits: Tensor, state: SamplingState, slots: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """The op `sampling` (see `spiritrt.kernels.sampling`): the choice of its reference, id for id."""
    return _C.cpu_sampling(
        logits, slots, positions, state.mask, state.masks, state.seed, state.temperature, state.top_k, state.top_p,
        state.min_p, state.penalty, state.seen, state.last_ids, state.full,
    )  # fmt: skip


def _runs_on(case: Case) -> str | None:
    if case.device != "cpu":
        return f"runs on the CPU only, not on {case.device}"
    if case.dtype != torch.float32:
        return f"activations on the CPU are float32, not {case.dtype}"
    return None


def _linear_supports(case: Case) -> str | None:
    if case.weights is not None and case.weights not in WEIGHTS:
        return f"weights must be float32, bfloat16 or int8, not {case.weights}"
    return _runs_on(case)


def _embed_supports(case: Case) -> str | None:
    if case.weights is not None and case.weights not in TABLES:
        return f"the table must be float32, bfloat16 or float16, not {case.weights}"
    return _runs_on(case)


def _attention_supports(case: Case) -> str | None:
    if case.cache is not None and case.cache not in CACHES:
        return f"keys and values must be float32 or bfloat16, not {case.cache}"
    if case.head_dim % 2 or case.head_dim > HEAD_DIM_MAX:
        return f"head_dim {case.head_dim} is odd or above {HEAD_DIM_MAX}"
    return _runs_on(case)


for _op, _fn, _supports in (
    ("rms_norm", rms_norm, _runs_on),
    ("linear", linear, _linear_supports),
    ("embedding", embed, _embed_supports),
    ("embed_norm", embed_norm, _embed_supports),
    ("rotary_attention", rotary_attention, _attention_supports),
    ("rotary_prefill", rotary_attention, _attention_supports),
    ("shift_rotary", shift_rotary, _attention_supports),
    ("sampling", sampling, _runs_on),
):
    register(Variant(_op, "cpu", _fn, _supports, PRIORITIES["cpu"]))
