"""SALMon's pairs made here: the same words, and a change in the middle of the wrong one alone."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from spiritrt.evaluation.pairs import SALMON_PARTS, read_salmon
from spiritrt.evaluation.salmon_sets import BACKGROUNDS, MADE_PARTS, background, convolve, make_salmon, read_lines

VOICES = {"af_x": (200, ("lively", "neutral", "subdued")), "am_y": (100, ("neutral",))}


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """Two texts; a recording is a tone of the voice's pitch, higher in lively speech, its volume the text's."""
    lines = []
    for number, mood in enumerate(("positive", "negative")):
        for voice, (hz, styles) in VOICES.items():
            for style in styles:
                name = f"{voice}-{style}-{number}.wav"
                tone = np.sin(np.arange(8000) * 2 * np.pi * hz * (1.5 if style == "lively" else 1) / 16000)
                soundfile.write(tmp_path / name, 0.5 * tone, 16000, subtype="FLOAT")
                lines.append(
                    {
                        "wav_path": name, "text": f"text {number}", "speaker": voice, "emotion": style,
                        "mood_of_text": mood, "cut_s": 0.25,
                    }
                )  # fmt: skip
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def pitch(samples: np.ndarray) -> float:
    return float(np.argmax(np.abs(np.fft.rfft(samples))) * 16000 / len(samples))


def test_what_changes_changes_in_the_middle(records: Path, tmp_path: Path):
    out = tmp_path / "made"
    make_salmon(records, out, samples=4, seed=1)
    assert set(MADE_PARTS) == set(SALMON_PARTS) - {"bg_alignment"}
    for part in MADE_PARTS:
        for pair in read_salmon(out, part):
            right, wrong = (soundfile.read(path)[0] for path in (pair.right, pair.wrong))
            assert len(right) == len(wrong) == 8000
            first, second = slice(0, 3900), slice(4100, 8000)
            if part == "sentiment_alignment":
                assert pitch(right[first]) == pitch(right[second]) != pitch(wrong[first]) == pitch(wrong[second])
                continue
            # the scale may differ: each recording has its own peak
            a, b = (x[first] / np.linalg.norm(x[first]) for x in (right, wrong))
            assert float(a @ b) > 0.999
            a, b = (x[second] / np.linalg.norm(x[second]) for x in (right, wrong))
            assert abs(float(a @ b)) < 0.999
            if part in ("speaker_consistency", "gender_consistency", "sentiment_consistency"):
                assert pitch(right[first]) == pitch(right[second]) != pitch(wrong[second])


def test_the_same_seed_makes_the_same_pairs(records: Path, tmp_path: Path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        make_salmon(records, tmp_path / name, 1, seed, parts=("bg_all_consistency",))
    sounds = [(tmp_path / n / "bg_all_consistency" / "sample_0_1.wav").read_bytes() for n in "abc"]
    assert sounds[0] == sounds[1] != sounds[2]


def test_errors_name_what_is_wrong(records: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="bg_alignment is not made here"):
        make_salmon(records, tmp_path / "made", 1, 0, parts=("bg_alignment",))
    with pytest.raises(ValueError, match="background must be one of"):
        background("music", 10, np.random.default_rng(0))
    with pytest.raises(FileNotFoundError, match="make_sets"):
        read_lines(tmp_path / "made")


@pytest.mark.parametrize("name", BACKGROUNDS)
def test_backgrounds_have_unit_power(name: str):
    made = background(name, 16000, np.random.default_rng(0))
    assert made.dtype == np.float32 and np.square(made).mean() == pytest.approx(1, rel=1e-3)


def test_convolution_is_that_of_numpy():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal(100), rng.standard_normal(17)
    np.testing.assert_allclose(convolve(a, b), np.convolve(a, b), atol=1e-10)
