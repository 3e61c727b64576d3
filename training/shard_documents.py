"""Training documents from shards: the paper's mix of speech, interleaved and written text, for Base and Expressive.

A document is a pure function of (seed, epoch, index). Shares are shares of tokens, as in the paper, not of documents:
the kinds are drawn in inverse proportion to how long their documents are. What is longer than the context gives a
random stretch of itself. For nano's own synthetic documents see `lm_data`. Kinds of document:

    speech        an utterance in speech alone
    interleaved   an utterance with word times, its words now as text, now as speech, spans redrawn every time
    text          a paragraph of text
    pairs         an utterance with word times as speech and then as text, or the other way round (an ablation)
    transcribed   an utterance with word times, every word as speech and then as text (another)

Words without a frame of their own at the end of a span, such as a last one behind the last frame, stand as text.
"""

from __future__ import annotations

import math
import random
import re
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from spiritrt.tokens.text import Tokenizer
from spiritrt.training.checkpoint import file_digest
from spiritrt.training.interleave import Segment, SpanPlan, draw_spans, encode, rng_of
from spiritrt.training.shards import Shard, Tokenized

if TYPE_CHECKING:
    from _typeshed import SupportsLenAndGetItem

PAPER = ("speech", "interleaved", "text")
KINDS = (*PAPER, "pairs", "transcribed")
MEASURED = 64  # documents of a kind that are drawn to learn its length
# two line breaks of any sort ("\r\n" is one): what is left of a longer run is white space of the next paragraph
PARAGRAPH_BREAK = re.compile(rb"\n[\r\n]|\r\r")


@dataclass(frozen=True, slots=True)
class TokenMix:
    """Shares of tokens by kind, the spans of interleaved documents, and the context in tokens."""

    shares: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PAPER, 1 / 3))
    spans: SpanPlan = field(default_factory=SpanPlan)
    context: int = 4096

    def __post_init__(self) -> None:
        if unknown := set(self.shares) - set(KINDS):
            raise ValueError(f"unknown kinds {sorted(unknown)}: choose from {', '.join(KINDS)}")
        if not self.shares or min(self.shares.values()) < 0 or not 0 < sum(self.shares.values()) < math.inf:
            raise ValueError(f"shares must be 0 or more, finite and not all 0, got {self.shares}")
        if self.context < 16:
            raise ValueError(f"context must be at least 16 tokens, got {self.context}")


class FamilyEncoder:
    """What `interleave.encode` needs, from a model's tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        vocabulary = tokenizer.vocabulary
        self._tokenizer = tokenizer
        self.text_marker, self.speech_marker = vocabulary.text_marker, vocabulary.speech_marker
        self.first_unit = vocabulary.first_unit

    def encode_text(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, bos=False)


class Texts:
    """Paragraphs of UTF-8 text files: what stands between blank lines, on one line each. The files stay on disk.

    Raises FileNotFoundError for a file that is not there, ValueError for one that is not UTF-8.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        for path in paths:
            if not path.is_file():
                raise FileNotFoundError(f"no text file at {path}: give files of UTF-8 text")
        filled = [path for path in paths if path.stat().st_size]  # what is empty cannot be mapped
        self._files = [np.asarray(np.memmap(path, np.uint8, "r")) for path in filled]
        self._begins = [0, *accumulate(map(len, self._files))]
        bounds: array[int] = array("q")
        for path, file, begin in zip(filled, self._files, self._begins, strict=False):
            for first, last in _paragraphs(path, file):
                bounds.extend((begin + first, begin + last))
        self._bounds = np.array(bounds, np.int64).reshape(-1, 2)  # bytes of all files, one behind the other

    def __len__(self) -> int:
        return len(self._bounds)

    def __getitem__(self, index: int) -> str:
        first, last = self._bounds[index].tolist()
        at = bisect_right(self._begins, first) - 1
        block = self._files[at][first - self._begins[at] : last - self._begins[at]]
        return " ".join(block.tobytes().decode().split())


def _paragraphs(path: Path, file: NDArray[np.uint8]) -> Iterator[tuple[int, int]]:
    """First byte and end of every paragraph of a file [N]."""
    begin = 0
    while begin < len(file):
        found = PARAGRAPH_BREAK.search(file.data, begin)
        end = len(file) if found is None else found.start()
        try:
            written = file[begin:end].tobytes().decode().strip()
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 at byte {begin + error.start}: {error.reason}") from error
        if written:
            yield begin, end
        begin = end + 2


def read_text(paths: Sequence[Path]) -> Texts:
    """The paragraphs of text files. Raises as `Texts` does, and ValueError where there is no text in them."""
    texts = Texts(paths)
    if paths and not len(texts):
        raise ValueError(f"no text in {', '.join(map(str, paths))}")
    return texts


def shard_version(folder: Path) -> str:
    """A shard's name with a hash of its header and of where its lines and words lie."""
    names = ("shard.json", "line_offsets.npy", "word_offsets.npy", "words.npy")
    return f"{folder.resolve().name} ({file_digest(*(folder / name for name in names))})"


class Places:
    """Where utterances lie, as (shard, index), in order; `of` are the indices of each shard."""

    def __init__(self, of: Sequence[Sequence[int] | NDArray[np.int64]]) -> None:
        self._of, self._ends = of, list(accumulate(map(len, of), initial=0))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, at: int) -> tuple[int, int]:
        shard = bisect_right(self._ends, at) - 1
        return shard, int(self._of[shard][at - self._ends[shard]])


class ShardDocuments:
    """The endless set of documents; `document(epoch, index)` gives ids and loss weights, at most `context` long."""

    def __init__(
        self,
        shards: Sequence[Shard],
        tokenizer: Tokenizer,
        mix: TokenMix,
        seed: int,
        texts: SupportsLenAndGetItem[str] = (),
    ) -> None:
        """Raises ValueError where kinds have a share and there is nothing to make them of."""
        self.shards, self.mix, self.seed, self.texts = shards, mix, seed, texts
        self.tokenizer, self.encoder = tokenizer, FamilyEncoder(tokenizer)
        self.kinds = [kind for kind in KINDS if mix.shares.get(kind)]
        self._all = Places([range(len(lines)) for lines in shards])
        self._timed = Places([lines.with_words() for lines in shards] if any(k in ALIGNED for k in self.kinds) else [])
        sources = dict.fromkeys(ALIGNED, len(self._timed)) | {"speech": len(self._all), "text": len(texts)}
        if missing := [kind for kind in self.kinds if not sources[kind]]:
            raise ValueError(
                f"{', '.join(missing)}: there is a share and nothing to make it of (text needs files of text, "
                f"{', '.join(ALIGNED)} utterances with word times)"
            )
        lengths = {kind: self._mean_length(kind) for kind in self.kinds}
        self.weights = [mix.shares[kind] / lengths[kind] for kind in self.kinds]

    def _mean_length(self, kind: str) -> float:
        rng = random.Random(f"{self.seed}/{kind}")
        return sum(len(self._make(kind, rng)[0]) for _ in range(MEASURED)) / MEASURED

    def document(self, epoch: int, index: int) -> tuple[list[int], list[float]]:
        rng = rng_of(self.seed, epoch, index)
        return self._make(rng.choices(self.kinds, self.weights)[0], rng)

    def _make(self, kind: str, rng: random.Random) -> tuple[list[int], list[float]]:
        if kind in ALIGNED:
            shard, index = rng.choice(self._timed)
            return self._aligned(kind, self.shards[shard][index], rng)
        if kind == "text":
            segments = [Segment("text", text=rng.choice(self.texts), ends_turn=True)]
        else:
            shard, index = rng.choice(self._all)
            segments = self.speech(self.shards[shard][index])
        ids, weights = encode(segments, self.encoder)
        context = self.mix.context
        if len(ids) <= context:
            return ids, weights
        # behind BOS and the marker
        start = 2 + rng.randint(0, len(ids) - context)
        end = start + context - 2
        return ids[:2] + ids[start:end], weights[:2] + weights[start:end]

    def _aligned(self, kind: str, line: Tokenized, rng: random.Random) -> tuple[list[int], list[float]]:
        """A document of words in both modalities; of what is too long, what fits from a random word on."""
        make, context, words = ALIGNED[kind], self.mix.context, len(line.words)
        ids, weights = encode(make(self, line, rng, 0, words), self.encoder)
        count = words
        while kind == "pairs" and len(ids) > context and count > 1:
            # fewer and fewer words, so that both sides fit
            count //= 2
            first = rng.randint(0, words - count)
            ids, weights = encode(make(self, line, rng, first, first + count), self.encoder)
        if kind != "pairs" and len(ids) > context:
            ids, weights = encode(make(self, line, rng, rng.randrange(words), words), self.encoder)
        return ids[:context], weights[:context]

    def speech(self, line: Tokenized) -> list[Segment]:
        """An utterance in speech alone."""
        return [Segment("speech", units=self._units(line, 0, None))]

    def interleaved(self, line: Tokenized, rng: random.Random, first: int, last: int) -> list[Segment]:
        """Words `first` to `last` (exclusive), now as text, now as speech."""
        segments = []
        for span in draw_spans(last - first, self.mix.spans, rng):
            start, end = first + span.start, first + span.end
            spoken = line.sounding(start, end) if span.modality == "speech" else start
            if spoken > start:
                segments.append(Segment("speech", units=self._units(line, start, spoken)))
            if spoken < end:
                segments.append(_text(line, spoken, end))
        return segments

    def pairs(self, line: Tokenized, rng: random.Random, first: int, last: int) -> list[Segment]:
        """Words `first` to `last` (exclusive) as speech and as text, which of them first by a coin."""
        units = self._units(line, first, last)
        sides = [*([Segment("speech", units=units)] if units else []), _text(line, first, last)]
        return rng.sample(sides, len(sides))

    def transcribed(self, line: Tokenized, rng: random.Random, first: int, last: int) -> list[Segment]:
        """Words `first` to `last` (exclusive), each as speech and then as text."""
        segments = []
        for at in range(first, last):
            if units := self._units(line, at, at + 1):
                segments.append(Segment("speech", units=units))
            segments.append(_text(line, at, at + 1))
        return segments

    def _units(self, line: Tokenized, first: int, last: int | None) -> tuple[int, ...]:
        """Units of words `first` to `last`; none where no frame begins in them."""
        vocabulary, first_unit = self.tokenizer.vocabulary, self.encoder.first_unit
        return tuple(vocabulary.id_of(token) - first_unit for token in line.tokens(first, last))


def _text(line: Tokenized, first: int, last: int) -> Segment:
    return Segment("text", text=" ".join(line.words[first:last]))


# kinds that need word times
ALIGNED: dict[str, Callable[[ShardDocuments, Tokenized, random.Random, int, int], list[Segment]]] = {
    "interleaved": ShardDocuments.interleaved,
    "pairs": ShardDocuments.pairs,
    "transcribed": ShardDocuments.transcribed,
}
