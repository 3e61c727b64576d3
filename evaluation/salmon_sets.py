"""SALMon's pairs from a few recordings: joins of voices and styles, and backgrounds and rooms that change half-way.

From the records of `make_sets` (one text in several voices and styles, `cut_s` between two words) by a seed: of a pair,
the right recording keeps what the wrong one changes in the middle, with the same words. `bg_alignment` is speech of any
of the small sets in front of a sound that its words name (`sounds.py`), or of another.
"""

import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from spiritrt import audio
from spiritrt.evaluation.sounds import sound
from spiritrt.evaluation.speech_sets import read_labelled, read_librispeech, read_questions

RATE_HZ = audio.RATE_HZ
Floats = NDArray[np.float32]
SNR_DB = 10.0
STYLE_OF = {"positive": "lively", "negative": "subdued"}
# the sound that a word names; "timers" is a label of commands
SOUND_OF = {
    "train": "train", "music": "music", "alarm": "alarm", "wake": "alarm", "timers": "alarm", "telephone": "telephone",
    "sea": "waves", "bird": "bird", "horse": "horse", "dog": "dog",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Line:
    """A recording: its words, the voice, the style, the mood of the words, and where it may be cut."""

    samples: Floats
    text: str
    voice: str
    style: str
    mood: str
    cut: int

    @property
    def halves(self) -> tuple[Floats, Floats]:
        return self.samples[: self.cut], self.samples[self.cut :]


def read_lines(folder: Path) -> list[Line]:
    """Lines of `records.jsonl`. Raises FileNotFoundError where there is none."""
    path = folder / "records.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"no {path}: `python -m spiritrt.evaluation.make_sets` makes it")
    return [
        Line(
            audio.load(folder / entry["wav_path"]), entry["text"], entry["speaker"], entry["emotion"],
            entry["mood_of_text"], round(entry["cut_s"] * RATE_HZ),
        )
        for entry in map(json.loads, path.read_text(encoding="utf-8").splitlines())
    ]  # fmt: skip


def read_named(sets: Path) -> dict[str, list[Path]]:
    """Recordings below the small sets by the sound that their words, or their label, name; those that name two are left
    out."""
    utterances = read_librispeech(sets / "utterances") + read_labelled(sets / "intent")
    spoken = {item.audio.resolve(): item.text for item in utterances}
    spoken |= {item.audio.resolve(): item.text for item in read_questions(sets / "questions")}
    for entry in map(json.loads, (sets / "moods" / "records.jsonl").read_text(encoding="utf-8").splitlines()):
        spoken[(sets / "moods" / entry["wav_path"]).resolve()] = entry["text"]
    named: dict[str, list[Path]] = {}
    for path, text in sorted(spoken.items()):
        names = {SOUND_OF[word] for word in re.findall("[a-z]+", text.lower()) if word in SOUND_OF}
        if len(names) == 1:
            named.setdefault(names.pop(), []).append(path)
    return named


def convolve(samples: NDArray, response: NDArray) -> NDArray:
    """Full convolution of two signals, by FFT."""
    length = len(samples) + len(response) - 1
    return np.fft.irfft(np.fft.rfft(samples, length) * np.fft.rfft(response, length), length)


def background(name: str, samples: int, rng: np.random.Generator) -> Floats:
    """Noise of unit power: hum, hiss, rumble, crackle or wind."""
    t = np.arange(samples) / RATE_HZ
    white = rng.standard_normal(samples)
    if name == "hum":
        made = sum(np.sin(2 * np.pi * 60 * k * t + rng.uniform(0, 6)) / k for k in range(1, 12))
    elif name == "hiss":
        made = np.diff(white, prepend=0.0)
    elif name == "rumble":
        made = np.convolve(white, np.ones(64) / 64, mode="same")
    elif name == "crackle":
        made = convolve(white * (rng.random(samples) < 0.003), np.exp(-np.arange(80) / 15.0))[:samples]
    elif name == "wind":
        made = np.convolve(white, np.ones(16) / 16, mode="same") * (1.2 + np.sin(2 * np.pi * 0.7 * t))
    else:
        raise ValueError(f"background must be one of {', '.join(BACKGROUNDS)}, got {name!r}")
    made = np.asarray(made)
    return (made / (np.sqrt(np.square(made).mean()) + 1e-9)).astype(np.float32)


BACKGROUNDS = ("hum", "hiss", "rumble", "crackle", "wind")


def in_front_of(samples: Floats, noise: Floats) -> Floats:
    """Speech over noise at 10 dB."""
    level = np.sqrt(np.square(samples).mean()) * 10 ** (-SNR_DB / 20)
    return samples + level * noise


def room(samples: Floats, decay_s: float, rng: np.random.Generator) -> Floats:
    """Speech in a room: exponentially decaying noise behind every sound."""
    length = int(decay_s * RATE_HZ)
    tail = rng.standard_normal(length) * 10 ** (-3 * np.arange(length) / length)
    tail *= 0.6 / np.sqrt(np.square(tail).sum())
    tail[0] = 1.0
    return convolve(samples, tail)[: len(samples)].astype(np.float32)


def _joined(first: Line, second: Line) -> Floats:
    return np.concatenate([first.halves[0], second.halves[1]])


def _voices(lines: Sequence[Line], rng: random.Random, differ: Callable[[Line, Line], bool]) -> tuple[Floats, Floats]:
    """The same words, going on in the same voice or in another that differs from it in style or voice."""
    line = rng.choice([one for one in lines if any(_same_words(one, other) and differ(one, other) for other in lines)])
    other = rng.choice([other for other in lines if _same_words(line, other) and differ(line, other)])
    return line.samples, _joined(line, other)


def _same_words(one: Line, other: Line) -> bool:
    return one.text == other.text


def _alignment(lines: Sequence[Line], rng: random.Random) -> tuple[Floats, Floats]:
    """The same words in the same voice, in the style of their mood or in the opposite one."""
    right = rng.choice([one for one in lines if STYLE_OF.get(one.mood) == one.style])
    wrong = next(
        one for one in lines
        if _same_words(one, right) and one.voice == right.voice and one.style in STYLE_OF.values() and one is not right
    )  # fmt: skip
    return right.samples, wrong.samples


def _backgrounds(lines: Sequence[Line], rng: random.Random, names: Sequence[str]) -> tuple[Floats, Floats]:
    line, noises = rng.choice(lines), np.random.default_rng(rng.getrandbits(32))
    first, second = rng.sample(list(names), 2)
    length = len(line.samples)
    kept, other = background(first, length, noises), background(second, length, noises)
    changed = np.concatenate([kept[: line.cut], other[line.cut :]])
    return in_front_of(line.samples, kept), in_front_of(line.samples, changed)


def _rooms(lines: Sequence[Line], rng: random.Random) -> tuple[Floats, Floats]:
    line, noises = rng.choice(lines), np.random.default_rng(rng.getrandbits(32))
    near, far = sorted((rng.uniform(0.05, 0.15), rng.uniform(0.5, 0.9)), key=lambda _: rng.random())
    one, other = room(line.samples, near, noises), room(line.samples, far, noises)
    return one, np.concatenate([one[: line.cut], other[line.cut :]])


def make_named_pair(named: Mapping[str, Sequence[Path]], rng: random.Random) -> tuple[Floats, Floats]:
    """Speech in front of the sound that its words name, and in front of another.

    The sounds are drawn before the speech, each as often right as wrong: which sound is likelier in itself decides
    nothing on average.
    """
    right, wrong = rng.sample(sorted(named), 2)
    samples, noises = audio.load(rng.choice(named[right])), np.random.default_rng(rng.getrandbits(32))
    first, second = (in_front_of(samples, sound(name, len(samples), noises)) for name in (right, wrong))
    return first, second


def make_pair(part: str, lines: Sequence[Line], rng: random.Random) -> tuple[Floats, Floats]:
    """The right and the wrong recording of one sample of a part. Raises ValueError for a part not made here."""
    if part == "speaker_consistency":
        return _voices(lines, rng, lambda a, b: a.style == b.style == "neutral" and a.voice != b.voice)
    if part == "gender_consistency":
        return _voices(lines, rng, lambda a, b: a.style == b.style == "neutral" and a.voice[1] != b.voice[1])
    if part == "sentiment_consistency":
        return _voices(lines, rng, lambda a, b: a.voice == b.voice and {a.style, b.style} == set(STYLE_OF.values()))
    if part == "sentiment_alignment":
        return _alignment(lines, rng)
    if part == "bg_domain_consistency":
        return _backgrounds(lines, rng, ("hum", "hiss", "rumble"))
    if part == "bg_all_consistency":
        return _backgrounds(lines, rng, BACKGROUNDS)
    if part == "rir_consistency":
        return _rooms(lines, rng)
    raise ValueError(f"{part} is not made here: choose from {', '.join(MADE_PARTS)}")


MADE_PARTS = (
    "sentiment_consistency", "speaker_consistency", "gender_consistency", "bg_domain_consistency",
    "bg_all_consistency", "rir_consistency", "sentiment_alignment",
)  # fmt: skip


def make_salmon(records: Path, out: Path, samples: int, seed: int, parts: Sequence[str] | None = None) -> None:
    """Write `samples` pairs of each part in SALMon's layout: `PART/sample_N_0.wav` (right) and `sample_N_1.wav`.

    By default those of MADE_PARTS, and `bg_alignment` where the other small sets lie beside the records.
    """
    lines = read_lines(records)
    sets = records.parent
    if parts is None:
        parts = (*MADE_PARTS, *(["bg_alignment"] if (sets / "utterances").is_dir() else []))
    named = read_named(sets) if "bg_alignment" in parts else {}
    for part in parts:
        (out / part).mkdir(parents=True, exist_ok=True)
        for number in range(samples):
            rng = random.Random(f"{seed}/{part}/{number}")
            pair = make_named_pair(named, rng) if part == "bg_alignment" else make_pair(part, lines, rng)
            for place, samples_made in enumerate(pair):
                peak = max(1e-6, float(np.abs(samples_made).max()))
                path = out / part / f"sample_{number}_{place}.wav"
                soundfile.write(path, 0.7 * samples_made / peak, RATE_HZ)
