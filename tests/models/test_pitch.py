import importlib.util
import math
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from spiritrt.models import pitch
from spiritrt.models.pitch import (
    SHORTEST_PITCH_SAMPLES,
    FcpeTracker,
    PitchQuantizer,
    PitchQuantizerConfig,
    PitchTrack,
    YaaptTracker,
    encode_pitch,
    interpolate_unvoiced,
    pitch_quantizer_from_official,
)

TINY = {
    "features": "norm_f0_interp,vuv",
    "speaker_norm": False,
    "encoder_params": {
        "input_emb_width": 2,
        "output_emb_width": 6,
        "levels": 1,
        "downs_t": [3],
        "strides_t": [2],
        "width": 4,
        "depth": 2,
        "m_conv": 1.0,
        "dilation_growth_rate": 3,
    },
    "vq_params": {"l_bins": 8, "emb_width": 6, "mu": 0.99, "levels": 1},
}
needs_fcpe = pytest.mark.skipif(importlib.util.find_spec("torchfcpe") is None, reason="torchfcpe is not installed")
needs_yaapt = pytest.mark.skipif(
    importlib.util.find_spec("amfm_decompy") is None, reason="amfm_decompy (extra yaapt) is not installed"
)
TRACKERS = [pytest.param(FcpeTracker, marks=needs_fcpe), pytest.param(YaaptTracker, marks=needs_yaapt)]


def tiny(section: str | None = None, **change: object) -> dict[str, object]:
    return TINY | ({section: TINY[section] | change} if section else change)


def tone(hz: float, seconds: float = 0.5) -> Tensor:
    """A harmonic tone, which trackers take for a voice."""
    time = torch.arange(int(seconds * 16000)) / 16000
    return sum(torch.sin(2 * math.pi * hz * k * time) / k for k in range(1, 6)) * 0.2


@pytest.fixture(scope="module")
def quantizer(speech_parts: Path) -> PitchQuantizer:
    folder = speech_parts / "vqvae_f0_quantizer"
    config = yaml.safe_load((folder / "config.yaml").read_text())
    return pitch_quantizer_from_official(config, torch.load(folder / "model.pt", weights_only=True)["model"])


@pytest.fixture(scope="module")
def fcpe() -> FcpeTracker:
    return FcpeTracker()


@needs_fcpe
class TestGolden:
    def test_f0(self, fcpe, clip):
        track = fcpe(clip.waveform)
        torch.testing.assert_close(track.f0_hz, clip.arrays["f0"], rtol=1e-4, atol=1e-3)
        assert torch.equal(track.voiced, clip.arrays["vuv"])

    def test_codes(self, fcpe, quantizer, clip):
        codes = encode_pitch(fcpe, quantizer, clip.waveform)
        assert torch.equal(codes, clip.units_expressive["pitch"])


# pYAAPT takes means of nothing where nothing is voiced
@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore:kernel_size exceeds:UserWarning")
class TestTrackers:
    @pytest.mark.parametrize("tracker", TRACKERS)
    @pytest.mark.parametrize("hz", [110, 220, 330])
    def test_tone(self, tracker, hz):
        f0, voiced = tracker()(tone(hz))
        assert f0.shape == voiced.shape and abs(len(f0) - 100) <= 1
        assert voiced.mean() > 0.8
        assert (f0[10:90] / hz - 1).abs().max() < 0.02

    @pytest.mark.parametrize("tracker", TRACKERS)
    @pytest.mark.parametrize("samples", [SHORTEST_PITCH_SAMPLES, 16000])
    @pytest.mark.parametrize("level", [0.0, 1e-6, 0.3])
    def test_silence_and_noise_have_codes(self, tracker, samples, level, quantizer):
        waveform = level * torch.randn(samples, generator=torch.Generator().manual_seed(0))
        track = tracker()(waveform)
        assert torch.isfinite(track.f0_hz).all() and ((track.voiced == 0) | (track.voiced == 1)).all()
        if level == 0:
            assert not track.voiced.any() and not track.f0_hz.any()
        codes = encode_pitch(lambda _: track, quantizer, waveform)
        assert codes.shape == (samples // 1280,)
        assert ((codes >= 0) & (codes < 64)).all()

    @pytest.mark.parametrize("tracker", TRACKERS)
    def test_unvoiced_is_interpolated(self, tracker):
        f0, voiced = tracker()(torch.cat([tone(150), torch.zeros(6000), tone(150)]))
        gap = voiced == 0
        assert 40 < gap.sum() < 110
        assert ((f0[gap] > 100) & (f0[gap] < 200)).all()

    @pytest.mark.parametrize("tracker", TRACKERS)
    def test_wrong_waveforms(self, tracker):
        track = tracker()
        for samples in (0, 160, SHORTEST_PITCH_SAMPLES - 1):
            with pytest.raises(ValueError, match=f"{samples} samples is too short"):
                track(torch.zeros(samples))
        with pytest.raises(ValueError, match="1 NaN or infinite samples, the first at 3"):
            track(F.pad(torch.tensor([torch.nan]), (3, 9000)))
        with pytest.raises(ValueError, match="floating point"):
            track(torch.zeros(2, 9000))

    @pytest.mark.parametrize(
        ("tracker", "package", "command"),
        [
            (FcpeTracker, "torchfcpe", "pip install --no-deps torchfcpe"),
            (YaaptTracker, "amfm_decompy.basic_tools", r"\.\[yaapt\]"),
        ],
    )
    def test_missing_package_is_named(self, tracker, package, command, monkeypatch):
        monkeypatch.delitem(sys.modules, package, raising=False)
        monkeypatch.setattr(importlib, "import_module", _failing_import(package))
        with pytest.raises(ImportError, match=command):
            tracker()

    @needs_fcpe
    def test_fcpe_prints_nothing(self, fcpe, capfd):
        FcpeTracker()(3 * tone(200))
        assert capfd.readouterr().out == ""

    @needs_fcpe
    def test_fcpe_threads_do_not_disturb_each_other(self, fcpe):
        sounds = [tone(hz) for hz in (120, 180, 240, 300)]
        with ThreadPoolExecutor(4) as pool:
            tracks = list(pool.map(fcpe, sounds))
        assert all(torch.equal(track.f0_hz, fcpe(sound).f0_hz) for track, sound in zip(tracks, sounds, strict=True))

    def test_torchaudio_is_stood_in_for_only_meanwhile(self):
        before = sys.modules.get("torchaudio")
        with pitch._torchaudio_or_stand_in():
            from torchaudio.transforms import Resample

            sound = torch.stack([tone(200), tone(300)])
            resampled = Resample(16000, 8000, lowpass_filter_width=128)(sound)
        assert resampled.shape == (2, 4000)
        torch.testing.assert_close(resampled[:, 200:-200], sound[:, ::2][:, 200:-200], rtol=0, atol=0.02)
        assert sys.modules.get("torchaudio") is before or hasattr(sys.modules["torchaudio"], "__file__")


def _failing_import(package: str):
    real = importlib.import_module

    def import_module(name: str):
        if name == package:
            raise ImportError(f"No module named {name!r}")
        return real(name)

    return import_module


class TestQuantizer:
    def test_by_hand(self):
        """Strided convolutions (filter 2s, padding s/2) with dilated residuals, then the nearest code."""
        torch.manual_seed(0)
        quantizer = PitchQuantizer(PitchQuantizerConfig.from_official(TINY))
        quantizer.vq.level_blocks[0].k.normal_()
        weights = quantizer.state_dict()
        features = torch.randn(1, 2, 37)

        def conv(x: Tensor, name: str, **shape: int) -> Tensor:
            return F.conv1d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], **shape)

        x, stem = features, "encoder.level_blocks.0.model"
        for i in range(3):
            x = conv(x, f"{stem}.{i}.0", stride=2, padding=1)
            for depth, dilation in enumerate((1, 3)):
                block = f"{stem}.{i}.1.model.{depth}.model"
                inner = conv(x.relu(), f"{block}.1", padding=dilation, dilation=dilation)
                x = x + conv(inner.relu(), f"{block}.3")
        x = conv(x, f"{stem}.3", padding=1)[0].T
        distance = (x[:, None] - weights["vq.level_blocks.0.k"]).square().sum(-1)
        assert distance.shape == (4, 8)
        with torch.no_grad():
            torch.testing.assert_close(-quantizer(features)[0], distance, rtol=1e-4, atol=1e-5)

    def test_too_few_values(self):
        quantizer = PitchQuantizer(PitchQuantizerConfig.from_official(TINY))
        assert quantizer(torch.zeros(1, 2, 8)).shape == (1, 1, 8)
        with pytest.raises(ValueError, match="7 values of F0 are too few: one code needs 8"):
            quantizer(torch.zeros(1, 2, 7))

    @pytest.mark.parametrize(
        ("features", "rows"),
        [
            ("norm_f0_interp,vuv", [[-5, 5, 0, 0], [1, 1, 0, 0]]),
            ("vuv, norm_f0", [[1, 1, 0, 0], [-5, 5, 0, 0]]),
            ("f0_interp,vuv", [[100, 110, 105, 0], [1, 1, 0, 0]]),
            ("f0,vuv", [[100, 110, 0, 0], [1, 1, 0, 0]]),
        ],
    )
    def test_features(self, features, rows):
        quantizer = PitchQuantizer(PitchQuantizerConfig.from_official(tiny(features=features)))
        track = PitchTrack(torch.tensor([100.0, 110.0, 105.0, 0.0]), torch.tensor([1.0, 1.0, 0.0, 0.0]))
        assert quantizer.features(track).tolist() == rows

    def test_nothing_voiced_is_not_nan(self):
        quantizer = PitchQuantizer(PitchQuantizerConfig.from_official(TINY))
        features = quantizer.features(PitchTrack(torch.zeros(20), torch.zeros(20)))
        assert not features.any() and features.shape == (2, 20)

    def test_interpolation(self):
        f0, voiced = torch.tensor([0.0, 10, 0, 0, 40, 0]), torch.tensor([False, True, False, False, True, False])
        assert interpolate_unvoiced(f0, voiced).tolist() == [10, 10, 20, 30, 40, 40]
        assert interpolate_unvoiced(f0, f0 > 20).tolist() == [40] * 6
        assert interpolate_unvoiced(f0, f0 > 99).tolist() == [0] * 6

    def test_gradients_reach_the_encoder(self):
        quantizer = PitchQuantizer(PitchQuantizerConfig.from_official(TINY))
        nn.init.normal_(quantizer.vq.level_blocks[0].k)
        quantizer(torch.randn(1, 2, 40)).mean().backward()
        assert all(p.grad is not None and p.grad.any() for p in quantizer.parameters())

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (
                {"vq.level_blocks.0.k": torch.zeros(9, 6)},
                r"vq\.level_blocks\.0\.k: expected shape \(8, 6\), got \(9, 6\)",
            ),
            ({"vq.level_blocks.1.k": torch.zeros(8, 6)}, r"unexpected weights: vq\.level_blocks\.1\.k"),
            ({"encoder.level_blocks.0.model.3.bias": None}, r"missing: encoder\.level_blocks\.0\.model\.3\.bias"),
            ({"decoder.out.weight": torch.zeros(1)}, None),
        ],
    )
    def test_weights(self, change, message):
        weights = PitchQuantizer(PitchQuantizerConfig.from_official(TINY)).state_dict() | change
        weights = {k: v for k, v in weights.items() if v is not None}
        if message is None:
            assert not pitch_quantizer_from_official(TINY, weights).training
        else:
            with pytest.raises(ValueError, match=message):
                pitch_quantizer_from_official(TINY, weights)

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            (tiny(features="f0_log,vuv"), "features must be of .* got .*f0_log"),
            (tiny(features=3), "'features' must be of type str, got 3"),
            (tiny(features="vuv"), "input_emb_width is 2 for the 1 features"),
            (tiny(speaker_norm=True), "speaker_norm"),
            (tiny("encoder_params", levels=2), r"encoder_params\.levels must be 1, got 2"),
            (tiny("encoder_params", downs_t=4), "'downs_t' must be a list of one whole number, got 4"),
            (tiny("encoder_params", strides_t=[3]), "strides_t must be even, got 3"),
            (tiny("encoder_params", width=0), "width must be positive, got 0"),
            (tiny("vq_params", emb_width=7), r"output_emb_width 6 differs from vq_params\.emb_width 7"),
            (tiny(vq_params=None), "no section 'vq_params'"),
        ],
    )
    def test_wrong_configs_are_named(self, config, message):
        with pytest.raises(ValueError, match=message):
            PitchQuantizerConfig.from_official(config)
