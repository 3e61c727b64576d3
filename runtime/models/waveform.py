"""What every model that hears sound demands of a waveform."""

import torch
from torch import Tensor


def check_waveform(waveform: Tensor, shortest_samples: int) -> None:
    """Accept a waveform [N] in floating point, finite, of at least `shortest_samples`.

    Raises:
        ValueError: another shape or dtype, too short (with its length), or NaN or infinite samples (with the first).
    """
    if waveform.dim() != 1 or not waveform.is_floating_point():
        raise ValueError(f"waveform must be [samples] in floating point, got {waveform.dtype} {tuple(waveform.shape)}")
    if len(waveform) < shortest_samples:
        raise ValueError(
            f"waveform of {len(waveform)} samples is too short: at least {shortest_samples} are needed "
            f"({shortest_samples / 16:g} ms at 16 kHz)"
        )
    broken = (~torch.isfinite(waveform)).nonzero()
    if len(broken):
        raise ValueError(f"waveform has {len(broken)} NaN or infinite samples, the first at {int(broken[0])}")
