import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from spiritrt.models.hubert import (
    LinearQuantizer,
    encode_units,
    quantizer_from_official,
    unit_margins,
    units_from_logits,
)


class TestQuantizers:
    @pytest.mark.parametrize(("dim", "widths"), [(96, (198, 299)), (768, (702, 635)), (501, (501, 501))])
    def test_linear_widths(self, dim, widths):
        quantizer = LinearQuantizer(dim, dim, 500)
        assert {name: tuple(p.shape) for name, p in quantizer.named_parameters() if p.dim() == 2} == {
            "0.weight": (widths[0], dim),
            "2.weight": (widths[1], widths[0]),
            "4.weight": (501, widths[1]),
        }

    def test_linear_with_impossible_widths(self):
        with pytest.raises(ValueError, match="widths must be positive, got dim 8"):
            LinearQuantizer(8, 2000, 500)

    @pytest.mark.parametrize("nested", [False, True])
    def test_k_means_takes_the_nearest_centre(self, nested):
        torch.manual_seed(0)
        centres, features = torch.randn(17, 5) * 3, torch.randn(200, 5) * 3
        config = {"model_cfg": {"n_clusters": 17}} if nested else {"n_clusters": 17}
        quantizer = quantizer_from_official(config, {"cluster_centers": centres})
        nearest = [min(range(17), key=lambda k: (centres[k] - x).square().sum().item()) for x in features]
        with torch.no_grad():
            assert units_from_logits(quantizer(features), quantizer.blank).tolist() == nearest
            assert quantizer(features.view(4, 50, 5)).shape == (4, 50, 17)

    def test_k_means_of_close_centres_far_from_the_origin(self):
        """|x|^2 - 2xc + |c|^2 in float32 would lose the difference."""
        centres = torch.full((3, 4), 1000.0) + torch.tensor([[0.0], [0.1], [0.2]])
        quantizer = quantizer_from_official({"n_clusters": 3}, {"cluster_centers": centres})
        assert quantizer(centres + 0.02).argmax(-1).tolist() == [0, 1, 2]

    def test_k_means_encodes(self, hubert):
        quantizer = quantizer_from_official({"n_clusters": 9}, {"cluster_centers": torch.randn(9, 96)})
        units = encode_units(hubert, quantizer, torch.randn(16000) * 0.1)
        assert units.shape == (24,) and units.max() < 9

    @pytest.mark.parametrize(
        ("config", "tensors", "message"),
        [
            ({"n_clusters": 5}, {"cluster_centers": torch.zeros(4, 3)}, r"expected shape \(5, 3\), got \(4, 3\)"),
            ({"n_clusters": 5}, {}, "cluster_centers"),
            ({"vocab_size": 500, "dim": 96}, {}, "'upstream_dim'"),
            ({"vocab_size": 500, "dim": 96, "upstream_dim": 96}, {}, r"6 weights missing: 0\.bias"),
        ],
    )
    def test_wrong_files(self, config, tensors, message):
        with pytest.raises(ValueError, match=message):
            quantizer_from_official(config, tensors)


class TestBlanks:
    @given(st.lists(st.integers(0, 3), min_size=1, max_size=30).filter(lambda units: any(unit != 3 for unit in units)))
    def test_as_by_repeated_circular_rolls(self, classes):
        logits = F.one_hot(torch.tensor(classes), 4).float()
        rolled = torch.tensor(classes)
        while (rolled == 3).any():
            rolled = torch.where(rolled == 3, rolled.roll(1), rolled)
        assert torch.equal(units_from_logits(logits, blank=3), rolled)

    def test_all_blank_takes_the_best_other_class(self):
        logits = torch.tensor([[1.0, 2.0, 0.0, 9.0], [4.0, 2.0, 0.0, 9.0]])
        assert units_from_logits(logits, blank=3).tolist() == [1, 0]

    def test_all_blank_recording(self, hubert, speech_parts):
        checkpoint = torch.load(speech_parts / "hubert_25hz" / "L11_quantizer_500.pt", weights_only=True)
        weights = checkpoint["model_weight"]
        weights["4.bias"][500] = 1e6
        units = encode_units(hubert, quantizer_from_official(checkpoint, weights), torch.randn(16000) * 0.1)
        assert units.shape == (24,) and units.max() < 500

    def test_no_frames(self):
        assert units_from_logits(torch.zeros(0, 4), blank=3).shape == (0,)

    def test_margins(self):
        assert unit_margins(torch.tensor([[1.0, 5.0, 3.5], [2.0, 2.0, 0.0]])).tolist() == [1.5, 0.0]
