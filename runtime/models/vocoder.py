"""Unit HiFi-GAN: phonetic units, with pitch and style where it was trained on them, to 16 kHz sound.

Parameter names are those of the official `generator.pt`, weight norm folded. A frame of 640 samples depends on about 20
frames on each side (`VocoderConfig.context_frames` has the exact numbers).

Source: HiFi-GAN (arXiv 2010.05646), with units for spectrograms (arXiv 2104.00355).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spiritrt.models.weights import config_integers, config_section, config_value, fold_weight_norm, load_weights

__all__ = [
    "Vocoder",
    "VocoderConfig",
    "fold_weight_norm",
    "vocode_expanded",
    "vocode_frames",
    "vocode_units",
    "vocoder_from_official",
]

DEFAULT_SPEAKER = 2
DEFAULT_NAMED_STYLE = 8
LONGEST_UNIT_FRAMES = 500  # 20 s: a broken duration predictor must not fill the memory
_SLOPE = 0.1
_LAST_SLOPE = 0.01


@dataclass(frozen=True, slots=True)
class VocoderConfig:
    """Shape of a unit HiFi-GAN, in the words of the official `config.json`.

    A count of 0 means that the vocoder has no such input: `num_speakers`, `num_styles` (named styles, Base),
    `num_f0_tokens` and `num_style_tokens` (codes, Expressive), `var_pred_hidden_dim` (duration predictor).
    """

    upsample_rates: tuple[int, ...]
    upsample_kernel_sizes: tuple[int, ...]
    upsample_initial_channel: int
    resblock_kernel_sizes: tuple[int, ...]
    resblock_dilation_sizes: tuple[tuple[int, ...], ...]
    num_embeddings: int
    embedding_dim: int
    num_speakers: int = 0
    num_styles: int = 0
    num_f0_tokens: int = 0
    num_style_tokens: int = 0
    f0_hop_size: int = 1280
    style_hop_size: int = 16000
    sampling_rate: int = 16000
    var_pred_hidden_dim: int = 0
    var_pred_kernel_size: int = 3
    var_pred_dropout: float = 0.0

    def __post_init__(self) -> None:
        for first, second in (
            ("upsample_rates", "upsample_kernel_sizes"),
            ("resblock_kernel_sizes", "resblock_dilation_sizes"),
        ):
            if not getattr(self, first) or len(getattr(self, first)) != len(getattr(self, second)):
                raise ValueError(f"{first} {getattr(self, first)} and {second} {getattr(self, second)} must pair up")
        for rate, kernel in zip(self.upsample_rates, self.upsample_kernel_sizes, strict=True):
            if rate < 1 or kernel < rate or (kernel - rate) % 2:
                raise ValueError(f"upsampling by {rate} needs a kernel larger by an even number, got {kernel}")
        stages = len(self.upsample_rates)
        if self.upsample_initial_channel >> stages < 1:
            raise ValueError(
                f"upsample_initial_channel {self.upsample_initial_channel} cannot be halved {stages} times"
            )
        if any(kernel < 1 or kernel % 2 == 0 for kernel in (*self.resblock_kernel_sizes, self.var_pred_kernel_size)):
            raise ValueError(
                f"resblock_kernel_sizes and var_pred_kernel_size must be odd, got {self.resblock_kernel_sizes} and "
                f"{self.var_pred_kernel_size}"
            )
        if any(dilation < 1 for dilations in self.resblock_dilation_sizes for dilation in dilations):
            raise ValueError(f"resblock_dilation_sizes must be positive, got {self.resblock_dilation_sizes}")
        for name in ("num_embeddings", "embedding_dim", "sampling_rate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("num_speakers", "num_styles", "num_f0_tokens", "num_style_tokens", "var_pred_hidden_dim"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name, count in (("f0_hop_size", self.num_f0_tokens), ("style_hop_size", self.num_style_tokens)):
            hop = getattr(self, name)
            if count and (hop < 1 or hop % self.hop_samples):
                raise ValueError(f"{name} {hop} is no multiple of the hop of {self.hop_samples} samples")

    @classmethod
    def from_official(cls, config: Mapping[str, object]) -> "VocoderConfig":
        """Read an official `config.json`.

        Raises:
            ValueError: a missing or mistyped word, a kind of vocoder that is not supported, or sizes that contradict
                each other (`code_hop_size`, `model_in_dim`).
        """
        for key, supported in (("resblock", ("1", 1, None)), ("f0", (None, False))):
            if config.get(key) not in supported:
                raise ValueError(f"vocoder config {key!r} = {config[key]!r} is not supported, only {supported[0]!r}")
        dilations = config.get("resblock_dilation_sizes")
        if not isinstance(dilations, Sequence):
            raise ValueError(f"config 'resblock_dilation_sizes' must be a list of lists, got {dilations!r}")
        embedding_dim = config_value(config, "embedding_dim", int)
        hidden, kernel, dropout = 0, 3, 0.0
        if config.get("dur_predictor_params"):
            duration = config_section(config, "dur_predictor_params")
            hidden = config_value(duration, "var_pred_hidden_dim", int)
            kernel = config_value(duration, "var_pred_kernel_size", int, kernel)
            dropout = config_value(duration, "var_pred_dropout", float, dropout)
            width = config_value(duration, "encoder_embed_dim", int, embedding_dim)
            if width != embedding_dim:
                raise ValueError(
                    f"dur_predictor_params.encoder_embed_dim {width} differs from embedding_dim {embedding_dim}"
                )
        parsed = cls(
            upsample_rates=config_integers(config, "upsample_rates"),
            upsample_kernel_sizes=config_integers(config, "upsample_kernel_sizes"),
            upsample_initial_channel=config_value(config, "upsample_initial_channel", int),
            resblock_kernel_sizes=config_integers(config, "resblock_kernel_sizes"),
            resblock_dilation_sizes=tuple(config_integers({"dilations": row}, "dilations") for row in dilations),
            num_embeddings=config_value(config, "num_embeddings", int),
            embedding_dim=embedding_dim,
            num_speakers=config_value(config, "num_speakers", int) if config.get("multispkr") else 0,
            num_styles=config_value(config, "num_styles", int) if config.get("multistyle") else 0,
            num_f0_tokens=config_value(config, "num_f0_tokens", int, 0),
            num_style_tokens=config_value(config, "num_style_tokens", int, 0),
            f0_hop_size=config_value(config, "f0_hop_size", int, 1280),
            style_hop_size=config_value(config, "style_hop_size", int, 16000),
            sampling_rate=config_value(config, "sampling_rate", int, 16000),
            var_pred_hidden_dim=hidden,
            var_pred_kernel_size=kernel,
            var_pred_dropout=dropout,
        )
        for key, derived in (("code_hop_size", parsed.hop_samples), ("model_in_dim", parsed.model_in_dim)):
            if config_value(config, key, int, derived) != derived:
                raise ValueError(f"config {key!r} is {config[key]}, but the other words make it {derived}")
        return parsed

    @property
    def hop_samples(self) -> int:
        """Samples of one unit frame."""
        return prod(self.upsample_rates)

    @property
    def model_in_dim(self) -> int:
        """Channels that enter `conv_pre`: one embedding for each kind of input."""
        kinds = (self.num_f0_tokens, self.num_style_tokens, self.num_speakers, self.num_styles)
        return self.embedding_dim * (1 + sum(count > 0 for count in kinds))

    @property
    def default_speaker(self) -> int:
        """2, or the last speaker where there are fewer."""
        return max(0, min(DEFAULT_SPEAKER, self.num_speakers - 1))

    @property
    def default_named_style(self) -> int:
        """8, or the last named style where there are fewer."""
        return max(0, min(DEFAULT_NAMED_STYLE, self.num_styles - 1))

    @property
    def context_frames(self) -> tuple[int, int]:
        """Frames (before, after) a frame that its samples depend on."""
        first, last = 0, self.hop_samples - 1
        first, last = first - 3, last + 3  # conv_post
        widest = max(
            sum((kernel - 1) // 2 * (dilation + 1) for dilation in dilations)
            for kernel, dilations in zip(self.resblock_kernel_sizes, self.resblock_dilation_sizes, strict=True)
        )
        for rate, kernel in reversed(list(zip(self.upsample_rates, self.upsample_kernel_sizes, strict=True))):
            padding = (kernel - rate) // 2
            first, last = first - widest, last + widest
            first, last = -((kernel - 1 - padding - first) // rate), (last + padding) // rate
        return 3 - first, last + 3


class Vocoder(nn.Module):
    """Unit HiFi-GAN with its duration predictor."""

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        self.config = config
        width, channels = config.embedding_dim, config.upsample_initial_channel
        self.dict = nn.Embedding(config.num_embeddings, width)
        self.f0_dict = nn.Embedding(config.num_f0_tokens, width) if config.num_f0_tokens else None
        self.style_dict = nn.Embedding(config.num_style_tokens, width) if config.num_style_tokens else None
        self.spkr = nn.Embedding(config.num_speakers, width) if config.num_speakers else None
        self.style = nn.Embedding(config.num_styles, width) if config.num_styles else None
        self.conv_pre = nn.Conv1d(config.model_in_dim, channels, 7, padding=3)
        self.ups = nn.ModuleList()
        self.resblocks = nn.ModuleList()
        for rate, kernel in zip(config.upsample_rates, config.upsample_kernel_sizes, strict=True):
            padding = (kernel - rate) // 2
            self.ups.append(nn.ConvTranspose1d(channels, channels // 2, kernel, rate, padding=padding))
            channels //= 2
            self.resblocks.extend(
                ResidualBlock(channels, size, dilations)
                for size, dilations in zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True)
            )
        self.conv_post = nn.Conv1d(channels, 1, 7, padding=3)
        for module in [self.conv_post, *self.ups.modules(), *self.resblocks.modules()]:
            if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
                nn.init.normal_(module.weight, std=0.01)
        self.dur_predictor = DurationPredictor(config) if config.var_pred_hidden_dim else None

    def forward(
        self,
        units: Tensor,
        speaker: Tensor | None = None,
        named_style: Tensor | None = None,
        pitch: Tensor | None = None,
        style: Tensor | None = None,
    ) -> Tensor:
        """Sound [B, T * hop_samples] in -1..1 of frames of `units` [B, T], int64.

        `speaker` [B] and `named_style` [B] default to the config's; `pitch` and `style` [B, T] are codes, one a frame,
        and must be given exactly where the vocoder has them. Ids are not checked here: `vocode_units` and
        `vocode_frames` do.
        """
        batch, frames = units.shape
        parts = [self.dict(units)]
        for name, table, codes in (("pitch", self.f0_dict, pitch), ("style", self.style_dict, style)):
            if (table is None) != (codes is None):
                raise ValueError(f"this vocoder {'takes no' if table is None else 'needs'} {name} codes")
            if table is not None:
                parts.append(table(codes))
        for name, table, index, default in (
            ("speaker", self.spkr, speaker, self.config.default_speaker),
            ("named_style", self.style, named_style, self.config.default_named_style),
        ):
            if table is None:
                if index is not None:
                    raise ValueError(f"this vocoder has no {name}")
                continue
            index = units.new_full((batch,), default) if index is None else index
            parts.append(table(index)[:, None].expand(-1, frames, -1))
        x = self.conv_pre(torch.cat(parts, dim=-1).transpose(1, 2))  # [B, C, T]
        per_stage = len(self.config.resblock_kernel_sizes)
        for i, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, _SLOPE))
            first, *others = self.resblocks[i * per_stage : (i + 1) * per_stage]
            total = first(x)
            for block in others:
                total = total + block(x)
            x = total / per_stage
        return torch.tanh(self.conv_post(F.leaky_relu(x, _LAST_SLOPE)))[:, 0]

    def durations(self, units: Tensor) -> Tensor:
        """Predicted frames, int64 [B, T], of deduplicated `units` [B, T]: from 1 to 500 (20 s)."""
        frames = torch.round(torch.exp(self.log_durations(units)) - 1)
        return frames.clamp(1, LONGEST_UNIT_FRAMES).long()

    def log_durations(self, units: Tensor) -> Tensor:
        """Predicted log(frames + 1), float [B, T], of deduplicated `units` [B, T]: what training fits."""
        if self.dur_predictor is None:
            raise ValueError("this vocoder has no duration predictor: give it one unit a frame")
        return self.dur_predictor(self.dict(units))


class ResidualBlock(nn.Module):
    """Pairs of convolutions with residuals on [B, C, N], the first of each pair dilated."""

    def __init__(self, channels: int, kernel: int, dilations: Sequence[int]) -> None:
        super().__init__()
        half = (kernel - 1) // 2
        self.convs1 = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel, dilation=d, padding=half * d) for d in dilations
        )
        self.convs2 = nn.ModuleList(nn.Conv1d(channels, channels, kernel, padding=half) for _ in dilations)

    def forward(self, x: Tensor) -> Tensor:
        for dilated, plain in zip(self.convs1, self.convs2, strict=True):
            x = x + plain(F.leaky_relu(dilated(F.leaky_relu(x, _SLOPE)), _SLOPE))
        return x


class DurationPredictor(nn.Module):
    """Log durations [B, T] from unit embeddings [B, T, D]; with kernel 3 it sees exactly 2 units on each side."""

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        width, kernel = config.var_pred_hidden_dim, config.var_pred_kernel_size
        self.conv1 = nn.Sequential(nn.Conv1d(config.embedding_dim, width, kernel, padding=kernel // 2), nn.ReLU())
        self.ln1 = nn.LayerNorm(width)
        self.conv2 = nn.Sequential(nn.Conv1d(width, width, kernel, padding=kernel // 2), nn.ReLU())
        self.ln2 = nn.LayerNorm(width)
        self.proj = nn.Linear(width, 1)
        self.dropout = nn.Dropout(config.var_pred_dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(self.ln1(self.conv1(x.transpose(1, 2)).transpose(1, 2)))
        x = self.dropout(self.ln2(self.conv2(x.transpose(1, 2)).transpose(1, 2)))
        return self.proj(x)[..., 0]


def vocoder_from_official(config: Mapping[str, object], tensors: Mapping[str, Tensor]) -> Vocoder:
    """Build a vocoder in eval mode from the official `config.json` and `generator` weights, weight-normed or not."""
    vocoder = Vocoder(VocoderConfig.from_official(config))
    load_weights(vocoder, tensors)
    return vocoder.eval()


@torch.no_grad()
def vocode_units(
    vocoder: Vocoder,
    units: Tensor,
    *,
    pitch: Tensor | None = None,
    style: Tensor | None = None,
    speaker: int | None = None,
    named_style: int | None = None,
) -> Tensor:
    """Sound [N] of deduplicated `units` [T]: each lasts as long as the vocoder predicts.

    `pitch` and `style` [T] are one code a unit and last as long as it. Without units the sound is empty.

    Raises:
        ValueError: an id out of range, codes of another length than the units, codes or an id that this vocoder does
            not take, or a vocoder without a duration predictor.
    """
    codes = _checked_codes(vocoder.config, units, pitch, style)
    if not len(units):
        return torch.zeros(0, device=units.device)
    _check_lengths(codes, len(units))
    durations = vocoder.durations(codes["units"][None])[0]
    frames = {name: code.repeat_interleave(durations) for name, code in codes.items()}
    return _vocode(vocoder, frames, speaker, named_style)


@torch.no_grad()
def vocode_expanded(
    vocoder: Vocoder,
    units: Tensor,
    *,
    pitch: Tensor | None = None,
    style: Tensor | None = None,
    speaker: int | None = None,
    named_style: int | None = None,
) -> Tensor:
    """Sound [T * hop_samples] of `units`, `pitch` and `style` [T] that all have one code a frame (25 Hz).

    Raises:
        ValueError: as `vocode_units` does, its durations aside.
    """
    codes = _checked_codes(vocoder.config, units, pitch, style)
    if not len(units):
        return torch.zeros(0, device=units.device)
    _check_lengths(codes, len(units))
    return _vocode(vocoder, codes, speaker, named_style)


@torch.no_grad()
def vocode_frames(
    vocoder: Vocoder,
    units: Tensor,
    *,
    pitch: Tensor | None = None,
    style: Tensor | None = None,
    speaker: int | None = None,
    named_style: int | None = None,
) -> Tensor:
    """Sound [T * hop_samples] of raw frames of `units` [T] (25 Hz), with no duration predicted.

    `pitch` (12.5 Hz) and `style` (1 Hz) are repeated to the unit rate; where they end early their last code goes on,
    and what they have beyond the units is left out.

    Raises:
        ValueError: an id out of range, empty codes, or codes or an id that this vocoder does not take.
    """
    config = vocoder.config
    frames = _checked_codes(config, units, pitch, style)
    if not len(units):
        return torch.zeros(0, device=units.device)
    for name, hop in (("pitch", config.f0_hop_size), ("style", config.style_hop_size)):
        if name in frames:
            if not len(frames[name]):
                raise ValueError(f"{name} has no codes for {len(units)} frames of units")
            position = torch.arange(len(units), device=units.device) // (hop // config.hop_samples)
            frames[name] = frames[name][position.clamp(max=len(frames[name]) - 1)]
    return _vocode(vocoder, frames, speaker, named_style)


def _vocode(vocoder: Vocoder, frames: dict[str, Tensor], speaker: int | None, named_style: int | None) -> Tensor:
    config = vocoder.config
    ids = {}
    for name, value, count in (
        ("speaker", speaker, config.num_speakers),
        ("named_style", named_style, config.num_styles),
    ):
        if value is not None and not 0 <= value < count:
            raise ValueError(f"{name} {value} is out of range: this vocoder has {count}, numbered from 0")
        ids[name] = None if value is None else frames["units"].new_tensor([value])
    batch = {name: code[None] for name, code in frames.items()}
    return vocoder(
        batch["units"], ids["speaker"], ids["named_style"], pitch=batch.get("pitch"), style=batch.get("style")
    )[0]


def _check_lengths(codes: Mapping[str, Tensor], length: int) -> None:
    for name, code in codes.items():
        if len(code) != length:
            raise ValueError(f"{name} has {len(code)} codes for {length} units; it must have one a unit")


def _checked_codes(
    config: VocoderConfig, units: Tensor, pitch: Tensor | None, style: Tensor | None
) -> dict[str, Tensor]:
    codes = {}
    for name, code, count in (
        ("units", units, config.num_embeddings),
        ("pitch", pitch, config.num_f0_tokens),
        ("style", style, config.num_style_tokens),
    ):
        if (code is None) != (count == 0):
            raise ValueError(f"this vocoder {'takes no' if count == 0 else 'needs'} {name} codes")
        if code is None:
            continue
        if code.dim() != 1 or code.is_floating_point():
            raise ValueError(f"{name} must be whole numbers of shape [n], got {code.dtype} {tuple(code.shape)}")
        wrong = ((code < 0) | (code >= count)).nonzero()
        if len(wrong):
            raise ValueError(
                f"{name} {int(code[wrong[0, 0]])} at position {int(wrong[0, 0])} is out of range: this "
                f"vocoder knows 0..{count - 1}"
            )
        codes[name] = code.long()
    return codes
