"""Statistics for the encoder's first norm, from a corpus to a file to a stream."""

from pathlib import Path

import pytest
import torch

from spiritrt.duplex.calibration import calibrate, load_statistics, save_statistics
from spiritrt.duplex.streams import HubertStream
from spiritrt.models.hubert import Hubert, hubert_from_official, quantizer_from_official

FOLDER = Path(__file__).parents[1] / "data/golden/checkpoints/speech_tokenizer/hubert_25hz"


@pytest.fixture(scope="module")
def hubert() -> Hubert:
    checkpoint = torch.load(FOLDER / "mhubert_base_25hz.pt", weights_only=True)
    return hubert_from_official(checkpoint, checkpoint["model_weight"])


def test_statistics_are_those_of_all_recordings_together(hubert: Hubert, tmp_path: Path) -> None:
    sounds = [0.1 * torch.randn(5000), torch.zeros(719), 0.5 + 0.2 * torch.randn(3000)]  # the second gives no frame
    mean, variance = calibrate(hubert, sounds)
    with torch.no_grad():
        conv = hubert.feature_extractor.conv_layers[0][0]  # type: ignore[index]
        outputs = torch.cat([conv(sounds[i][None, None])[0] for i in (0, 2)], dim=1)
    torch.testing.assert_close(mean, outputs.mean(1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(variance, outputs.var(1, unbiased=False), atol=1e-5, rtol=1e-4)
    save_statistics((mean, variance), tmp_path / "new" / "statistics.safetensors")
    loaded = load_statistics(tmp_path / "new" / "statistics.safetensors")
    assert torch.equal(loaded[0], mean) and torch.equal(loaded[1], variance)
    quantizer = torch.load(FOLDER / "L11_quantizer_500.pt", weights_only=True)
    parts = hubert, quantizer_from_official(quantizer, quantizer["model_weight"])
    stream = HubertStream(*parts, norm="calibrated", calibration=loaded)
    slot = stream.open()
    stream.accept(slot, sounds[0])
    stream.flush(slot)
    assert sum(len(packet.units) for packet in stream.step()) == 7


def test_what_cannot_be_calibrated_is_named(hubert: Hubert, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no recording is as long as one frame"):
        calibrate(hubert, [torch.zeros(100)])
    (tmp_path / "other").write_text("no tensors")
    with pytest.raises(ValueError, match="other: holds no mean and variance"):
        load_statistics(tmp_path / "other")
