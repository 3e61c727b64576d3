"""Unit HiFi-GAN: phonetic units, with pitch and style where it was trained on them, to 16 kHz sound.

Parameter names are those of the official `generator.pt`, weight norm folded. A frame of 640 samples depends on about 20
frames on each side (`VocoderConfig.context_frames` has the exact numbers).

Source: HiFi-GAN (arXiv 2010.05646), with units for spectrograms (arXiv 2104.00355).
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spiritrt.models.vocoder_config import DEFAULT_SPEAKER, VocoderConfig
from spiritrt.models.weights import fold_weight_norm, load_weights

__all__ = [
    "DEFAULT_SPEAKER",
    "Vocoder",
    "VocoderConfig",
    "fold_weight_norm",
    "vocode_expanded",
    "vocode_frames",
    "vocode_units",
    "vocoder_from_official",
]

LONGEST_UNIT_FRAMES = 500  # 20 s: a broken duration predictor must not fill the memory
_SLOPE = 0.1
_LAST_SLOPE = 0.01


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
