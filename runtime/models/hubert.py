"""HuBERT features and the quantizers that turn them into units: 16 kHz sound in, 25 units a second out.

Parameter names are those of the official checkpoint (`mhubert_base_25hz.pt`, `L11_quantizer_500.pt`), so that weights
load without renaming. Offline only: the GroupNorm, the positional convolution and the attention all look ahead.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spiritrt.models.conv_layers import ConvLayers, parse_conv_layers
from spiritrt.models.waveform import check_waveform
from spiritrt.models.weights import config_section, config_value, load_weights

CHUNK_SECONDS = 100
SHORTEST_CHUNK_SAMPLES = 1280  # 80 ms; a shorter tail is dropped
DEFAULT_OUTPUT_LAYER = 11

# what HuBERT was pre-trained with and inference never reads
_PRETRAINING_WEIGHTS = ("mask_emb", "final_proj.*", "label_embs_concat", "*quantizer.*", "project_q.*", "project_inp.*")
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu}


@dataclass(frozen=True, slots=True)
class HubertConfig:
    """Shape of a HuBERT encoder, in the official words; the defaults are fairseq's.

    `conv_layers` holds (channels, kernel, stride) of every feature convolution; `output_layer` is 1-based.
    """

    conv_layers: ConvLayers
    extractor_mode: str = "default"
    conv_bias: bool = False
    encoder_layers: int = 12
    encoder_embed_dim: int = 768
    encoder_ffn_embed_dim: int = 3072
    encoder_attention_heads: int = 12
    activation_fn: str = "gelu"
    layer_norm_first: bool = False
    conv_pos: int = 128
    conv_pos_groups: int = 16
    conv_pos_batch_norm: bool = False
    required_seq_len_multiple: int = 2
    sample_rate: int = 16000
    normalize: bool = False
    output_layer: int = DEFAULT_OUTPUT_LAYER

    def __post_init__(self) -> None:
        if not self.conv_layers or any(len(layer) != 3 or min(layer) < 1 for layer in self.conv_layers):
            raise ValueError(f"conv_layers must be (channels, kernel, stride) triples, got {self.conv_layers}")
        if self.extractor_mode not in ("default", "layer_norm"):
            raise ValueError(f"extractor_mode must be 'default' or 'layer_norm', got {self.extractor_mode!r}")
        if self.activation_fn not in _ACTIVATIONS:
            raise ValueError(f"activation_fn must be one of {sorted(_ACTIVATIONS)}, got {self.activation_fn!r}")
        for name in (
            "encoder_layers",
            "encoder_embed_dim",
            "encoder_ffn_embed_dim",
            "encoder_attention_heads",
            "conv_pos",
            "conv_pos_groups",
            "required_seq_len_multiple",
            "sample_rate",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("encoder_attention_heads", "conv_pos_groups"):
            if self.encoder_embed_dim % getattr(self, name):
                raise ValueError(
                    f"{name} {getattr(self, name)} does not divide encoder_embed_dim {self.encoder_embed_dim}"
                )
        if not 1 <= self.output_layer <= self.encoder_layers:
            raise ValueError(f"output_layer must be in 1..{self.encoder_layers}, got {self.output_layer}")

    @classmethod
    def from_official(cls, config: Mapping[str, object]) -> "HubertConfig":
        """Read `{"model_cfg": ..., "task_cfg": ..., "output_layer": 11}`; words that inference does not need are left.

        Raises:
            ValueError: a missing section, a value of the wrong type, a convolution list that is no plain arithmetic on
                lists, or a setting that changes the mathematics and is not supported.
        """
        model, task = config_section(config, "model_cfg"), config_section(config, "task_cfg")
        for key, supported in (("pos_conv_depth", 1), ("layer_type", "transformer")):
            if model.get(key, supported) != supported:
                raise ValueError(f"config {key!r} = {model[key]!r} is not supported, only {supported!r}")
        layers = model.get("conv_feature_layers")
        if not isinstance(layers, str | Sequence):
            raise ValueError(f"config has no 'conv_feature_layers' expression, got {layers!r}")
        return cls(
            conv_layers=parse_conv_layers(layers if isinstance(layers, str) else repr(list(layers))),
            extractor_mode=config_value(model, "extractor_mode", str, "default"),
            conv_bias=config_value(model, "conv_bias", bool, False),
            encoder_layers=config_value(model, "encoder_layers", int, 12),
            encoder_embed_dim=config_value(model, "encoder_embed_dim", int, 768),
            encoder_ffn_embed_dim=config_value(model, "encoder_ffn_embed_dim", int, 3072),
            encoder_attention_heads=config_value(model, "encoder_attention_heads", int, 12),
            activation_fn=config_value(model, "activation_fn", str, "gelu"),
            layer_norm_first=config_value(model, "layer_norm_first", bool, False),
            conv_pos=config_value(model, "conv_pos", int, 128),
            conv_pos_groups=config_value(model, "conv_pos_groups", int, 16),
            conv_pos_batch_norm=config_value(model, "conv_pos_batch_norm", bool, False),
            required_seq_len_multiple=config_value(model, "required_seq_len_multiple", int, 2),
            sample_rate=config_value(task, "sample_rate", int, 16000),
            normalize=config_value(task, "normalize", bool, False),
            output_layer=config_value(config, "output_layer", int, DEFAULT_OUTPUT_LAYER),
        )

    @property
    def hop_samples(self) -> int:
        """Samples from one frame to the next."""
        return prod(stride for _, _, stride in self.conv_layers)

    @property
    def receptive_samples(self) -> int:
        """Samples that one frame of the convolution stack sees: the shortest sound that gives a frame."""
        samples = 1
        for _, kernel, stride in reversed(self.conv_layers):
            samples = (samples - 1) * stride + kernel
        return samples


class Hubert(nn.Module):
    """HuBERT up to layer `config.output_layer`; the layers above it are not built.

    `dropout` acts on the two residual branches of each layer, in training only.
    """

    def __init__(self, config: HubertConfig, dropout: float = 0.0) -> None:
        super().__init__()
        self.config = config
        conv_width, width = config.conv_layers[-1][0], config.encoder_embed_dim
        self.feature_extractor = FeatureExtractor(config)
        self.layer_norm = nn.LayerNorm(conv_width)
        self.post_extract_proj = nn.Linear(conv_width, width) if conv_width != width else nn.Identity()
        self.encoder = Encoder(config, dropout)

    def forward(self, waveform: Tensor) -> Tensor:
        """Features of `waveform` [B, N], float, 16 kHz: [B, T, encoder_embed_dim], one frame each `hop_samples`.

        Rows must be of equal length: padding one with zeros changes its units. Where the config says `normalize`, the
        caller does it, over the whole recording (`encode_features` does).

        Raises:
            ValueError: another number of dimensions, or a waveform too short for one frame.
        """
        if waveform.dim() != 2:
            raise ValueError(f"waveform must be [batch, samples], got shape {tuple(waveform.shape)}")
        if waveform.shape[1] < self.config.receptive_samples:
            raise ValueError(
                f"waveform of {waveform.shape[1]} samples is too short: one frame needs {self.config.receptive_samples}"
            )
        x = self.feature_extractor(waveform).transpose(1, 2)
        return self.encoder(self.post_extract_proj(self.layer_norm(x)))


class FeatureExtractor(nn.Module):
    """The convolution stack: waveform [B, N] to [B, C, T]."""

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        self.conv_layers = nn.ModuleList()
        in_channels = 1
        for i, (channels, kernel, stride) in enumerate(config.conv_layers):
            conv = nn.Conv1d(in_channels, channels, kernel, stride, bias=config.conv_bias)
            nn.init.kaiming_normal_(conv.weight)
            # index 1 is the place of fairseq's dropout
            block: list[nn.Module] = [conv, nn.Identity()]
            if config.extractor_mode == "layer_norm":
                block.append(nn.Sequential(_SwapTimeAndChannels(), _Fp32LayerNorm(channels), _SwapTimeAndChannels()))
            elif i == 0:
                block.append(_Fp32GroupNorm(channels, channels))
            self.conv_layers.append(nn.Sequential(*block, nn.GELU()))
            in_channels = channels

    def forward(self, waveform: Tensor) -> Tensor:
        x = waveform[:, None]
        for layer in self.conv_layers:
            x = layer(x)
        return x


class Encoder(nn.Module):
    """Positional convolution and transformer layers on [B, T, D]."""

    def __init__(self, config: HubertConfig, dropout: float = 0.0) -> None:
        super().__init__()
        self.config = config
        width, kernel = config.encoder_embed_dim, config.conv_pos
        conv = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=config.conv_pos_groups)
        nn.init.normal_(conv.weight, std=(4 / (kernel * width)) ** 0.5)
        before: list[nn.Module] = [nn.BatchNorm1d(width)] if config.conv_pos_batch_norm else []
        self.pos_conv = nn.Sequential(*before, conv, _DropLast(1 - kernel % 2), nn.GELU())
        self.layer_norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(EncoderLayer(config, dropout) for _ in range(config.output_layer))

    def forward(self, x: Tensor, sees: Tensor | None = None) -> Tensor:
        """[B, T, D] to [B, T, D]; `sees` [T, T], bool: which frames (columns) each may attend to, by default all."""
        x = x + self.pos_conv(x.transpose(1, 2)).transpose(1, 2)
        if not self.config.layer_norm_first:
            x = self.layer_norm(x)
        frames = x.shape[1]
        padding = -frames % self.config.required_seq_len_multiple
        mask = sees
        if padding:
            if sees is not None:
                raise ValueError(f"a mask needs whole blocks: {frames} frames, blocks of {frames + padding}")
            x = F.pad(x, (0, 0, 0, padding))
            mask = (torch.arange(frames + padding, device=x.device) < frames)[None, None, None]  # [1, 1, 1, T]
        for layer in self.layers:
            x = layer(x, mask)
        return x[:, :frames]


class EncoderLayer(nn.Module):
    """Attention and feed-forward with residuals; norms after the sums, or before the branches (`layer_norm_first`)."""

    def __init__(self, config: HubertConfig, dropout: float = 0.0) -> None:
        super().__init__()
        width, inner = config.encoder_embed_dim, config.encoder_ffn_embed_dim
        self.norm_first = config.layer_norm_first
        self.activation = _ACTIVATIONS[config.activation_fn]
        self.self_attn = SelfAttention(width, config.encoder_attention_heads)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)
        self.final_layer_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        if self.norm_first:
            x = x + self.dropout(self.self_attn(self.self_attn_layer_norm(x), mask))
            return x + self.dropout(self.feed_forward(self.final_layer_norm(x)))
        x = self.self_attn_layer_norm(x + self.dropout(self.self_attn(x, mask)))
        return self.final_layer_norm(x + self.dropout(self.feed_forward(x)))

    def feed_forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class SelfAttention(nn.Module):
    """Full attention with biased projections."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        batch, frames, width = x.shape
        q, k, v = (
            proj(x).view(batch, frames, self.heads, -1).transpose(1, 2)  # [B, H, T, D]
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out_proj(out.transpose(1, 2).reshape(batch, frames, width))


class LinearQuantizer(nn.Sequential):
    """Features [..., dim] to logits [..., vocab_size + 1]; the last class is the CTC blank and never a unit."""

    def __init__(self, dim: int, upstream_dim: int, vocab_size: int) -> None:
        classes = vocab_size + 1
        middle = upstream_dim - classes
        first, second = dim - middle // 4, dim - middle // 2  # floor division, also below zero
        if min(dim, vocab_size, first, second) < 1:
            raise ValueError(
                f"quantizer widths must be positive, got dim {dim}, hidden {first} and {second}, "
                f"vocab_size {vocab_size}"
            )
        super().__init__(
            nn.Linear(dim, first), nn.LeakyReLU(), nn.Linear(first, second), nn.LeakyReLU(), nn.Linear(second, classes)
        )
        self.blank: int | None = vocab_size


class KMeansQuantizer(nn.Module):
    """Features [..., D] to logits [..., K]: minus the squared distance to each centre. There is no blank."""

    def __init__(self, dim: int, n_clusters: int) -> None:
        super().__init__()
        self.blank: int | None = None
        self.cluster_centers = nn.Parameter(torch.zeros(n_clusters, dim))

    def forward(self, features: Tensor) -> Tensor:
        flat = features.reshape(-1, features.shape[-1])
        # cdist without its matrix product form: differences of large squares would decide close calls
        distance = torch.cdist(flat, self.cluster_centers, compute_mode="donot_use_mm_for_euclid_dist")
        return -distance.square().view(*features.shape[:-1], -1)


def hubert_from_official(config: Mapping[str, object], tensors: Mapping[str, Tensor]) -> Hubert:
    """Build a HuBERT in eval mode from `{"model_cfg", "task_cfg", "output_layer"}` and the official `model_weight`."""
    parsed = HubertConfig.from_official(config)
    hubert = Hubert(parsed)
    unused = [f"encoder.layers.{n}.*" for n in range(parsed.output_layer, parsed.encoder_layers)]
    load_weights(hubert, tensors, ignore=[*_PRETRAINING_WEIGHTS, *unused])
    return hubert.eval()


def quantizer_from_official(
    config: Mapping[str, object], tensors: Mapping[str, Tensor]
) -> LinearQuantizer | KMeansQuantizer:
    """Build the quantizer that a checkpoint holds, in eval mode.

    Args:
        config: `{"model_cfg": {...}}`, or what is inside it: `n_clusters` for k-means, or `vocab_size`,
            `dim` and `upstream_dim` for a linear quantizer.
        tensors: `model_weight`; for k-means `{"cluster_centers": [n_clusters, D]}`.
    """
    model = config_section(config, "model_cfg") if "model_cfg" in config else config
    quantizer: LinearQuantizer | KMeansQuantizer
    clusters = model.get("n_clusters", config.get("n_clusters"))
    if clusters is not None:
        centres = tensors.get("cluster_centers")
        if not isinstance(centres, Tensor) or centres.dim() != 2:
            raise ValueError("a k-means quantizer needs 'cluster_centers' of shape [n_clusters, dim]")
        quantizer = KMeansQuantizer(centres.shape[1], config_value({"n_clusters": clusters}, "n_clusters", int))
    else:
        quantizer = LinearQuantizer(*(config_value(model, key, int) for key in ("dim", "upstream_dim", "vocab_size")))
    load_weights(quantizer, tensors)
    return quantizer.eval()


def encode_features(hubert: Hubert, waveform: Tensor) -> Tensor:
    """Features [T, D] of one whole recording `waveform` [N], float, 16 kHz.

    It is normalised where the config says so, cut in chunks of 100 s, and a last chunk under 1280 samples (80 ms) is
    dropped.

    Raises:
        ValueError: not one-dimensional, not floating point, under 1280 samples, or with NaN or infinite samples.
    """
    check_waveform(waveform, SHORTEST_CHUNK_SAMPLES)
    if hubert.config.normalize:
        waveform = F.layer_norm(waveform, waveform.shape)
    chunks = waveform.split(CHUNK_SECONDS * hubert.config.sample_rate)
    return torch.cat([hubert(chunk[None])[0] for chunk in chunks if len(chunk) >= SHORTEST_CHUNK_SAMPLES])


@torch.no_grad()
def encode_units(hubert: Hubert, quantizer: LinearQuantizer | KMeansQuantizer, waveform: Tensor) -> Tensor:
    """Units [T], int64, one a frame (25 Hz), of one whole recording `waveform` [N], float, 16 kHz.

    Raises what `encode_features` raises; see `units_from_logits` for blanks.
    """
    return units_from_logits(quantizer(encode_features(hubert, waveform)), quantizer.blank)


def units_from_logits(logits: Tensor, blank: int | None) -> Tensor:
    """Best class of each frame of `logits` [T, K], int64 [T]; a `blank` takes the unit to its left.

    Blanks at the very start take the LAST unit of the utterance, as the public code's circular roll does. Where every
    frame is blank there is nothing to take, and each frame gets its best class other than blank.
    """
    units = logits.argmax(-1)
    if blank is None or not len(units):
        return units
    is_unit = units != blank
    if not is_unit.any():
        return logits.index_fill(-1, torch.tensor([blank], device=logits.device), -torch.inf).argmax(-1)
    positions = torch.arange(len(units), device=units.device)
    nearest = torch.where(is_unit, positions, -1).cummax(0).values
    return units[torch.where(nearest < 0, nearest.max(), nearest)]


def unit_margins(logits: Tensor) -> Tensor:
    """Best minus second-best logit [T] of `logits` [T, K]: below 1e-3 another order of sums may flip the unit."""
    best = logits.topk(2, dim=-1).values
    return best[..., 0] - best[..., 1]


class _Fp32GroupNorm(nn.GroupNorm):
    def forward(self, input: Tensor) -> Tensor:
        weight, bias = self.weight.float(), self.bias.float()
        return F.group_norm(input.float(), self.num_groups, weight, bias, self.eps).to(input.dtype)


class _Fp32LayerNorm(nn.LayerNorm):
    def forward(self, input: Tensor) -> Tensor:
        weight, bias = self.weight.float(), self.bias.float()
        return F.layer_norm(input.float(), self.normalized_shape, weight, bias, self.eps).to(input.dtype)


class _SwapTimeAndChannels(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(-2, -1)


class _DropLast(nn.Module):
    def __init__(self, frames: int) -> None:
        super().__init__()
        self.frames = frames

    def forward(self, x: Tensor) -> Tensor:
        return x[..., : x.shape[-1] - self.frames]
