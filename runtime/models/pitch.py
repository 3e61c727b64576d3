"""Pitch codes: F0 at 200 Hz from a tracker, then 12.5 codes a second from the encoder of a VQ-VAE.

Two trackers give the same thing, F0 and voicing: FCPE (package `torchfcpe`, weights bundled), which Spirit LM's public
code uses, and pYAAPT (package `amfm_decompy`), which the paper used.
"""

import contextlib
import importlib
import io
import logging
import sys
import threading
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spiritrt.extras import install
from spiritrt.models.waveform import check_waveform
from spiritrt.models.weights import config_section, config_value, load_weights

RATE_HZ = 16000
F0_HOP_SAMPLES = 80  # 200 Hz
SHORTEST_PITCH_SAMPLES = 1280  # 80 ms, as for units: 16 values of F0, which make one code
_FCPE_THRESHOLD, _FCPE_LOWEST_HZ, _FCPE_HIGHEST_HZ = 0.05, 50.0, 1100.0
_FEATURES = ("f0", "f0_interp", "norm_f0", "norm_f0_interp", "vuv")

_log = logging.getLogger(__name__)
_import_lock = threading.Lock()


class PitchTrack(NamedTuple):
    """F0 in Hz, interpolated where nothing is voiced, and voicing (1 or 0): both float32 [T], 200 Hz.

    Where nothing at all is voiced there is nothing to interpolate, and the F0 is 0.
    """

    f0_hz: Tensor
    voiced: Tensor


class PitchTracker(Protocol):
    """Anything that finds the F0 of a waveform [N], float, 16 kHz."""

    def __call__(self, waveform: Tensor) -> PitchTrack: ...


class FcpeTracker:
    """FCPE from the package `torchfcpe`, with the settings of Spirit LM's public code: 50-1100 Hz, threshold 0.05.

    Raises:
        ImportError: `torchfcpe` or what it needs is not installed.
    """

    def __init__(self, device: str = "cpu") -> None:
        with _import_lock:
            torchfcpe = _import_torchfcpe()
            self._model = torchfcpe.spawn_bundled_infer_model(device=device)

    @torch.no_grad()
    def __call__(self, waveform: Tensor) -> PitchTrack:
        """F0 and voicing, each [N // 80 + 1], of `waveform` [N], float, 16 kHz.

        Raises:
            ValueError: not one-dimensional, not floating point, under 1280 samples, NaN or infinite samples.
        """
        check_waveform(waveform, SHORTEST_PITCH_SAMPLES)
        raw = self._model(waveform[None, :, None].float(), RATE_HZ, "local_argmax", _FCPE_THRESHOLD)[0, :, 0]  # 100 Hz
        voiced = raw >= _FCPE_LOWEST_HZ
        f0 = interpolate_unvoiced(raw, voiced).clamp(max=_FCPE_HIGHEST_HZ)
        both = torch.stack([f0, voiced.float()])[None]
        f0, voicing = F.interpolate(both, size=len(waveform) // F0_HOP_SAMPLES + 1, mode="nearest")[0]
        return PitchTrack(f0, voicing)


class YaaptTracker:
    """pYAAPT from the package `amfm_decompy` (extra `yaapt`): frames of 20 ms every 5 ms.

    Raises:
        ImportError: `amfm_decompy` is not installed, or does not import beside the installed NumPy.
    """

    def __init__(self) -> None:
        try:
            self._basic_tools = importlib.import_module("amfm_decompy.basic_tools")
            self._pyaapt = importlib.import_module("amfm_decompy.pYAAPT")
        except (ImportError, AttributeError) as error:
            raise ImportError(f"YaaptTracker needs amfm_decompy: {install('yaapt')}; {error}") from error

    def __call__(self, waveform: Tensor) -> PitchTrack:
        """F0 and voicing at 200 Hz of `waveform` [N], float, 16 kHz.

        Raises:
            ValueError: not one-dimensional, not floating point, under 1280 samples, NaN or infinite samples.
        """
        check_waveform(waveform, SHORTEST_PITCH_SAMPLES)
        if not waveform.any():
            # pYAAPT divides by the energy of the signal
            zeros = torch.zeros(len(waveform) // F0_HOP_SAMPLES, device=waveform.device)
            return PitchTrack(zeros, zeros)
        padded = np.pad(waveform.cpu().numpy().astype(np.float64), RATE_HZ // 100)
        settings = {"frame_length": 20.0, "frame_space": 5.0, "nccf_thresh1": 0.25, "tda_frame_length": 25.0}
        track = self._pyaapt.yaapt(self._basic_tools.SignalObj(padded, RATE_HZ), **settings)
        # its own interpolation makes up a level where nothing is voiced
        voiced = np.asarray(track.samp_values) > 0
        f0 = track.samp_interp if voiced.any() else np.zeros(len(voiced))
        both = torch.from_numpy(np.stack([f0, voiced])).to(waveform.device, torch.float32)
        return PitchTrack(both[0], both[1])


@dataclass(frozen=True, slots=True)
class PitchQuantizerConfig:
    """Shape of the VQ-VAE encoder, in the words of the official `config.yaml`."""

    features: tuple[str, ...]
    downs_t: int
    strides_t: int
    width: int
    depth: int
    m_conv: float
    dilation_growth_rate: int
    emb_width: int
    l_bins: int

    def __post_init__(self) -> None:
        unknown = [name for name in self.features if name not in _FEATURES]
        if unknown or not self.features:
            raise ValueError(f"pitch features must be of {', '.join(_FEATURES)}, got {list(self.features)}")
        if self.strides_t < 2 or self.strides_t % 2:
            raise ValueError(f"strides_t must be even, got {self.strides_t}")
        for name in ("downs_t", "width", "depth", "m_conv", "dilation_growth_rate", "emb_width", "l_bins"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")

    @classmethod
    def from_official(cls, config: Mapping[str, object]) -> "PitchQuantizerConfig":
        """Read an official `config.yaml`, given as a dict.

        Raises:
            ValueError: a missing or mistyped word, several levels, or normalisation by speaker.
        """
        encoder, vq = config_section(config, "encoder_params"), config_section(config, "vq_params")
        if config_value(config, "speaker_norm", bool, False):
            raise ValueError("pitch config 'speaker_norm' = True is not supported: there are no speaker statistics")
        features = tuple(name.strip() for name in config_value(config, "features", str).split(","))
        for key, section in (("encoder_params", encoder), ("vq_params", vq)):
            if config_value(section, "levels", int, 1) != 1:
                raise ValueError(f"{key}.levels must be 1, got {section['levels']}")
        if config_value(encoder, "input_emb_width", int) != len(features):
            raise ValueError(
                f"encoder_params.input_emb_width is {encoder['input_emb_width']} for the "
                f"{len(features)} features {list(features)}"
            )
        if encoder.get("output_emb_width") != vq.get("emb_width"):
            raise ValueError(
                f"encoder_params.output_emb_width {encoder.get('output_emb_width')} differs from "
                f"vq_params.emb_width {vq.get('emb_width')}"
            )
        return cls(
            features=features,
            downs_t=_one_level(encoder, "downs_t"),
            strides_t=_one_level(encoder, "strides_t"),
            width=config_value(encoder, "width", int),
            depth=config_value(encoder, "depth", int),
            m_conv=config_value(encoder, "m_conv", float, 1.0),
            dilation_growth_rate=config_value(encoder, "dilation_growth_rate", int, 1),
            emb_width=config_value(vq, "emb_width", int),
            l_bins=config_value(vq, "l_bins", int),
        )

    @property
    def frames_per_code(self) -> int:
        """Values of F0 for one code."""
        return self.strides_t**self.downs_t


class PitchQuantizer(nn.Module):
    """Encoder and codebook of the pitch VQ-VAE (the Jukebox one, arXiv 2005.00341, on F0 and voicing)."""

    def __init__(self, config: PitchQuantizerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = _Levels(_EncoderBlock(config))
        self.vq = _Levels(_Codebook(config.l_bins, config.emb_width))

    def forward(self, features: Tensor) -> Tensor:
        """Minus the squared distances [B, T // frames_per_code, l_bins] of `features` [B, len(config.features), T]."""
        if features.shape[-1] < self.config.frames_per_code:
            raise ValueError(
                f"{features.shape[-1]} values of F0 are too few: one code needs {self.config.frames_per_code}"
            )
        return self.vq(self.encoder(features).transpose(1, 2))

    def features(self, track: PitchTrack, mean: Tensor | None = None) -> Tensor:
        """What the encoder sees of `track`: [len(config.features), T], in the order of the config.

        `norm_` subtracts the mean F0 over the voiced frames from every F0 that is not 0; where nothing is voiced, F0 is
        0 throughout and stays so. A stream brings a `mean` of its own.
        """
        f0, voiced = track.f0_hz, track.voiced > 0
        if mean is None:
            mean = f0[voiced].mean() if voiced.any() else f0.new_zeros(())
        rows = []
        for name in self.config.features:
            row = track.voiced if name == "vuv" else f0 if name.endswith("_interp") else torch.where(voiced, f0, 0.0)
            rows.append(torch.where(row != 0, row - mean, row) if name.startswith("norm_") else row)
        return torch.stack(rows)


def pitch_quantizer_from_official(config: Mapping[str, object], tensors: Mapping[str, Tensor]) -> PitchQuantizer:
    """Build the quantizer, in eval mode, from the official `config.yaml` and `model` weights, decoder left out."""
    quantizer = PitchQuantizer(PitchQuantizerConfig.from_official(config))
    load_weights(quantizer, tensors, ignore=["decoder.*"])
    return quantizer.eval()


@torch.no_grad()
def encode_pitch(tracker: PitchTracker, quantizer: PitchQuantizer, waveform: Tensor) -> Tensor:
    """Pitch codes, int64 [T], 12.5 Hz, of one whole recording `waveform` [N], float, 16 kHz.

    Raises what the tracker raises; sound under 80 ms (1280 samples) is a ValueError.
    """
    return quantizer(quantizer.features(tracker(waveform))[None])[0].argmax(-1)


def interpolate_unvoiced(f0: Tensor, voiced: Tensor) -> Tensor:
    """`f0` [T] with straight lines between the `voiced` values, level before the first and after the last.

    Nothing voiced: zeros.
    """
    if not voiced.any():
        return torch.zeros_like(f0)
    positions = np.arange(len(f0))
    known = voiced.cpu().numpy()
    values = np.interp(positions, positions[known], f0.cpu().numpy()[known])
    return torch.where(voiced, f0, torch.from_numpy(values).to(f0))


class _Levels(nn.Module):
    """One level of a model that may have several; only there for the official names."""

    def __init__(self, level: nn.Module) -> None:
        super().__init__()
        self.level_blocks = nn.ModuleList([level])

    def forward(self, x: Tensor) -> Tensor:
        return self.level_blocks[0](x)


class _EncoderBlock(nn.Module):
    """[B, C, T] to [B, emb_width, T // stride**downs]."""

    def __init__(self, config: PitchQuantizerConfig) -> None:
        super().__init__()
        stride, width = config.strides_t, config.width
        blocks: list[nn.Module] = []
        for i in range(config.downs_t):
            channels = width if i else len(config.features)
            conv = nn.Conv1d(channels, width, 2 * stride, stride, padding=stride // 2)
            blocks.append(nn.Sequential(conv, _ResidualStack(config)))
        self.model = nn.Sequential(*blocks, nn.Conv1d(width, config.emb_width, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class _ResidualStack(nn.Module):
    def __init__(self, config: PitchQuantizerConfig) -> None:
        super().__init__()
        inner = int(config.m_conv * config.width)
        dilations = [config.dilation_growth_rate**i for i in range(config.depth)]
        self.model = nn.Sequential(*(_ResidualConv(config.width, inner, dilation) for dilation in dilations))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class _ResidualConv(nn.Module):
    def __init__(self, width: int, inner: int, dilation: int) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.ReLU(),
            nn.Conv1d(width, inner, 3, padding=dilation, dilation=dilation),
            nn.ReLU(),
            nn.Conv1d(inner, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.model(x)


class _Codebook(nn.Module):
    """Minus the squared distance of [..., D] to each code `k` [K, D]."""

    def __init__(self, codes: int, width: int) -> None:
        super().__init__()
        self.register_buffer("k", torch.zeros(codes, width))
        self.k: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return -(x.square().sum(-1, keepdim=True) - 2 * x @ self.k.T + self.k.square().sum(-1))


def _one_level(config: Mapping[str, object], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, list | tuple) or len(value) != 1 or type(value[0]) is not int:
        raise ValueError(f"config {key!r} must be a list of one whole number, got {value!r}")
    return value[0]


class _SoxrResample(nn.Module):
    """Stands in for `torchaudio.transforms.Resample`, which torchfcpe wants for sound that is not at 16 kHz."""

    def __init__(self, orig_freq: int, new_freq: int, lowpass_filter_width: int = 6) -> None:
        super().__init__()
        self.rates = (orig_freq, new_freq)

    def forward(self, waveform: Tensor) -> Tensor:
        import soxr

        rows = [soxr.resample(row, *self.rates, quality="VHQ") for row in waveform.cpu().numpy()]
        return torch.from_numpy(np.stack(rows)).to(waveform)


@contextlib.contextmanager
def _torchaudio_or_stand_in() -> Iterator[None]:
    """Let `import torchaudio` succeed inside: its PyPI builds do not import beside a CPU build of torch."""
    try:
        importlib.import_module("torchaudio.transforms")
    except (ImportError, OSError, RuntimeError):
        broken = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "torchaudio"}
        package, transforms = types.ModuleType("torchaudio"), types.ModuleType("torchaudio.transforms")
        setattr(transforms, "Resample", _SoxrResample)  # noqa: B010
        setattr(package, "transforms", transforms)  # noqa: B010
        sys.modules |= {"torchaudio": package, "torchaudio.transforms": transforms}
        try:
            yield
        finally:
            del sys.modules["torchaudio"], sys.modules["torchaudio.transforms"]
            sys.modules |= broken
    else:
        yield


def _import_torchfcpe() -> types.ModuleType:
    """Import torchfcpe so that what it prints goes to the log: standard output belongs to the caller."""
    if "torchfcpe" in sys.modules:
        return sys.modules["torchfcpe"]
    try:
        with _torchaudio_or_stand_in(), contextlib.redirect_stdout(io.StringIO()):
            torchfcpe = importlib.import_module("torchfcpe")
    except ImportError as error:
        raise ImportError(
            f"FcpeTracker needs torchfcpe: {install('pitch')}, then pip install --no-deps torchfcpe==0.0.4; {error}"
        ) from error
    for name in ("torchfcpe.tools", "torchfcpe.mel_extractor"):
        setattr(sys.modules[name], "print", lambda *words: _log.info("%s", " ".join(map(str, words))))  # noqa: B010
    return torchfcpe
