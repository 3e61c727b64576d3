"""The manifest format: JSON lines of utterances with word and phone times, and the audio they point into.

A corpus is a folder with `manifest.jsonl`, one utterance a line:

    {"id": "a1", "audio": "wav/a1.flac", "text": "Good day.", "speaker": "ann", "style": "neutral",
     "words": [{"word": "Good", "start_s": 0.1, "end_s": 0.4}, ...]}

`audio` (or `file`) is relative to the folder; `offset_s` and `duration_s` cut an utterance out of it (by default all of
it). Without them `style` is neutral, `role` single, `dialogue` null, `split` train, `phones` empty: exact phone times
`[symbol, start_s, end_s]` are what `spiritrt.training.units` needs. Times are seconds from the utterance's start.
The timed words are those of the text in its order, spelled alike (`match_words` has the rules).

`AudioStore` holds a whole corpus as one memory-mapped int16 array, so that random crops cost nothing.
"""

import json
import os
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

RATE_HZ = 16000
SPLITS = ("train", "test", "test_voice")
# marks that are said: a text that has them must be timed with them
SAID_MARKS = "&%@#+=°$€£"


@dataclass(frozen=True, slots=True)
class Word:
    """A spoken word and its time in seconds from the start of the utterance."""

    word: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Utterance:
    """One line of a manifest; times of `words` and `phones` are seconds from the start of the utterance."""

    id: str
    text: str
    speaker: str
    style: str
    role: str
    dialogue: str | None
    split: str
    file: str
    offset_s: float
    duration_s: float
    words: tuple[Word, ...]
    phones: tuple[tuple[str, float, float], ...]

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"utterance {self.id}: split must be one of {SPLITS}, got {self.split!r}")
        if self.duration_s <= 0 or self.offset_s < 0:
            raise ValueError(f"utterance {self.id}: bad cut, offset_s {self.offset_s}, duration_s {self.duration_s}")


def spelling(word: str) -> str:
    """Letters, digits and said marks of a word, in lower case: what written and timed words are compared by."""
    folded = unicodedata.normalize("NFKC", word).casefold()
    return "".join(letter for letter in folded if letter.isalnum() or letter in SAID_MARKS)


def match_words(text: str, timed: Sequence[str], where: str) -> list[tuple[str, int, int]]:
    """Written words of `text`, each with the range [first, last) of the timed words that it is said in.

    Words are compared by their spelling. A written word of several timed ones ("twenty-one") has all of them; one
    without sound (a dash) is joined to the written word before it, or at the beginning to the one after it.

    Raises ValueError, with the utterance `where`, for the first written word that differs from what was timed, such as
    digits that were timed as words, for a timed word that is not written, and for a text without words.
    """
    matched: list[tuple[str, int, int]] = []
    silent, at = "", 0
    for written in text.split():
        wanted, heard, first = spelling(written), "", at
        if not wanted and matched:
            matched[-1] = (f"{matched[-1][0]} {written}", *matched[-1][1:])
        elif not wanted:
            silent += f"{written} "
        else:
            while at < len(timed) and wanted.startswith(heard) and (heard != wanted or not spelling(timed[at])):
                heard += spelling(timed[at])
                at += 1
            if heard != wanted:
                said = repr(" ".join(timed[first:at])) if at > first else "none left"
                raise ValueError(f"{where}: written word {written!r}, timed word {said}, in {text!r}")
            matched.append((silent + written, first, at))
            silent = ""
    if at < len(timed):
        raise ValueError(f"{where}: no written word for the timed word {timed[at]!r} in {text!r}")
    if not matched:
        raise ValueError(f"{where}: no words in {text!r}")
    return matched


def parse_line(item: dict, corpus: Path) -> Utterance:
    """The utterance of one manifest line. Raises KeyError, TypeError or ValueError for a bad one."""
    words = tuple(Word(str(w["word"]), float(w["start_s"]), float(w["end_s"])) for w in item["words"])
    phones = tuple((str(p), float(start), float(end)) for p, start, end in item.get("phones", ()))
    file = str(item["file"] if "file" in item else item["audio"])
    offset_s = float(item.get("offset_s", 0.0))
    if "duration_s" in item:
        duration_s = float(item["duration_s"])
    else:
        if not (corpus / file).is_file():
            raise ValueError(f"no sound file at {corpus / file}")
        duration_s = soundfile.info(corpus / file).duration - offset_s
    return Utterance(
        id=str(item["id"]), text=str(item["text"]), speaker=str(item["speaker"]),
        style=str(item.get("style", "neutral")),
        role=str(item.get("role", "single")), dialogue=item.get("dialogue"), split=str(item.get("split", "train")),
        file=file, offset_s=offset_s, duration_s=duration_s, words=words, phones=phones,
    )  # fmt: skip


def read_manifest(corpus: Path) -> list[Utterance]:
    """Read `corpus/manifest.jsonl`, all of it; `stream_manifest` reads it line by line.

    Raises
    ------
    FileNotFoundError
        Where the folder holds no manifest.
    ValueError
        Where a line lacks a field or holds a bad value; the message names the line.
    """
    utterances = list(stream_manifest(corpus))
    if not utterances:
        raise ValueError(f"{corpus / 'manifest.jsonl'} is empty")
    return utterances


def stream_manifest(corpus: Path) -> Iterator[Utterance]:
    """Yield the utterances of `corpus/manifest.jsonl` one by one; raises as `read_manifest` does, where it gets to."""
    path = corpus / "manifest.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"no manifest at {path}: give --corpus a folder that holds manifest.jsonl")
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield parse_line(json.loads(line), corpus)
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path}, line {number}: {type(error).__name__}: {error}") from error


def manifest_line(u: Utterance) -> str:
    """The manifest line of an utterance, with its line break."""
    item = asdict(u)
    return json.dumps(item | {"phones": [list(phone) for phone in u.phones]}, ensure_ascii=False) + "\n"


def read_corpora(corpora: Iterable[Path]) -> dict[Path, list[Utterance]]:
    """The manifests of several corpora, by folder. Raises ValueError where two of them use the same id."""
    read: dict[Path, list[Utterance]] = {}
    owner: dict[str, Path] = {}
    for corpus in corpora:
        read[corpus] = read_manifest(corpus)
        for utterance in read[corpus]:
            if utterance.id in owner:
                raise ValueError(
                    f"utterance id {utterance.id!r} is in {owner[utterance.id]} and in {corpus}: ids must differ"
                )
            owner[utterance.id] = corpus
    return read


def read_audio(path: Path) -> NDArray[np.float32]:
    """Read a sound file as mono float32 at 16 kHz; raw G.722 (`.g722`) is decoded where PyAV is installed."""
    if path.suffix == ".g722":
        import av

        with av.open(str(path), format="g722") as container:
            frames = [frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)]
        joined = np.concatenate(frames).astype(np.float32) if frames else np.zeros(0, np.float32)
        return joined / np.float32(32768)
    if path.suffix == ".raw":
        return (np.fromfile(path, np.int16) / 32768).astype(np.float32)
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    mono = samples.mean(axis=1).astype(np.float32)
    return mono if rate == RATE_HZ else soxr.resample(mono, rate, RATE_HZ).astype(np.float32)


def cut_utterances(corpus: Path, utterances: Iterable[Utterance]) -> Iterator[tuple[Utterance, NDArray[np.float32]]]:
    """Yield each utterance with its samples [N] (16 kHz), reading every packed file once."""
    by_file: dict[str, list[Utterance]] = {}
    for utterance in utterances:
        by_file.setdefault(utterance.file, []).append(utterance)
    for file, members in by_file.items():
        samples = read_audio(corpus / file)
        for utterance in members:
            first = round(utterance.offset_s * RATE_HZ)
            last = first + round(utterance.duration_s * RATE_HZ)
            if last > len(samples) + RATE_HZ // 100:
                raise ValueError(f"utterance {utterance.id} ends at sample {last}, {file} has only {len(samples)}")
            yield utterance, samples[first:last]


def of_units(path: Path) -> Path:
    """The path of a file that `spiritrt.training.units` writes. Raises FileNotFoundError where it is missing."""
    if not path.is_file():
        raise FileNotFoundError(f"no {path.name} in {path.parent}: run `python -m spiritrt.training.units` first")
    return path


def unit_lines(path: Path) -> Iterator[dict]:
    """The lines of a units file: `id`, `units` (one a 40 ms frame) and, of a corpus, what `units.unit_line` says.

    Raises FileNotFoundError where it is missing, and ValueError naming a line that is not one.
    """
    with of_units(path).open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                entry = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: not JSON ({error})") from error
            if not isinstance(entry, dict) or not entry.get("id") or not isinstance(entry.get("units"), list):
                raise ValueError(f"{path}, line {number}: no id or no list of units")
            yield entry


UNLABELLED = "unlabelled"  # the speaker of clips without words and phones


@dataclass(frozen=True, slots=True)
class Clip:
    """Where an utterance lies in an `AudioStore`: first sample and length, with its speaker, style and split."""

    id: str
    start: int
    length: int
    speaker: str
    style: str
    split: str


class AudioStore:
    """All samples of a corpus as one memory-mapped int16 array (`audio.npy`) with an index (`audio.json`)."""

    def __init__(self, folder: Path) -> None:
        index = folder / "audio.json"
        if not index.is_file():
            raise FileNotFoundError(f"no audio store at {folder}: run `python -m spiritrt.training.units` first")
        self.samples = np.load(folder / "audio.npy", mmap_mode="r")
        self.clips = {item["id"]: Clip(**item) for item in json.loads(index.read_text(encoding="utf-8"))}

    def read(self, clip: Clip, first: int = 0, length: int | None = None) -> NDArray[np.float32]:
        """Samples [length] of a clip from `first` on, as float32 in [-1, 1)."""
        stop = clip.length if length is None else min(first + length, clip.length)
        return (self.samples[clip.start + first : clip.start + stop] / 32768).astype(np.float32)

    @staticmethod
    def write(folder: Path, items: Iterable[tuple[Utterance | Clip, NDArray[np.float32]]]) -> None:
        """Store (utterance, samples) pairs; `start` and `length` of a given Clip are ignored.

        Samples are written as they come: of an iterator no more than one clip is in memory.
        """
        _write_store(folder, np.zeros(0, np.int16), [], items)

    def extend(self, folder: Path, items: Iterable[tuple[Utterance | Clip, NDArray[np.float32]]]) -> None:
        """Store all that is here and then (utterance, samples) pairs in `folder`, which may be this store's own.

        Raises ValueError for an id that is here already; nothing is changed then.
        """
        _write_store(folder, self.samples, list(self.clips.values()), items)


def _write_store(
    folder: Path,
    before: NDArray[np.int16],
    clips: list[Clip],
    items: Iterable[tuple[Utterance | Clip, NDArray[np.float32]]],
) -> None:
    known = {clip.id for clip in clips}
    partial, position = folder / "audio.npy.partial", len(before)
    try:
        with partial.open("wb") as file:
            _write_header(file, 0)
            before.tofile(file)  # from map to file
            for item, samples in items:
                if item.id in known:
                    raise ValueError(f"clip {item.id!r} is in the store already")
                np.clip(np.round(samples * 32768), -32768, 32767).astype(np.int16).tofile(file)
                clips.append(Clip(item.id, position, len(samples), item.speaker, item.style, item.split))
                position += len(samples)
            file.seek(0)
            _write_header(file, position)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    # the samples first: an index never points behind their end
    os.replace(partial, folder / "audio.npy")
    partial = folder / "audio.json.partial"
    partial.write_text(json.dumps([asdict(clip) for clip in clips]), encoding="utf-8")
    os.replace(partial, folder / "audio.json")


def _write_header(file: BinaryIO, length: int) -> None:
    """The header that np.save gives int16 samples [length]; it keeps room for longer ones and is always as long."""
    header = np.lib.format.header_data_from_array_1_0(np.zeros(0, np.int16))
    np.lib.format.write_array_header_1_0(file, header | {"shape": (length,)})
