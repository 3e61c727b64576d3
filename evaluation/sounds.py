"""Sounds that words name, of tones and noise at 16 kHz: train, music, alarm, telephone, waves, bird, horse, dog."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from spiritrt import audio

RATE_HZ = audio.RATE_HZ
Sound = NDArray[np.float64]
PENTATONIC_HZ = (262, 294, 330, 392, 440, 523, 587, 659)


def _time(seconds: float) -> Sound:
    return np.arange(round(seconds * RATE_HZ)) / RATE_HZ


def _sweep(seconds: float, first_hz: float, last_hz: float, harmonics: int = 1) -> Sound:
    """A tone that glides, fading in and out."""
    t = _time(seconds)
    phase = 2 * np.pi * (first_hz * t + (last_hz - first_hz) * t**2 / (2 * seconds))
    return np.sum([np.sin(k * phase) / k for k in range(1, harmonics + 1)], axis=0) * np.sin(np.pi * t / seconds)


def _ring(seconds: float, decay_s: float, *hz: float) -> Sound:
    """Tones that are struck together and die away."""
    t = _time(seconds)
    return np.sum([np.sin(2 * np.pi * f * t) for f in hz], axis=0) * np.exp(-t / decay_s)


def _repeated(
    samples: int, rng: np.random.Generator, period_s: float, offsets_s: tuple[float, ...], make: Callable[[int], Sound]
) -> Sound:
    """What `make` gives for each offset, period after period; the first period begins somewhere before the start."""
    made = np.zeros(samples)
    start_s = -rng.uniform(0, period_s)
    for number in range(int(samples / RATE_HZ / period_s) + 3):
        for place, offset_s in enumerate(offsets_s):
            at = round((start_s + number * period_s + offset_s) * RATE_HZ)
            if 0 <= at < samples:
                event = make(place)[: samples - at]
                made[at : at + len(event)] += event
    return made


def train(samples: int, rng: np.random.Generator) -> Sound:
    """Wheels over joints, two at a time, and a rumble."""
    rumble = np.convolve(rng.standard_normal(samples), np.ones(64) / 64, mode="same")
    fading = np.exp(-np.arange(1600) / 250)
    return rumble + _repeated(samples, rng, 0.6, (0.0, 0.13), lambda _: rng.standard_normal(1600) * fading)


def music(samples: int, rng: np.random.Generator) -> Sound:
    """Plucked notes of a pentatonic scale, four a second, over a low one."""

    def note(place: int) -> Sound:
        hz = PENTATONIC_HZ[rng.integers(len(PENTATONIC_HZ))] if place else PENTATONIC_HZ[0] / 2
        return _ring(0.8, 0.25, hz, 2 * hz, 3 * hz)

    return _repeated(samples, rng, 1.0, (0.0, 0.001, 0.25, 0.5, 0.75), note)


def alarm(samples: int, rng: np.random.Generator) -> Sound:
    """Four beeps of 2 kHz and a rest."""
    return _repeated(samples, rng, 0.9, (0.0, 0.15, 0.3, 0.45), lambda _: _sweep(0.09, 2000, 2000, 3))


def telephone(samples: int, rng: np.random.Generator) -> Sound:
    """A bell struck 20 times a second, a second long."""
    return _repeated(samples, rng, 1.5, tuple(np.arange(20) / 20), lambda _: _ring(0.2, 0.05, 1100, 1430, 2310))


def waves(samples: int, rng: np.random.Generator) -> Sound:
    """Soft noise that swells every three seconds."""
    t = np.arange(samples) / RATE_HZ
    swell = 0.1 + np.square(np.sin(np.pi * t / 3 + rng.uniform(0, np.pi)))
    return np.convolve(rng.standard_normal(samples), np.ones(6) / 6, mode="same") * swell


def bird(samples: int, rng: np.random.Generator) -> Sound:
    """Chirps between 3 and 5 kHz."""
    return _repeated(
        samples, rng, 0.7, (0.0, 0.12, 0.24, 0.4),
        lambda _: _sweep(rng.uniform(0.05, 0.12), rng.uniform(3000, 5000), rng.uniform(3000, 5000)),
    )  # fmt: skip


def horse(samples: int, rng: np.random.Generator) -> Sound:
    """Hooves on stone, clip and clop."""
    return _repeated(
        samples, rng, 0.5, (0.0, 0.25), lambda place: _ring(0.08, 0.012, *((850, 2100), (620, 1500))[place])
    )


def dog(samples: int, rng: np.random.Generator) -> Sound:
    """Barks by twos: a falling buzz with breath."""

    def bark(_: int) -> Sound:
        buzz = _sweep(0.16, rng.uniform(550, 650), 320, 8)
        return buzz + 0.3 * rng.standard_normal(len(buzz)) * np.abs(buzz)

    return _repeated(samples, rng, 1.1, (0.0, 0.35), bark)


SOUNDS: dict[str, Callable[[int, np.random.Generator], Sound]] = {
    "train": train, "music": music, "alarm": alarm, "telephone": telephone, "waves": waves, "bird": bird,
    "horse": horse, "dog": dog,
}  # fmt: skip


def sound(name: str, samples: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """One of SOUNDS with unit power, [samples]. Raises KeyError for another name."""
    made = SOUNDS[name](samples, rng)
    return (made / (np.sqrt(np.square(made).mean()) + 1e-9)).astype(np.float32)
