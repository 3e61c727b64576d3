import warnings

import numpy as np
import pytest
import soundfile
import torch

from spiritrt import audio

RATES_HZ = [4000, 8000, 11025, 16000, 22050, 24000, 32000, 44100, 48000, 96000, 384000]


def tone(rate: int, seconds: float = 0.5, hz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def middle(samples: np.ndarray) -> np.ndarray:
    """Half a second without its edges, where a resampling filter sees silence."""
    return samples[1000:7000]


class TestRates:
    @pytest.mark.parametrize("rate", RATES_HZ)
    def test_a_tone_stays_itself(self, rate):
        samples = audio.load(tone(rate), rate)
        assert samples.dtype == np.float32 and abs(len(samples) - 8000) <= 1
        np.testing.assert_allclose(middle(samples), middle(tone(16000)), atol=2e-3)

    def test_16_khz_is_taken_as_it_is(self):
        samples = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
        np.testing.assert_array_equal(audio.load(samples), samples)
        np.testing.assert_array_equal(audio.load(samples, 16000), samples)

    def test_what_the_model_cannot_hear_is_filtered_out(self):
        """10 kHz at 48 kHz would fold down to 6 kHz."""
        assert np.abs(middle(audio.load(tone(48000, hz=10000), 48000))).max() < 1e-3

    @pytest.mark.parametrize("rate", [0, -16000, 3999, 384001, float("nan")])
    def test_impossible_rates(self, rate):
        with pytest.raises(ValueError, match=f"audio: rate must be 4000 to 384000 Hz, got {rate}"):
            audio.load(tone(16000), rate)


class TestTypes:
    @pytest.mark.parametrize(
        ("dtype", "scale", "offset"),
        [(np.int8, 2**7, 0), (np.int16, 2**15, 0), (np.int32, 2**31, 0), (np.uint8, 2**7, 128)],
    )
    def test_integers_are_scaled_by_their_range(self, dtype, scale, offset):
        info = np.iinfo(dtype)
        samples = audio.load(np.array([info.min, offset, offset + scale // 2, info.max], dtype))
        np.testing.assert_allclose(samples, [-1, 0, 0.5, (info.max - offset) / scale])

    @pytest.mark.parametrize("kind", [np.float16, np.float64, torch.float32, torch.bfloat16, torch.int16, list])
    def test_arrays_and_tensors_of_any_kind(self, kind):
        values = [0.5, -0.25, 0.125]
        if kind is list:
            source = values
        elif kind is torch.int16:
            source = torch.tensor([16384, -8192, 4096], dtype=kind)
        else:
            source = torch.tensor(values, dtype=kind) if isinstance(kind, torch.dtype) else np.array(values, kind)
        samples = audio.load(source)
        assert samples.dtype == np.float32 and samples.tolist() == values

    @pytest.mark.parametrize("dtype", [np.complex64, np.bool_, np.uint16, object])
    def test_what_is_no_sound(self, dtype):
        with pytest.raises(ValueError, match="audio samples must be floating point or integer, got"):
            audio.load(np.zeros(100, dtype))


class TestChannels:
    STEREO = np.stack([tone(16000), -0.5 * tone(16000, hz=880)], axis=1)

    def test_are_averaged_with_a_warning(self):
        with pytest.warns(UserWarning, match="audio: 2 channels are averaged; choose one with channel=N"):
            samples = audio.load(self.STEREO)
        np.testing.assert_allclose(samples, self.STEREO.mean(axis=1))

    @pytest.mark.parametrize("channel", [0, 1])
    @pytest.mark.parametrize("rate", [16000, 44100])
    def test_one_can_be_chosen(self, channel, rate):
        stereo = np.stack([tone(rate), tone(rate, hz=880)], axis=1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            chosen = audio.load(stereo, rate, channel)
            np.testing.assert_array_equal(chosen, audio.load(stereo[:, channel].copy(), rate))

    def test_one_channel_is_no_reason_to_warn(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            np.testing.assert_array_equal(audio.load(tone(16000)[:, None]), tone(16000))

    @pytest.mark.parametrize(
        ("shape", "channel", "message"),
        [
            ((100, 2), 2, "channel 2 does not exist, there are 2, numbered from 0"),
            ((100, 2), -1, "channel -1 does not exist"),
            ((100,), 1, "channel 1 does not exist, there are 1"),
            ((2, 100), None, r"2 samples of 100 channels; an array is \[N, channels\], transpose it"),
            ((1, 2, 100), None, r"samples must be \[N\] or \[N, channels\], got shape \(1, 2, 100\)"),
        ],
    )
    def test_wrong_shapes(self, shape, channel, message):
        with pytest.raises(ValueError, match=message):
            audio.load(np.zeros(shape, np.float32), channel=channel)


class TestBroken:
    @pytest.mark.parametrize("shape", [(0,), (0, 2)])
    def test_empty(self, shape):
        with pytest.raises(ValueError, match="audio: holds no samples"):
            audio.load(np.zeros(shape, np.float32), channel=0)

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_not_finite(self, value):
        samples = tone(16000)
        samples[[40, 77]] = value
        with pytest.raises(ValueError, match="audio: has 2 NaN or infinite samples, the first at 40"):
            audio.load(samples)

    @pytest.mark.parametrize("kind", [np.float32, np.float64, torch.float32])
    def test_at_the_scale_of_integers(self, kind):
        loud = tone(16000) * 65534
        source = torch.from_numpy(loud) if kind is torch.float32 else loud.astype(kind)
        with pytest.raises(ValueError, match=r"audio: the peak is 3276\d.* and full scale is 1; divide by 32768"):
            audio.load(source)
        np.testing.assert_array_equal(audio.load(tone(16000) * 30), tone(16000) * 30)  # loud, and sound

    def test_not_finite_in_a_channel_that_is_not_used(self):
        stereo = np.stack([tone(16000), np.full(8000, np.nan, np.float32)], axis=1)
        np.testing.assert_array_equal(audio.load(stereo, channel=0), tone(16000))


class TestFiles:
    @pytest.mark.parametrize(
        ("suffix", "options", "tolerance"),
        [
            ("wav", {"subtype": "PCM_16"}, 1e-4),
            ("wav", {"subtype": "FLOAT"}, 0),
            ("wav", {"subtype": "PCM_24"}, 1e-6),
            ("wav", {"subtype": "ULAW"}, 0.03),
            ("flac", {}, 1e-4),
            ("ogg", {}, 0.05),
            ("mp3", {}, 0.05),
        ],
    )
    def test_of_any_kind(self, tmp_path, suffix, options, tolerance):
        file = tmp_path / f"tone.{suffix}"
        soundfile.write(file, tone(16000), 16000, **options)
        for source in (file, str(file)):
            samples = audio.load(source)
            np.testing.assert_allclose(middle(samples), middle(tone(16000)), atol=tolerance)

    def test_rate_and_channels_are_read_from_the_file(self, tmp_path):
        file = tmp_path / "stereo.wav"
        soundfile.write(file, np.stack([tone(48000), np.zeros(24000)], axis=1), 48000, subtype="FLOAT")
        with pytest.warns(UserWarning, match=r"stereo\.wav: 2 channels are averaged"):
            samples = audio.load(file, rate=8000)
        np.testing.assert_allclose(middle(samples), 0.5 * middle(tone(16000)), atol=2e-3)

    def test_missing(self, tmp_path):
        for path, what in ((tmp_path / "x.wav", "no such sound file"), (tmp_path, "a folder, not a sound file")):
            with pytest.raises(ValueError, match=rf"{path.name}: {what}"):
                audio.load(path)

    @pytest.mark.parametrize("content", [b"", b"RIFF", b"this is no sound at all, but a page of text" * 20])
    def test_unreadable(self, tmp_path, content):
        file = tmp_path / "x.wav"
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.wav: cannot be read as sound"):
            audio.load(file)

    def test_a_file_without_samples(self, tmp_path):
        soundfile.write(tmp_path / "none.wav", np.zeros(0), 16000)
        with pytest.raises(ValueError, match=r"none\.wav: holds no samples"):
            audio.load(tmp_path / "none.wav")


class TestSave:
    def test_float_is_exact(self, tmp_path):
        samples = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
        audio.save(tmp_path / "x.wav", samples, float32=True)
        np.testing.assert_array_equal(audio.load(tmp_path / "x.wav"), samples)
        assert soundfile.info(tmp_path / "x.wav").subtype == "FLOAT"

    def test_16_bits_are_clipped_not_wrapped(self, tmp_path):
        audio.save(tmp_path / "x.wav", torch.tensor([0.25, 1.5, -1.5, 1.0]))
        samples = audio.load(tmp_path / "x.wav")
        np.testing.assert_allclose(samples, [0.25, 1, -1, 1], atol=1e-4)
        assert soundfile.info(tmp_path / "x.wav").subtype == "PCM_16"

    def test_channels_and_rate(self, tmp_path):
        audio.save(tmp_path / "x", TestChannels.STEREO, 8000)
        info = soundfile.info(tmp_path / "x")
        assert (info.channels, info.samplerate, info.frames, info.format) == (2, 8000, 8000, "WAV")

    @pytest.mark.parametrize("name", ["x.mp3", "x.flac", "x.txt", "a/x.ogg"])
    def test_another_format_is_not_written_under_its_name(self, tmp_path, name):
        with pytest.raises(ValueError, match=r"sound is written as WAV, not \.\w+: name it .*x\.wav"):
            audio.save(tmp_path / name, tone(16000))
        assert not list(tmp_path.iterdir())
        audio.save(tmp_path / "X.WAV", tone(16000))

    def test_folders_on_the_way_are_made(self, tmp_path):
        audio.save(tmp_path / "a" / "b" / "x.wav", tone(16000))
        assert len(audio.load(tmp_path / "a" / "b" / "x.wav")) == 8000

    def test_where_nothing_can_be_written(self, tmp_path):
        (tmp_path / "file").touch()
        for path in (tmp_path, tmp_path / "file" / "x.wav"):
            with pytest.raises(ValueError, match=f"{path}: cannot be written"):
                audio.save(path, np.zeros(10))
