"""Cheap extra speakers: generated sentences spoken by flite, with exact word and phone times.

flite's voices were made from recordings of real people; at 40-80 times real time an hour takes about a minute. Rate and
pitch vary from line to line. The folder is a corpus like any other (`manifest.py`); as it sounds muffled, the encoder
may take it as speech without labels instead (`spiritrt.training.units --unlabelled`).

    python -m spiritrt.training.corpora.flite --out build/unlabelled/flite --minutes 90

It speaks through flite's shared libraries (Debian: `apt-get install flite`; BSD-like licence): they alone tell which
phone belongs to which word.
"""

import argparse
import ctypes
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray
from tqdm import tqdm

from spiritrt.training.arguments import launch
from spiritrt.training.corpora.manifest import RATE_HZ, Utterance, Word, manifest_line, read_manifest
from spiritrt.training.corpora.pronounce import words_of
from spiritrt.training.corpora.text import exchange, sentence

# share of the lines, and the mean pitch in Hz that the voice was recorded at
VOICES = {"slt": (0.4, 170.0), "rms": (0.35, 95.0), "awb": (0.25, 130.0)}
SEED = 4711
PAUSE = "pau"
# flite's phones as `pronounce` writes them, without stress; the r of `er` is in its vowel
PHONES = {
    "aa": "ɑ", "ae": "æ", "ah": "ʌ", "ao": "ɔ", "aw": "W", "ax": "ə", "ay": "I", "b": "b", "ch": "ʧ", "d": "d",
    "dh": "ð", "eh": "ɛ", "er": "ɜ", "ey": "A", "f": "f", "g": "ɡ", "hh": "h", "ih": "ɪ", "iy": "i", "jh": "ʤ",
    "k": "k", "l": "l", "m": "m", "n": "n", "ng": "ŋ", "ow": "O", "oy": "Y", "p": "p", "r": "ɹ", "s": "s", "sh": "ʃ",
    "t": "t", "th": "θ", "uh": "ʊ", "uw": "u", "v": "v", "w": "w", "y": "j", "z": "z", "zh": "ʒ",
}  # fmt: skip
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Segment:
    """A phone or a pause that flite said; `word` is the number of the written word it is of, -1 for a pause."""

    phone: str
    start_s: float
    end_s: float
    word: int
    written: str = ""


class Wave(ctypes.Structure):
    """flite's `cst_wave`."""

    _fields_ = (
        ("type", ctypes.c_char_p), ("rate_hz", ctypes.c_int), ("count", ctypes.c_int), ("channels", ctypes.c_int),
        ("samples", ctypes.POINTER(ctypes.c_short)),
    )  # fmt: skip


class Voice(ctypes.Structure):
    """The beginning of flite's `cst_voice`."""

    _fields_ = (("name", ctypes.c_char_p), ("features", ctypes.c_void_p))


_P, _S, _F = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_float
SIGNATURES = {
    "flite_init": (ctypes.c_int, ()), "flite_synth_text": (_P, (_S, _P)),
    "utt_wave": (ctypes.POINTER(Wave), (_P,)), "utt_relation": (_P, (_P, _S)), "delete_utterance": (None, (_P,)),
    "relation_head": (_P, (_P,)), "item_next": (_P, (_P,)), "item_parent": (_P, (_P,)), "item_as": (_P, (_P, _S)),
    "flite_ffeature_string": (_S, (_P, _S)), "flite_ffeature_float": (_F, (_P, _S)),
    "feat_set_float": (None, (_P, _S, _F)),
}  # fmt: skip


class Flite:
    """flite's libraries, in `folder` or where the system finds them."""

    def __init__(self, folder: Path | None = None) -> None:
        """Raises ValueError where flite is not installed."""
        self.folder = folder
        try:
            self._flite = self._library("flite")
            # the voices need them, and do not find them in a folder by themselves
            self._needed = [self._library(name) for name in ("flite_usenglish", "flite_cmulex")]
            self._voices = {name: self._library(f"flite_cmu_us_{name}") for name in VOICES}
        except OSError as error:
            raise ValueError(f"flite is not installed ({error}): `apt-get install flite`, or --libraries") from error
        for name, (result, arguments) in SIGNATURES.items():
            function = getattr(self._flite, name)
            function.restype, function.argtypes = result, arguments
        self._flite.flite_init()
        self._registered: dict[str, int] = {}

    def _library(self, name: str) -> ctypes.CDLL:
        file = f"lib{name}.so.1"
        return ctypes.CDLL(str(self.folder / file) if self.folder else file, ctypes.RTLD_GLOBAL)

    def speak(
        self, text: str, voice: str, stretch: float = 1.0, pitch_hz: float | None = None
    ) -> tuple[Floats, list[Segment]]:
        """Samples [N] at 16 kHz, at most 0.7, and everything in them in order; `stretch` is of all durations.

        Raises ValueError for an unknown voice.
        """
        if voice not in VOICES:
            raise ValueError(f"voice must be one of {', '.join(VOICES)}, got {voice!r}")
        if voice not in self._registered:
            register = getattr(self._voices[voice], f"register_cmu_us_{voice}")
            register.restype, register.argtypes = _P, (_S,)
            self._registered[voice] = register(None)
        pointer = self._registered[voice]
        features = ctypes.cast(pointer, ctypes.POINTER(Voice)).contents.features
        self._flite.feat_set_float(features, b"duration_stretch", stretch)
        self._flite.feat_set_float(features, b"int_f0_target_mean", pitch_hz or VOICES[voice][1])
        utterance = self._flite.flite_synth_text(text.encode(), pointer)
        try:
            wave = self._flite.utt_wave(utterance).contents
            rate_hz = int(wave.rate_hz)
            samples = np.ctypeslib.as_array(wave.samples, (wave.count,)).astype(np.float32)
            segments = self._segments(utterance)
        finally:
            self._flite.delete_utterance(utterance)
        sound = samples if rate_hz == RATE_HZ else soxr.resample(samples, rate_hz, RATE_HZ)
        loudest = max(1.0, float(np.abs(sound).max()))
        return (sound * (0.7 / loudest)).astype(np.float32), segments

    def _segments(self, utterance: int) -> list[Segment]:
        made: list[Segment] = []
        seen: list[int] = []  # tokens, as pointers: a token is what stands between spaces, and may be several words
        start_s = 0.0
        item = self._flite.relation_head(self._flite.utt_relation(utterance, b"Segment"))
        while item:
            phone = self._flite.flite_ffeature_string(item, b"name").decode()
            end_s = self._flite.flite_ffeature_float(item, b"end")
            if token := self._token(item):
                if token not in seen[-1:]:
                    seen.append(token)
                written = self._flite.flite_ffeature_string(token, b"name").decode()
                made.append(Segment(phone, start_s, end_s, len(seen) - 1, written))
            else:
                made.append(Segment(phone, start_s, end_s, -1))
            start_s, item = end_s, self._flite.item_next(item)
        return made

    def _token(self, segment: int) -> int | None:
        """The token that a segment is said for, None for a pause: phone, syllable, word, token."""
        item = self._flite.item_as(segment, b"SylStructure")
        for _ in ("syllable", "word"):
            item = self._flite.item_parent(item) if item else None
        item = self._flite.item_as(item, b"Token") if item else None
        return self._flite.item_parent(item) if item else None


def label(text: str, segments: Sequence[Segment]) -> tuple[tuple[Word, ...], tuple[tuple[str, float, float], ...]]:
    """Words with their times, and phones as `pronounce` writes them, a space for what lies between two words.

    Raises ValueError where flite read other words than `words_of` does (numbers, hyphens), or an unknown phone.
    """
    said = [list(group) for word, group in groupby(segments, key=lambda s: s.word) if word >= 0]
    written = words_of(text)
    if [group[0].written for group in said] != written:
        raise ValueError(f"{text!r} has the words {written}, flite read {[group[0].written for group in said]}")
    phones: list[tuple[str, float, float]] = []
    for before, group in pairwise([[], *said]):
        if before:
            phones.append((" ", round(before[-1].end_s, 3), round(group[0].start_s, 3)))
        for segment in group:
            if segment.phone not in PHONES:
                raise ValueError(f"no symbol for flite's phone {segment.phone!r} in {text!r}")
            phones.append((PHONES[segment.phone], round(segment.start_s, 3), round(segment.end_s, 3)))
    words = [
        Word(word, round(group[0].start_s, 3), round(group[-1].end_s, 3))
        for word, group in zip(written, said, strict=True)
    ]
    return tuple(words), tuple(phones)


def plain(text: str) -> str:
    """Lower case words only, to compare texts."""
    return " ".join(re.findall(r"[a-z']+", text.lower()))


def lines(seed: int, count: int, excluded: set[str]) -> list[str]:
    """`count` different generated lines (questions, answers, sentences), none of them in `excluded` (`plain` texts)."""
    made: dict[str, str] = {}
    index = 0
    while len(made) < count:
        spoken = exchange(seed, index)
        for text in (spoken.user, spoken.assistant, sentence(seed, index)):
            if plain(text) not in excluded:
                made.setdefault(plain(text), text)
        index += 1
        if index > 20 * count:
            raise ValueError(f"the grammar gives only {len(made)} different lines, {count} were asked for")
    return list(made.values())[:count]


def make(flite: Flite, out: Path, minutes: float, seed: int, excluded: set[str]) -> list[Utterance]:
    """Speak generated lines until there are `minutes` of speech: FLAC files and `manifest.jsonl` in `out`.

    A line that flite reads otherwise than it is written is left out.
    """
    out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    names, shares = list(VOICES), np.array([share for share, _ in VOICES.values()])
    made: list[Utterance] = []
    seconds = 0.0
    progress = tqdm(total=round(60 * minutes), desc="flite", unit="s", file=sys.stderr)
    for number, text in enumerate(lines(seed, round(30 * minutes), excluded)):
        voice = names[int(rng.choice(len(names), p=shares))]
        pitch_hz, stretch = VOICES[voice][1] * float(rng.uniform(0.85, 1.2)), float(rng.uniform(0.8, 1.15))
        samples, segments = flite.speak(text, voice, stretch, pitch_hz)
        try:
            words, phones = label(text, segments)
        except ValueError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        file = f"{number:05d}_{voice}.flac"
        soundfile.write(out / file, samples, RATE_HZ)
        length_s = round(len(samples) / RATE_HZ, 4)
        made.append(
            Utterance(
                f"flite{seed}-{number:05d}", text, f"flite_{voice}", "neutral", "single", None, "train", file, 0.0,
                length_s, words, phones,
            )
        )  # fmt: skip
        seconds += length_s
        progress.update(round(length_s))
        if seconds >= 60 * minutes:
            break
    progress.close()
    partial = out / "manifest.partial"
    partial.write_text("".join(map(manifest_line, made)), encoding="utf-8")
    partial.replace(out / "manifest.jsonl")
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description="Speak generated sentences with flite, with word and phone times.")
    parser.add_argument("--out", type=Path, default=Path("build/unlabelled/flite"))
    parser.add_argument("--corpus", type=Path, default=Path("../shared/corpus"), help="its held-out texts are left out")
    parser.add_argument("--minutes", type=float, default=90, help="minutes of speech to make")
    parser.add_argument("--libraries", type=Path, help="folder of flite's libraries (default: where the system looks)")
    parser.add_argument("--seed", type=int, default=SEED)
    args = parser.parse_args()
    held_out = {plain(u.text) for u in read_manifest(args.corpus) if u.split != "train"}
    try:
        flite = Flite(args.libraries)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    made = make(flite, args.out, args.minutes, args.seed, held_out)
    print(f"{sum(u.duration_s for u in made) / 60:.1f} minutes of speech in {args.out}")


if __name__ == "__main__":
    launch(main)
