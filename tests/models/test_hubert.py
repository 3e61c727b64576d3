import re
from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from tiny_models import HOP, SHORTEST, noise, tiny, tiny_hubert
from torch import Tensor, nn

from spiritrt.models.hubert import (
    CHUNK_SECONDS,
    Hubert,
    HubertConfig,
    encode_features,
    encode_units,
    hubert_from_official,
    unit_margins,
)


def reference_features(config: HubertConfig, weights: Mapping[str, Tensor], waveform: Tensor) -> Tensor:
    """HuBERT straight from its official weight names, one utterance at a time: [N] -> [T, D]."""

    def affine(x: Tensor, name: str) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def layer_norm(x: Tensor, name: str) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        return (
            x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weights[f"{name}.weight"] + weights[f"{name}.bias"]
        )

    x = waveform[None]
    for i, (_, _, stride) in enumerate(config.conv_layers):
        stem = f"feature_extractor.conv_layers.{i}"
        x = F.conv1d(x[None], weights[f"{stem}.0.weight"], weights.get(f"{stem}.0.bias"), stride)[0]
        if config.extractor_mode == "layer_norm":
            x = layer_norm(x.T, f"{stem}.2.1").T
        elif i == 0:
            x = (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
            x = x * weights[f"{stem}.2.weight"][:, None] + weights[f"{stem}.2.bias"][:, None]
        x = x * (1 + torch.erf(x / 2**0.5)) / 2
    x = layer_norm(x.T, "layer_norm")
    if "post_extract_proj.weight" in weights:
        x = affine(x, "post_extract_proj")
    place, stem = x.T, "encoder.pos_conv.0"
    if config.conv_pos_batch_norm:
        place = (place - weights[f"{stem}.running_mean"][:, None]) / (
            weights[f"{stem}.running_var"][:, None] + 1e-5
        ).sqrt()
        place = place * weights[f"{stem}.weight"][:, None] + weights[f"{stem}.bias"][:, None]
        stem = "encoder.pos_conv.1"
    place = F.pad(place, (config.conv_pos // 2, (config.conv_pos - 1) // 2))
    place = F.conv1d(place[None], weights[f"{stem}.weight"], weights[f"{stem}.bias"], groups=config.conv_pos_groups)[0]
    x = x + (place * (1 + torch.erf(place / 2**0.5)) / 2).T
    if not config.layer_norm_first:
        x = layer_norm(x, "encoder.layer_norm")
    for i in range(config.output_layer):
        stem = f"encoder.layers.{i}"

        def attention(x: Tensor, stem: str = stem) -> Tensor:
            q, k, v = (
                affine(x, f"{stem}.self_attn.{name}_proj").unflatten(-1, (config.encoder_attention_heads, -1))
                for name in "qkv"
            )
            scores = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
            out = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).flatten(1)
            return affine(out, f"{stem}.self_attn.out_proj")

        def feed_forward(x: Tensor, stem: str = stem) -> Tensor:
            x = affine(x, f"{stem}.fc1")
            return affine(x * (1 + torch.erf(x / 2**0.5)) / 2, f"{stem}.fc2")

        first, second = f"{stem}.self_attn_layer_norm", f"{stem}.final_layer_norm"
        if config.layer_norm_first:
            x = x + attention(layer_norm(x, first))
            x = x + feed_forward(layer_norm(x, second))
        else:
            x = layer_norm(x + attention(x), first)
            x = layer_norm(x + feed_forward(x), second)
    return x


class TestGolden:
    def test_features(self, hubert, clip):
        expected = clip.arrays["hubert_layer11"]
        with torch.no_grad():
            features = encode_features(hubert, clip.waveform)
        assert features.shape == expected.shape
        assert (features - expected).abs().max() <= 1e-4 * expected.abs().max()

    def test_margins(self, hubert, quantizer, clip):
        with torch.no_grad():
            margins = unit_margins(quantizer(encode_features(hubert, clip.waveform)))
        torch.testing.assert_close(margins, clip.arrays["unit_margin"], rtol=1e-4, atol=1e-4)

    def test_units(self, hubert, quantizer, clip):
        units = encode_units(hubert, quantizer, clip.waveform)
        certain = clip.arrays["unit_margin"] >= 1e-3
        assert certain.float().mean() > 0.99
        for expected in (clip.units_base["hubert"], clip.units_expressive["hubert"]):
            assert units.shape == expected.shape
            assert torch.equal(units[certain], expected[certain])

    @pytest.mark.parametrize("clip", ["leading_blank"], indirect=True)
    def test_leading_blank_takes_the_last_unit(self, hubert, quantizer, clip):
        """That clip does begin with a blank: otherwise `test_units` would not see the roll."""
        with torch.no_grad():
            best = quantizer(encode_features(hubert, clip.waveform)).argmax(-1)
        units = encode_units(hubert, quantizer, clip.waveform)
        assert best[0] == quantizer.blank and best[-1] != quantizer.blank
        assert units[0] == best[-1]


class TestArchitecture:
    @pytest.mark.parametrize("extractor_mode", ["default", "layer_norm"])
    @pytest.mark.parametrize("layer_norm_first", [False, True])
    @pytest.mark.parametrize("conv_pos_batch_norm", [False, True])
    @pytest.mark.parametrize(
        ("conv_pos", "conv_bias", "encoder_embed_dim"), [(6, False, 12), (5, True, 12), (4, True, 8)]
    )
    def test_every_variant(
        self, extractor_mode, layer_norm_first, conv_pos_batch_norm, conv_pos, conv_bias, encoder_embed_dim
    ):
        hubert = tiny_hubert(
            extractor_mode=extractor_mode,
            layer_norm_first=layer_norm_first,
            conv_pos_batch_norm=conv_pos_batch_norm,
            conv_pos=conv_pos,
            conv_pos_groups=4,
            conv_bias=conv_bias,
            encoder_embed_dim=encoder_embed_dim,
            encoder_attention_heads=2,
        )
        waveform = noise(7 * HOP + 333)
        with torch.no_grad():
            features = hubert(waveform[None])[0]
            expected = reference_features(hubert.config, hubert.state_dict(), waveform)
        assert features.shape == (7, encoder_embed_dim)
        torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("seconds", [0.08, 0.11, 0.5, 0.53])
    @pytest.mark.parametrize("multiple", [2, 7])
    def test_padding_to_a_multiple_changes_nothing(self, seconds, multiple):
        plain, padded = tiny_hubert(required_seq_len_multiple=1), tiny_hubert(required_seq_len_multiple=multiple)
        waveform = noise(int(seconds * 16000))[None]
        with torch.no_grad():
            torch.testing.assert_close(padded(waveform), plain(waveform), rtol=1e-5, atol=1e-6)

    def test_only_layer_norm_extractor_is_local_in_time(self):
        """A far sample moves GroupNorm's statistics, and so every frame; LayerNorm over channels does not see it."""
        waveform = noise(20 * HOP)[None]
        changed = waveform.clone()
        changed[:, -HOP:] *= 30
        for mode, local in (("layer_norm", True), ("default", False)):
            extractor = tiny_hubert(extractor_mode=mode).feature_extractor
            with torch.no_grad():
                same = torch.equal(extractor(waveform)[..., :10], extractor(changed)[..., :10])
            assert same is local, mode

    def test_layers_above_the_output_are_not_needed(self):
        full = tiny_hubert()
        weights = {k: v for k, v in full.state_dict().items() if not k.startswith("encoder.layers.1.")}
        lower = hubert_from_official(tiny(output_layer=1), weights)
        same = hubert_from_official(tiny(output_layer=1), full.state_dict())
        with torch.no_grad():
            assert torch.equal(lower(noise(4000)[None]), same(noise(4000)[None]))
            assert not torch.equal(lower(noise(4000)[None]), full(noise(4000)[None]))

    def test_rows_do_not_depend_on_the_batch(self):
        hubert, rows = tiny_hubert(), torch.stack([noise(5000, seed) for seed in range(3)])
        with torch.no_grad():
            batch = hubert(rows)
            for row, features in zip(rows, batch, strict=True):
                torch.testing.assert_close(hubert(row[None])[0], features, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("batch_norm", [False, True])
    def test_gradients_reach_every_weight(self, batch_norm):
        hubert = tiny_hubert(conv_pos_batch_norm=batch_norm, extractor_mode="layer_norm").train()
        hubert(torch.stack([noise(4000, 1), noise(4000, 2)])).square().mean().backward()
        for name, parameter in hubert.named_parameters():
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
            # a bias on all keys alike moves no attention weight
            assert parameter.grad.any() or name.endswith("k_proj.bias"), name

    def test_dropout_acts_in_training_only(self):
        torch.manual_seed(0)
        hubert = Hubert(HubertConfig.from_official(tiny()), dropout=0.5)
        waveform = noise(4000)[None]
        assert not torch.equal(hubert(waveform), hubert(waveform))
        hubert.eval()
        assert torch.equal(hubert(waveform), hubert(waveform))

    def test_bfloat16_norms_in_float32(self):
        hubert = tiny_hubert()
        with torch.no_grad():
            expected = hubert(noise(8000)[None])
            got = hubert.bfloat16()(noise(8000)[None].bfloat16())
        assert got.dtype == torch.bfloat16
        assert F.cosine_similarity(got.float(), expected, dim=-1).min() > 0.99

    def test_agrees_with_transformers(self):
        """An independent HuBERT: LayerNorm extractor with biases, norms before the branches, weight-normed position."""
        transformers = pytest.importorskip("transformers", reason="transformers is not installed")
        hubert = tiny_hubert(extractor_mode="layer_norm", layer_norm_first=True, conv_bias=True)
        config = hubert.config
        other = transformers.HubertModel(
            transformers.HubertConfig(
                hidden_size=config.encoder_embed_dim,
                num_hidden_layers=2,
                num_attention_heads=config.encoder_attention_heads,
                intermediate_size=config.encoder_ffn_embed_dim,
                conv_dim=[8] * 8,
                conv_kernel=[10, 3, 3, 3, 3, 2, 2, 2],
                conv_stride=[5, 2, 2, 2, 2, 2, 2, 2],
                conv_bias=True,
                feat_extract_norm="layer",
                do_stable_layer_norm=True,
                num_conv_pos_embeddings=config.conv_pos,
                num_conv_pos_embedding_groups=config.conv_pos_groups,
            )
        ).eval()
        renames = (
            (r"feature_extractor\.conv_layers\.(\d+)\.0", r"feature_extractor.conv_layers.\1.conv"),
            (r"feature_extractor\.conv_layers\.(\d+)\.2\.1", r"feature_extractor.conv_layers.\1.layer_norm"),
            (r"^layer_norm", "feature_projection.layer_norm"),
            (r"post_extract_proj", "feature_projection.projection"),
            (r"encoder\.pos_conv\.0", "encoder.pos_conv_embed.conv"),
            (r"self_attn_layer_norm", "layer_norm"),
            (r"self_attn", "attention"),
            (r"fc1", "feed_forward.intermediate_dense"),
            (r"fc2", "feed_forward.output_dense"),
        )
        nn.utils.parametrize.remove_parametrizations(other.encoder.pos_conv_embed.conv, "weight")
        weights = {"masked_spec_embed": other.state_dict()["masked_spec_embed"]}
        for name, value in hubert.state_dict().items():
            for pattern, replacement in renames:
                name = re.sub(pattern, replacement, name)
            weights[name] = value
        other.load_state_dict(weights)
        with torch.no_grad():
            # ours is the output of the layer, theirs has the last norm on top
            expected = other(noise(9000)[None]).last_hidden_state
            torch.testing.assert_close(
                other.encoder.layer_norm(hubert(noise(9000)[None])), expected, rtol=1e-4, atol=1e-5
            )


class TestWaveform:
    @pytest.mark.parametrize("samples", [0, 160, HOP - 1, HOP, SHORTEST - 1])
    def test_too_short(self, samples):
        with pytest.raises(ValueError, match=f"{samples} samples is too short"):
            encode_features(tiny_hubert(), torch.zeros(samples))

    @pytest.mark.parametrize(
        ("samples", "frames"), [(SHORTEST, 1), (720 + HOP, 2), (3 * HOP + 80, 3), (3 * HOP + 79, 2)]
    )
    def test_frames(self, samples, frames):
        with torch.no_grad():
            assert encode_features(tiny_hubert(), noise(samples)).shape == (frames, 12)

    def test_forward_needs_one_frame(self):
        with torch.no_grad():
            assert tiny_hubert()(noise(720)[None]).shape == (1, 1, 12)
        with pytest.raises(ValueError, match="719 samples is too short"):
            tiny_hubert()(noise(719)[None])
        with pytest.raises(ValueError, match=r"\[batch, samples\], got shape \(9000,\)"):
            tiny_hubert()(noise(9000))

    @pytest.mark.parametrize("value", [torch.nan, torch.inf])
    def test_not_finite(self, value):
        waveform = noise(4000)
        waveform[1234] = value
        with pytest.raises(ValueError, match="1 NaN or infinite samples, the first at 1234"):
            encode_features(tiny_hubert(), waveform)

    @pytest.mark.parametrize("waveform", [torch.zeros(2, 4000), torch.zeros(4000, dtype=torch.int16)])
    def test_wrong_kind(self, waveform):
        with pytest.raises(ValueError, match="floating point"):
            encode_features(tiny_hubert(), waveform)

    def test_silence_has_units(self, hubert, quantizer):
        units = encode_units(hubert, quantizer, torch.zeros(16000))
        assert units.shape == (24,) and ((units >= 0) & (units < 500)).all()

    def test_normalize_is_over_the_whole_recording(self):
        weights = tiny_hubert().state_dict()
        plain, normalizing = hubert_from_official(tiny(), weights), hubert_from_official(tiny(normalize=True), weights)
        waveform = noise(8000) * torch.linspace(0.1, 3, 8000) + 0.2
        normal = (waveform - waveform.mean()) / (waveform.var(unbiased=False) + 1e-5).sqrt()
        with torch.no_grad():
            got, expected = encode_features(normalizing, waveform), encode_features(plain, normal)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("tail", [SHORTEST - 1, SHORTEST])
    def test_chunks_of_100_seconds(self, tail):
        hubert = hubert_from_official(
            tiny(conv_feature_layers="[(2,10,5)] + [(2,4,4)] * 2 + [(2,8,8)]"),
            Hubert(
                HubertConfig.from_official(tiny(conv_feature_layers="[(2,10,5)] + [(2,4,4)] * 2 + [(2,8,8)]"))
            ).state_dict(),
        )
        chunk = CHUNK_SECONDS * 16000
        waveform = noise(chunk + tail)
        with torch.no_grad():
            features = encode_features(hubert, waveform)
            parts = [hubert(waveform[None, :chunk])[0]]
            if tail >= SHORTEST:
                parts.append(hubert(waveform[None, chunk:])[0])
        assert torch.equal(features, torch.cat(parts))
