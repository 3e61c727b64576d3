"""The language model: a Llama decoder with a key-value cache, in plain PyTorch.

Any Llama shape loads: grouped-query attention, tied heads, `linear` and `llama3` position scaling. Parameter names are
those of Hugging Face's `LlamaForCausalLM`, so official weights need no renaming.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spiritrt.models.weights import config_value


@dataclass(frozen=True, slots=True)
class LlamaConfig:
    """Shape of a Llama decoder; the names are those of Hugging Face's `config.json`."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_type: str = "default"
    rope_factor: float = 1.0
    rope_low_frequency_factor: float = 1.0
    rope_high_frequency_factor: float = 4.0
    rope_original_context: int = 8192
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                 "num_key_value_heads", "head_dim", "max_position_embeddings")  # fmt: skip
        for name in sizes:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even for rotary embeddings, got {self.head_dim}")
        if self.rope_type not in ("default", "linear", "llama3"):
            raise ValueError(f"rope_type must be default, linear or llama3, got {self.rope_type!r}")

    @classmethod
    def from_official(cls, config: dict) -> "LlamaConfig":
        """Reads the dictionary of a Hugging Face Llama `config.json` (transformers 4 and 5 spellings).

        Raises ValueError for an architecture or activation that is not Llama's.
        """
        if config.get("model_type", "llama") != "llama":
            raise ValueError(f"model_type must be 'llama', got {config['model_type']!r}")
        if config.get("hidden_act", "silu") != "silu":
            raise ValueError(f"hidden_act must be 'silu', got {config['hidden_act']!r}")
        heads = config_value(config, "num_attention_heads", int)
        width = config_value(config, "hidden_size", int)
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        if not isinstance(rope, dict):
            raise ValueError(f"rope_scaling must be an object, got {rope!r}")
        return cls(
            vocab_size=config_value(config, "vocab_size", int),
            hidden_size=width,
            intermediate_size=config_value(config, "intermediate_size", int),
            num_hidden_layers=config_value(config, "num_hidden_layers", int),
            num_attention_heads=heads,
            num_key_value_heads=config_value(config, "num_key_value_heads", int, heads),
            head_dim=config_value(config, "head_dim", int, width // max(heads, 1)),
            max_position_embeddings=config_value(config, "max_position_embeddings", int, 2048),
            rms_norm_eps=config_value(config, "rms_norm_eps", float, 1e-6),
            rope_theta=config_value(rope, "rope_theta", float, config_value(config, "rope_theta", float, 10000.0)),
            rope_type=config_value(rope, "rope_type", str, config_value(rope, "type", str, "default")),
            rope_factor=config_value(rope, "factor", float, 1.0),
            rope_low_frequency_factor=config_value(rope, "low_freq_factor", float, 1.0),
            rope_high_frequency_factor=config_value(rope, "high_freq_factor", float, 4.0),
            rope_original_context=config_value(rope, "original_max_position_embeddings", int, 8192),
            tie_word_embeddings=config_value(config, "tie_word_embeddings", bool, False),
            attention_bias=config_value(config, "attention_bias", bool, False),
            mlp_bias=config_value(config, "mlp_bias", bool, False),
        )


class KeyValueCache:
    """Keys and values of one sequence, allocated once for `capacity` tokens.

    `keys` and `values` are [layers, capacity, key-value heads, head_dim]; `length` counts the tokens held.
    """

    def __init__(self, config: LlamaConfig, capacity: int, dtype: torch.dtype, device: torch.device) -> None:
        shape = (config.num_hidden_layers, capacity, config.num_key_value_heads, config.head_dim)
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)
        self.capacity = capacity
        self.length = 0

    def truncate(self, length: int) -> None:
        """Forgets every token from position `length` on. Raises ValueError when fewer are held."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot truncate to {length} tokens: the cache holds {self.length}")
        self.length = length


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x32 = x.float()
        x32 = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * x32.to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates x [B, T, H, D] by the angles whose cosine and sine are [B or 1, T, 1, D]; the halves of D pair up."""
    half = x.shape[-1] // 2
    flipped = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos + flipped * sin


class Attention(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        width, bias = config.hidden_size, config.attention_bias
        self.q_proj = nn.Linear(width, self.heads * self.head_dim, bias=bias)
        self.k_proj = nn.Linear(width, self.kv_heads * self.head_dim, bias=bias)
        self.v_proj = nn.Linear(width, self.kv_heads * self.head_dim, bias=bias)
        self.o_proj = nn.Linear(self.heads * self.head_dim, width, bias=bias)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, cache: KeyValueCache | None, layer: int, mask: Tensor | None
    ) -> Tensor:
        batch, length, _ = x.shape
        q = rotate(self.q_proj(x).view(batch, length, self.heads, self.head_dim), cos, sin)
        k = rotate(self.k_proj(x).view(batch, length, self.kv_heads, self.head_dim), cos, sin)
        v = self.v_proj(x).view(batch, length, self.kv_heads, self.head_dim)
        if cache is not None:
            start, end = cache.length, cache.length + length
            cache.keys[layer, start:end] = k[0]
            cache.values[layer, start:end] = v[0]
            k, v = cache.keys[layer, :end].unsqueeze(0), cache.values[layer, :end].unsqueeze(0)
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2),  # [B, H, T, D]
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=mask,
            is_causal=mask is None and length > 1,
            enable_gqa=self.heads != self.kv_heads,
        )
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))


class FeedForward(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        width, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = nn.Linear(width, inner, bias=bias)
        self.up_proj = nn.Linear(width, inner, bias=bias)
        self.down_proj = nn.Linear(inner, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = FeedForward(config)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, cache: KeyValueCache | None, layer: int, mask: Tensor | None
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, cache, layer, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class Trunk(nn.Module):
    """Embedding, layers and last norm; a module of its own because official names begin with `model.`."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Llama(nn.Module):
    """A Llama decoder. `forward` takes ids [B, T] and gives logits [B, T, vocab_size].

    With a `cache` (batch 1 only) the ids continue the cached sequence and are appended to it. `last_only` computes the
    head for the last position alone: logits [B, 1, vocab_size]. For training, `mask` [B, 1, T, T] (True: may attend)
    replaces the causal mask, and `positions` [B, T] the consecutive ones.
    """

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Trunk(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        self._frequencies: Tensor | None = None

    def new_cache(self, capacity: int | None = None) -> KeyValueCache:
        """An empty cache for one sequence of up to `capacity` tokens (default: the model's context)."""
        weight = self.model.norm.weight
        return KeyValueCache(self.config, capacity or self.config.max_position_embeddings, weight.dtype, weight.device)

    def forward(
        self,
        ids: Tensor,
        cache: KeyValueCache | None = None,
        last_only: bool = False,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        start = 0
        if cache is not None:
            start = cache.length
            if start + ids.shape[1] > cache.capacity:
                raise ValueError(f"{start} cached and {ids.shape[1]} new tokens exceed the cache's {cache.capacity}")
        if positions is None:
            positions = torch.arange(start, start + ids.shape[1], device=ids.device).unsqueeze(0)
        x = self.model.embed_tokens(ids)
        cos, sin = self._rotations(positions, x.dtype)
        if mask is None and start > 0 and ids.shape[1] > 1:
            mask = torch.arange(start + ids.shape[1], device=ids.device)[None, :] <= positions[0][:, None]
        for index, layer in enumerate(self.model.layers):
            x = layer(x, cos, sin, cache, index, mask)
        if cache is not None:
            cache.length += ids.shape[1]
        if last_only:
            x = x[:, -1:]
        return self.lm_head(self.model.norm(x))

    def _rotations(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        if self._frequencies is None or self._frequencies.device != positions.device:
            self._frequencies = rotary_frequencies(self.config).to(positions.device)
        angles = positions[..., None].float() * self._frequencies
        angles = torch.cat((angles, angles), dim=-1).unsqueeze(2)
        return angles.cos().to(dtype), angles.sin().to(dtype)


def rotary_frequencies(config: LlamaConfig) -> Tensor:
    """Angular frequency of each pair of head dimensions [head_dim // 2], in radians a position.

    `llama3` stretches the low frequencies by `rope_factor` and blends in between (Llama 3.1 model card).
    """
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    frequencies = 1.0 / (config.rope_theta**exponents)
    if config.rope_type == "linear":
        return frequencies / config.rope_factor
    if config.rope_type == "llama3":
        turns = config.rope_original_context * frequencies / (2 * math.pi)
        low, high = config.rope_low_frequency_factor, config.rope_high_frequency_factor
        blend = ((turns - low) / (high - low)).clamp(0, 1)
        return (1 - blend) * frequencies / config.rope_factor + blend * frequencies
    return frequencies
