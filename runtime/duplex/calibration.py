"""Fixed statistics for the GroupNorm of HuBERT's first convolution, from a corpus."""

from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from spiritrt.models.hubert import Hubert

Statistics = tuple[Tensor, Tensor]  # mean and variance [C]


@torch.no_grad()
def calibrate(hubert: Hubert, waveforms: Iterable[Tensor]) -> Statistics:
    """Mean and variance [C] of each channel of the first convolution over all `waveforms` [N], 16 kHz.

    Raises ValueError for a HuBERT without a GroupNorm, or no waveform of at least one frame.
    """
    if hubert.config.extractor_mode != "default":
        raise ValueError(
            f"extractor_mode {hubert.config.extractor_mode!r} has no statistics over time to calibrate, nor needs any"
        )
    weight = hubert.get_parameter("feature_extractor.conv_layers.0.0.weight")
    bias = hubert.get_parameter("feature_extractor.conv_layers.0.0.bias") if hubert.config.conv_bias else None
    stride = hubert.config.conv_layers[0][2]
    count = 0
    total = squares = torch.zeros(hubert.config.conv_layers[0][0], dtype=torch.float64)
    for waveform in waveforms:
        if len(waveform) < hubert.config.receptive_samples:
            continue
        samples = F.layer_norm(waveform, waveform.shape) if hubert.config.normalize else waveform
        outputs = F.conv1d(samples.to(weight)[None, None], weight, bias, stride)[0].double().cpu()  # [C, T]
        count += outputs.shape[1]
        total = total + outputs.sum(1)
        squares = squares + outputs.square().sum(1)
    if not count:
        raise ValueError(f"no recording is as long as one frame ({hubert.config.receptive_samples} samples)")
    mean = total / count
    return mean.float(), (squares / count - mean.square()).clamp(min=0).float()


def save_statistics(statistics: Statistics, file: Path) -> None:
    """Writes them as safetensors; folders on the way are made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({"mean": statistics[0], "variance": statistics[1]}, file)


def load_statistics(file: Path) -> Statistics:
    """Reads what `save_statistics` wrote. Raises ValueError naming a file that is none."""
    try:
        tensors = load_file(file)
        return tensors["mean"], tensors["variance"]
    except (OSError, KeyError, SafetensorError) as error:
        raise ValueError(f"{file}: holds no mean and variance of a first convolution: {error}") from error
