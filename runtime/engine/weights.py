"""The language model's weights as the engine's ops take them: q, k, v in one matrix, gate and up in another.

Weights come tensor by tensor and are copied, or quantized, into their place, so that loading needs little beyond what
stays: 13 GB for the 7B in bf16, 6.8 GB in int8.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from spiritrt.kernels.linear import LinearWeight, quantize
from spiritrt.models.llama import LlamaConfig

STORED = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
QUANTIZED = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
FORMATS = ("auto", *STORED, *QUANTIZED)  # "auto": each weight as the checkpoint stores it
LINEAR = ("qkv", "out", "gate_up", "down")
QUANTIZED_NUMBERS = 1 << 18  # at a time


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One decoder layer: RMSNorm weights [C], qkv [(H + 2 KV) * D, C], out, gate over up [2 * inner, C], down."""

    attention_norm: Tensor
    qkv: LinearWeight
    out: LinearWeight
    mlp_norm: Tensor
    gate_up: LinearWeight
    down: LinearWeight


@dataclass(frozen=True, slots=True)
class ModelWeights:
    """A whole Llama: embedding [V, C], layers, last norm [C] and head [V, C]. Activations are of `activations`."""

    config: LlamaConfig
    embedding: Tensor
    layers: tuple[LayerWeights, ...]
    norm: Tensor
    head: LinearWeight

    @property
    def activations(self) -> torch.dtype:
        return self.norm.dtype

    @property
    def device(self) -> torch.device:
        return self.norm.device

    @property
    def stored(self) -> torch.dtype:
        """How the linear layers are stored."""
        return self.head.data.dtype


@dataclass(frozen=True, slots=True)
class Place:
    """Where an official tensor goes: rows from `row` on of a packed tensor that has `rows` in all."""

    packed: str
    shape: tuple[int, ...]  # of the official tensor
    row: int = 0
    rows: int = 0

    def __post_init__(self) -> None:
        assert 0 <= self.row <= self.row + self.shape[0] <= self.rows


def places(config: LlamaConfig) -> dict[str, Place]:
    """Where each tensor of an official checkpoint of this shape goes, by its name; no other may be there."""
    width, inner, vocabulary = config.hidden_size, config.intermediate_size, config.vocab_size
    q, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    found = {
        "model.embed_tokens.weight": Place("embedding", (vocabulary, width), rows=vocabulary),
        "model.norm.weight": Place("norm", (width,), rows=width),
    }
    if not config.tie_word_embeddings:
        found["lm_head.weight"] = Place("head", (vocabulary, width), rows=vocabulary)
    for index in range(config.num_hidden_layers):
        official, packed = f"model.layers.{index}", f"layers.{index}"
        found[f"{official}.input_layernorm.weight"] = Place(f"{packed}.attention_norm", (width,), rows=width)
        found[f"{official}.post_attention_layernorm.weight"] = Place(f"{packed}.mlp_norm", (width,), rows=width)
        for name, target, columns, bias, row, rows, all_rows in (
            ("self_attn.q_proj", "qkv", width, config.attention_bias, 0, q, q + 2 * kv),
            ("self_attn.k_proj", "qkv", width, config.attention_bias, q, kv, q + 2 * kv),
            ("self_attn.v_proj", "qkv", width, config.attention_bias, q + kv, kv, q + 2 * kv),
            ("self_attn.o_proj", "out", q, config.attention_bias, 0, width, width),
            ("mlp.gate_proj", "gate_up", width, config.mlp_bias, 0, inner, 2 * inner),
            ("mlp.up_proj", "gate_up", width, config.mlp_bias, inner, inner, 2 * inner),
            ("mlp.down_proj", "down", inner, config.mlp_bias, 0, width, width),
        ):
            found[f"{official}.{name}.weight"] = Place(f"{packed}.{target}", (rows, columns), row, all_rows)
            if bias:
                found[f"{official}.{name}.bias"] = Place(f"{packed}.{target}.bias", (rows,), row, all_rows)
    return found


def pack(
    config: LlamaConfig,
    tensors: Iterable[tuple[str, Tensor]],
    weights: str = "auto",
    device: str | torch.device = "cpu",
) -> dict[str, Tensor]:
    """Packed tensors by name, on `device`, of official (name, tensor) pairs in any order, each read once.

    `weights` is one of `FORMATS`. int8 and fp8 have a scale a row (`<name>.scales`); embedding, norms and biases stay
    as stored. Raises ValueError for tensors that are missing, unknown or of a wrong shape.
    """
    if weights not in FORMATS:
        raise ValueError(f"weights must be one of {', '.join(FORMATS)}, got {weights!r}")
    wanted = places(config)
    packed: dict[str, Tensor] = {}
    if weights in QUANTIZED:
        # all at once, so that no temporary of the quantization leaves a hole between them
        for name, shape in packed_shapes(config).items():
            if _is_linear(name):
                packed[name] = torch.empty(shape, dtype=QUANTIZED[weights], device=device)
                packed[f"{name}.scales"] = torch.empty(shape[0], dtype=torch.float32, device=device)
    seen = set()
    unknown = []
    for name, tensor in tensors:
        if name not in wanted:
            if not _passed_over(name, config):
                unknown.append(name)
            continue
        place = wanted[name]
        if tuple(tensor.shape) != place.shape:
            raise ValueError(f"Llama: {name}: expected shape {place.shape}, got {tuple(tensor.shape)}")
        seen.add(name)
        if weights in QUANTIZED and _is_linear(place.packed):
            _put_quantized(packed, place.packed, place, tensor, weights, device)
        else:
            _put(packed, place.packed, place.rows, place.row, tensor, STORED.get(weights, tensor.dtype), device)
        if place.packed == "embedding" and config.tie_word_embeddings and weights in QUANTIZED:
            _put_quantized(packed, "head", place, tensor, weights, device)
    for problem, names in (("weights missing", sorted(wanted.keys() - seen)), ("unexpected weights", sorted(unknown))):
        if names:
            listing = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
            raise ValueError(f"Llama: {len(names)} {problem}: {listing}")
    return packed


def unpack(config: LlamaConfig, packed: Mapping[str, Tensor], activations: torch.dtype | None = None) -> ModelWeights:
    """The model of packed tensors.

    `activations` defaults to float32 on a CPU, else to how the embedding is stored. Raises ValueError where one is
    missing or has a wrong shape.
    """
    for name, shape in packed_shapes(config).items():
        if name not in packed:
            raise ValueError(f"no {name} among the packed weights")
        if tuple(packed[name].shape) != shape:
            raise ValueError(f"{name}: expected shape {shape}, got {tuple(packed[name].shape)}")
    embedding = packed["embedding"]
    dtype = activations or (torch.float32 if embedding.device.type == "cpu" else embedding.dtype)

    def linear(name: str) -> LinearWeight:
        bias = packed.get(f"{name}.bias")
        return LinearWeight(packed[name], packed.get(f"{name}.scales"), None if bias is None else bias.float())

    def layer(name: str) -> LayerWeights:
        norms = (packed[f"{name}.{norm}"].to(dtype) for norm in ("attention_norm", "mlp_norm"))
        return LayerWeights(next(norms), linear(f"{name}.qkv"), linear(f"{name}.out"), next(norms),
                            linear(f"{name}.gate_up"), linear(f"{name}.down"))  # fmt: skip

    return ModelWeights(
        config,
        embedding,
        tuple(layer(f"layers.{index}") for index in range(config.num_hidden_layers)),
        packed["norm"].to(dtype),
        linear("head") if "head" in packed else LinearWeight(embedding),
    )


def packed_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the packed tensors that every model of this configuration has, scales apart."""
    return {place.packed: (place.rows, *place.shape[1:]) for place in places(config).values()}


def random_tensors(config: LlamaConfig, dtype: torch.dtype, device: str, seed: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Official (name, tensor) pairs of random weights, for benchmarks of a shape of which there is no checkpoint."""
    generator = torch.Generator(device).manual_seed(seed)
    for name, place in places(config).items():
        if name.endswith("norm.weight"):
            yield name, torch.ones(place.shape, dtype=dtype, device=device)
        else:
            tensor = torch.empty(place.shape, dtype=dtype, device=device)
            yield name, tensor.normal_(0, place.shape[-1] ** -0.5, generator=generator)


def _is_linear(packed: str) -> bool:
    return packed == "head" or packed.rpartition(".")[2] in LINEAR


def _passed_over(name: str, config: LlamaConfig) -> bool:
    """Tensors that checkpoints hold besides: what old ones computed from the configuration, and a tied head."""
    return name.endswith(".rotary_emb.inv_freq") or (config.tie_word_embeddings and name == "lm_head.weight")


def _put(packed: dict[str, Tensor], name: str, rows: int, row: int, part: Tensor, dtype: torch.dtype,
         device: torch.device | str) -> None:  # fmt: skip
    """Copies rows to where they begin in a tensor that has `rows` in all."""
    if name not in packed:
        packed[name] = torch.empty((rows, *part.shape[1:]), dtype=dtype, device=device)
    packed[name][row : row + part.shape[0]] = part


def _put_quantized(packed: dict[str, Tensor], name: str, place: Place, part: Tensor, weights: str,
                   device: torch.device | str) -> None:  # fmt: skip
    """A row's scale is its own, so rows may be quantized in any groups: in small ones, which take little memory."""
    group = max(1, QUANTIZED_NUMBERS // part.shape[1])
    for first in range(0, len(part), group):
        quantized = quantize(part[first : first + group].to(device), weights)
        assert quantized.scales is not None
        for key, rows in ((name, quantized.data), (f"{name}.scales", quantized.scales)):
            _put(packed, key, place.rows, place.row + first, rows, rows.dtype, device)
