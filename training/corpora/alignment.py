"""Forced alignment: when each word of a known text is said, by our own encoder's posteriors of phones.

The encoder's units are phone-pure (`inventory.json` names the phone of each), so the posteriors of a phone's units sum
to that of the phone, 25 a second. The best path goes through the phones of the text in order, one frame or more each.
It is found by one of two aligners:

    own          a phone may be skipped at a cost (it can be shorter than a frame), silence may lie between words
    torchaudio   `torchaudio.functional.forced_align`: CTC with silence as its blank; no phone is skipped

Of 535 held-out words of Kokoro both find the beginning within 13 ms (median, torchaudio 2.11); at 1.6 times the speed
within 16 and 18 ms, and the mean score falls from -0.3 to -1.3 and to -1.8: filter fast speech by our own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spiritrt.models.checkpoints import find
from spiritrt.models.hubert import (
    Hubert,
    LinearQuantizer,
    encode_features,
    hubert_from_official,
    quantizer_from_official,
)
from spiritrt.training.clusters import SILENCE
from spiritrt.training.corpora.manifest import Word
from spiritrt.training.corpora.pronounce import STRESS, phonemise, split_phones

FRAME_S = 0.04
LEAST_LOG_PROB = -12.0
SKIP_COST = 4.0  # natural log; about what a badly heard phone costs
ALIGNERS = ("auto", "own", "torchaudio")
Floats = NDArray[np.float64]
ForcedAlign = Callable[..., tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class State:
    """A step of the path: a phone (`column` of the posteriors) of word number `word`, or a silence (-1).

    `symbol` is the phone as the lexicon writes it, with its stress mark, or a space.
    """

    column: int
    word: int
    symbol: str = " "


@dataclass(frozen=True, slots=True)
class Alignment:
    """Times of the words, in seconds from the start, and how well they fit.

    `score` is the mean over the frames of words of log p(the phone there) - log p(the likeliest phone): 0 where the
    encoder would have said the same by itself. `phones` are (symbol, start_s, end_s), a space between words; a phone
    that was left out has no length.
    """

    words: tuple[Word, ...]
    score: float
    phones: tuple[tuple[str, float, float], ...] = ()


def best_path(log_probs: Floats, states: Sequence[State], skip_cost: float = SKIP_COST) -> list[int]:
    """The state of each frame [T] on the likeliest path through `states`, for log-probabilities [T, P].

    Each state lasts a frame or more. A silence may be left out; a phone may be left out for `skip_cost`. Raises
    ValueError where there are not enough frames even so.
    """
    frames, count = len(log_probs), len(states)
    silent = np.array([state.word < 0 for state in states])
    cost = np.where(silent, 0.0, skip_cost)
    emission = log_probs[:, [state.column for state in states]]
    passed = np.concatenate([[0.0], np.cumsum(cost)])  # cost of leaving out all states before one
    best = np.full(count, -np.inf)
    # one state left out between two that are not; at the ends as well
    for first in range(min(2, count)):
        best[first] = emission[0, first] - passed[first]
    if silent[0] and count > 2:
        best[2] = emission[0, 2] - passed[2]
    back = np.zeros((frames, count), np.int8)  # how many states the path moved on
    for t in range(1, frames):
        options = np.full((4, count), -np.inf)
        options[0] = best
        options[1, 1:] = best[:-1]
        options[2, 2:] = best[:-2] - cost[1:-1]
        # a silence and the phone after it, both left out
        options[3, 3:] = best[:-3] - cost[1:-2] - cost[2:-1]
        options[3, 3:][~silent[1:-2] & ~silent[2:-1]] = -np.inf
        back[t] = options.argmax(axis=0)
        best = options[back[t], np.arange(count)] + emission[t]
    ends = best - (passed[-1] - passed[1:])  # what is left out after the last
    ends[: max(0, count - 3)] = -np.inf
    state = int(ends.argmax())
    if not np.isfinite(ends[state]):
        raise ValueError(f"{frames} frames are too few for {count} states")
    path = [state]
    for t in range(frames - 1, 0, -1):
        state -= int(back[t, state])
        path.append(state)
    return path[::-1]


def find_forced_align(aligner: str) -> ForcedAlign | None:
    """torchaudio's `forced_align` (2.1 to 2.8, and from 2.11 on), or None where our own is to be taken.

    `auto` takes torchaudio's where it imports. Raises ValueError for another name than `ALIGNERS`, and for `torchaudio`
    where it cannot be used, with the reason.
    """
    if aligner not in ALIGNERS:
        raise ValueError(f"aligner must be one of {', '.join(ALIGNERS)}, got {aligner!r}")
    if aligner == "own":
        return None
    try:
        from torchaudio.functional import forced_align

        forced_align(torch.zeros(1, 1, 2), torch.ones(1, 1, dtype=torch.int64), blank=0)
    # OSError: built for CUDA libraries that are not there; RuntimeError: built without the aligner
    except (ImportError, OSError, RuntimeError) as error:
        if aligner == "torchaudio":
            raise ValueError(f"torchaudio's aligner cannot be used here ({error}): take auto or own") from error
        return None
    return forced_align


def path_of_torchaudio(forced_align: ForcedAlign, log_probs: Floats, states: Sequence[State], blank: int) -> list[int]:
    """As `best_path`, by `forced_align` with the class `blank`, silence, for CTC's blank.

    A blank between the phones of a word counts to the phone before it. Raises ValueError where the frames are too few:
    CTC needs one for each phone, and one more between two equal phones.
    """
    phones = [place for place, state in enumerate(states) if state.word >= 0]
    targets = [states[place].column for place in phones]
    needed = len(targets) + sum(a == b for a, b in pairwise(targets))
    if len(log_probs) < needed:
        raise ValueError(f"{len(log_probs)} frames are too few for {len(targets)} phones, which need {needed}")
    labels, _ = forced_align(torch.from_numpy(log_probs).float()[None], torch.tensor([targets]), blank=blank)
    path, said, before = [], -1, blank
    for label in labels[0].tolist():
        said += label not in (blank, before)
        before = label
        place = phones[said] if said >= 0 else 0
        silence_follows = said >= 0 and states[place + 1].word < 0
        path.append(place + 1 if label == blank and silence_follows else place)
    return path


def states_of(text: str, phones: Sequence[str]) -> tuple[list[State], list[str]]:
    """States of a text, silence allowed around every word, and its words.

    Phones that the inventory does not have are left out. Raises ValueError for words that cannot be pronounced, or a
    text without words.
    """
    columns = {phone: column for column, phone in enumerate(phones)}
    silence = State(columns[SILENCE], -1)
    states = [silence]
    words: list[str] = []
    for token, said in phonemise(text):
        if not said:
            continue
        own = [phone for phone in split_phones(said) if phone.strip(STRESS) in columns]
        if not own:
            raise ValueError(f"none of the phones {said!r} of {token!r} is in the encoder's inventory")
        states += [State(columns[phone.strip(STRESS)], len(words), phone) for phone in own] + [silence]
        words.append(token)
    if not words:
        raise ValueError(f"no words in {text!r}")
    return states, words


class Aligner:
    """Aligns text with sound by the encoder of a model that has an `inventory.json`."""

    def __init__(
        self, hubert: Hubert, quantizer: LinearQuantizer, inventory: Sequence[str],
        forced_align: ForcedAlign | None = None,
    ) -> None:  # fmt: skip
        """`forced_align` is torchaudio's, None for our own. Raises ValueError for an inventory without silence."""
        if SILENCE not in inventory:
            raise ValueError(f"the inventory has no {SILENCE} unit: it must name the phone of every unit")
        self.hubert, self.quantizer = hubert, quantizer
        self.phones, self.forced_align = sorted(set(inventory)), forced_align
        member = np.array([[phone == name for name in self.phones] for phone in inventory], np.float32)
        self._member = torch.from_numpy(member)  # [units, phones]

    @classmethod
    def load(cls, model: str, inventory: Path | None = None, aligner: str = "auto") -> Aligner:
        """Of a family (name or folder); `inventory` is by default the file in its folder, `aligner` one of `ALIGNERS`.

        Raises ValueError where the quantizer is k-means, there is no inventory, or the aligner cannot be used.
        """
        forced_align = find_forced_align(aligner)
        checkpoint = find(model)
        path = inventory or checkpoint.folder / "inventory.json"
        if not path.is_file():
            raise ValueError(f"no {path}: alignment needs an encoder of phone-pure units, such as nano's")
        quantizer = quantizer_from_official(checkpoint.part("quantizer").config, checkpoint.part("quantizer").load())
        if not isinstance(quantizer, LinearQuantizer):
            raise ValueError(f"{checkpoint.name} has a k-means quantizer; alignment needs posteriors of units")
        hubert = hubert_from_official(checkpoint.part("hubert").config, checkpoint.part("hubert").load())
        return cls(hubert.eval(), quantizer.eval(), json.loads(path.read_text(encoding="utf-8")), forced_align)

    @property
    def name(self) -> str:
        """Which aligner finds the path: own or torchaudio."""
        return "own" if self.forced_align is None else "torchaudio"

    @torch.no_grad()
    def log_probs(self, samples: NDArray[np.float32]) -> Floats:
        """Log-probabilities [T, phones] of `samples` [N] at 16 kHz, 25 a second."""
        logits = self.quantizer(encode_features(self.hubert, torch.from_numpy(samples)))[:, : len(self._member)]
        shares = logits.softmax(dim=-1) @ self._member
        return shares.clamp_min(np.exp(LEAST_LOG_PROB)).log().double().numpy()

    def align(self, samples: NDArray[np.float32], text: str) -> Alignment:
        """Times of the words of `text` in `samples` [N] at 16 kHz.

        A word whose phones were all left out lies between its neighbours, without length. Raises ValueError for text
        that cannot be said, or sound that is too short for it.
        """
        states, words = states_of(text, self.phones)
        log_probs = self.log_probs(samples)
        if self.forced_align is None:
            path = best_path(log_probs, states)
        else:
            path = path_of_torchaudio(self.forced_align, log_probs, states, self.phones.index(SILENCE))
        fits = [
            log_probs[t, states[place].column] - log_probs[t].max()
            for t, place in enumerate(path)
            if states[place].word >= 0
        ]
        counts = np.bincount(path, minlength=len(states))
        ends = np.minimum(np.cumsum(counts) * FRAME_S, len(samples) / 16000)
        spans = [
            (round(float(end - count * FRAME_S), 3) if count else round(float(end), 3), round(float(end), 3))
            for end, count in zip(ends, counts, strict=True)
        ]
        timed = []
        for number, word in enumerate(words):
            own = [span for span, state in zip(spans, states, strict=True) if state.word == number]
            # a phone that was left out lies at the end of the one before: it must not begin a word
            said = [span for span in own if span[1] > span[0]] or own[:1]
            timed.append(Word(word, said[0][0], said[-1][1]))
        phones = tuple((state.symbol, *span) for state, span in zip(states, spans, strict=True))
        return Alignment(tuple(timed), float(np.mean(fits)) if fits else LEAST_LOG_PROB, phones[1:-1])
