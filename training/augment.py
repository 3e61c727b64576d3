"""What a microphone, a room and another throat do to speech: augmentation of crops for the encoder, all in numpy.

Every function takes and returns samples [N] at 16 kHz and draws from the generator it is given.
"""

from dataclasses import dataclass

import numpy as np
import soxr
from numpy.typing import NDArray
from scipy.fft import irfft, next_fast_len, rfft

RATE_HZ = 16000
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Augmentation:
    """Probabilities and ranges; levels in dB, speeds as factors (pitch and formants move with them)."""

    speed_share: float = 0.8
    speed_range: tuple[float, float] = (0.84, 1.19)
    channel_share: float = 0.7
    equalizer_db: float = 7.0
    telephone_share: float = 0.1
    room_share: float = 0.3
    noise_share: float = 0.6
    snr_range_db: tuple[float, float] = (8.0, 40.0)
    peak_range_db: tuple[float, float] = (-30.0, -1.0)

    def __post_init__(self) -> None:
        shares = (self.speed_share, self.channel_share, self.telephone_share, self.room_share, self.noise_share)
        if any(not 0 <= share <= 1 for share in shares):
            raise ValueError(f"shares must lie in [0, 1], got {shares}")
        if not 0.5 <= self.speed_range[0] <= self.speed_range[1] <= 2:
            raise ValueError(f"speed_range must lie in [0.5, 2], got {self.speed_range}")


def draw_speed(a: Augmentation, rng: np.random.Generator) -> float:
    """Source samples for each output sample: above 1 speech becomes faster and higher."""
    return float(rng.uniform(*a.speed_range)) if rng.random() < a.speed_share else 1.0


def change_speed(samples: Floats, speed: float) -> Floats:
    """Play `samples` at `speed`; the length becomes about N / speed."""
    return (
        samples if speed == 1.0 else soxr.resample(samples, RATE_HZ * speed, RATE_HZ, quality="LQ").astype(np.float32)
    )


def channel(samples: Floats, a: Augmentation, rng: np.random.Generator) -> Floats:
    """A random smooth equalizer, at times a telephone band or a room (exponentially decaying noise, 0.1-0.5 s)."""
    n = next_fast_len(len(samples) + RATE_HZ // 4, real=True)
    hz = np.fft.rfftfreq(n, 1 / RATE_HZ)
    knots = np.geomspace(60, 8000, 7)
    gain_db = np.interp(hz, knots, rng.uniform(-a.equalizer_db, a.equalizer_db, len(knots)))
    if rng.random() < a.telephone_share:
        gain_db = gain_db - 40 * ((hz < 300) | (hz > 3400))
    response = 10 ** (gain_db / 20)
    spectrum = rfft(samples, n) * response
    if rng.random() < a.room_share:
        decay_s = rng.uniform(0.1, 0.5)
        t = np.arange(int(decay_s * RATE_HZ)) / RATE_HZ
        tail = rng.standard_normal(len(t)) * 10 ** (-3 * t / decay_s)
        tail *= rng.uniform(0.1, 0.7) / np.sqrt(np.square(tail).sum())
        tail[0] = 1.0
        spectrum *= rfft(tail, n)
    return irfft(spectrum, n)[: len(samples)].astype(np.float32)


def noise(samples: Floats, a: Augmentation, rng: np.random.Generator) -> Floats:
    """Add noise of a random spectral tilt (white to brown) at a random signal-to-noise ratio."""
    n = next_fast_len(len(samples), real=True)
    spectrum = rfft(rng.standard_normal(n, dtype=np.float32))
    tilt = rng.uniform(0, 1)
    spectrum /= (1 + np.arange(len(spectrum)) * (200 / len(spectrum))) ** tilt
    hiss = irfft(spectrum, n)[: len(samples)].astype(np.float32)
    level = np.sqrt(np.square(samples).mean()) / (np.sqrt(np.square(hiss).mean()) + 1e-9)
    return samples + hiss * level * 10 ** (-rng.uniform(*a.snr_range_db) / 20)


def augment(samples: Floats, a: Augmentation, rng: np.random.Generator) -> Floats:
    """Channel, noise and level; the speed is changed before, where the labels are cut."""
    if rng.random() < a.channel_share:
        samples = channel(samples, a, rng)
    if rng.random() < a.noise_share:
        samples = noise(samples, a, rng)
    peak = 10 ** (rng.uniform(*a.peak_range_db) / 20)
    return (samples * (peak / (np.abs(samples).max() + 1e-6))).astype(np.float32)
