"""One run of the language model over a pass's tokens: embed, layers, head, sample, feed back."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from spiritrt.engine.inputs import Fields, Shape
from spiritrt.engine.kv_cache import KVCache
from spiritrt.engine.weights import ModelWeights
from spiritrt.kernels import Case, choose
from spiritrt.kernels.attention_batch import AttentionBatch
from spiritrt.kernels.sampling_state import SamplingState
from spiritrt.models.llama import rotary_frequencies

OPS = ("embedding", "linear", "rotary_attention", "rotary_prefill", "sampling", "shift_rotary")


@dataclass(frozen=True, slots=True)
class Kernels:
    """The variant of each op that an engine runs, chosen once."""

    embedding: Callable
    linear: Callable
    rotary_attention: Callable
    rotary_prefill: Callable
    sampling: Callable
    shift_rotary: Callable
    names: Mapping[str, str]  # of the variants, by op

    @classmethod
    def choose(cls, weights: ModelWeights, cache: torch.dtype, page_size: int, choices: Mapping[str, str]) -> "Kernels":
        """The best supported variants, or those that `choices` (op -> variant) asks for, with pages of `cache`.

        Raises KernelError for an op or a variant that does not exist or cannot run here.
        """
        unknown = set(choices) - set(OPS)
        if unknown:
            raise ValueError(f"the engine has no op {sorted(unknown)[0]!r}: it has {', '.join(OPS)}")
        device = weights.device
        capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
        case = Case(
            device.type, weights.activations, capability, weights.stored, cache, weights.config.head_dim,
            page_size=page_size,
        )  # fmt: skip
        cases = dict.fromkeys(OPS, case) | {"embedding": replace(case, weights=weights.embedding.dtype)}
        chosen = {op: choose(op, cases[op], choices.get(op, "auto")) for op in OPS}
        return cls(**{op: variant.fn for op, variant in chosen.items()}, names={op: v.name for op, v in chosen.items()})


def kernel_choices(words: Sequence[str]) -> dict[str, str]:
    """Choices of variants by op from words like `linear=torch`. Raises ValueError for any other form."""
    choices = {}
    for word in words:
        op, equals, variant = word.partition("=")
        if not (op and equals and variant):
            raise ValueError(f"a kernel is chosen as OP=VARIANT, such as linear=torch, got {word!r}")
        choices[op] = variant
    return choices


class Forward:
    """The model on static inputs: nothing here waits for the device or depends on what is on it, shapes apart."""

    def __init__(self, weights: ModelWeights, kernels: Kernels, state: SamplingState, inputs: Fields[Tensor]) -> None:
        self._weights, self._kernels, self._state, self._inputs = weights, kernels, state, inputs
        config = weights.config
        self._decode_offsets = torch.arange(len(inputs.offsets), dtype=torch.int32, device=weights.device)
        angles = torch.arange(config.max_position_embeddings).float()[:, None] * rotary_frequencies(config)
        self._cos_sin = torch.cat((angles.cos(), angles.sin()), dim=-1).to(weights.device)

    def __call__(
        self, shape: Shape, cache: KVCache, needed: Tensor, scales: Tensor | None = None
    ) -> tuple[Tensor, Tensor] | None:
        """Ids [draws] int64 and log-probabilities [draws] of the drawn rows; None where no row draws.

        `needed` are the blocks of the head that some row may draw from, `scales` [layers, 2, KV] those of an fp8 cache.
        """
        x = self.hidden(shape, cache, scales)
        if not shape.draws:
            return None
        inputs = self._inputs
        if shape.gather:
            x = x.index_select(0, inputs.last[: shape.draws])
        logits = self.head(x, needed)
        return self._kernels.sampling(
            logits, self._state, inputs.draw_slots[: shape.draws], inputs.positions[: shape.draws]
        )

    def hidden(self, shape: Shape, cache: KVCache, scales: Tensor | None = None) -> Tensor:
        """What the last layer gives [T, C], before the last norm; keys and values are in the cache then."""
        weights, kernels, inputs = self._weights, self._kernels, self._inputs
        config, eps = weights.config, weights.config.rms_norm_eps
        heads, linear = config.num_attention_heads, kernels.linear
        rows, tokens = shape.decode, shape.tokens
        x = kernels.embedding(
            inputs.ids[:tokens], weights.embedding, inputs.token_slots[:tokens], self._state.last_ids
        ).to(weights.activations)
        batches = self._batches(shape, cache)
        for index, layer in enumerate(weights.layers):
            qkv = linear(x, layer.qkv, norm=(layer.attention_norm, eps))
            pages = cache.keys[index], cache.values[index]
            scale = None if scales is None else scales[index]
            attended = []
            for attend, batch, part in zip(
                (kernels.rotary_attention, kernels.rotary_prefill), batches, (qkv[:rows], qkv[rows:]), strict=True
            ):
                if batch is not None:
                    attended.append(attend(part, self._cos_sin, *pages, batch, heads, scale))
            x = linear(attended[0] if len(attended) == 1 else torch.cat(attended), layer.out, residual=x)
            inner = linear(x, layer.gate_up, norm=(layer.mlp_norm, eps), gated=True)
            x = linear(inner, layer.down, residual=x)
        return x

    def head(self, x: Tensor, needed: Tensor | None = None) -> Tensor:
        """Logits [T, V] of hidden states [T, C]; blocks of columns that are not `needed` are undefined."""
        weights = self._weights
        return self._kernels.linear(x, weights.head, norm=(weights.norm, weights.config.rms_norm_eps), needed=needed)

    def _batches(self, shape: Shape, cache: KVCache) -> tuple[AttentionBatch | None, AttentionBatch | None]:
        """Decode rows, then prefill rows, as attention takes them."""
        inputs, table = self._inputs, cache.page_table
        rows, end = shape.decode, shape.decode + shape.prefill
        decode = prefill = None
        if rows:
            offsets = self._decode_offsets[: rows + 1]
            decode = AttentionBatch(inputs.slots[:rows], inputs.starts[:rows], offsets, table, 1, shape.reach)
        if shape.prefill:
            prefill = AttentionBatch(
                inputs.slots[rows:end], inputs.starts[rows:end], inputs.offsets[: shape.prefill + 1], table,
                shape.longest, shape.reach,
            )  # fmt: skip
        return decode, prefill
