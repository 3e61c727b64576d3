"""Losses of the vocoder: log spectra at several window lengths, and what a frozen speech encoder hears."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spiritrt.models.hubert import Hubert

FLOOR = 1e-4


@cache
def mel_filters(bins: int, window: int, rate_hz: int) -> Tensor:
    """Triangular mel filters [bins, window // 2 + 1], each of peak 1, HTK mel scale, from 0 Hz to half the rate."""
    if bins < 1 or window < 2:
        raise ValueError(f"mel filters need bins >= 1 and window >= 2, got {bins}, {window}")
    top = 2595 * np.log10(1 + rate_hz / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, bins + 2) / 2595) - 1)
    hz = np.linspace(0, rate_hz / 2, window // 2 + 1)
    rising = (hz[None] - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - hz[None]) / (edges[2:] - edges[1:-1])[:, None]
    return torch.from_numpy(np.clip(np.minimum(rising, falling), 0, None).astype(np.float32))


@dataclass(frozen=True, slots=True)
class Resolution:
    """A spectrogram: Hann window and hop in samples; `mel_bins` 0 keeps the linear magnitudes."""

    window: int
    hop: int
    mel_bins: int = 0


RESOLUTIONS = (Resolution(256, 64, 24), Resolution(512, 128, 64), Resolution(1024, 256), Resolution(2048, 512, 128))


class SpectralLoss(nn.Module):
    """Mean L1 distance of log spectra over several resolutions; [B, N] and [B, N] to a scalar."""

    def __init__(self, resolutions: tuple[Resolution, ...] = RESOLUTIONS, rate_hz: int = 16000) -> None:
        super().__init__()
        self.resolutions = resolutions
        for i, r in enumerate(resolutions):
            self.register_buffer(f"window_{i}", torch.hann_window(r.window))
            if r.mel_bins:
                self.register_buffer(f"filters_{i}", mel_filters(r.mel_bins, r.window, rate_hz))

    def spectrum(self, samples: Tensor, i: int) -> Tensor:
        """Magnitudes [B, bins, frames] of `samples` [B, N] at resolution `i`."""
        r = self.resolutions[i]
        window = self.get_buffer(f"window_{i}")
        z = torch.stft(samples, r.window, r.hop, window=window, center=True, pad_mode="constant", return_complex=True)
        magnitude = torch.sqrt(z.real.square() + z.imag.square() + 1e-9) / r.window**0.5
        return self.get_buffer(f"filters_{i}") @ magnitude if r.mel_bins else magnitude

    def forward(self, made: Tensor, real: Tensor) -> Tensor:
        total = made.new_zeros(())
        for i in range(len(self.resolutions)):
            a, b = self.spectrum(made, i), self.spectrum(real, i)
            # the linear term weighs loud harmonics, the log term the quiet ones that carry consonants
            total = (
                total
                + F.l1_loss(torch.log(a + FLOOR), torch.log(b + FLOOR))
                + (a - b).norm() / b.norm().clamp_min(1e-3)
            )
        return total / len(self.resolutions)


@contextmanager
def outputs_of(modules: Iterable[nn.Module]) -> Iterator[list[Tensor]]:
    """A list that fills with what `modules` give while the context lasts, in the order of their calls."""
    kept: list[Tensor] = []
    handles = [module.register_forward_hook(lambda _module, _inputs, output: kept.append(output)) for module in modules]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


class HearingLoss(nn.Module):
    """Mean relative L1 distance of the inner features of a frozen encoder; [B, N] and [B, N] to a scalar.

    What no log spectrum weighs by itself: which differences matter to one who listens for the words. The features are
    those of every convolution from the third on (before it they are little more than the sound) and of every layer.
    """

    def __init__(self, hubert: Hubert) -> None:
        super().__init__()
        self.hubert = hubert.eval().requires_grad_(False)

    def features(self, samples: Tensor) -> list[Tensor]:
        with outputs_of((*self.hubert.feature_extractor.conv_layers[2:], *self.hubert.encoder.layers)) as kept:
            self.hubert(samples)
        return kept

    def forward(self, made: Tensor, real: Tensor) -> Tensor:
        with torch.no_grad():
            of_real = self.features(real)
        distances = [(a - b).abs().mean() / b.abs().mean() for a, b in zip(self.features(made), of_real, strict=True)]
        return torch.stack(distances).mean()
