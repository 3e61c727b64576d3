"""SALMon's pairs made here: the same words, and a change in the middle of the wrong one alone."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import soundfile

from spiritrt.evaluation import salmon_sets
from spiritrt.evaluation.commands import SETS
from spiritrt.evaluation.pairs import SALMON_PARTS, read_salmon
from spiritrt.evaluation.salmon_sets import (
    BACKGROUNDS,
    MADE_PARTS,
    SOUND_OF,
    background,
    convolve,
    in_front_of,
    make_salmon,
    read_lines,
    read_named,
)
from spiritrt.evaluation.sounds import SOUNDS, sound

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
    with pytest.raises(ValueError, match="colour_consistency is not made here"):
        make_salmon(records, tmp_path / "made", 1, 0, parts=("colour_consistency",))
    with pytest.raises(FileNotFoundError, match="utterances"):
        make_salmon(records, tmp_path / "made", 1, 0, parts=("bg_alignment",))
    with pytest.raises(ValueError, match="background must be one of"):
        background("music", 10, np.random.default_rng(0))
    with pytest.raises(FileNotFoundError, match="make_sets"):
        read_lines(tmp_path / "made")


@pytest.mark.parametrize("name", SOUNDS)
def test_sounds_have_unit_power_and_begin_anywhere(name: str):
    made = [sound(name, 24640, np.random.default_rng(seed)) for seed in (0, 0, 1)]  # as short as the shortest line
    assert made[0].dtype == np.float32 and all(np.square(m).mean() == pytest.approx(1, rel=1e-3) for m in made)
    assert np.array_equal(made[0], made[1]) and not np.array_equal(made[0], made[2])


def test_the_small_sets_name_every_sound():
    named = read_named(SETS)
    assert set(named) == set(SOUND_OF.values()) == set(SOUNDS)
    assert any("timers" in path.parts for path in named["alarm"])
    paths = [path for group in named.values() for path in group]
    assert len(paths) == len(set(paths)) and all(path.is_file() for path in paths)


def test_speech_stands_before_the_sound_it_names_and_before_another(tmp_path: Path, monkeypatch):
    """With the tones of other names in place of the sounds, the right recording is told from the wrong by its pitch."""
    hz = {name: 500 * (number + 1) for number, name in enumerate(sorted(SOUNDS))}
    named = {}
    for name in hz:
        # a recording that holds the number of its sound as its length
        named[name] = [tmp_path / f"{name}.wav"]
        soundfile.write(named[name][0], 1e-3 * np.ones(16000 + 160 * hz[name] // 500), 16000)

    def tone(name: str, samples: int, rng: np.random.Generator) -> np.ndarray:
        return np.sin(2 * np.pi * hz[name] * np.arange(samples) / 16000).astype(np.float32)

    monkeypatch.setattr(salmon_sets, "sound", tone)
    monkeypatch.setattr(salmon_sets, "in_front_of", lambda samples, noise: in_front_of(samples, noise) - samples)
    wrongs = set()
    for number in range(40):
        right, wrong = salmon_sets.make_named_pair(named, random.Random(number))
        assert len(right) == len(wrong)
        named_hz = 500 * ((len(right) - 16000) // 160)
        assert pitch(right) == pytest.approx(named_hz, rel=0.01) and pitch(wrong) != pytest.approx(named_hz, rel=0.01)
        wrongs.add(round(pitch(wrong) / 500))
    assert len(wrongs) == len(hz)


def test_the_shipped_sets_make_all_parts(tmp_path: Path):
    make_salmon(SETS / "moods", tmp_path, 1, 0)
    assert {place.name for place in tmp_path.iterdir()} == set(SALMON_PARTS)


@pytest.mark.parametrize("name", BACKGROUNDS)
def test_backgrounds_have_unit_power(name: str):
    made = background(name, 16000, np.random.default_rng(0))
    assert made.dtype == np.float32 and np.square(made).mean() == pytest.approx(1, rel=1e-3)


def test_convolution_is_that_of_numpy():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal(100), rng.standard_normal(17)
    np.testing.assert_allclose(convolve(a, b), np.convolve(a, b), atol=1e-10)
