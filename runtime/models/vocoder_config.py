"""The shape of a unit HiFi-GAN, and how the official `config.json` says it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from spiritrt.models.weights import config_integers, config_section, config_value

DEFAULT_SPEAKER = 2
DEFAULT_NAMED_STYLE = 8


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
