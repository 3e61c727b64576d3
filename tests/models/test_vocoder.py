import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from spiritrt.models.vocoder import (
    LONGEST_UNIT_FRAMES,
    Vocoder,
    VocoderConfig,
    fold_weight_norm,
    vocode_expanded,
    vocode_frames,
    vocode_units,
    vocoder_from_official,
)
from spiritrt.tokens.units import expand
from spiritrt.tokens.vocabulary import parse_speech

BASE = {
    "resblock": "1",
    "upsample_rates": [5, 4, 4, 4, 2],
    "upsample_kernel_sizes": [11, 8, 8, 8, 4],
    "upsample_initial_channel": 64,
    "resblock_kernel_sizes": [3, 7, 11],
    "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5], [1, 3, 5]],
    "num_embeddings": 21,
    "embedding_dim": 4,
    "code_hop_size": 640,
    "sampling_rate": 16000,
    "f0": None,
    "dur_predictor_params": {
        "encoder_embed_dim": 4,
        "var_pred_hidden_dim": 6,
        "var_pred_kernel_size": 3,
        "var_pred_dropout": 0.5,
    },
    "multispkr": "from_input_file",
    "num_speakers": 4,
    "multistyle": "from_input_file",
    "num_styles": 10,
    "model_in_dim": 12,
}
EXPRESSIVE = {k: v for k, v in BASE.items() if "style" not in k} | {
    "num_f0_tokens": 7,
    "f0_hop_size": 1280,
    "num_style_tokens": 5,
    "style_hop_size": 16000,
    "model_in_dim": 16,
}
PLAIN = {k: v for k, v in BASE.items() if k not in ("multispkr", "multistyle", "dur_predictor_params", "model_in_dim")}


def tiny_vocoder(config: dict[str, object], seed: int = 0) -> Vocoder:
    """A tiny vocoder in eval mode whose weights are large enough to hear every input."""
    torch.manual_seed(seed)
    vocoder = Vocoder(VocoderConfig.from_official(config)).eval()
    for name, parameter in vocoder.named_parameters():
        if parameter.dim() == 3 and "dur_predictor" not in name:
            fan_in = parameter.shape[0 if name.startswith("ups") else 1] * parameter.shape[2]
            nn.init.normal_(parameter, std=(2 / fan_in) ** 0.5)
    return vocoder


def official(folder: Path) -> Vocoder:
    config = json.loads((folder / "config.json").read_text())
    return vocoder_from_official(config, torch.load(folder / "generator.pt", weights_only=True)["generator"])


@pytest.fixture(scope="module")
def base(speech_parts: Path) -> Vocoder:
    return official(speech_parts / "hifigan_spiritlm_base")


@pytest.fixture(scope="module")
def expressive(speech_parts: Path) -> Vocoder:
    return official(speech_parts / "hifigan_spiritlm_expressive_w2v2")


def assert_same_sound(sound: Tensor, expected: Tensor) -> None:
    assert sound.shape == expected.shape
    assert (sound - expected).abs().max() <= 1e-4


class TestGolden:
    def test_base_tokens(self, base, clip):
        units = expand(parse_speech(clip.string_base))
        assert_same_sound(vocode_units(base, torch.tensor(units.hubert), speaker=2), clip.arrays["base_dur"])

    def test_base_frames(self, base, clip):
        sound = vocode_frames(base, clip.units_base["hubert"], speaker=2)
        assert_same_sound(sound, clip.arrays["base_nodur"])

    def test_expressive_tokens(self, expressive, clip):
        codes = expand(parse_speech(clip.string_expressive))
        units, pitch, style = map(torch.tensor, (codes.hubert, codes.pitch, codes.style))
        sound = vocode_units(expressive, units, pitch=pitch, style=style, speaker=1)
        assert_same_sound(sound, clip.arrays["expr_dur"])

    def test_expressive_frames(self, expressive, clip):
        codes = clip.units_expressive
        sound = vocode_frames(expressive, codes["hubert"], pitch=codes["pitch"], style=codes["style"], speaker=2)
        assert_same_sound(sound, clip.arrays["expr_resyn"])

    def test_defaults_are_speaker_2_and_named_style_8(self, base, clip):
        units = clip.units_base["hubert"][:5]
        default = vocode_frames(base, units)
        assert torch.equal(default, vocode_frames(base, units, speaker=2, named_style=8))
        assert not torch.equal(default, vocode_frames(base, units, speaker=1, named_style=8))
        assert not torch.equal(default, vocode_frames(base, units, speaker=2, named_style=7))


class TestSound:
    def test_frames_depend_on_exactly_their_context(self):
        vocoder = tiny_vocoder(PLAIN).double()
        before, after = vocoder.config.context_frames
        assert (before, after) == (20, 20)
        units = torch.randint(0, 20, (1, 60), generator=torch.Generator().manual_seed(1))
        changed = units.clone()
        changed[0, 30] = 20
        with torch.no_grad():
            differs = (vocoder(units) != vocoder(changed)).view(60, 640).any(1).nonzero().flatten()
        assert differs.min() == 30 - after and differs.max() == 30 + before

    def test_a_window_with_its_context_is_exact(self, base):
        before, after = base.config.context_frames
        units = torch.randint(0, 500, (80,), generator=torch.Generator().manual_seed(2))
        whole = vocode_frames(base, units)
        window = vocode_frames(base, units[30 - before : 45 + after])
        torch.testing.assert_close(window[before * 640 : (before + 15) * 640], whole[30 * 640 : 45 * 640])

    @pytest.mark.parametrize(
        ("rates", "kernels", "dilations", "hop"),
        [([8, 5, 4, 2], [16, 11, 8, 4], [[1, 3, 5]] * 3, 320), ([2], [2], [[1], [2], [1, 1]], 2)],
    )
    def test_other_shapes(self, rates, kernels, dilations, hop):
        config = PLAIN | {
            "upsample_rates": rates,
            "upsample_kernel_sizes": kernels,
            "resblock_dilation_sizes": dilations,
            "code_hop_size": hop,
        }
        vocoder = tiny_vocoder(config).double()
        before, after = vocoder.config.context_frames
        units, middle = torch.zeros(1, 2 * max(before, after) + 3, dtype=torch.int64), max(before, after) + 1
        changed = units.clone()
        changed[0, middle] = 1
        with torch.no_grad():
            sound = vocoder(units)
            differs = (sound != vocoder(changed)).view(-1, hop).any(1).nonzero().flatten()
        assert sound.shape == (1, hop * units.shape[1]) and sound.abs().max() <= 1
        assert differs.min() == middle - after and differs.max() == middle + before

    def test_rows_do_not_depend_on_the_batch(self):
        vocoder = tiny_vocoder(BASE)
        units, speakers = torch.randint(0, 21, (3, 6)), torch.tensor([0, 3, 1])
        with torch.no_grad():
            batch = vocoder(units, speakers)
        for row, speaker, sound in zip(units, speakers, batch, strict=True):
            torch.testing.assert_close(vocode_frames(vocoder, row, speaker=int(speaker)), sound, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize(("pitches", "styles"), [(4, 1), (1, 1), (60, 9)])
    def test_codes_are_repeated_and_the_last_goes_on(self, pitches, styles):
        vocoder = tiny_vocoder(EXPRESSIVE)
        units = torch.arange(53) % 21
        pitch, style = torch.arange(pitches) % 7, torch.arange(styles) % 5
        frames = [
            [int(codes[min(i // n, len(codes) - 1)]) for i in range(53)] for codes, n in ((pitch, 2), (style, 25))
        ]
        with torch.no_grad():
            expected = vocoder(units[None], pitch=torch.tensor([frames[0]]), style=torch.tensor([frames[1]]))[0]
        assert torch.equal(vocode_frames(vocoder, units, pitch=pitch, style=style), expected)

    def test_tokens_last_as_long_as_predicted(self):
        vocoder = tiny_vocoder(EXPRESSIVE)
        vocoder.dur_predictor.proj.weight.data.mul_(4)
        units, pitch, style = torch.tensor([3, 9, 4, 20]), torch.tensor([1, 1, 2, 6]), torch.tensor([0, 4, 4, 3])
        times = vocoder.durations(units[None])[0]
        assert len(set(times.tolist())) > 1
        with torch.no_grad():
            frames = [codes.repeat_interleave(times)[None] for codes in (units, pitch, style)]
            expected = vocoder(frames[0], pitch=frames[1], style=frames[2])[0]
        assert torch.equal(vocode_units(vocoder, units, pitch=pitch, style=style), expected)
        expanded = vocode_expanded(vocoder, frames[0][0], pitch=frames[1][0], style=frames[2][0])
        assert torch.equal(expanded, expected)

    @pytest.mark.parametrize("vocode", [vocode_units, vocode_expanded, vocode_frames])
    def test_no_units_are_no_sound(self, vocode):
        none = torch.zeros(0, dtype=torch.int64)
        assert vocode(tiny_vocoder(BASE), none).shape == (0,)
        assert vocode(tiny_vocoder(EXPRESSIVE), none, pitch=none, style=none).shape == (0,)

    def test_fewer_speakers_and_styles_than_the_defaults(self):
        vocoder = tiny_vocoder(BASE | {"num_speakers": 1, "num_styles": 3})
        units = torch.arange(4)
        assert torch.equal(vocode_frames(vocoder, units), vocode_frames(vocoder, units, speaker=0, named_style=2))


class TestDurations:
    @settings(max_examples=20, deadline=None)
    @given(st.integers(0, 11))
    def test_see_two_units_on_each_side(self, changed):
        vocoder = tiny_vocoder(BASE)
        units = torch.arange(12)[None] % 20
        other = units.clone()
        other[0, changed] = 20
        with torch.no_grad():
            differs = (vocoder.log_durations(units) != vocoder.log_durations(other))[0].nonzero().flatten().tolist()
        assert differs == [i for i in range(12) if abs(i - changed) <= 2]

    @pytest.mark.parametrize(
        ("log", "frames"),
        [
            (-9.0, 1),
            (0.0, 1),
            (1.2, 2),
            (torch.tensor(4.5).log().item(), 4),
            (60.0, LONGEST_UNIT_FRAMES),
            (1e9, LONGEST_UNIT_FRAMES),
        ],
    )
    def test_are_rounded_and_bounded(self, log, frames):
        vocoder = tiny_vocoder(BASE)
        nn.init.zeros_(vocoder.dur_predictor.proj.weight)
        nn.init.constant_(vocoder.dur_predictor.proj.bias, log)
        durations = vocoder.durations(torch.arange(3)[None])
        assert durations.dtype == torch.int64 and durations.tolist() == [[frames] * 3]

    def test_without_a_predictor(self):
        with pytest.raises(ValueError, match="no duration predictor"):
            vocode_units(tiny_vocoder(PLAIN), torch.arange(3))


class TestWeights:
    @pytest.mark.parametrize("spelling", ["weight_g", "parametrizations"])
    def test_weight_norm_is_folded(self, spelling):
        """What torch's own weight norm computes, official (`weight_g`, `weight_v`) or as parametrizations."""
        normed = tiny_vocoder(BASE)
        for module in normed.modules():
            if isinstance(module, nn.Conv1d | nn.ConvTranspose1d) and module not in normed.dur_predictor.modules():
                nn.utils.parametrizations.weight_norm(module)
                module.parametrizations.weight.original0.data.mul_(1.1)
        weights = normed.state_dict()
        if spelling == "weight_g":
            for old, new in (("original0", "weight_g"), ("original1", "weight_v")):
                weights = {k.replace(f"parametrizations.weight.{old}", new): v for k, v in weights.items()}
        plain = vocoder_from_official(BASE, weights)
        assert not any("weight_" in name or "original" in name for name in plain.state_dict())
        units = torch.arange(5)
        torch.testing.assert_close(vocode_frames(plain, units), vocode_frames(normed, units), rtol=1e-4, atol=1e-5)
        assert fold_weight_norm(weights).keys() == plain.state_dict().keys()

    def test_plain_weights_load_as_they_are(self):
        vocoder = tiny_vocoder(BASE)
        loaded = vocoder_from_official(BASE, vocoder.state_dict())
        assert all(torch.equal(value, vocoder.state_dict()[name]) for name, value in loaded.state_dict().items())

    def test_gradients_reach_every_weight(self):
        vocoder = tiny_vocoder(EXPRESSIVE).train()
        units, codes = (
            torch.arange(21)[None],
            {"pitch": torch.arange(21)[None] % 7, "style": torch.arange(21)[None] % 5},
        )
        loss = vocoder(units, torch.tensor([1]), **codes).square().mean() + vocoder.log_durations(units).square().mean()
        loss.backward()
        assert all(p.grad is not None and p.grad.any() for p in vocoder.parameters())

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"spkr.weight": torch.zeros(3, 4)}, r"spkr\.weight: expected shape \(4, 4\), got \(3, 4\)"),
            ({"f0_dict.weight": torch.zeros(7, 4)}, r"unexpected weights: f0_dict\.weight"),
            ({"ups.1.bias": None}, r"missing: ups\.1\.bias"),
        ],
    )
    def test_wrong_weights_are_named(self, change, message):
        weights = {k: v for k, v in (tiny_vocoder(BASE).state_dict() | change).items() if v is not None}
        with pytest.raises(ValueError, match=message):
            vocoder_from_official(BASE, weights)


class TestErrors:
    @pytest.mark.parametrize("vocode", [vocode_units, vocode_expanded, vocode_frames])
    @pytest.mark.parametrize(
        ("codes", "message"),
        [
            ({"units": [1, 21, 2]}, "units 21 at position 1 is out of range: this vocoder knows 0..20"),
            ({"units": [-1]}, "units -1 at position 0"),
            ({"units": [[1, 2]]}, "units must be whole numbers"),
            ({"units": [1.0]}, "units must be whole numbers"),
            ({"units": [1], "pitch": [7]}, "pitch 7 at position 0 is out of range"),
            ({"units": [1], "style": [5]}, "style 5 at position 0 is out of range"),
            ({"units": [1], "pitch": None}, "needs pitch codes"),
            ({"units": [1], "style": None}, "needs style codes"),
            ({"units": [1], "pitch": []}, "pitch has"),
        ],
    )
    def test_wrong_codes_are_named(self, vocode, codes, message):
        codes = {"pitch": [1], "style": [1]} | codes
        codes = {k: v if v is None else torch.tensor(v, dtype=None if v else torch.int64) for k, v in codes.items()}
        with pytest.raises(ValueError, match=message):
            vocode(tiny_vocoder(EXPRESSIVE), codes.pop("units"), **codes)

    @pytest.mark.parametrize("vocode", [vocode_units, vocode_expanded, vocode_frames])
    @pytest.mark.parametrize(
        ("ids", "message"),
        [
            ({"speaker": 4}, "speaker 4 is out of range: this vocoder has 4"),
            ({"speaker": -1}, "speaker -1"),
            ({"named_style": 10}, "named_style 10 is out of range"),
            ({"pitch": torch.tensor([1])}, "takes no pitch"),
        ],
    )
    def test_wrong_ids_are_named(self, vocode, ids, message):
        with pytest.raises(ValueError, match=message):
            vocode(tiny_vocoder(BASE), torch.tensor([1]), **ids)

    def test_named_style_where_there_is_none(self):
        with pytest.raises(ValueError, match="named_style 0 is out of range: this vocoder has 0"):
            vocode_frames(tiny_vocoder(PLAIN), torch.tensor([1]), named_style=0)
        with pytest.raises(ValueError, match="has no speaker"):
            tiny_vocoder(PLAIN)(torch.tensor([[1]]), speaker=torch.tensor([0]))
        with pytest.raises(ValueError, match="needs pitch codes"):
            tiny_vocoder(EXPRESSIVE)(torch.tensor([[1]]))

    def test_one_code_a_unit(self):
        for vocode in (vocode_units, vocode_expanded):
            with pytest.raises(ValueError, match="pitch has 2 codes for 3 units"):
                vocode(tiny_vocoder(EXPRESSIVE), torch.arange(3), pitch=torch.tensor([1, 2]), style=torch.arange(3))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"resblock": "2"}, "'resblock' = '2' is not supported"),
            ({"f0": True}, "'f0' = True is not supported"),
            ({"upsample_rates": [5, 4]}, r"upsample_rates \(5, 4\) and upsample_kernel_sizes"),
            ({"upsample_kernel_sizes": [10, 8, 8, 8, 4]}, "by 5 needs a kernel larger by an even number, got 10"),
            ({"upsample_initial_channel": 16}, "16 cannot be halved 5 times"),
            ({"resblock_kernel_sizes": [3, 7, 10]}, r"must be odd, got \(3, 7, 10\)"),
            ({"resblock_dilation_sizes": [[1], [0], [1]]}, "must be positive"),
            ({"resblock_dilation_sizes": 3}, "list of lists, got 3"),
            ({"code_hop_size": 320}, "'code_hop_size' is 320, but the other words make it 640"),
            ({"model_in_dim": 16}, "'model_in_dim' is 16, but the other words make it 12"),
            ({"num_f0_tokens": 7, "f0_hop_size": 1000, "model_in_dim": 16}, "f0_hop_size 1000 is no multiple"),
            ({"num_embeddings": 0}, "num_embeddings must be at least 1, got 0"),
            ({"num_embeddings": None}, "no 'num_embeddings'"),
            ({"num_speakers": -1, "model_in_dim": 8}, "num_speakers must not be negative, got -1"),
            (
                {"dur_predictor_params": {"encoder_embed_dim": 5, "var_pred_hidden_dim": 6}},
                "encoder_embed_dim 5 differs",
            ),
        ],
    )
    def test_wrong_configs_are_named(self, change, message):
        with pytest.raises(ValueError, match=message):
            VocoderConfig.from_official(BASE | change)
