"""From a folder of sound and text to a corpus: alignment by our own encoder, filters, a report with plots.

    python -m spiritrt.training.corpora.curation --source LibriSpeech/dev-clean --out build/curated --plot curated.png

The source is LibriSpeech's layout, or any folder with a `NAME.txt` beside each recording: a folder a speaker, named by
it. Recordings without a text and texts without a recording are counted and left out. Kept are utterances whose words
fit the sound; what is dropped, and why, is in the report. Recordings longer than 30 s or shorter than 0.4 s (reason
`length`), and texts whose written words are not the ones that would be aligned, such as those with digits (`text`), are
dropped before they are aligned: cut the long ones, spell out digits.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from spiritrt import audio
from spiritrt.evaluation.speech_sets import SOUNDS, Spoken, read_librispeech
from spiritrt.training.arguments import launch
from spiritrt.training.corpora.alignment import ALIGNERS, Aligner, Alignment
from spiritrt.training.corpora.manifest import RATE_HZ, Utterance, manifest_line, match_words
from spiritrt.training.corpora.pronounce import words_of
from spiritrt.training.corpora.validation import Limits, check_sound, length_s, plot, statistics


@dataclass(frozen=True, slots=True)
class Filters:
    """What an utterance must be to be kept.

    `least_score` is the alignment's mean a frame, 0 at best: nano's encoder gave held-out synthetic lines -0.25 (-0.86
    at worst), and the same lines with another's text -3.6 (-1.9 at best). `odd_words` is the share of words that may be
    shorter or longer than the limits; words of one letter aside, none may have no length at all. A recording lasts
    `shortest_s` to `limits.longest_s` (30 s).
    """

    least_score: float = -1.5
    odd_words: float = 0.15
    shortest_s: float = 0.4
    limits: Limits = Limits(shortest_word_s=0.04, longest_word_s=1.6, silent=0.5)  # noqa: RUF009 (frozen)

    def __post_init__(self) -> None:
        if self.least_score > 0 or not 0 <= self.odd_words <= 1 or self.shortest_s < 0:
            raise ValueError(f"least_score must be 0 or less and odd_words a share: {self}")


def read_source(folder: Path) -> list[Spoken]:
    """Recordings with their words, by the speaker whom their folder names. Raises FileNotFoundError without any."""
    if not folder.is_dir():
        raise FileNotFoundError(f"--source {folder} does not exist, or is no folder")
    if any(folder.rglob("*.trans.txt")):
        return read_librispeech(folder)
    found = []
    for text in sorted(folder.rglob("*.txt")):
        sound = next((s for s in (text.with_suffix(suffix) for suffix in SOUNDS) if s.is_file()), None)
        if sound is not None:
            name = str(text.relative_to(folder).with_suffix("")).replace("/", "-")
            found.append(Spoken(name, sound, " ".join(text.read_text(encoding="utf-8").split()), text.parent.name))
    if not found:
        raise FileNotFoundError(f"{folder} has neither *.trans.txt nor NAME.txt beside NAME.wav")
    return found


def count_unpaired(folder: Path, source: Iterable[Spoken]) -> dict[str, int]:
    """How many recordings below the folder of a source have no text, and how many texts no recording."""
    paired = {item.audio.with_suffix("") for item in source}
    texts = {text.with_suffix("") for text in folder.rglob("*.txt")}
    if any(text.suffix == ".trans" for text in texts):
        texts.clear()  # LibriSpeech's layout: a file holds many texts
    sounds = {sound.with_suffix("") for sound in folder.rglob("*") if sound.suffix in SOUNDS}
    return {"without text": len(sounds - paired), "without recording": len(texts - sounds)}


def reason_of_length(duration_s: float, filters: Filters) -> tuple[str, str] | None:
    """Why a recording of this length is not kept, or None."""
    shortest_s, longest_s = filters.shortest_s, filters.limits.longest_s
    if shortest_s <= duration_s <= longest_s:
        return None
    return "length", f"{duration_s:.1f} s, not {shortest_s:g} to {longest_s:g} s"


def reason_to_skip(item: Spoken, filters: Filters) -> tuple[str, str] | None:
    """Why a recording is not worth aligning, with what is wrong with it, or None; reads no more than its header."""
    duration_s = length_s(item.audio)
    # unreadable sound has no length: loading it says why
    if duration_s is not None and (reason := reason_of_length(duration_s, filters)):
        return reason
    try:
        match_words(item.text, words_of(item.text), item.id)
    except ValueError as error:
        return "text", str(error)
    return None


def reason_to_drop(alignment: Alignment, duration_s: float, filters: Filters) -> tuple[str, str] | None:
    """Why an alignment is not good enough, with what is wrong with it, or None."""
    limits = filters.limits
    if reason := reason_of_length(duration_s, filters):
        return reason
    if alignment.score < filters.least_score:
        return "score", f"{alignment.score:.2f}, not {filters.least_score:g} or more: other words may have been said"
    if lost := [w.word for w in alignment.words if w.end_s <= w.start_s and len(w.word) > 1]:
        return "lost word", f"no sound for {', '.join(map(repr, lost))}"
    odd = [w for w in alignment.words if not limits.shortest_word_s <= w.end_s - w.start_s <= limits.longest_word_s]
    if len(odd) > filters.odd_words * len(alignment.words):
        said = ", ".join(f"{w.word!r} {w.end_s - w.start_s:.2f} s" for w in odd)
        return "word length", f"{said}, not {limits.shortest_word_s:g} to {limits.longest_word_s:g} s"
    return None


def curate(
    source: Iterable[Spoken], aligner: Aligner, filters: Filters, relative_to: Path
) -> tuple[list[Utterance], list[dict[str, object]]]:
    """The utterances worth keeping, and a line for every recording: its score and why it was dropped.

    The manifest's paths are relative to `relative_to`. Sound or text that cannot be used is a reason like any other.
    """
    kept: list[Utterance] = []
    lines: list[dict[str, object]] = []
    for item in tqdm(list(source), desc="aligning", file=sys.stderr):
        if skipped := reason_to_skip(item, filters):
            lines.append({"id": item.id, "score": None, "dropped": skipped[0], "why": skipped[1]})
            continue
        try:
            samples = audio.load(item.audio)
            alignment = aligner.align(samples, item.text)
        except ValueError as error:
            lines.append({"id": item.id, "score": None, "dropped": "unusable", "why": str(error)})
            continue
        score, duration_s = alignment.score, len(samples) / RATE_HZ
        reason = reason_to_drop(alignment, duration_s, filters)
        file = str(item.audio.resolve())
        if item.audio.resolve().is_relative_to(relative_to.resolve()):
            file = str(item.audio.resolve().relative_to(relative_to.resolve()))
        u = Utterance(
            item.id, item.text, item.speaker, "neutral", "single", None, "train", file, 0.0, duration_s,
            alignment.words, alignment.phones,
        )  # fmt: skip
        if reason is None and (problems := list(check_sound(u, samples, filters.limits))):
            reason = problems[0].kind, problems[0].message
        dropped, why = reason or (None, None)
        lines.append({"id": item.id, "score": round(score, 3), "dropped": dropped, "why": why})
        if reason is None:
            kept.append(u)
    return kept, lines


def main() -> None:
    defaults = Filters()
    parser = argparse.ArgumentParser(description="Align sound with text, keep what fits, and write a corpus.")
    parser.add_argument(
        "--source",
        type=Path,
        required=True,
        help="LibriSpeech's layout, or a folder a speaker of NAME.wav with NAME.txt",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the new corpus (manifest.jsonl)")
    parser.add_argument("--model", default="nano", help="family whose encoder aligns")
    parser.add_argument("--inventory", type=Path, help="inventory.json of its units (by default the family's)")
    parser.add_argument("--aligner", choices=ALIGNERS, default="auto", help="auto: torchaudio's where it imports")
    parser.add_argument("--least-score", type=float, default=defaults.least_score, help="alignment score, 0 at best")
    parser.add_argument("--test-share", type=float, default=0.05, help="share of lines held out (split test)")
    parser.add_argument("--plot", type=Path, help="PNG of histograms (needs matplotlib)")
    args = parser.parse_args()
    source = read_source(args.source)
    unpaired = count_unpaired(args.source, source)
    aligner = Aligner.load(args.model, args.inventory, args.aligner)
    filters = replace(defaults, least_score=args.least_score)
    args.out.mkdir(parents=True, exist_ok=True)
    kept, lines = curate(source, aligner, filters, args.out)
    if not kept:
        raise SystemExit(f"nothing of {len(lines)} recordings was kept: {Counter(str(x['dropped']) for x in lines)}")
    held_out = np.random.default_rng(0).random(len(kept)) < args.test_share
    kept = [replace(u, split="test" if out else "train") for u, out in zip(kept, held_out, strict=True)]
    (args.out / "manifest.jsonl").write_text("".join(map(manifest_line, kept)), encoding="utf-8")
    report = {
        "kept": len(kept), "aligner": aligner.name,
        "dropped": dict(Counter(str(line["dropped"]) for line in lines if line["dropped"])),
        "unpaired": unpaired, "filters": asdict(filters), "statistics": statistics(kept), "lines": lines,
    }  # fmt: skip
    (args.out / "curation.json").write_text(json.dumps(report, indent=1, ensure_ascii=False), encoding="utf-8")
    if args.plot is not None:
        plot(kept, args.plot)
    hours = round(sum(u.duration_s for u in kept) / 3600, 3)
    said = {"corpus": str(args.out), "kept": len(kept), "hours": hours, "dropped": report["dropped"]}
    print(json.dumps(said | {"unpaired": unpaired}))


if __name__ == "__main__":
    launch(main)
