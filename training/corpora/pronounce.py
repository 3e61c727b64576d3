"""English words to phones, by the US lexicons of misaki (PyPI `misaki==0.9.4`; only its two JSON files are read).

Symbols are misaki's: A I O W Y stand for the diphthongs of day, my, go, now, boy; a stress mark belongs to the phone
after it. The corpora made with Kokoro carry the same symbols in `phones`.
"""

from __future__ import annotations

import importlib.util
import json
import re
from functools import cache
from pathlib import Path

# weak forms, as spoken in a sentence
SPOKEN = {
    "a": "ɐ",
    "the": "ðə",
    "to": "tu",
    "i": "ˌI",
    "an": "ɐn",
    "of": "ʌv",
    "and": "ænd",
    "for": "fɔɹ",
    "in": "ɪn",
    "is": "ɪz",
    "was": "wʌz",
    "with": "wɪð",
    "at": "æt",
    "on": "ˌɔn",
    "from": "fɹʌm",
    "that": "ðæt",
}
# verbs of the grammar whose first entry is a noun or an adjective
VERBS = {"close": "klˈOz", "live": "lˈɪv", "lives": "lˈɪvz", "tear": "tˈɛɹ"}
LETTERS = {"A": "ˈA", "I": "ˈI"}
STRESS = "ˈˌ"
VOWELS = frozenset("AIOWYæɑɐəɛɜɪᵻiɔʊuʌᵊ")


def find_lexicons() -> Path | None:
    """Folder with misaki's `us_gold.json` and `us_silver.json`, or None where the package is not installed."""
    spec = importlib.util.find_spec("misaki")
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]) / "data"
    return folder if (folder / "us_gold.json").exists() else None


@cache
def _lexicons() -> tuple[dict[str, str | dict[str, str | None]], ...]:
    folder = find_lexicons()
    if folder is None:
        raise ValueError("no pronouncing lexicon: pip install --no-deps misaki==0.9.4")
    return tuple(json.loads((folder / f"us_{name}.json").read_text("utf-8")) for name in ("gold", "silver"))


def _look_up(word: str) -> str | None:
    for lexicon in _lexicons():
        entry = lexicon.get(word)
        if isinstance(entry, str):
            return entry
        if entry:
            return entry.get("DEFAULT") or next((value for value in entry.values() if value), None)
    return None


@cache
def pronounce(word: str) -> str | None:
    """Phones of a word, stress marks included, or None where neither the lexicon nor the -s and -ed rules know it."""
    lower = word.lower()
    if spoken := SPOKEN.get(lower) or VERBS.get(lower):
        return spoken
    for form in (lower, word, lower.capitalize()):
        if phones := _look_up(form):
            return phones
    if lower.endswith("'s") and (phones := pronounce(lower[:-2])):
        return phones + _plural_ending(phones)
    if lower.endswith("ed"):
        for stem in (lower[:-1], lower[:-2], lower[:-3] if len(lower) > 4 and lower[-3] == lower[-4] else ""):
            if stem and (phones := _look_up(stem)):
                return phones + ("ɪd" if phones[-1] in "td" else "t" if phones[-1] in "pkfθʃsʧ" else "d")
    if lower.endswith("s"):
        for stem in (lower[:-1], lower[:-2], lower[:-3] + "y" if lower.endswith("ies") else ""):
            if stem and (phones := _look_up(stem)):
                return phones + _plural_ending(phones)
    return None


def _plural_ending(phones: str) -> str:
    return "ᵻz" if phones[-1] in "szʃʒʧʤ" else "s" if phones[-1] in "ptkfθ" else "z"


def tokenise(text: str) -> list[str]:
    """Words (apostrophes inside kept) and the marks `. , ! ? ;` of a text, in order."""
    return re.findall(r"[A-Za-z]+(?:'[A-Za-z]+)*|[.,!?;]", text)


def words_of(text: str) -> list[str]:
    """Words of a text without marks, as written."""
    return [token for token in tokenise(text) if token[0].isalpha()]


def phonemise(text: str) -> list[tuple[str, str]]:
    """Tokens of a text, each with its phones as spoken there; a mark has no phones (an empty string).

    Context decides: `the` before a vowel is said with a full vowel, and a single capital A or I before a mark is a
    spelled letter. Raises ValueError with the first word that cannot be pronounced.
    """
    tokens = tokenise(text)
    spoken: list[tuple[str, str]] = []
    following = ""
    for position in range(len(tokens) - 1, -1, -1):
        token = tokens[position]
        if not token[0].isalpha():
            spoken.append((token, ""))
            continue
        phones = _in_context(tokens, position, following)
        if phones is None:
            raise ValueError(f"no pronunciation for {token!r} in {text!r}: reword the text or add it to SPOKEN")
        spoken.append((token, phones))
        following = phones.lstrip(STRESS)[:1]
    return spoken[::-1]


def _in_context(tokens: list[str], position: int, following: str) -> str | None:
    token = tokens[position]
    if token in ("A", "I"):
        return LETTERS[token] if tokens[position + 1 : position + 2] in ([","], ["."]) else SPOKEN[token.lower()]
    if token.lower() == "the" and following in VOWELS:
        return "ði"
    return pronounce(token)


def split_phones(phones: str) -> list[str]:
    """Phones as a list, each with its stress mark in front."""
    return re.findall(f"[{STRESS}]?[^{STRESS}]", phones)
