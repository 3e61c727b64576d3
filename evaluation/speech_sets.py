"""Readers of spoken data: LibriSpeech's folders, a folder a label, and lines of questions with answers."""

import json
import random
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

SOUNDS = (".wav", ".flac", ".ogg", ".opus", ".mp3")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Spoken:
    """A recording, the words or the label that belong to it, and who speaks."""

    id: str
    audio: Path
    text: str
    speaker: str


def read_librispeech(folder: Path) -> list[Spoken]:
    """Utterances below `folder`, where `*.trans.txt` has lines `ID WORDS` and `ID.flac` (or another sound) lies beside.

    The speaker is the part of the id before the first hyphen. Raises FileNotFoundError where there are no transcripts
    or a recording is missing.
    """
    tables = sorted(folder.rglob("*.trans.txt"))
    if not tables:
        raise FileNotFoundError(
            f"no *.trans.txt below {folder}: LibriSpeech has SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt"
        )
    utterances = []
    for table in tables:
        for line in table.read_text(encoding="utf-8").splitlines():
            name, _, words = line.strip().partition(" ")
            if not words:
                continue
            sound = next((s for s in (table.with_name(name + suffix) for suffix in SOUNDS) if s.is_file()), None)
            if sound is None:
                raise FileNotFoundError(f"{table} names {name}, but there is no {name}.flac beside it")
            utterances.append(Spoken(name, sound, words, name.partition("-")[0]))
    return utterances


def read_labelled(folder: Path) -> list[Spoken]:
    """Recordings of a folder that has a folder a label. Raises FileNotFoundError for fewer than two labels.

    Folders whose names begin with `_` or `.` are no labels (`_background_noise_` of Speech Commands).
    """
    places = sorted(place for place in folder.iterdir() if place.is_dir()) if folder.is_dir() else []
    labels = [place for place in places if not place.name.startswith(("_", "."))]
    spoken = [
        Spoken(f"{label.name}/{sound.stem}", sound, label.name, sound.stem.partition("-")[0])
        for label in labels
        for sound in sorted(label.iterdir())
        if sound.suffix in SOUNDS
    ]
    if len({item.text for item in spoken}) < 2:
        raise FileNotFoundError(f"{folder} must have two or more folders of recordings, named by their labels")
    return spoken


@dataclass(frozen=True, slots=True)
class Asked:
    """A spoken question (or a recording to go on from) with what is known about it."""

    id: str
    audio: Path
    text: str
    answer: str
    kind: str


def read_questions(folder: Path) -> list[Asked]:
    """`questions.jsonl` of a folder: {"id", "audio", "text", "answer", "kind"} a line, `audio` relative to it.

    Raises FileNotFoundError where there is none, ValueError naming a bad line.
    """
    path = folder / "questions.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"no {path}: lines of id, audio, text, answer and kind")
    asked = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            entry = json.loads(line)
            item = Asked(
                str(entry["id"]), folder / entry["audio"], entry["text"], entry["answer"], entry.get("kind", "")
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {number}: {type(error).__name__}: {error}") from error
        asked.append(item)
    if not asked:
        raise ValueError(f"{path} is empty")
    return asked


def choose(items: Sequence[T], limit: int | None, seed: int) -> list[T]:
    """At most `limit` items, drawn by the seed and kept in order; all where there is no limit."""
    if limit is None or limit >= len(items):
        return list(items)
    if limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    return [items[i] for i in sorted(random.Random(seed).sample(range(len(items)), limit))]


def choose_groups(items: Sequence[T], group: Callable[[T], Hashable], limit: int | None, seed: int) -> list[T]:
    """All items of at most `limit` groups, drawn by the seed and kept in order."""
    kept = set(choose(list(dict.fromkeys(map(group, items))), limit, seed))
    return [item for item in items if group(item) in kept]
