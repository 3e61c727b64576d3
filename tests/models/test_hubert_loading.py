"""HuBERT's weights and config as checkpoints hold them."""

import pytest
import torch
import torch.nn.functional as F
from tiny_models import HOP, TINY, tiny, tiny_hubert
from torch import nn

from spiritrt.models.hubert import HubertConfig, hubert_from_official


class TestWeights:
    @pytest.mark.parametrize("spelling", ["weight_g", "parametrizations"])
    def test_weight_norm_of_the_positional_conv(self, spelling):
        """Weight norm over dim 2, as torch's own does it, folded on loading."""
        torch.manual_seed(1)
        conv = nn.Conv1d(12, 12, 6, padding=3, groups=3)
        if spelling == "weight_g":
            with pytest.warns(FutureWarning, match="weight_norm"):
                conv = nn.utils.weight_norm(conv, dim=2)
            magnitude = conv.weight_g
        else:
            conv = nn.utils.parametrizations.weight_norm(conv, dim=2)
            magnitude = conv.parametrizations.weight.original0
        nn.init.uniform_(magnitude, 0.5, 2)
        weights = tiny_hubert().state_dict()
        del weights["encoder.pos_conv.0.weight"]
        weights |= {f"encoder.pos_conv.0.{name}": value for name, value in conv.state_dict().items()}
        hubert = hubert_from_official(tiny(), weights)
        x = torch.randn(2, 12, 9)
        with torch.no_grad():
            torch.testing.assert_close(hubert.encoder.pos_conv(x), F.gelu(conv(x)[..., :-1]), rtol=1e-5, atol=1e-6)

    def test_pretraining_weights_are_left_out(self):
        weights = tiny_hubert().state_dict()
        extra = {
            "mask_emb": torch.zeros(12),
            "final_proj.weight": torch.zeros(3, 12),
            "label_embs_concat": torch.zeros(9, 3),
        }
        loaded = hubert_from_official(tiny(), weights | extra)
        assert all(torch.equal(value, weights[name]) for name, value in loaded.state_dict().items())

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"encoder.layers.0.fc3.weight": torch.zeros(1)}, r"unexpected weights: encoder\.layers\.0\.fc3\.weight"),
            ({"encoder.layers.1.fc1.weight": None}, r"missing: encoder\.layers\.1\.fc1\.weight"),
            (
                {"post_extract_proj.weight": torch.zeros(12, 9)},
                r"post_extract_proj\.weight: expected shape \(12, 8\), got \(12, 9\)",
            ),
            ({"encoder.pos_conv.0.weight_g": torch.ones(1, 1, 6)}, r"needs both .*weight_g and .*weight_v"),
            ({"layer_norm.bias": "0"}, r"layer_norm\.bias: expected a tensor, got str"),
        ],
    )
    def test_wrong_weights_are_named(self, change, message):
        weights = {k: v for k, v in (tiny_hubert().state_dict() | change).items() if v is not None}
        with pytest.raises(ValueError, match=message):
            hubert_from_official(tiny(), weights)

    def test_wrong_magnitude_of_weight_norm(self):
        weights = tiny_hubert().state_dict()
        weights["encoder.pos_conv.0.weight_v"] = weights.pop("encoder.pos_conv.0.weight")
        weights["encoder.pos_conv.0.weight_g"] = torch.ones(1, 1, 5)
        with pytest.raises(ValueError, match=r"\(1, 1, 5\) is no magnitude for .*weight_v \(12, 4, 6\)"):
            hubert_from_official(tiny(), weights)


class TestConfig:
    @pytest.mark.parametrize(
        ("model", "message"),
        [
            ({"extractor_mode": "batch"}, "extractor_mode .* 'batch'"),
            ({"activation_fn": "swish"}, "activation_fn .* 'swish'"),
            ({"encoder_attention_heads": 5}, "encoder_attention_heads 5 does not divide"),
            ({"encoder_layers": 1}, "output_layer must be in 1..1, got 2"),
            ({"conv_pos": 0}, "conv_pos must be at least 1, got 0"),
            ({"conv_pos": "6"}, "'conv_pos' must be of type int, got '6'"),
            ({"pos_conv_depth": 5}, "'pos_conv_depth' = 5 is not supported"),
            ({"conv_feature_layers": None}, "conv_feature_layers"),
            ({"conv_feature_layers": "[(8,0,5)]"}, "triples"),
        ],
    )
    def test_wrong_values_are_named(self, model, message):
        with pytest.raises(ValueError, match=message):
            HubertConfig.from_official(tiny(**model))

    def test_missing_section(self):
        with pytest.raises(ValueError, match="'task_cfg'"):
            HubertConfig.from_official({"model_cfg": TINY})

    def test_official_shape(self):
        config = HubertConfig.from_official(tiny())
        assert (config.hop_samples, config.receptive_samples) == (HOP, 720)
        assert (
            HubertConfig.from_official({"model_cfg": TINY | {"encoder_layers": 12}, "task_cfg": {}}).output_layer == 11
        )
