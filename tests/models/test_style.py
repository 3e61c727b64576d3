import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from spiritrt.models.style import StyleClassifier, StyleConfig, encode_style, style_classifier_from_official

TINY = {
    "conv_dim": [6] * 7,
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    "conv_bias": False,
    "feat_extract_norm": "group",
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "classifier_proj_size": 5,
    "num_conv_pos_embeddings": 6,
    "num_conv_pos_embedding_groups": 2,
    "id2label": {str(i): f"LABEL_{i}" for i in range(11)},
}


def tiny_classifier(**change: object) -> StyleClassifier:
    torch.manual_seed(0)
    return StyleClassifier(StyleConfig.from_official(TINY | change)).eval()


def noise(samples: int) -> Tensor:
    return torch.randn(samples, generator=torch.Generator().manual_seed(1)) * 0.1


@pytest.fixture(scope="module")
def classifier(speech_parts: Path) -> StyleClassifier:
    folder = speech_parts / "style_encoder_w2v2"
    config = json.loads((folder / "config.json").read_text())
    return style_classifier_from_official(config, torch.load(folder / "pytorch_model.bin", weights_only=True))


def test_golden_styles(classifier, clip):
    assert torch.equal(encode_style(classifier, clip.waveform), clip.units_expressive["style"])


@pytest.mark.parametrize(
    "change",
    [{}, {"feat_extract_norm": "layer", "conv_bias": True}, {"num_conv_pos_embeddings": 5, "num_hidden_layers": 1}],
)
def test_agrees_with_transformers(change):
    """The reference implementation, random weights: the frames, and the logits of a recording of one second."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    words = {k: v for k, v in (TINY | change).items() if k != "id2label"}
    other = transformers.Wav2Vec2ForSequenceClassification(transformers.Wav2Vec2Config(**words, num_labels=11)).eval()
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) / 4)
            elif "original0" in name:
                parameter.mul_(1.5)
    classifier = style_classifier_from_official(TINY | change, other.state_dict())
    waveform = noise(16000 + 79)  # 50 frames
    normal = ((waveform - waveform.mean()) / torch.sqrt(waveform.var(unbiased=False) + 1e-7))[None]
    with torch.no_grad():
        frames = other.wav2vec2(normal).last_hidden_state
        torch.testing.assert_close(classifier.wav2vec2(normal), frames, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(classifier(waveform[None])[:, 0], other(normal).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spelling", ["weight_g", "parametrizations"])
def test_both_spellings_of_weight_norm(spelling):
    weights = tiny_classifier().state_dict()
    plain, stem = tiny_classifier(), "wav2vec2.encoder.pos_conv_embed.conv."
    conv = nn.utils.parametrizations.weight_norm(tiny_classifier().wav2vec2.encoder.pos_conv_embed.conv, dim=2)
    g, v = conv.parametrizations.weight.original0.detach() * 2, conv.parametrizations.weight.original1.detach()
    names = (
        ("weight_g", "weight_v")
        if spelling == "weight_g"
        else tuple(f"parametrizations.weight.original{i}" for i in (0, 1))
    )
    del weights[stem + "weight"]
    loaded = style_classifier_from_official(TINY, weights | {stem + names[0]: g, stem + names[1]: v})
    expected = 2 * plain.state_dict()[stem + "weight"]
    torch.testing.assert_close(loaded.state_dict()[stem + "weight"], expected)


@pytest.mark.parametrize(("samples", "seconds"), [(400, 1), (16079, 1), (16000 + 400, 2), (33000, 3)])
def test_a_last_partial_second_counts(samples, seconds):
    classifier = tiny_classifier()
    with torch.no_grad():
        logits = classifier(noise(samples)[None])
        frames = classifier.projector(classifier.wav2vec2(_normal(noise(samples))))
        last = classifier.classifier(frames[:, 50 * (seconds - 1) :].mean(1))
    assert logits.shape == (1, seconds, 11)
    torch.testing.assert_close(logits[:, -1], last)


def _normal(waveform: Tensor) -> Tensor:
    return ((waveform - waveform.mean()) / torch.sqrt(waveform.var(unbiased=False) + 1e-7))[None]


def test_level_and_offset_do_not_matter():
    classifier, waveform = tiny_classifier(), noise(20000)
    with torch.no_grad():
        plain, other = classifier(waveform[None]), classifier(0.3 * waveform[None] + 0.2)
    torch.testing.assert_close(plain, other, rtol=1e-3, atol=1e-4)


def test_rows_do_not_depend_on_the_batch():
    classifier, rows = tiny_classifier(), noise(3 * 9000).view(3, 9000)
    with torch.no_grad():
        batch = classifier(rows)
        for row, logits in zip(rows, batch, strict=True):
            torch.testing.assert_close(classifier(row[None])[0], logits, rtol=1e-4, atol=1e-5)


def test_silence_has_a_style(classifier):
    styles = encode_style(classifier, torch.zeros(20000))
    assert styles.shape == (2,) and ((styles >= 0) & (styles < 100)).all()
    with torch.no_grad():
        assert torch.isfinite(classifier(torch.zeros(1, 20000))).all()


def test_gradients_reach_every_weight():
    classifier = tiny_classifier().train()
    classifier(noise(20000)[None]).square().mean().backward()
    for name, parameter in classifier.named_parameters():
        assert parameter.grad is not None and (parameter.grad.any() or name.endswith("k_proj.bias")), name


def test_wrong_waveforms(classifier):
    with pytest.raises(ValueError, match="399 samples is too short: at least 400"):
        encode_style(classifier, torch.zeros(399))
    with pytest.raises(ValueError, match="399 samples is too short: one style needs 400"):
        classifier(torch.zeros(1, 399))
    with pytest.raises(ValueError, match="1 NaN or infinite samples, the first at 2"):
        encode_style(classifier, torch.tensor([0.0, 0.0, torch.inf] + [0.0] * 400))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classifier.bias": torch.zeros(12)}, r"classifier\.bias: expected shape \(11,\), got \(12,\)"),
        ({"wav2vec2.adapter.weight": torch.zeros(1)}, r"unexpected weights: wav2vec2\.adapter\.weight"),
        ({"projector.weight": None}, r"missing: projector\.weight"),
    ],
)
def test_wrong_weights_are_named(change, message):
    weights = {k: v for k, v in (tiny_classifier().state_dict() | change).items() if v is not None}
    with pytest.raises(ValueError, match=message):
        style_classifier_from_official(TINY, weights)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"do_stable_layer_norm": True}, "'do_stable_layer_norm' = True is not supported"),
        ({"add_adapter": True}, "add_adapter"),
        ({"hidden_act": "relu"}, "'hidden_act' must be 'gelu', got 'relu'"),
        ({"feat_extract_norm": "batch"}, "feat_extract_norm .* 'batch'"),
        ({"conv_dim": [6] * 6}, "must be of one length"),
        ({"conv_dim": "6"}, "'conv_dim' must be a list of whole numbers, got '6'"),
        ({"num_attention_heads": 3}, "num_attention_heads 3 does not divide hidden_size 8"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be at least 1, got 0"),
        ({"hidden_size": None}, "no 'hidden_size'"),
        ({"id2label": None}, "no 'num_labels'"),
    ],
)
def test_wrong_configs_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        StyleConfig.from_official(TINY | change)
