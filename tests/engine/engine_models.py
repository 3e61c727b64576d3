"""Random little Llamas, as the plain module and packed for an engine, and what is asked of engines in many tests."""

from dataclasses import dataclass

import torch
from torch import Tensor

from spiritrt.engine.engine import Engine
from spiritrt.engine.steps import Row
from spiritrt.engine.weights import ModelWeights, pack, unpack
from spiritrt.models.llama import Llama, LlamaConfig
from spiritrt.sampling import Sampling

SHAPES = {
    "mha": {},
    "gqa": {"num_key_value_heads": 2, "head_dim": 10, "rope_type": "linear", "rope_factor": 2.0},
    "mqa, tied": {"num_key_value_heads": 1, "tie_word_embeddings": True},
    "llama3, biases": {
        "num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True, "rope_type": "llama3", "rope_factor": 8.0,
        "rope_original_context": 128,
    },
}  # fmt: skip
VOCABULARY = 203
HOT = Sampling(temperature=1.3, top_p=0.9, top_k=80, min_p=0.001, repetition_penalty=1.2, seed=5)


def random_llama(layers: int = 3, context: int = 400, seed: int = 0, **changes: object) -> Llama:
    shape = {
        "vocab_size": VOCABULARY, "hidden_size": 40, "intermediate_size": 56, "num_hidden_layers": layers,
        "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8, "max_position_embeddings": context,
    } | changes  # fmt: skip
    llama = Llama(LlamaConfig(**shape)).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in llama.named_parameters():
        parameter.normal_(1.0 if "norm" in name else 0.0, 0.2, generator=generator)
    return llama


def packed(llama: Llama, weights: str = "fp32", device: str = "cpu") -> ModelWeights:
    return unpack(llama.config, pack(llama.config, llama.state_dict().items(), weights, device))


@dataclass(frozen=True)
class Pair:
    """A model twice: plain, the truth, and packed."""

    llama: Llama
    weights: ModelWeights

    def engine(self, slots: int = 4, tokens: int = 4000, **options: object) -> Engine:
        return Engine(self.weights, slots, tokens, progress=False, **options)

    @torch.inference_mode()
    def logprobs(self, ids: list[int]) -> Tensor:
        """After the last of `ids`, by the plain model."""
        return torch.log_softmax(self.llama(torch.tensor([ids]), last_only=True)[0, 0], -1)


def ids_of(count: int, seed: int = 0) -> tuple[int, ...]:
    return tuple(torch.randint(VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed)).tolist())


def drawn(engine: Engine, rows: list[Row]) -> list[tuple[int, float]]:
    step = engine.step(rows)
    assert step.ready
    return list(zip(step.ids, step.logprobs, strict=True))


def go_on(engine: Engine, slot: int, prompt: tuple[int, ...], count: int = 6) -> list[tuple[int, float]]:
    return [drawn(engine, [Row(slot, prompt)])[0], *(drawn(engine, [Row(slot)])[0] for _ in range(count - 1))]
