"""Word-level interleaving of speech and text (Spirit LM, section 3.1), and documents as training tokens.

A document is a list of `Segment`s, each text or speech. `encode` turns it into ids by the prompt rules: BOS in front, a
marker where the modality changes, EOS where a segment ends a turn. Spans are redrawn for every (seed, epoch, index).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

BOS, EOS = 1, 2
Modality = Literal["text", "speech"]


class TextEncoder(Protocol):
    """What `encode` needs of a tokenizer: `text` to ids without BOS, and where markers and units lie."""

    text_marker: int
    speech_marker: int
    first_unit: int

    def encode_text(self, text: str) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class SpokenWord:
    """A word as written (its punctuation included) and the units said for it, the pause after it included.

    `units` are frames or runs, in order; the first word of an utterance also holds the pause before it.
    """

    text: str
    units: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Span:
    """Words `start` to `end` (exclusive) of an utterance, in one modality."""

    modality: Modality
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class SpanPlan:
    """Smallest and largest number of words of a text span and of a speech span (paper: 10-30 and 5-15)."""

    text_words: tuple[int, int] = (10, 30)
    speech_words: tuple[int, int] = (5, 15)

    def __post_init__(self) -> None:
        for name in ("text_words", "speech_words"):
            low, high = getattr(self, name)
            if not 1 <= low <= high:
                raise ValueError(f"{name} must be (least, most) with 1 <= least <= most, got {(low, high)}")


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of one modality: `text`, or `units` where `modality` is speech.

    `weight` is the loss weight of its tokens, `marker_weight` that of the marker before it; `ends_turn` appends EOS.
    """

    modality: Modality
    text: str = ""
    units: tuple[int, ...] = ()
    weight: float = 1.0
    marker_weight: float = 1.0
    ends_turn: bool = False


def rng_of(seed: int, epoch: int, index: int) -> random.Random:
    """The generator of one training document: equal for equal arguments, on any machine."""
    return random.Random(f"{seed}/{epoch}/{index}")


def deduplicate(units: Iterable[int]) -> tuple[int, ...]:
    """Units with runs of equal ones reduced to one."""
    kept: list[int] = []
    for unit in units:
        if not kept or kept[-1] != unit:
            kept.append(unit)
    return tuple(kept)


def draw_spans(words: int, plan: SpanPlan, rng: random.Random) -> list[Span]:
    """Spans that cover words 0 to `words` once and in order, in turns text and speech, the first drawn by a coin.

    Lengths are uniform in the plan's bounds; only the last span may be shorter. Raises ValueError for no words.
    """
    if words < 1:
        raise ValueError(f"cannot interleave {words} words")
    modality: Modality = rng.choice(("text", "speech"))
    spans: list[Span] = []
    start = 0
    while start < words:
        low, high = plan.text_words if modality == "text" else plan.speech_words
        end = min(words, start + rng.randint(low, high))
        spans.append(Span(modality, start, end))
        modality = "speech" if modality == "text" else "text"
        start = end
    return spans


def interleave(words: Sequence[SpokenWord], spans: Sequence[Span]) -> list[Segment]:
    """The utterance `words` cut into `spans`; units are cut at word boundaries and deduplicated within a span."""
    segments = []
    for span in spans:
        part = words[span.start : span.end]
        if span.modality == "text":
            segments.append(Segment("text", text=" ".join(word.text for word in part)))
        else:
            segments.append(Segment("speech", units=speech_of(part)))
    return segments


def speech_of(words: Sequence[SpokenWord]) -> tuple[int, ...]:
    """All units of a run of words, deduplicated."""
    return deduplicate(unit for word in words for unit in word.units)


def text_of(words: Sequence[SpokenWord]) -> str:
    """The written words, one space between them."""
    return " ".join(word.text for word in words)


def encode(document: Sequence[Segment], encoder: TextEncoder) -> tuple[list[int], list[float]]:
    """Ids of a document and the loss weight of each; equally long.

    Neighbouring text segments of one turn are encoded as separate runs, as are those around a marker. A marker stands
    only where the modality changes, and after every EOS. Raises ValueError for a segment without content.
    """
    ids, weights = [BOS], [0.0]
    modality: Modality | None = None
    for segment in document:
        content = (
            encoder.encode_text(segment.text)
            if segment.modality == "text"
            else [encoder.first_unit + unit for unit in segment.units]
        )
        if not content:
            raise ValueError(f"empty {segment.modality} segment in {document}")
        if segment.modality != modality:
            ids.append(encoder.text_marker if segment.modality == "text" else encoder.speech_marker)
            weights.append(segment.marker_weight)
        ids += content
        weights += [segment.weight] * len(content)
        modality = segment.modality
        if segment.ends_turn:
            ids.append(EOS)
            weights.append(1.0)
            modality = None
    return ids, weights
