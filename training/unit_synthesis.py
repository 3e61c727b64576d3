"""Units for any text, by joining snippets of real ones: no synthesizer makes as many tokens as a language model needs.

`align` finds the frames of every phone and word of an utterance whose units are phone-pure; `UnitBank` keeps them as
snippets. A word that somebody said is taken whole, another phone by phone: the snippet of the phone between the same
neighbours, else after the same left or before the same right one, else any. A phone that nobody said is said as the
nearest one that somebody did. Pauses come from real pauses.
"""

from __future__ import annotations

import random
import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path

import numpy as np

from spiritrt.training.corpora.manifest import match_words, unit_lines
from spiritrt.training.corpora.pronounce import STRESS, phonemise, split_phones
from spiritrt.training.interleave import SpokenWord, deduplicate

SILENCE = "SIL"
FRAME_S = 0.04
ASSISTANTS = ("af_heart", "am_michael")
MEDOID_CANDIDATES = 8
# phones that a weak encoder takes for one another
CONFUSABLE = ("AIOWYæɑɐəɛɜɪᵻiɔʊuʌᵊ", "ptkbdɡɾʔ", "fvθðszʃʒhʧʤ", "mnŋlɹwj")
# phones to say instead of one that a corpus lacks, the nearest first; after them the rest of its group
NEAREST = {
    "A": "ɛIɪ", "I": "ɑAæ", "O": "ɔWʊ", "W": "ɑOæ", "Y": "ɔOI", "æ": "ɛɑ", "ɑ": "ɔʌ", "ɐ": "əʌᵊ", "ə": "ɐʌᵊ",
    "ɛ": "æɪA", "ɜ": "əʌ", "ɪ": "ᵻiə", "ᵻ": "ɪə", "i": "ɪᵻ", "ɔ": "ɑO", "ʊ": "uə", "u": "ʊ", "ʌ": "ɐəɑ", "ᵊ": "əɐʌ",
    "p": "bt", "t": "dɾʔ", "k": "ɡt", "b": "pd", "d": "tɾ", "ɡ": "kd", "ɾ": "dt", "ʔ": "tk",
    "f": "vθ", "v": "fð", "θ": "fsð", "ð": "vθd", "s": "zʃ", "z": "sʒ", "ʃ": "ʧsʒ", "ʒ": "ʃʤz", "h": "fθ", "ʧ": "ʃʤt",
    "ʤ": "ʒʧd", "m": "nŋ", "n": "mŋ", "ŋ": "nm", "l": "ɹw", "ɹ": "lw", "w": "uʊɹ", "j": "iɪ",
}  # fmt: skip
Units = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Spoken:
    """A line as it was said: its words with their units, and where it comes from."""

    id: str
    text: str
    speaker: str
    split: str
    role: str
    dialogue: str | None
    words: tuple[SpokenWord, ...]


@dataclass(frozen=True, slots=True)
class Alignment:
    """Frames [start, end) of each phone (symbol, word index, start, end) and of each word of an utterance."""

    phones: tuple[tuple[str, int, int, int], ...]
    words: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Noise:
    """Chances, for each run of units, of errors that an encoder makes."""

    same_phone: float = 0.15
    other_phone: float = 0.05
    drop: float = 0.04
    repeat: float = 0.03

    def __post_init__(self) -> None:
        if min(self.same_phone, self.other_phone, self.drop, self.repeat) < 0:
            raise ValueError(f"chances must not be negative, got {self}")
        if self.same_phone + self.other_phone + self.drop + self.repeat > 1:
            raise ValueError(f"chances must sum to at most 1, got {self}")


def bare(phone: str) -> str:
    """The phone without its stress mark."""
    return phone.lstrip(STRESS)


def align(units: Sequence[int], phones: Sequence[tuple[str, float, float]], inventory: Sequence[str]) -> Alignment:
    """Monotonic alignment of frames to the phones of an utterance (dynamic programming).

    A frame costs 4 where its unit's phone class differs, plus its distance in frames to the phone's time; a phone
    without a frame costs 3. `phones` are the corpus' (symbol, start_s, end_s), spaces and marks included.
    """
    symbols: list[str] = [SILENCE]
    word_of: list[int] = [-1]
    times: list[tuple[float, float]] = [(0.0, phones[0][1] if phones else 0.0)]
    word = 0
    for symbol, start, end in phones:
        if bare(symbol).isalpha():
            symbols.append(symbol)
            word_of.append(word)
        elif symbol == " " or symbols[-1] != SILENCE:
            if symbols[-1] == SILENCE:
                times[-1] = (times[-1][0], end)
                continue
            symbols.append(SILENCE)
            word_of.append(-1)
            word += 1
        else:
            times[-1] = (times[-1][0], end)
            continue
        times.append((start, end))
    if symbols[-1] != SILENCE:
        symbols.append(SILENCE)
        word_of.append(-1)
        times.append((times[-1][1], times[-1][1]))
    states = _viterbi(units, symbols, np.array(times), inventory)
    found: list[tuple[str, int, int, int]] = []
    for state, symbol in enumerate(symbols):
        if symbol != SILENCE:
            frames = np.flatnonzero(states == state)
            at = int(frames[0]) if len(frames) else int(np.searchsorted(states, state))
            found.append((symbol, word_of[state], at, int(frames[-1]) + 1 if len(frames) else at))
    count = max(word_of) + 1
    starts = [min(start for _, w, start, _ in found if w == word) for word in range(count)]
    ends = [max(end for _, w, _, end in found if w == word) for word in range(count)]
    return Alignment(tuple(found), tuple(zip(starts, ends, strict=True)))


def _viterbi(units: Sequence[int], symbols: list[str], times: np.ndarray, inventory: Sequence[str]) -> np.ndarray:
    is_phone = np.array([symbol != SILENCE for symbol in symbols])
    classes = np.array([bare(symbol) if symbol != SILENCE else SILENCE for symbol in symbols])
    skipped = np.concatenate([[0], np.cumsum(is_phone)])  # phones before each state
    cost = np.full(len(symbols), np.inf)
    back = np.zeros((len(units), len(symbols)), np.int64)
    index = np.arange(len(symbols))
    for t, unit in enumerate(units):
        centre = (t + 0.5) * FRAME_S
        away = np.maximum(0, np.maximum(times[:, 0] - centre, centre - times[:, 1])) / FRAME_S
        wrong = classes != inventory[unit]
        local = away + np.where(wrong, np.where(is_phone, 4.0, 2.0), 0.0)
        if t == 0:
            cost = local + 3.0 * skipped[:-1]
            continue
        # from any earlier state j: 3 for every phone strictly between
        ahead = cost - 3.0 * skipped[1:]
        best = np.minimum.accumulate(ahead)
        source = np.maximum.accumulate(np.where(ahead == best, index, 0))
        jump = np.full(len(symbols), np.inf)
        jump[1:] = best[:-1] + 3.0 * skipped[1:-1]
        stay = cost <= jump
        back[t] = np.where(stay, index, np.concatenate([[0], source[:-1]]))
        cost = np.where(stay, cost, jump) + local
    states = np.zeros(len(units), np.int64)
    states[-1] = int(np.argmin(cost + 3.0 * (skipped[-1] - skipped[1:])))
    for t in range(len(units) - 1, 0, -1):
        states[t - 1] = back[t, states[t]]
    return states


def read_units(path: Path) -> list[dict]:
    """The utterances of a units file. Raises as `unit_lines` does, and ValueError for one without units or phones."""
    lines = list(unit_lines(path))
    if empty := [entry["id"] for entry in lines if not entry["units"] or not entry.get("phones")]:
        raise ValueError(f"{path}: {len(empty)} utterances have no units or no phones, such as {empty[0]!r}")
    return lines


def spoken_line(entry: dict, alignment: Alignment, units: Sequence[int] | None = None) -> Spoken:
    """An utterance of a units file as words with their frames; frames of a pause go to the word before it."""
    frames = tuple(units if units is not None else entry["units"])
    timed = [word["word"] for word in entry["words"]]
    if len(timed) != len(alignment.words):
        raise ValueError(f"{entry['id']}: {len(timed)} timed words, phones of {len(alignment.words)}")
    matched = match_words(entry["text"], timed, entry["id"])
    starts = [0, *(alignment.words[first][0] for _, first, _ in matched[1:]), len(frames)]
    words = tuple(SpokenWord(text, frames[a:b]) for (text, _, _), (a, b) in zip(matched, pairwise(starts), strict=True))
    return Spoken(entry["id"], entry["text"], entry["speaker"], entry["split"], entry["role"], entry["dialogue"], words)


class UnitBank:
    """Snippets of aligned units, and units for new text made of them.

    `entries` are lines of a units file (training split only is used); `heard` may give other units for the same frames,
    by utterance id: what an encoder emits. The user's side is then made of what was heard, whoever spoke, word by word,
    or phone by phone where nobody said the word; the assistant's always of the exact units. The assistant's words have
    one fixed pronunciation each, the medoid of what its voices said. `substitutes` are the phones that nobody said,
    each with the one that is said for it.

    Raises ValueError for an utterance whose text and timed words differ (see `match_words`), and for a phone with
    nothing near it in the corpus; warns where there are substitutes.
    """

    def __init__(
        self, entries: list[dict], inventory: Sequence[str], heard: dict[str, list[int]] | None = None
    ) -> None:
        self.inventory = list(inventory)
        self.by_phone: dict[str, list[int]] = defaultdict(list)
        for unit, phone in enumerate(self.inventory):
            self.by_phone[phone].append(unit)
        self.words: dict[str, list[Units]] = defaultdict(list)
        self.pieces: dict[tuple[str, str, str], Counter[Units]] = defaultdict(Counter)
        self.heard_pieces: dict[tuple[str, str, str], Counter[Units]] = defaultdict(Counter)
        self.pauses: dict[str, list[Units]] = defaultdict(list)
        self.lines: list[Spoken] = []
        self.assistant_lines: list[Spoken] = []
        self.assistant_pauses: dict[str, list[Units]] = defaultdict(list)
        self._assistant_words: dict[str, list[Units]] = defaultdict(list)
        self._other_words: dict[str, list[Units]] = defaultdict(list)
        self._fixed: dict[str, Units] = {}
        for entry in entries:
            if entry["split"] != "train":
                continue
            alignment = align(entry["units"], entry["phones"], self.inventory)
            other = (heard or {}).get(entry["id"])
            assistant = entry["speaker"] in ASSISTANTS
            line = spoken_line(entry, alignment)
            if all(word.units for word in line.words):
                self.lines.append(spoken_line(entry, alignment, other))
                if assistant:
                    self.assistant_lines.append(line)
            self._collect(entry["units"], alignment, True, assistant)
            if other or not assistant:
                self._collect(other or entry["units"], alignment, False, False)
        self.substitutes = self._find_substitutes()

    def _find_substitutes(self) -> dict[str, str]:
        found = {}
        for group in CONFUSABLE:
            for phone in (phone for phone in group if ("*", phone, "*") not in self.pieces):
                near = next((other for other in NEAREST[phone] + group if ("*", other, "*") in self.pieces), None)
                if near is None:
                    raise ValueError(
                        f"no snippet of the phone {phone!r}, nor of any near it ({NEAREST[phone]}, {group}), in the "
                        "training lines of the corpus: add lines with words that have one of them"
                    )
                found[phone] = near
        if found:
            said = ", ".join(f"{near} for {phone}" for phone, near in found.items())
            warnings.warn(f"the corpus lacks phones, and others are said instead: {said}", stacklevel=3)
        return found

    def _collect(self, units: Sequence[int], alignment: Alignment, exact: bool, assistant: bool) -> None:
        phones = alignment.phones
        for position, (symbol, word, start, end) in enumerate(phones):
            left = bare(phones[position - 1][0]) if position and phones[position - 1][1] == word else ""
            last = position + 1 == len(phones) or phones[position + 1][1] != word
            right = "" if last else bare(phones[position + 1][0])
            if snippet := deduplicate(units[start:end]):
                pieces = self.pieces if exact else self.heard_pieces
                for key in ((left, symbol, right), (left, symbol, "*"), ("*", symbol, right), ("*", bare(symbol), "*")):
                    pieces[key][snippet] += 1
        store = self.words if not exact else self._assistant_words if assistant else self._other_words
        for word, (start, end) in enumerate(alignment.words):
            if snippet := deduplicate(units[start:end]):
                store["".join(symbol for symbol, w, _, _ in phones if w == word)].append(snippet)
        spans = alignment.words
        gaps = [(0, spans[0][0]), *((a[1], b[0]) for a, b in pairwise(spans))]
        places = ["start", *["inside"] * (len(gaps) - 1)]
        pauses = self.assistant_pauses if assistant else self.pauses
        if exact and not assistant:
            return
        for place, (start, end) in [*zip(places, gaps, strict=True), ("end", (alignment.words[-1][1], len(units)))]:
            if snippet := deduplicate(units[start:end]):
                pauses[place].append(snippet)

    def assistant_word(self, said: str) -> Units:
        """The fixed units of a word's phones in the assistant's voice."""
        if said not in self._fixed:
            heard = self._assistant_words.get(said) or self._other_words.get(said)
            self._fixed[said] = medoid(heard) if heard else self._joined(said, None)
        return self._fixed[said]

    def _joined(self, said: str, rng: random.Random | None) -> Units:
        """Units of a word that nobody said, phone by phone; the commonest snippets where `rng` is None."""
        phones = split_phones(said)
        units: list[int] = []
        for position, phone in enumerate(phones):
            left = bare(phones[position - 1]) if position else ""
            right = bare(phones[position + 1]) if position + 1 < len(phones) else ""
            spoken = self.substitutes.get(bare(phone), bare(phone))
            keys = ((left, phone, right), ("*", phone, right), (left, phone, "*"), ("*", spoken, "*"))
            pieces = self.pieces if rng is None or keys[-1] not in self.heard_pieces else self.heard_pieces
            counts = next(pieces[key] for key in keys if key in pieces)
            if rng is None:
                units += max(counts.items(), key=lambda item: (item[1], -len(item[0]), item[0]))[0]
            else:
                units += rng.choices(list(counts), list(counts.values()))[0]
        return deduplicate(units)

    def speak(self, text: str, rng: random.Random, assistant: bool) -> tuple[SpokenWord, ...]:
        """Words of `text` with units, pauses at both ends and after marks. Raises ValueError for unknown words."""
        tokens = phonemise(text)
        matched = match_words(text, [token for token, said in tokens if said], "text to speak")
        pauses = self.assistant_pauses if assistant else self.pauses
        words: list[list[int]] = []
        for position, (_, said) in enumerate(tokens):
            if not said:
                if words and pauses["inside"] and position + 1 < len(tokens):
                    words[-1] += rng.choice(pauses["inside"])
                continue
            if assistant:
                words.append(list(self.assistant_word(said)))
            else:
                known = self.words.get(said)
                words.append(list(rng.choice(known) if known else self._joined(said, rng)))
        if pauses["start"]:
            words[0][:0] = rng.choice(pauses["start"])
        if pauses["end"]:
            words[-1] += rng.choice(pauses["end"])
        return tuple(SpokenWord(written, tuple(chain(*words[first:last]))) for written, first, last in matched)

    def disturb(self, units: Units, noise: Noise, rng: random.Random) -> Units:
        """Deduplicated units with random errors; never empty."""
        out: list[int] = []
        bounds = np.cumsum([noise.drop, noise.repeat, noise.same_phone, noise.other_phone]).tolist()
        for unit in units:
            draw = rng.random()
            if draw < bounds[0]:
                continue
            if draw < bounds[1]:
                out += [unit, rng.choice(self.by_phone[self.inventory[unit]])]
            elif draw < bounds[2]:
                out.append(rng.choice(self.by_phone[self.inventory[unit]]))
            elif draw < bounds[3]:
                out.append(rng.choice(self.by_phone[self._other(self.inventory[unit], rng)]))
            else:
                out.append(unit)
        return deduplicate(out) or units

    def _other(self, phone: str, rng: random.Random) -> str:
        group = next((group for group in CONFUSABLE if phone in group), "")
        near = [other for other in group if other != phone and other in self.by_phone]
        return rng.choice(near) if near else phone


def medoid(candidates: Sequence[Units]) -> Units:
    """The sequence with the smallest summed edit distance to the others; looks at the commonest few only."""
    commonest = [units for units, _ in Counter(candidates).most_common(MEDOID_CANDIDATES)]
    counts = Counter(candidates)
    return min(commonest, key=lambda a: (sum(counts[b] * edit_distance(a, b) for b in commonest), len(a), a))


def edit_distance(a: Sequence[int] | Sequence[str], b: Sequence[int] | Sequence[str]) -> int:
    """Levenshtein distance of two sequences."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]
