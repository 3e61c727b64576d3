"""Style codes: a wav2vec2 sequence classifier, one code a second.

Parameter names are those of transformers' `Wav2Vec2ForSequenceClassification`, whose weights the official
`style_encoder_w2v2` folder holds; transformers itself is not needed, and nothing is fetched.

Source: wav2vec 2.0 (arXiv 2006.11477), base variant (norms after the sums).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spiritrt.models.hubert import SelfAttention
from spiritrt.models.waveform import check_waveform
from spiritrt.models.weights import config_integers, config_value, load_weights

FRAMES_PER_STYLE = 50  # 1 s
_VARIANCE_FLOOR = 1e-7
_UNSUPPORTED = ("do_stable_layer_norm", "add_adapter", "use_weighted_layer_sum")


@dataclass(frozen=True, slots=True)
class StyleConfig:
    """Shape of the classifier, in the words of transformers' `config.json`."""

    conv_dim: tuple[int, ...]
    conv_kernel: tuple[int, ...]
    conv_stride: tuple[int, ...]
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    classifier_proj_size: int
    num_labels: int
    num_conv_pos_embeddings: int = 128
    num_conv_pos_embedding_groups: int = 16
    conv_bias: bool = False
    feat_extract_norm: str = "group"
    layer_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if not self.conv_dim or not len(self.conv_dim) == len(self.conv_kernel) == len(self.conv_stride):
            raise ValueError(
                f"conv_dim {self.conv_dim}, conv_kernel {self.conv_kernel} and conv_stride "
                f"{self.conv_stride} must be of one length"
            )
        if self.feat_extract_norm not in ("group", "layer"):
            raise ValueError(f"feat_extract_norm must be 'group' or 'layer', got {self.feat_extract_norm!r}")
        for name in ("num_attention_heads", "num_conv_pos_embedding_groups"):
            if getattr(self, name) < 1 or self.hidden_size % getattr(self, name):
                raise ValueError(f"{name} {getattr(self, name)} does not divide hidden_size {self.hidden_size}")
        for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "classifier_proj_size", "num_labels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @classmethod
    def from_official(cls, config: Mapping[str, object]) -> "StyleConfig":
        """Read an official `config.json`.

        Raises:
            ValueError: a missing or mistyped word, or a variant of wav2vec2 other than base.
        """
        for key in _UNSUPPORTED:
            if config.get(key):
                raise ValueError(f"style config {key!r} = {config[key]!r} is not supported")
        for key in ("feat_extract_activation", "hidden_act"):
            if config.get(key, "gelu") != "gelu":
                raise ValueError(f"style config {key!r} must be 'gelu', got {config[key]!r}")
        labels = config.get("id2label")
        return cls(
            conv_dim=config_integers(config, "conv_dim"),
            conv_kernel=config_integers(config, "conv_kernel"),
            conv_stride=config_integers(config, "conv_stride"),
            hidden_size=config_value(config, "hidden_size", int),
            intermediate_size=config_value(config, "intermediate_size", int),
            num_hidden_layers=config_value(config, "num_hidden_layers", int),
            num_attention_heads=config_value(config, "num_attention_heads", int),
            classifier_proj_size=config_value(config, "classifier_proj_size", int),
            num_labels=len(labels) if isinstance(labels, Mapping) else config_value(config, "num_labels", int),
            num_conv_pos_embeddings=config_value(config, "num_conv_pos_embeddings", int, 128),
            num_conv_pos_embedding_groups=config_value(config, "num_conv_pos_embedding_groups", int, 16),
            conv_bias=config_value(config, "conv_bias", bool, False),
            feat_extract_norm=config_value(config, "feat_extract_norm", str, "group"),
            layer_norm_eps=config_value(config, "layer_norm_eps", float, 1e-5),
        )

    @property
    def receptive_samples(self) -> int:
        """The shortest sound that gives a frame, in samples."""
        samples = 1
        for kernel, stride in zip(reversed(self.conv_kernel), reversed(self.conv_stride), strict=True):
            samples = (samples - 1) * stride + kernel
        return samples


class StyleClassifier(nn.Module):
    """wav2vec2, projector and classifier."""

    def __init__(self, config: StyleConfig) -> None:
        super().__init__()
        self.config = config
        self.wav2vec2 = _Wav2Vec2(config)
        self.projector = nn.Linear(config.hidden_size, config.classifier_proj_size)
        self.classifier = nn.Linear(config.classifier_proj_size, config.num_labels)

    def forward(self, waveform: Tensor) -> Tensor:
        """Logits [B, seconds, num_labels] of `waveform` [B, N], float, 16 kHz; the last partial second counts.

        The waveform is brought to zero mean and unit variance over each row; rows must be of equal length.

        Raises:
            ValueError: a waveform too short for one frame.
        """
        if waveform.shape[-1] < self.config.receptive_samples:
            raise ValueError(
                f"waveform of {waveform.shape[-1]} samples is too short: one style needs "
                f"{self.config.receptive_samples}"
            )
        centred = waveform - waveform.mean(-1, keepdim=True)
        normalised = centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + _VARIANCE_FLOOR)
        frames = self.projector(self.wav2vec2(normalised))  # [B, T, D]
        pooled = torch.stack([block.mean(1) for block in frames.split(FRAMES_PER_STYLE, dim=1)], dim=1)
        return self.classifier(pooled)


def style_classifier_from_official(config: Mapping[str, object], tensors: Mapping[str, Tensor]) -> StyleClassifier:
    """Build the classifier in eval mode from the official `config.json` and `pytorch_model.bin`."""
    classifier = StyleClassifier(StyleConfig.from_official(config))
    load_weights(classifier, tensors, ignore=["wav2vec2.masked_spec_embed"])
    return classifier.eval()


@torch.no_grad()
def encode_style(classifier: StyleClassifier, waveform: Tensor) -> Tensor:
    """Style codes, int64 [seconds, rounded up], of one whole recording `waveform` [N], float, 16 kHz.

    Raises:
        ValueError: not one-dimensional, not floating point, too short for one frame (25 ms), NaN or infinite samples.
    """
    check_waveform(waveform, classifier.config.receptive_samples)
    return classifier(waveform[None])[0].argmax(-1)


class _Wav2Vec2(nn.Module):
    """Normalised waveform [B, N] to frames [B, T, hidden_size], 50 Hz."""

    def __init__(self, config: StyleConfig) -> None:
        super().__init__()
        self.feature_extractor = _FeatureExtractor(config)
        self.feature_projection = _FeatureProjection(config)
        self.encoder = _Encoder(config)

    def forward(self, waveform: Tensor) -> Tensor:
        return self.encoder(self.feature_projection(self.feature_extractor(waveform).transpose(1, 2)))


class _FeatureExtractor(nn.Module):
    def __init__(self, config: StyleConfig) -> None:
        super().__init__()
        channels = [1, *config.conv_dim]
        self.conv_layers = nn.ModuleList(_ConvLayer(config, i, *pair) for i, pair in enumerate(pairwise(channels)))

    def forward(self, waveform: Tensor) -> Tensor:
        x = waveform[:, None]
        for layer in self.conv_layers:
            x = layer(x)
        return x


class _ConvLayer(nn.Module):
    """Convolution, norm (over time in the first layer, or over channels in every layer), GELU."""

    def __init__(self, config: StyleConfig, index: int, inputs: int, outputs: int) -> None:
        super().__init__()
        kernel, stride = config.conv_kernel[index], config.conv_stride[index]
        self.conv = nn.Conv1d(inputs, outputs, kernel, stride, bias=config.conv_bias)
        self.layer_norm: nn.GroupNorm | nn.LayerNorm | None = None
        if config.feat_extract_norm == "layer":
            self.layer_norm = nn.LayerNorm(outputs)
        elif index == 0:
            self.layer_norm = nn.GroupNorm(outputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if isinstance(self.layer_norm, nn.LayerNorm):
            x = self.layer_norm(x.transpose(1, 2)).transpose(1, 2)
        elif self.layer_norm is not None:
            x = self.layer_norm(x)
        return F.gelu(x)


class _FeatureProjection(nn.Module):
    def __init__(self, config: StyleConfig) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(config.conv_dim[-1], eps=config.layer_norm_eps)
        self.projection = nn.Linear(config.conv_dim[-1], config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.projection(self.layer_norm(x))


class _Encoder(nn.Module):
    def __init__(self, config: StyleConfig) -> None:
        super().__init__()
        self.pos_conv_embed = _PositionalConv(config)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layers = nn.ModuleList(_EncoderLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer_norm(x + self.pos_conv_embed(x))
        for layer in self.layers:
            x = layer(x)
        return x


class _PositionalConv(nn.Module):
    """Grouped convolution over time; an even kernel gives one frame too many, and the last is dropped."""

    def __init__(self, config: StyleConfig) -> None:
        super().__init__()
        width, kernel = config.hidden_size, config.num_conv_pos_embeddings
        self.conv = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=config.num_conv_pos_embedding_groups)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.conv(x.transpose(1, 2))[..., : x.shape[1]]).transpose(1, 2)


class _EncoderLayer(nn.Module):
    def __init__(self, config: StyleConfig) -> None:
        super().__init__()
        self.attention = SelfAttention(config.hidden_size, config.num_attention_heads)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = _FeedForward(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer_norm(x + self.attention(x, None))
        return self.final_layer_norm(x + self.feed_forward(x))


class _FeedForward(nn.Module):
    def __init__(self, config: StyleConfig) -> None:
        super().__init__()
        self.intermediate_dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.output_dense = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.output_dense(F.gelu(self.intermediate_dense(x)))
