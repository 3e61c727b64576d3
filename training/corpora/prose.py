"""Everyday prose to be spoken: whole short sentences of a text, or the example sentences of WordNet's dictionary files.

    python -m spiritrt.training.corpora.prose --source /usr/share/wordnet --out build/prose.txt

`/usr/share/wordnet` comes with Debian's `wordnet-base` (WordNet 3.0, free with its notice); any text file or folder of
`.txt` files will do as well. Kept are sentences of 4 to 14 words that `pronounce` can say, each once, one a line.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from spiritrt.training.arguments import launch
from spiritrt.training.corpora.pronounce import phonemise, words_of

LEAST_WORDS, MOST_WORDS = 4, 14
# stems of words that a talking model should not learn from a dictionary
UNWANTED = re.compile(
    r"\b(ass|bastard|bitch|damn|drug|fuck|hell|kill|murder|naked|nazi|negro|nigg|piss|porn|prostitut|rap[ei]|screw|sex|"
    r"shit|slut|suicid|tortur|whore)",
    re.IGNORECASE,
)


def raw_sentences(source: Path) -> Iterator[str]:
    """Every sentence of a text file, of the `.txt` files of a folder, or every example of WordNet's `data.*` files.

    Raises FileNotFoundError where there is neither.
    """
    dictionaries = sorted(source.glob("data.*"))
    texts = [source] if source.is_file() else sorted(source.rglob("*.txt"))
    if not dictionaries and not texts:
        raise FileNotFoundError(f"no text at {source}: give a text file, a folder of .txt files or WordNet's folder")
    for path in dictionaries:
        yield from re.findall(r'"([^"]*)"', path.read_text("utf-8", errors="replace"))
    if not dictionaries:
        for path in texts:
            yield from re.split(r"(?<=[.!?])\s+", " ".join(path.read_text("utf-8").split()))


def speakable(sentence: str) -> str | None:
    """The sentence with a capital in front and a mark at its end, or None where it cannot be spoken as it is written.

    Digits, abbreviations, brackets, words without a pronunciation, sentences of fewer than 4 or more than 14 words and
    coarse ones are such cases.
    """
    text = sentence.strip().rstrip(";,:")
    if not re.fullmatch(r"[A-Za-z][A-Za-z' ,]*[.!?]?", text) or not LEAST_WORDS <= len(words_of(text)) <= MOST_WORDS:
        return None
    if UNWANTED.search(text):
        return None
    if any(len(word) > 1 and word.isupper() for word in words_of(text)) or len(text.split()) != len(words_of(text)):
        return None
    text = text[0].upper() + text[1:] + ("" if text[-1] in ".!?" else ".")
    try:
        phonemise(text)
    except ValueError:
        return None
    return text


def sentences(raw: Iterable[str]) -> list[str]:
    """Speakable sentences in order, each once (by its words in lower case)."""
    kept: dict[str, str] = {}
    for sentence in raw:
        if text := speakable(sentence):
            kept.setdefault(" ".join(words_of(text)).lower(), text)
    return list(kept.values())


def main() -> None:
    parser = argparse.ArgumentParser(description="Collect short sentences that can be spoken, one a line.")
    parser.add_argument("--source", type=Path, required=True, help="a text file, a folder of them, or WordNet's")
    parser.add_argument("--out", type=Path, default=Path("build/prose.txt"))
    args = parser.parse_args()
    kept = sentences(raw_sentences(args.source))
    if not kept:
        raise SystemExit(f"no sentence of {LEAST_WORDS} to {MOST_WORDS} speakable words in {args.source}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text("\n".join(kept) + "\n", "utf-8")
    print(f"{len(kept)} sentences in {args.out}")


if __name__ == "__main__":
    launch(main)
