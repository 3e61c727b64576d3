"""The matrix products of a decode step as the engine calls them: norm before, SiLU or residual after, head sliced."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from spiritrt.bench.kernels.cases import NAMES, BenchCase, Problem, Setting
from spiritrt.kernels.linear import HEAD_BLOCK, LinearWeight, quantize


@dataclass(frozen=True, slots=True)
class Layer:
    """A product of `inner` columns with `outputs` rows; `columns` a token are written and `read` rows are needed."""

    name: str
    inner: int
    outputs: int
    read: int
    gated: bool = False
    normed: bool = False
    added: bool = False

    @property
    def columns(self) -> int:
        return self.outputs // 2 if self.gated else self.outputs


def layers(here: Setting) -> list[Layer]:
    config = here.preset.config
    width, inner, vocabulary = config.hidden_size, config.intermediate_size, config.vocab_size
    q, kv = (heads * config.head_dim for heads in (config.num_attention_heads, config.num_key_value_heads))
    speech = int(_needed(here).sum()) * HEAD_BLOCK
    return [
        Layer("qkv", width, q + 2 * kv, q + 2 * kv, normed=True),
        Layer("out", q, width, width, added=True),
        Layer("gate_up", width, 2 * inner, 2 * inner, gated=True, normed=True),
        Layer("down", inner, width, width, added=True),
        Layer("head", width, vocabulary, vocabulary, normed=True),
        Layer("speech_head", width, vocabulary, min(speech, vocabulary), normed=True),
    ]


def cases(here: Setting) -> Iterator[BenchCase]:
    item = here.activations.itemsize
    for layer in layers(here):
        for weights in here.weights:
            scale = 4 if weights in (torch.int8, torch.float8_e4m3fn) else 0
            for rows in here.rows:
                columns = layer.columns * layer.read // layer.outputs
                moved = layer.read * (layer.inner * weights.itemsize + scale) + rows * item * (layer.inner + columns)
                moved += layer.inner * item if layer.normed else 0
                moved += rows * columns * item if layer.added else 0
                yield BenchCase(
                    "linear", f"{layer.name} rows={rows} {layer.outputs}x{layer.inner}", NAMES[weights],
                    here.case(weights, rows=rows), partial(_make, here, layer, weights, rows), moved,
                    2 * rows * layer.read * layer.inner, here.tolerance,
                    importance=0 if rows == 1 else 1 if rows in (4, 64) else 2,
                )  # fmt: skip


def _make(here: Setting, layer: Layer, weights: torch.dtype, rows: int) -> Problem:
    generator = here.generator()
    config = here.preset.config
    x = here.random(rows, layer.inner, generator=generator)
    stored = here.random(layer.outputs, layer.inner, generator=generator) * layer.inner**-0.5
    name = NAMES[weights]
    weight = quantize(stored, name) if name in ("int8", "fp8") else LinearWeight(stored.to(weights))
    norm = (1 + 0.1 * here.random(layer.inner, generator=generator), config.rms_norm_eps) if layer.normed else None
    residual = here.random(rows, layer.columns, generator=generator) if layer.added else None
    if layer.name != "speech_head":
        return Problem((x, weight, norm, layer.gated, residual, None))
    needed = _needed(here)
    columns = needed.bool().repeat_interleave(HEAD_BLOCK)[: layer.outputs]
    return Problem((x, weight, norm, layer.gated, residual, needed), kept=lambda logits: logits[:, columns])


def _needed(here: Setting) -> Tensor:
    """Blocks of the head that hold an id of speech, [ceil(V / HEAD_BLOCK)] uint8."""
    speech = here.preset.speech
    needed = torch.zeros(-(-here.preset.config.vocab_size // HEAD_BLOCK), dtype=torch.uint8, device=here.device)
    needed[speech.start // HEAD_BLOCK : -(-speech.stop // HEAD_BLOCK)] = 1
    return needed
