"""Sound in and out: files of any common kind, any common rate, to mono float32 at the model's 16 kHz and back."""

import warnings
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
from numpy.typing import NDArray
from torch import Tensor

RATE_HZ = 16000
LOWEST_RATE_HZ, HIGHEST_RATE_HZ = 4000, 384000
HIGHEST_PEAK = 16.0  # 24 dB over full scale: beyond it samples are integers in all but their type

Samples = NDArray[np.float32]
Source = str | Path | NDArray | Tensor


def load(source: Source, rate: int | None = None, channel: int | None = None) -> Samples:
    """Sound as mono float32 [N] at 16 kHz, full scale 1.

    `source` is a file (WAV, FLAC, OGG, OPUS, MP3: what soundfile reads) or an array [N] or [N, channels] with its
    `rate` in Hz (16 kHz where none is given); integer arrays are scaled by their type's range. Channels are averaged
    with a warning, or `channel` (from 0) is taken.

    Raises ValueError for a file that cannot be read, empty sound, NaN or infinite samples, a peak above 16 (float
    samples at the scale of integers), or a rate outside 4-384 kHz.
    """
    if isinstance(source, str | Path):
        where = str(source)
        if not Path(source).is_file():
            raise ValueError(f"{where}: {'a folder, not a' if Path(source).is_dir() else 'no such'} sound file")
        try:
            array, rate = soundfile.read(source, dtype="float32", always_2d=True)
        except (soundfile.LibsndfileError, OSError, TypeError) as error:
            raise ValueError(f"{where}: cannot be read as sound: {error}") from error
    else:
        where = "audio"
        array = _as_float(source)
        rate = RATE_HZ if rate is None else rate
    if not LOWEST_RATE_HZ <= rate <= HIGHEST_RATE_HZ:
        raise ValueError(f"{where}: rate must be {LOWEST_RATE_HZ} to {HIGHEST_RATE_HZ} Hz, got {rate}")
    mono = _mono(array, channel, where)
    if len(mono) == 0:
        raise ValueError(f"{where}: holds no samples")
    broken = np.flatnonzero(~np.isfinite(mono))
    if len(broken):
        raise ValueError(f"{where}: has {len(broken)} NaN or infinite samples, the first at {broken[0]}")
    check_peak(mono, where)
    return resample(mono, rate, RATE_HZ)


def check_peak(samples: Samples, where: str) -> None:
    """Raises ValueError for `samples` [N] whose peak says that they are at the scale of integers."""
    peak = float(np.abs(samples).max(initial=0.0))
    if peak > HIGHEST_PEAK:
        raise ValueError(f"{where}: the peak is {peak:g} and full scale is 1; divide by 32768 what was 16-bit")


def resample(samples: Samples, from_hz: int, to_hz: int) -> Samples:
    """Mono `samples` [N] at another rate (soxr, high quality; unchanged where the rates agree)."""
    if from_hz == to_hz:
        return np.ascontiguousarray(samples, dtype=np.float32)
    return soxr.resample(samples, from_hz, to_hz, quality="HQ").astype(np.float32, copy=False)


class Resampler:
    """Mono sound at another rate, as it comes: packets in, packets out, joined without seams and without drift.

    The joined output is `resample` of the joined input (soxr's streaming interface). Output lags the input by up to
    80 ms until `flush`, by the filter's length; where the rates agree samples pass through.

    Raises ValueError for a rate outside 4-384 kHz.
    """

    def __init__(self, from_hz: int, to_hz: int) -> None:
        for rate in (from_hz, to_hz):
            if not LOWEST_RATE_HZ <= rate <= HIGHEST_RATE_HZ:
                raise ValueError(f"rate must be {LOWEST_RATE_HZ} to {HIGHEST_RATE_HZ} Hz, got {rate}")
        self._stream = soxr.ResampleStream(from_hz, to_hz, 1, quality="HQ") if from_hz != to_hz else None

    def reset(self) -> None:
        """Begins a new sound."""
        if self._stream is not None:
            self._stream.clear()

    def accept(self, samples: Samples) -> Samples:
        """Takes the next samples [N] and returns those [M] at the new rate that are certain now.

        Raises ValueError for another dtype or shape, NaN or infinite samples; nothing of them is kept then.
        """
        if samples.ndim != 1 or samples.dtype != np.float32:
            raise ValueError(f"samples must be float32 [N], got {samples.dtype} {samples.shape}")
        finite = np.isfinite(samples)
        if not finite.all():
            raise ValueError(f"samples hold {samples[~finite][0]} at position {int(np.argmin(finite))}")
        return samples if self._stream is None else self._stream.resample_chunk(samples)

    def flush(self) -> Samples:
        """Returns the rest [M], and begins a new sound."""
        if self._stream is None:
            return np.zeros(0, np.float32)
        rest = self._stream.resample_chunk(np.zeros(0, np.float32), last=True)
        self._stream.clear()
        return rest


def save(path: str | Path, samples: NDArray | Tensor, rate: int = RATE_HZ, float32: bool = False) -> None:
    """Writes `samples` [N] or [N, channels] as 16-bit WAV, or with `float32` exactly as they are.

    Folders on the way are made; 16-bit samples beyond full scale are clipped. Raises ValueError naming a path that
    cannot be written, or is named like another format.
    """
    check_name(path)
    array = samples.detach().cpu().numpy() if isinstance(samples, Tensor) else np.asarray(samples)
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, array.astype(np.float32), rate, subtype="FLOAT" if float32 else "PCM_16", format="WAV")
    except (soundfile.LibsndfileError, OSError, TypeError) as error:
        raise ValueError(f"{path}: cannot be written: {error}") from error


def check_name(path: str | Path) -> None:
    """Raises ValueError for the name of a file to `save` that promises another format than WAV."""
    suffix = Path(path).suffix
    if suffix.lower() not in ("", ".wav"):
        raise ValueError(f"{path}: sound is written as WAV, not {suffix}: name it {Path(path).with_suffix('.wav')}")


def _as_float(source: NDArray | Tensor) -> NDArray:
    if isinstance(source, Tensor):
        source = source.detach().to("cpu", torch.float32 if source.is_floating_point() else source.dtype).numpy()
    array = np.asarray(source)
    if array.dtype == np.uint8:
        return (array.astype(np.float32) - 128) / 128
    if np.issubdtype(array.dtype, np.signedinteger):
        return (array / -float(np.iinfo(array.dtype).min)).astype(np.float32)
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"audio samples must be floating point or integer, got {array.dtype}")
    return array.astype(np.float32)


def _mono(array: NDArray, channel: int | None, where: str) -> Samples:
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2:
        raise ValueError(f"{where}: samples must be [N] or [N, channels], got shape {array.shape}")
    channels = array.shape[1]
    if 0 < len(array) < channels:
        raise ValueError(
            f"{where}: {len(array)} samples of {channels} channels; an array is [N, channels], transpose it"
        )
    if channel is not None:
        if not 0 <= channel < channels:
            raise ValueError(f"{where}: channel {channel} does not exist, there are {channels}, numbered from 0")
        return array[:, channel]
    if channels > 1:
        warnings.warn(f"{where}: {channels} channels are averaged; choose one with channel=N", stacklevel=3)
    return array.mean(axis=1)
