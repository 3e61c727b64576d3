"""Pairs of recordings of which one is likelier: sWUGGY, sBLIMP (ZeroSpeech 2021) and SALMon.

sWUGGY and sBLIMP: a folder with `gold.csv` (columns `id`, `filename`, `correct`, and where there are several `voice`)
and `FILENAME.wav` beside it, as `lexical/dev` and `syntactic/dev` of ZeroSpeech 2021. A pair is the correct and the
incorrect recording of one id and voice; voices of one id are averaged before ids are.

SALMon: a folder a part, `sample_N_*.wav` in it; of each N the first by name is the right one.
"""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from spiritrt.evaluation.likelihood import Comparison, Scorer, accuracies
from spiritrt.evaluation.report import Metric, Report, mean_metric, progress
from spiritrt.evaluation.speech_sets import SOUNDS, choose, choose_groups

SALMON_PARTS = (
    "sentiment_consistency", "speaker_consistency", "gender_consistency", "bg_domain_consistency",
    "bg_all_consistency", "rir_consistency", "sentiment_alignment", "bg_alignment",
)  # fmt: skip
ZEROSPEECH_PARTS = {"wuggy": "lexical", "blimp": "syntactic"}


@dataclass(frozen=True, slots=True)
class Pair:
    """Two recordings; `group` is what the pair is averaged within (an id with several voices), `kind` its part."""

    group: str
    kind: str
    right: Path
    wrong: Path


def read_gold(folder: Path, part: str) -> list[Pair]:
    """Pairs of `gold.csv` in `folder`, or in `folder/PART/dev`, or in `folder/dev`.

    Raises FileNotFoundError where there is none, and ValueError for missing columns or an id without its partner.
    """
    for place in (folder, folder / part / "dev", folder / "dev", folder / part):
        if (place / "gold.csv").is_file():
            break
    else:
        raise FileNotFoundError(f"no gold.csv in {folder}, {folder / part / 'dev'} or {folder / 'dev'}")
    suffix = next((suffix for suffix in SOUNDS if any(place.glob(f"*{suffix}"))), ".wav")
    rows: dict[tuple[str, str], dict[bool, Path]] = {}
    kinds: dict[str, str] = {}
    path = place / "gold.csv"
    with path.open(newline="", encoding="utf-8") as file:
        table = csv.DictReader(file)
        if missing := {"id", "filename", "correct"} - set(table.fieldnames or ()):
            raise ValueError(f"{path} has no column {', '.join(sorted(missing))}; it has {table.fieldnames}")
        for row in table:
            name = row["filename"]
            sound = place / (name if name.endswith(SOUNDS) else f"{name}{suffix}")
            group = f"{row['id']}/{row.get('subtype') or ''}"
            rows.setdefault((group, row.get("voice") or ""), {})[row["correct"] in ("1", "True", "true")] = sound
            kinds[group] = row.get("type") or row.get("frequency") or ""
    pairs = []
    for (group, voice), both in rows.items():
        if len(both) != 2:
            has = "a correct" if True in both else "an incorrect"
            raise ValueError(f"{path}: id {group.split('/')[0]} (voice {voice!r}) has only {has} recording")
        pairs.append(Pair(group, kinds[group], both[True], both[False]))
    if not pairs:
        raise ValueError(f"{path} holds no pairs")
    return pairs


def read_salmon(folder: Path, part: str) -> list[Pair]:
    """Pairs of one part of SALMon. Raises FileNotFoundError where there are none, ValueError for a lone recording."""
    found: dict[int, list[Path]] = {}
    place = folder / part
    if not any(place.glob("sample_*.*")) and (place / "before").is_dir():
        place = place / "before"
    for sound in sorted(place.glob("sample_*.*")):
        words = sound.stem.split("_")
        if sound.suffix in SOUNDS and words[1].isdecimal():
            found.setdefault(int(words[1]), []).append(sound)
    if not found:
        raise FileNotFoundError(f"no sample_N_*.wav in {place}")
    if alone := [n for n, sounds in found.items() if len(sounds) < 2]:
        raise ValueError(f"{place}: sample {alone[0]} has one recording, a pair needs two")
    return [Pair(str(n), part, sounds[0], sounds[1]) for n, sounds in sorted(found.items())]


def compare(scorer: Scorer, pairs: Sequence[Pair], name: str) -> list[Comparison]:
    """Which recording of each pair is likelier, from the first token on."""
    results = []
    for pair in progress(pairs, name):
        right, wrong = scorer.score([], [scorer.speech(pair.right), scorer.speech(pair.wrong)])
        results.append(Comparison.of(right, wrong))
    return results


def minimal_pairs(name: str, scorer: Scorer, model: str, data: Path, limit: int | None, seed: int = 0) -> Report:
    """sWUGGY (`wuggy`) or sBLIMP (`blimp`): accuracy by mean a token (the main figure) and by sum.

    `limit` is the most ids, drawn by the seed, each with all of its voices.
    """
    pairs = choose_groups(read_gold(data, ZEROSPEECH_PARTS[name]), lambda pair: pair.group, limit, seed)
    results = compare(scorer, pairs, name)
    figures = accuracies(results, [pair.group for pair in pairs])
    settings: dict[str, str | int | float | bool] = {"data": str(data), "seed": seed, "chance": 0.5}
    return Report(name, model, figures["mean"], figures, settings, lines=_lines(pairs, results))


def salmon(
    scorer: Scorer,
    model: str,
    data: Path,
    limit: int | None,
    parts: Sequence[str] = SALMON_PARTS,
    seed: int = 0,
) -> Report:
    """SALMon: accuracy by mean a token of every part that is there; the main figure is the mean over all pairs.

    `limit` is the most pairs of a part, drawn by the seed.
    """
    figures: dict[str, Metric] = {}
    notes: list[str] = []
    lines: list[dict[str, object]] = []
    everything: list[float] = []
    for part in parts:
        if not (data / part).is_dir():
            notes.append(f"{part}: not in {data}")
            continue
        pairs = choose(read_salmon(data, part), limit, seed)
        results = compare(scorer, pairs, part)
        figures[part] = mean_metric("accuracy", [result.mean for result in results])
        everything += [result.mean for result in results]
        lines += _lines(pairs, results)
    if not figures:
        raise FileNotFoundError(f"{data} holds none of SALMon's parts: {', '.join(parts)}")
    main = mean_metric("accuracy", everything)
    settings: dict[str, str | int | float | bool] = {"data": str(data), "seed": seed, "chance": 0.5}
    return Report("salmon", model, main, figures, settings, tuple(notes), tuple(lines))


def _lines(pairs: Iterable[Pair], results: Iterable[Comparison]) -> tuple[dict[str, object], ...]:
    return tuple(
        {
            "id": pair.group, "kind": pair.kind, "right": pair.right.name, "wrong": pair.wrong.name,
            "mean": result.mean, "sum": result.sum,
        }
        for pair, result in zip(pairs, results, strict=True)
    )  # fmt: skip
