"""Training documents from shards: the paper's mix of speech, interleaved and written text, for Base and Expressive.

A document is a pure function of (seed, epoch, index). Shares are shares of tokens, as in the paper, not of documents:
the kinds are drawn in inverse proportion to how long their documents are. What is longer than the context gives a
random stretch of itself. For nano's own synthetic documents see `lm_data`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from spiritrt.tokens.text import Tokenizer
from spiritrt.training.checkpoint import file_digest
from spiritrt.training.interleave import Segment, Span, SpanPlan, draw_spans, encode, rng_of
from spiritrt.training.shards import Shard, Tokenized

KINDS = ("speech", "interleaved", "text")
MEASURED = 64  # documents of a kind that are drawn to learn its length


@dataclass(frozen=True, slots=True)
class TokenMix:
    """Shares of tokens by kind, the spans of interleaved documents, and the context in tokens."""

    shares: dict[str, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 1 / 3))
    spans: SpanPlan = field(default_factory=SpanPlan)
    context: int = 4096

    def __post_init__(self) -> None:
        if unknown := set(self.shares) - set(KINDS):
            raise ValueError(f"unknown kinds {sorted(unknown)}: choose from {', '.join(KINDS)}")
        if not self.shares or min(self.shares.values()) < 0 or sum(self.shares.values()) <= 0:
            raise ValueError(f"shares must be 0 or more and not all 0, got {self.shares}")
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


def read_text(paths: Sequence[Path]) -> list[str]:
    """Paragraphs of text files: what stands between blank lines. Raises ValueError where there is no text,
    FileNotFoundError for a file that is not there."""
    found = []
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"no text file at {path}: give files of UTF-8 text")
        blocks = path.read_text(encoding="utf-8").split("\n\n")
        found += [" ".join(block.split()) for block in blocks if block.strip()]
    if paths and not found:
        raise ValueError(f"no text in {', '.join(map(str, paths))}")
    return found


def shard_version(folder: Path) -> str:
    """A shard's name with a hash of its header and of where its lines and words lie."""
    names = ("shard.json", "line_offsets.npy", "word_offsets.npy", "words.npy")
    return f"{folder.resolve().name} ({file_digest(*(folder / name for name in names))})"


class ShardDocuments:
    """The endless set of documents; `document(epoch, index)` gives ids and loss weights, at most `context` long."""

    def __init__(
        self, shards: Sequence[Shard], tokenizer: Tokenizer, mix: TokenMix, seed: int, texts: Sequence[str] = ()
    ) -> None:
        """Raises ValueError where a kind has a share and there is nothing to make it of."""
        self.shards, self.mix, self.seed, self.texts = shards, mix, seed, texts
        self.tokenizer, self.encoder = tokenizer, FamilyEncoder(tokenizer)
        self._all = [(shard, i) for shard, lines in enumerate(shards) for i in range(len(lines))]
        self._timed = (
            [at for at in self._all if shards[at[0]].has_words(at[1])] if mix.shares.get("interleaved") else []
        )
        for kind, source in (("speech", self._all), ("interleaved", self._timed), ("text", texts)):
            if mix.shares.get(kind) and not source:
                raise ValueError(f"{kind} has a share of {mix.shares[kind]:.3g} and there is nothing to make it of")
        self.kinds = [kind for kind in KINDS if mix.shares.get(kind)]
        lengths = {kind: self._mean_length(kind) for kind in self.kinds}
        self.weights = [mix.shares[kind] / lengths[kind] for kind in self.kinds]

    def _mean_length(self, kind: str) -> float:
        rng = random.Random(f"{self.seed}/{kind}")
        return sum(len(self._make(kind, rng)[0]) for _ in range(MEASURED)) / MEASURED

    def document(self, epoch: int, index: int) -> tuple[list[int], list[float]]:
        rng = rng_of(self.seed, epoch, index)
        return self._make(rng.choices(self.kinds, self.weights)[0], rng)

    def _make(self, kind: str, rng: random.Random) -> tuple[list[int], list[float]]:
        if kind == "text":
            segments = [Segment("text", text=rng.choice(self.texts), ends_turn=True)]
        else:
            shard, index = rng.choice(self._timed if kind == "interleaved" else self._all)
            line = self.shards[shard][index]
            segments = self.speech(line) if kind == "speech" else self.interleaved(line, rng)
        ids, weights = encode(segments, self.encoder)
        context = self.mix.context
        if len(ids) <= context:
            return ids, weights
        if kind == "interleaved":
            # the last word may be without a frame
            later = self.interleaved(line, rng, rng.randrange(len(line.words))) or segments
            ids, weights = encode(later, self.encoder)
            return ids[:context], weights[:context]
        # behind BOS and the marker
        start = 2 + rng.randint(0, len(ids) - context)
        end = start + context - 2
        return ids[:2] + ids[start:end], weights[:2] + weights[start:end]

    def speech(self, line: Tokenized) -> list[Segment]:
        """An utterance in speech alone."""
        return [self._span(line, 0, None)]

    def interleaved(self, line: Tokenized, rng: random.Random, first: int = 0) -> list[Segment]:
        """An utterance from its word `first` on, its words now as text, now as speech."""
        spans = [
            Span(span.modality, first + span.start, first + span.end)
            for span in draw_spans(len(line.words) - first, self.mix.spans, rng)
        ]
        return [
            Segment("text", text=" ".join(line.words[span.start : span.end]))
            if span.modality == "text"
            else self._span(line, span.start, span.end)
            for span in spans
            if span.modality == "text" or line.tokens(span.start, span.end)
        ]

    def _span(self, line: Tokenized, first: int, last: int | None) -> Segment:
        vocabulary, first_unit = self.tokenizer.vocabulary, self.encoder.first_unit
        return Segment(
            "speech", units=tuple(vocabulary.id_of(token) - first_unit for token in line.tokens(first, last))
        )
