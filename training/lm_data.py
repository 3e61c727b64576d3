"""Training documents of the nano language model: what they are made of, and in which shares.

A document is a pure function of (seed, epoch, index). Its lines are real utterances of the corpus or text of the
grammar spoken by `UnitBank`; lines of held-out utterances are never used. Kinds of document:

    dialogue      [Speech]{user units}[Text]{user words} A: {reply words}[Speech]{reply units}</s>, one to three turns
    typed         [Text]{user words} A: {reply words}[Speech]{reply units}</s>
    asr           [Speech]{units}[Text]<START Transcript>{words}<END>, one to four of them
    tts           [Text]{words}[Speech]{units}, one to three; or with the word 'stop' at the end of each
    interleaved   words now as text, now as speech, spans redrawn every time
    pairs         [Speech]{units}[Text]{words}, or the other way round (an ablation of the paper's)
    transcribed   every word as speech and then as text (another)
    text, speech  one modality alone
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from spiritrt.training.corpora.manifest import of_units, unit_lines
from spiritrt.training.corpora.prose import LEAST_WORDS, MOST_WORDS, sentences
from spiritrt.training.corpora.text import Exchange, exchange, sentence
from spiritrt.training.interleave import (
    Segment,
    SpanPlan,
    SpokenWord,
    TextEncoder,
    draw_spans,
    encode,
    interleave,
    rng_of,
    speech_of,
    text_of,
)
from spiritrt.training.unit_synthesis import Noise, Spoken, UnitBank, read_units

HELD_OUT = ("test", "test_voice")
STOP = " 'stop'"
HARD = ("addition", "subtraction", "ages", "sizes")  # kinds of questions whose answers cannot be known by heart
LENGTH_DRAWS = 200


@dataclass(frozen=True, slots=True)
class Mix:
    """Shares of the document kinds, of real speech, and the loss weights; `context` bounds a document's tokens.

    `fragments` of the asr and tts documents are made of one to four words at a time: they teach which units are which
    words long before whole lines can be read. `unspoken_replies` of the dialogues stop at the last reply's [Speech]
    marker: understanding is harder to learn than speaking, and takes half the tokens that way. The user's exact units
    are not worth predicting: `user_unit_weight`. With `exchanges`, documents of aligned words and of one modality hold
    a whole exchange, question and answer, in one voice: stories, as it were, of two sentences on one topic.
    What one has to work out (`HARD`) is asked more often than the grammar does, in `hard_text` of the exchanges that
    are text alone, which are short, and in `hard_spoken` of the others. `prose`, where there is any, is that share of
    the single lines: what cannot be guessed must be read, letter by letter and phone by phone. `shares` are of
    documents, with `by_tokens` of tokens.
    """

    shares: dict[str, float] = field(
        default_factory=lambda: {
            "dialogue": 0.3, "typed": 0.07, "asr": 0.15, "tts": 0.07, "interleaved": 0.04, "text": 0.36, "speech": 0.01,
        }
    )  # fmt: skip
    real_dialogues: float = 0.15
    real_lines: float = 0.3
    prose: float = 0.3
    lower_case: float = 0.15
    fragments: float = 0.4
    unspoken_replies: float = 0.6
    hard_text: float = 0.5
    hard_spoken: float = 0.1
    user_unit_weight: float = 0.0
    exchanges: bool = False
    by_tokens: bool = False
    context: int = 512
    spans: SpanPlan = field(default_factory=lambda: SpanPlan(text_words=(3, 10), speech_words=(3, 8)))
    noise: Noise = field(default_factory=Noise)

    def __post_init__(self) -> None:
        if unknown := set(self.shares) - set(KINDS):
            raise ValueError(f"unknown document kinds {sorted(unknown)}: choose from {', '.join(KINDS)}")
        if self.context < 16:
            raise ValueError(f"context must be at least 16 tokens, got {self.context}")


@dataclass(frozen=True, slots=True)
class Line:
    """A line of text and its speech, word by word."""

    text: str
    words: tuple[SpokenWord, ...]


class Documents:
    """The endless set of training documents; `document(epoch, index)` gives ids and loss weights."""

    def __init__(
        self,
        bank: UnitBank,
        encoder: TextEncoder,
        mix: Mix,
        seed: int,
        held_out: frozenset[str],
        prose: Sequence[str] = (),
    ) -> None:
        self.bank, self.encoder, self.mix, self.seed, self.held_out = bank, encoder, mix, seed, held_out
        self.prose = [line for line in prose if line not in held_out]
        # a held-out text may have been said in training, too: in another voice, or as the answer to another question
        self.lines, self.assistant_lines = (
            [line for line in lines if line.text not in held_out] for lines in (bank.lines, bank.assistant_lines)
        )
        by_dialogue: dict[str, dict[str, Spoken]] = {}
        for line in (*self.lines, *self.assistant_lines):
            if line.dialogue is not None:
                by_dialogue.setdefault(line.dialogue, {})[line.role] = line
        self.real_pairs = [(pair["user"], pair["assistant"]) for pair in by_dialogue.values() if len(pair) == 2]
        self.kinds, self.weights = list(mix.shares), list(mix.shares.values())
        if mix.by_tokens:
            self.weights = [w / self._mean_length(k) for k, w in zip(self.kinds, self.weights, strict=True)]

    def document(self, epoch: int, index: int) -> tuple[list[int], list[float]]:
        """Ids and loss weights of one document, at most `context` long."""
        rng = rng_of(self.seed, epoch, index)
        return self._document(rng.choices(self.kinds, self.weights)[0], rng)

    def _mean_length(self, kind: str) -> float:
        """Tokens of a document of a kind, in the mean of `LENGTH_DRAWS`."""
        made = [self._document(kind, rng_of(self.seed, -1, index)) for index in range(LENGTH_DRAWS)]
        return sum(len(ids) for ids, _ in made) / LENGTH_DRAWS

    def _document(self, kind: str, rng: random.Random) -> tuple[list[int], list[float]]:
        segments = KINDS[kind](self, rng)
        ids, weights = encode(segments, self.encoder)
        if kind == "dialogue" and rng.random() < self.mix.unspoken_replies:
            end = len(ids) - ids[::-1].index(self.encoder.speech_marker)
            ids, weights = ids[:end], weights[:end]
        if len(ids) > self.mix.context and (turns := [at for at, s in enumerate(segments) if s.ends_turn])[:-1]:
            ids, weights = encode(segments[: turns[0] + 1], self.encoder)
        return ids[: self.mix.context], weights[: self.mix.context]

    def _exchange(self, rng: random.Random, spoken: bool = True) -> Exchange:
        """A question and its answer, neither of them held out."""
        share = self.mix.hard_spoken if spoken else self.mix.hard_text
        kinds = HARD if rng.random() < share else None
        while True:
            pair = exchange(self.seed, rng.getrandbits(48), kinds)
            if self.held_out.isdisjoint((pair.user, pair.assistant)):
                return pair

    def _sentence(self, rng: random.Random) -> str:
        """A single sentence that is not held out."""
        while (text := sentence(self.seed, rng.getrandbits(48))) in self.held_out:
            pass
        return text

    def _pair(self, rng: random.Random) -> tuple[Line, Line]:
        """A user's line and the reply to it."""
        if self.real_pairs and rng.random() < self.mix.real_dialogues:
            user, reply = rng.choice(self.real_pairs)
            return Line(user.text, user.words), Line(reply.text, reply.words)
        pair = self._exchange(rng)
        user_words = self.bank.speak(pair.user, rng, assistant=False)
        return Line(pair.user, user_words), Line(pair.assistant, self.bank.speak(pair.assistant, rng, assistant=True))

    def _line(self, rng: random.Random, assistant: bool, fragment: bool = False) -> Line:
        """A single line in the user's or the assistant's manner of speech, or a few neighbouring words of one."""
        line = self._whole_line(rng, assistant)
        if not fragment:
            return line
        start = rng.randrange(len(line.words))
        words = line.words[start : start + rng.randint(1, 4)]
        return Line(text_of(words), words)

    def _whole_line(self, rng: random.Random, assistant: bool) -> Line:
        if self.prose and rng.random() < self.mix.prose:
            text = rng.choice(self.prose)
            return Line(text, self.bank.speak(text, rng, assistant))
        draw = rng.random()
        real = self.assistant_lines if assistant else self.lines
        if real and draw < self.mix.real_lines:
            line = rng.choice(real)
            return Line(line.text, line.words)
        if draw < self.mix.real_lines + 0.2:
            text = self._sentence(rng)
        else:
            pair = self._exchange(rng)
            text = rng.choice((pair.user, pair.assistant))
        return Line(text, self.bank.speak(text, rng, assistant))

    def _heard(self, line: Line, rng: random.Random) -> tuple[int, ...]:
        """Units of a line as an encoder would give them: half of the lines are disturbed."""
        units = speech_of(line.words)
        return self.bank.disturb(units, self.mix.noise, rng) if rng.random() < 0.5 else units

    def _typed_text(self, text: str, rng: random.Random) -> str:
        if rng.random() < self.mix.lower_case:
            return text.lower().rstrip(".?!")
        return text

    def _dialogue(self, rng: random.Random) -> list[Segment]:
        segments = []
        for _ in range(rng.choices((1, 2, 3), (0.7, 0.2, 0.1))[0]):
            user, reply = self._pair(rng)
            weight = self.mix.user_unit_weight
            segments += [
                Segment("speech", units=self._heard(user, rng), weight=weight, marker_weight=weight),
                Segment("text", text=f"{user.text} A: {reply.text}"),
                Segment("speech", units=speech_of(reply.words), ends_turn=True),
            ]
        return segments

    def _typed(self, rng: random.Random) -> list[Segment]:
        user, reply = self._pair(rng)
        return [
            Segment("text", text=f"{self._typed_text(user.text, rng)} A: {reply.text}"),
            Segment("speech", units=speech_of(reply.words), ends_turn=True),
        ]

    def _asr(self, rng: random.Random) -> list[Segment]:
        segments = []
        fragments = rng.random() < self.mix.fragments
        for _ in range(rng.randint(2, 6) if fragments else rng.choices((1, 2, 3, 4), (0.6, 0.2, 0.1, 0.1))[0]):
            line = self._line(rng, assistant=False, fragment=fragments)
            weight = self.mix.user_unit_weight
            segments += [
                Segment("speech", units=self._heard(line, rng), weight=weight, marker_weight=weight),
                Segment("text", text=f"<START Transcript>{line.text}<END>"),
            ]
        return [*segments[:-1], Segment("text", text=segments[-1].text, ends_turn=True)]

    def _tts(self, rng: random.Random) -> list[Segment]:
        segments = []
        stop, fragments = rng.random() < 0.2, rng.random() < self.mix.fragments
        for _ in range(rng.randint(2, 6) if fragments else rng.choices((1, 2, 3), (0.7, 0.2, 0.1))[0]):
            line = self._line(rng, assistant=True, fragment=fragments)
            units = speech_of(line.words)
            if stop:
                units = speech_of((*line.words, *self.bank.speak("stop", rng, assistant=True)))
            text = self._typed_text(line.text, rng)
            segments += [Segment("text", text=text + STOP * stop), Segment("speech", units=units)]
        return [*segments[:-1], Segment("speech", units=segments[-1].units, ends_turn=True)]

    def _aligned_words(self, rng: random.Random) -> tuple[SpokenWord, ...]:
        """Words of one to three lines, or of an exchange, in one voice."""
        if self.mix.exchanges:
            pair = self._exchange(rng)
            return tuple(word for line in (pair.user, pair.assistant) for word in self.bank.speak(line, rng, True))
        words: tuple[SpokenWord, ...] = ()
        for _ in range(rng.randint(1, 3)):
            words += self._line(rng, assistant=True).words
        return words

    def _pairs(self, rng: random.Random) -> list[Segment]:
        words = self._aligned_words(rng)
        speech, text = Segment("speech", units=speech_of(words)), Segment("text", text=text_of(words))
        first, last = rng.sample((speech, text), 2)
        return [first, Segment(last.modality, last.text, last.units, ends_turn=True)]

    def _transcribed(self, rng: random.Random) -> list[Segment]:
        segments = []
        for word in self._aligned_words(rng):
            segments += [Segment("speech", units=speech_of([word])), Segment("text", text=word.text)]
        return [*segments[:-1], Segment("text", text=segments[-1].text, ends_turn=True)]

    def _interleaved(self, rng: random.Random) -> list[Segment]:
        words = self._aligned_words(rng)
        segments = interleave(words, draw_spans(len(words), self.mix.spans, rng))
        last = segments[-1]
        return [*segments[:-1], Segment(last.modality, last.text, last.units, ends_turn=True)]

    def _text(self, rng: random.Random) -> list[Segment]:
        if self.mix.exchanges:
            return [Segment("text", text=text_of(self._aligned_words(rng)), ends_turn=True)]
        if rng.random() < 0.8:
            pair = self._exchange(rng, spoken=False)
            return [Segment("text", text=f"{self._typed_text(pair.user, rng)} A: {pair.assistant}", ends_turn=True)]
        return [Segment("text", text=self._sentence(rng), ends_turn=True)]

    def _speech(self, rng: random.Random) -> list[Segment]:
        words = self._aligned_words(rng) if self.mix.exchanges else self._line(rng, assistant=True).words
        return [Segment("speech", units=speech_of(words), ends_turn=True)]


KINDS = {
    "dialogue": Documents._dialogue,
    "typed": Documents._typed,
    "asr": Documents._asr,
    "tts": Documents._tts,
    "interleaved": Documents._interleaved,
    "pairs": Documents._pairs,
    "transcribed": Documents._transcribed,
    "text": Documents._text,
    "speech": Documents._speech,
}


def _thirds(aligned: str | None) -> Mix:
    """A third of the tokens each of speech, text and `aligned` documents; halves where there are none (paper,
    section 3)."""
    kinds = [kind for kind in ("speech", "text", aligned) if kind]
    return Mix(shares={kind: 1 / len(kinds) for kind in kinds}, exchanges=True, by_tokens=True)


# nano's own, and the paper's recipe with its ablations
MIXES = {
    "nano": Mix(),
    "interleaved": _thirds("interleaved"),
    "pairs": _thirds("pairs"),
    "transcribed": _thirds("transcribed"),
    "unaligned": _thirds(None),
    "speech": Mix(shares={"speech": 1.0}, exchanges=True),
}


def load_documents(
    units: Path, encoder: TextEncoder, mix: Mix, seed: int, heard: Sequence[Path] = (), prose: Path | None = None
) -> Documents:
    """Documents over a units file and its `inventory.json`; `heard` holds what an encoder emitted, one JSON line
    {"id", "units"} an utterance, for the same frames (the last file wins), and `prose` sentences, one a line.

    Of the prose stays what `corpora.prose` keeps. Raises ValueError where that is nothing, FileNotFoundError without a
    units file.
    """
    entries = read_units(units)
    inventory = json.loads(of_units(units.parent / "inventory.json").read_text("utf-8"))
    by_id: dict[str, list[int]] = {}
    for file in heard:
        by_id |= {entry["id"]: entry["units"] for entry in unit_lines(file)}
    held_out = frozenset(entry["text"] for entry in entries if entry["split"] in HELD_OUT)
    lines = [] if prose is None else sentences(prose.read_text("utf-8").splitlines())
    if prose is not None and not lines:
        raise ValueError(
            f"{prose} has no sentence that can be spoken: one a line, of {LEAST_WORDS} to {MOST_WORDS} words"
        )
    return Documents(UnitBank(entries, inventory, by_id), encoder, mix, seed, held_out, lines)
