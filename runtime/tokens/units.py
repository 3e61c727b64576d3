"""Unit frames to speech tokens and back: deduplication, merging by time, carrying pitch and style forward.

Streaming and offline share this code: `merge` is a `TokenMerger` that gets everything at once.
"""

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from spiritrt.tokens.vocabulary import SpeechToken

CODES_A_SECOND = {
    "St": 1.0,
    "Pi": 12.5,
    "Hu": 24.99,
}  # in the order of ties; 24.99 is the public code's rate of HuBERT units
STYLES_WHERE_NONE = (71, 68, 98)
PITCH_FRAMES, STYLE_FRAMES = 2, 25  # HuBERT frames that one pitch or style frame covers


@dataclass(frozen=True, slots=True)
class Units:
    """Codes of speech: HuBERT at 25 Hz and, in Expressive, pitch at 12.5 Hz and style at 1 Hz.

    As `encode` gives them these are raw frames. As `expand` gives them every list has one entry a kept HuBERT unit.
    """

    hubert: Sequence[int]
    pitch: Sequence[int] | None = None
    style: Sequence[int] | None = None

    def __post_init__(self) -> None:
        for name in ("hubert", "pitch", "style"):
            codes = getattr(self, name)
            if codes is None:
                continue
            if isinstance(codes, str) or not isinstance(codes, Sequence):
                raise ValueError(f"{name} must be a list of codes, got {codes!r}")
            bad = [c for c in codes if not isinstance(c, int) or isinstance(c, bool) or c < 0]
            if bad:
                raise ValueError(f"{name} codes must be whole numbers from 0, got {bad[0]!r}")
            object.__setattr__(self, name, tuple(codes))

    def repeat(self, lengths: Sequence[int], start: int = 0) -> "Units":
        """Codes with one entry a frame, of codes with one entry a unit: unit i lasts `lengths[i]` frames.

        Units beyond `lengths` and frames before `start` are left out.
        """

        def frames(codes: Sequence[int]) -> list[int]:
            return [code for code, length in zip(codes, lengths, strict=False) for _ in range(length)][start:]

        pitch = None if self.pitch is None else frames(self.pitch)
        style = None if self.style is None else frames(self.style)
        return Units(frames(self.hubert), pitch, style)


class TokenMerger:
    """Turns unit frames, as they come, into deduplicated speech tokens in order of time.

    `kinds` says which streams there are: ("Hu",) for Base, ("St", "Pi", "Hu") for Expressive. A token is handed out as
    soon as no stream that lags behind could still bring an earlier one. Consecutive equal HuBERT and pitch codes are
    one token, at the time of the first; styles are never deduplicated. At equal times the order is style, pitch,
    HuBERT.
    """

    def __init__(self, kinds: Sequence[str] = ("Hu",)) -> None:
        unknown = set(kinds) - set(CODES_A_SECOND)
        if unknown or "Hu" not in kinds:
            raise ValueError(f"kinds must be Hu and any of Pi, St; got {tuple(kinds)}")
        self.kinds = tuple(kind for kind in CODES_A_SECOND if kind in kinds)
        self.reset()

    def reset(self) -> None:
        """Forgets everything: the next frame is the first of a recording."""
        self._frames = dict.fromkeys(self.kinds, 0)
        self._last: dict[str, int | None] = dict.fromkeys(self.kinds)
        self._waiting: dict[str, deque[tuple[float, SpeechToken]]] = {kind: deque() for kind in self.kinds}

    def accept(
        self, hubert: Sequence[int] = (), pitch: Sequence[int] = (), style: Sequence[int] = ()
    ) -> list[SpeechToken]:
        """Takes the next frames of any of the streams and returns the tokens that are now certain.

        Raises ValueError for a stream that this merger does not have.
        """
        for kind, codes in (("Hu", hubert), ("Pi", pitch), ("St", style)):
            if len(codes) and kind not in self.kinds:
                raise ValueError(f"this merger has no {kind} stream, got {len(codes)} codes")
            for code in codes:
                if kind == "St" or code != self._last[kind]:
                    self._waiting[kind].append((self._frames[kind] / CODES_A_SECOND[kind], SpeechToken(kind, code)))
                self._last[kind] = code
                self._frames[kind] += 1
        return self._take(final=False)

    def flush(self) -> list[SpeechToken]:
        """Returns the tokens still held back, as at the end of a recording, and resets."""
        tokens = self._take(final=True)
        self.reset()
        return tokens

    def _take(self, final: bool) -> list[SpeechToken]:
        tokens: list[SpeechToken] = []
        while True:
            # the earliest token there is or could yet be: (time, order of ties, kind)
            heads = []
            for order, kind in enumerate(self.kinds):
                queue = self._waiting[kind]
                if queue:
                    heads.append((queue[0][0], order, kind))
                elif not final:
                    heads.append((self._frames[kind] / CODES_A_SECOND[kind], order, kind))
            if not heads:
                return tokens
            kind = min(heads)[2]
            if not self._waiting[kind]:
                return tokens
            tokens.append(self._waiting[kind].popleft()[1])


def merge(units: Units) -> list[SpeechToken]:
    """Speech tokens of a whole recording's raw frames (spec: deduplicate, then a stable sort by time)."""
    kinds = ["Hu"]
    if units.pitch is not None:
        kinds.append("Pi")
    if units.style is not None:
        kinds.append("St")
    merger = TokenMerger(kinds)
    return merger.accept(units.hubert, units.pitch or (), units.style or ()) + merger.flush()


def expand(tokens: Sequence[SpeechToken], repeat_for_pitch: bool = False, seed: int = 0) -> Units:
    """Speech tokens back to codes, one a HuBERT token: the last pitch and style are carried forward.

    Leading HuBERT tokens take the first pitch and style to come. Where there is pitch and no style at all, one of the
    styles 71, 68 and 98 is drawn by `seed`. A pitch token that follows a pitch token repeats the last HuBERT unit where
    `repeat_for_pitch` (the public code's `duplicate_hubert_for_multiple_pitch`). `pitch` and `style` are None where
    the tokens hold none.
    """
    hubert: list[int] = []
    pitch: list[int | None] = []
    style: list[int | None] = []
    now: dict[str, int | None] = {"Pi": None, "St": None}
    previous = ""

    def emit(unit: int) -> None:
        hubert.append(unit)
        pitch.append(now["Pi"])
        style.append(now["St"])

    for kind, code in tokens:
        if kind == "Hu":
            emit(code)
        else:
            # the earlier of two pitch codes in a row would else never be heard
            if repeat_for_pitch and kind == previous == "Pi" and hubert:
                emit(hubert[-1])
            now[kind] = code
        previous = kind
    firsts = {k: next((t.code for t in tokens if t.kind == k), None) for k in ("Pi", "St")}
    if firsts["Pi"] is not None and firsts["St"] is None:
        firsts["St"] = random.Random(seed).choice(STYLES_WHERE_NONE)
    return Units(tuple(hubert), _fill(pitch, firsts["Pi"]), _fill(style, firsts["St"]))


def _fill(codes: Sequence[int | None], first: int | None) -> tuple[int, ...] | None:
    if first is None:
        return None
    return tuple(first if code is None else code for code in codes)
