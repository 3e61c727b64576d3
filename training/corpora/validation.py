"""Checks a corpus before anything is trained on it, and describes it: problems by line, statistics, a plot.

    python -m spiritrt.training.corpora.validation --corpus CORPUS --json report.json --plot report.png

Errors make a corpus unusable (a cut behind the file's end, an id twice, words out of order, timed words that are not
those of the text); warnings are worth a look (clipping, silence, words too fast or too slow).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from spiritrt.training.arguments import launch
from spiritrt.training.corpora.manifest import RATE_HZ, Utterance, cut_utterances, match_words, parse_line
from spiritrt.training.corpora.pronounce import words_of

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Limits:
    """What is still normal: seconds of a word, share of clipped and of silent samples, level in dB of full scale."""

    shortest_word_s: float = 0.02
    longest_word_s: float = 2.0
    clipped: float = 0.001
    silent: float = 0.6
    lowest_db: float = -50.0
    longest_s: float = 30.0

    def __post_init__(self) -> None:
        if not 0 <= self.shortest_word_s < self.longest_word_s or self.longest_s <= 0:
            raise ValueError(f"limits of durations are not in order: {self}")
        if not 0 <= self.clipped <= 1 or not 0 <= self.silent <= 1:
            raise ValueError(f"shares must lie in [0, 1]: {self}")


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with an utterance (or a line, where it cannot be read); `severity` is error or warning."""

    where: str
    severity: str
    kind: str
    message: str


def check_times(u: Utterance, limits: Limits) -> Iterator[Problem]:
    """Problems of an utterance's text and times."""

    def error(kind: str, message: str) -> Problem:
        return Problem(u.id, "error", kind, message)

    def warning(kind: str, message: str) -> Problem:
        return Problem(u.id, "warning", kind, message)

    if not u.text.strip():
        yield error("text", "the text is empty")
    if u.duration_s > limits.longest_s:
        yield warning("long", f"{u.duration_s:.1f} s; cut it: readers hold utterances of up to {limits.longest_s:g} s")
    if not u.words:
        yield warning("words", "no word times: it cannot be interleaved (see `curation`)")
    before = 0.0
    for word in u.words:
        if not 0 <= word.start_s <= word.end_s:
            yield error("order", f"word {word.word!r} goes from {word.start_s} to {word.end_s} s")
        elif word.start_s < before - 0.02:
            yield error(
                "order", f"word {word.word!r} begins at {word.start_s} s, before the last one ended ({before} s)"
            )
        elif word.end_s > u.duration_s + 0.05:
            yield error("outside", f"word {word.word!r} ends at {word.end_s} s of {u.duration_s:.2f} s")
        elif not limits.shortest_word_s <= word.end_s - word.start_s <= limits.longest_word_s:
            yield warning("word length", f"word {word.word!r} lasts {word.end_s - word.start_s:.3f} s")
        before = max(before, word.end_s)
    if u.words and u.text.strip():
        try:
            match_words(u.text, [word.word for word in u.words], u.id)
        except ValueError as problem:
            yield error("words", f"text and timed words differ: {str(problem).removeprefix(f'{u.id}: ')}")


def check_sound(u: Utterance, samples: Floats, limits: Limits) -> Iterator[Problem]:
    """Problems of an utterance's sound [N] at 16 kHz."""
    if not np.isfinite(samples).all():
        yield Problem(u.id, "error", "sound", f"{int((~np.isfinite(samples)).sum())} NaN or infinite samples")
        return
    clipped = float((np.abs(samples) >= 0.999).mean())
    if clipped > limits.clipped:
        yield Problem(u.id, "warning", "clipped", f"{clipped:.2%} of the samples are at full scale")
    level_db = levels(samples)
    if not len(level_db) or level_db.max() < limits.lowest_db:
        yield Problem(u.id, "warning", "quiet", "no sound above the lowest level")
    elif silent_share(level_db) > limits.silent:
        yield Problem(u.id, "warning", "silence", f"{silent_share(level_db):.0%} of it is silence")


def levels(samples: Floats) -> NDArray[np.float64]:
    """Level in dB of full scale of every 10 ms."""
    step = RATE_HZ // 100
    frames = samples[: len(samples) // step * step].reshape(-1, step).astype(np.float64)
    return 10 * np.log10(np.square(frames).mean(axis=1) + 1e-10)


def silent_share(level_db: NDArray[np.float64]) -> float:
    """Share of 10 ms steps that lie 40 dB or more below the loudest."""
    return float((level_db < level_db.max() - 40).mean()) if len(level_db) else 1.0


def read_lines(corpus: Path) -> tuple[list[Utterance], list[Problem]]:
    """Every readable line of a manifest, and what is wrong with the others. Raises FileNotFoundError without one."""
    path = corpus / "manifest.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"no manifest at {path}: give --corpus a folder that holds manifest.jsonl")
    utterances, problems = [], []
    seen: Counter[str] = Counter()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            u = parse_line(json.loads(line), corpus)
        except (KeyError, TypeError, ValueError) as error:
            problems.append(Problem(f"line {number}", "error", "line", f"{type(error).__name__}: {error}"))
            continue
        seen[u.id] += 1
        if seen[u.id] == 2:
            problems.append(Problem(u.id, "error", "id", f"the id is used again in line {number}"))
        utterances.append(u)
    if not utterances and not problems:
        problems.append(Problem("manifest.jsonl", "error", "line", "the manifest is empty"))
    return utterances, problems


def validate(corpus: Path, limits: Limits, sound: bool = True) -> tuple[list[Utterance], list[Problem]]:
    """All utterances that can be read, and all problems; without `sound` only the manifest and file lengths count."""
    utterances, problems = read_lines(corpus)
    usable = []
    lengths: dict[str, float | None] = {}
    for u in utterances:
        problems += check_times(u, limits)
        if u.file not in lengths:
            lengths[u.file] = length_s(corpus / u.file)
        length = lengths[u.file]
        if length is None:
            problems.append(Problem(u.id, "error", "file", f"{u.file} cannot be read as sound"))
        elif u.offset_s + u.duration_s > length + 0.01:
            message = f"ends at {u.offset_s + u.duration_s:.2f} s of {u.file}, which has {length:.2f} s"
            problems.append(Problem(u.id, "error", "outside", message))
        else:
            usable.append(u)
    if sound:
        for u, samples in cut_utterances(corpus, usable):
            problems += check_sound(u, samples, limits)
    return utterances, problems


def length_s(path: Path) -> float | None:
    """Seconds of a sound file by its header, None where it cannot be read."""
    try:
        return soundfile.info(path).duration
    except (soundfile.LibsndfileError, OSError, TypeError):
        return None


def statistics(utterances: Sequence[Utterance]) -> dict[str, object]:
    """Hours, words, speed and vocabulary, in all and by speaker, style, split and role."""
    report: dict[str, object] = _sums(utterances)
    for key in ("split", "role", "style", "speaker"):
        groups: dict[str, list[Utterance]] = defaultdict(list)
        for u in utterances:
            groups[str(getattr(u, key))].append(u)
        report[f"by {key}"] = {name: _sums(group) for name, group in sorted(groups.items())}
    words = Counter(word.lower() for u in utterances for word in words_of(u.text))
    report["word forms"] = len(words)
    report["said once"] = sum(count == 1 for count in words.values())
    return report


def _sums(utterances: Iterable[Utterance]) -> dict[str, object]:
    group = list(utterances)
    spoken = sum(w.end_s - w.start_s for u in group for w in u.words)
    timed = sum(len(u.words) for u in group)
    return {
        "utterances": len(group),
        "hours": round(sum(u.duration_s for u in group) / 3600, 4),
        "words": sum(len(words_of(u.text)) for u in group),
        "words_a_second": round(timed / spoken, 3) if spoken else 0.0,
    }


def plot(utterances: Sequence[Utterance], path: Path) -> None:
    """Histograms of length, speed and word length, and hours by speaker, as PNG. Needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(10, 7), layout="constrained")
    axes[0, 0].hist([u.duration_s for u in utterances], bins=40)
    axes[0, 0].set(title="length of utterances", xlabel="s")
    timed = [u for u in utterances if u.words and u.words[-1].end_s > u.words[0].start_s]
    axes[0, 1].hist([len(u.words) / (u.words[-1].end_s - u.words[0].start_s) for u in timed], bins=40)
    axes[0, 1].set(title="speed", xlabel="words a second")
    axes[1, 0].hist([w.end_s - w.start_s for u in utterances for w in u.words], bins=60, range=(0, 1.5))
    axes[1, 0].set(title="length of words", xlabel="s")
    hours: dict[str, float] = defaultdict(float)
    for u in utterances:
        hours[u.speaker] += u.duration_s / 3600
    shown = sorted(hours.items(), key=lambda entry: -entry[1])[:30]
    axes[1, 1].bar([name for name, _ in shown], [value for _, value in shown])
    axes[1, 1].set(title=f"hours of {len(shown)} of {len(hours)} speakers")
    axes[1, 1].tick_params(axis="x", labelrotation=90, labelsize=6)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description="Check a corpus and describe it; exit status 1 where it has errors.")
    parser.add_argument("--corpus", type=Path, required=True, help="folder with manifest.jsonl")
    parser.add_argument("--json", type=Path, help="write statistics and all problems here")
    parser.add_argument("--plot", type=Path, help="PNG of histograms (needs matplotlib)")
    parser.add_argument("--no-sound", action="store_true", help="look at the manifest and file lengths alone")
    args = parser.parse_args()
    utterances, problems = validate(args.corpus, Limits(), not args.no_sound)
    report = {"statistics": statistics(utterances), "problems": [asdict(problem) for problem in problems]}
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=1, ensure_ascii=False), encoding="utf-8")
    if args.plot is not None:
        plot(utterances, args.plot)
    counts = Counter(f"{problem.severity}: {problem.kind}" for problem in problems)
    for problem in [p for p in problems if p.severity == "error"][:20]:
        print(f"{problem.where}: {problem.message}", file=sys.stderr)
    print(json.dumps({**_sums(utterances), "problems": dict(sorted(counts.items()))}, indent=1))
    sys.exit(1 if any(problem.severity == "error" for problem in problems) else 0)


if __name__ == "__main__":
    launch(main)
