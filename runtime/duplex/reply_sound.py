"""Which token of a reply made which of its samples: tokens to vocoder units, and the map back from what was heard."""

import random
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from spiritrt.models.family import PITCH_WHERE_NONE, STYLE_WHERE_NONE
from spiritrt.tokens.units import STYLES_WHERE_NONE
from spiritrt.tokens.vocabulary import SpeechToken


@dataclass(frozen=True, slots=True)
class VocoderUnit:
    """One HuBERT unit with the pitch and style that the vocoder takes with it, where it takes any."""

    code: int
    pitch: int | None = None
    style: int | None = None


class ReplySound:
    """The sound of one reply, without the sound: units of its tokens, and the samples that each unit made.

    `kinds` are those of "Pi" and "St" that the vocoder has. Pitch and style are carried forward; a unit before the
    first of them waits for it. What no token holds is as in `Family.vocode`: pitch code 0, and a style drawn by `seed`
    or, without pitch, 71; such a reply sounds only when it is flushed.
    """

    def __init__(self, kinds: Sequence[str] = (), seed: int = 0) -> None:
        self._kinds = tuple(kinds)
        self._seed = seed
        self._tokens: list[SpeechToken] = []
        self._token_of_unit: list[int] = []  # tokens up to and with each unit
        self._ends: list[int] = []  # sample at which each unit ends, as far as it was made
        self._codes: dict[str, int] = {}  # of pitch and style now
        self._waiting: list[tuple[int, dict[str, int]]] = []  # units before the first pitch or style
        self.samples = 0  # made

    def accept(self, token: SpeechToken) -> list[VocoderUnit]:
        """Takes the next token and returns the units that are certain now."""
        self._tokens.append(token)
        kind, code = token
        if kind == "Hu":
            self._token_of_unit.append(len(self._tokens))
            self._waiting.append((code, dict(self._codes)))
        elif kind in self._kinds:
            self._codes[kind] = code
            for _, codes in self._waiting:
                codes.setdefault(kind, code)
        return self._take() if len(self._codes) == len(self._kinds) else []

    def flush(self) -> list[VocoderUnit]:
        """The units that still wait, as at the end of a reply."""
        styles = STYLES_WHERE_NONE if "Pi" in self._codes else (STYLE_WHERE_NONE,)
        absent = {"Pi": PITCH_WHERE_NONE, "St": random.Random(self._seed).choice(styles)}
        for kind in self._kinds:
            for _, codes in self._waiting:
                codes.setdefault(kind, absent[kind])
        return self._take()

    def made(self, units: Iterable[tuple[int, int]]) -> list[int]:
        """Notes (unit, samples) that were made, in order; returns the tokens, by index, whose sound begins in them."""
        first = self._token_of_unit[len(self._ends) - 1] if self._ends else 0
        for unit, samples in units:
            if unit == len(self._ends):
                self._ends.append(self.samples)
            self._ends[unit] += samples
            self.samples += samples
        return list(range(first, self._token_of_unit[len(self._ends) - 1] if self._ends else 0))

    def code_of(self, unit: int) -> int:
        """The HuBERT code of a unit of the reply."""
        return self._tokens[self._token_of_unit[unit] - 1].code

    def tokens_heard(self, played: int) -> int:
        """Tokens of the reply that have sounded, at least in part, once `played` samples of it are played."""
        if played <= 0:
            return 0
        unit = bisect_left(self._ends, played)
        return self._token_of_unit[unit] if unit < len(self._ends) else len(self._tokens)

    def _take(self) -> list[VocoderUnit]:
        waiting, self._waiting = self._waiting, []
        return [VocoderUnit(code, codes.get("Pi"), codes.get("St")) for code, codes in waiting]
