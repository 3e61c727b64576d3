"""Light discriminators for the vocoder: four periods and two spectrogram resolutions, 0.3M parameters in all.

Sources: HiFi-GAN (arXiv 2010.05646) for the periods, UnivNet (arXiv 2106.07889) for the spectrograms; least-squares
losses. Widths are a sixteenth of the published ones: a step must stay well under a second on one core.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

PERIODS = (2, 3, 5, 7)
WINDOWS = ((512, 128), (1024, 256))
Judged = list[tuple[Tensor, list[Tensor]]]  # (score, inner features) of each discriminator


class PeriodDiscriminator(nn.Module):
    """Looks at every `period`-th sample: [B, N] to a score map and its inner features."""

    def __init__(self, period: int, width: int = 16) -> None:
        super().__init__()
        self.period = period
        sizes = [1, width, 2 * width, 4 * width, 4 * width]
        self.convs = nn.ModuleList(weight_norm(nn.Conv2d(a, b, (5, 1), (3, 1), (2, 0))) for a, b in pairwise(sizes))
        self.last = weight_norm(nn.Conv2d(sizes[-1], 1, (3, 1), padding=(1, 0)))

    def forward(self, samples: Tensor) -> tuple[Tensor, list[Tensor]]:
        samples = F.pad(samples, (0, -samples.shape[1] % self.period))
        x = samples.view(len(samples), 1, -1, self.period)
        features = []
        for conv in self.convs:
            x = F.leaky_relu(conv(x), 0.1)
            features.append(x)
        return self.last(x), features


class SpectrumDiscriminator(nn.Module):
    """Looks at log magnitudes: [B, N] to a score map and its inner features."""

    def __init__(self, window: int, hop: int, width: int = 16) -> None:
        super().__init__()
        self.hop = hop
        self.register_buffer("window", torch.hann_window(window))
        # strides run along frequency, where neighbours say least
        self.convs = nn.ModuleList(
            weight_norm(nn.Conv2d(a, width, (7, 3), (stride, 1), (3, 1)))
            for a, stride in ((1, 2), (width, 2), (width, 2))
        )
        self.last = weight_norm(nn.Conv2d(width, 1, 3, padding=1))

    def forward(self, samples: Tensor) -> tuple[Tensor, list[Tensor]]:
        window = self.get_buffer("window")
        z = torch.stft(samples, len(window), self.hop, window=window, return_complex=True, pad_mode="constant")
        x = torch.log(torch.sqrt(z.real.square() + z.imag.square() + 1e-9) / len(window) ** 0.5 + 1e-3)[:, None]
        features = []
        for conv in self.convs:
            x = F.leaky_relu(conv(x), 0.1)
            features.append(x)
        return self.last(x), features


class Discriminators(nn.Module):
    """All discriminators on [B, N]."""

    def __init__(self) -> None:
        super().__init__()
        self.members = nn.ModuleList(
            [PeriodDiscriminator(p) for p in PERIODS] + [SpectrumDiscriminator(w, h) for w, h in WINDOWS]
        )

    def forward(self, samples: Tensor) -> Judged:
        return [member(samples) for member in self.members]


def discriminator_loss(made: Judged, real: Judged) -> Tensor:
    """Least squares: real sound to 1, made sound to 0."""
    return torch.stack(
        [(r - 1).square().mean() + m.square().mean() for (m, _), (r, _) in zip(made, real, strict=True)]
    ).mean()


def adversarial_loss(made: Judged) -> Tensor:
    """Least squares: made sound to 1."""
    return torch.stack([(score - 1).square().mean() for score, _ in made]).mean()


def feature_loss(made: Judged, real: Judged) -> Tensor:
    """Mean L1 distance of inner features."""
    pairs = [(a, b) for (_, m), (_, r) in zip(made, real, strict=True) for a, b in zip(m, r, strict=True)]
    return torch.stack([F.l1_loss(a, b) for a, b in pairs]).mean()
