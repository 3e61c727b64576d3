"""The paper's ablation of interleaving at nano's size: the same tokens and the same model, other documents.

    python -m spiritrt.training.ablation --work build/ablation --steps 600 --seeds 3

Trains a language model from scratch on each mix (`lm_data.MIXES`: interleaved, ASR and TTS pairs alone, speech and text
unaligned, speech alone, word-level transcription) for each seed, and scores Topic-StoryCloze within and across
modalities. A run that was interrupted goes on; a finished one is not done again.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean

import torch
from rich.console import Console
from rich.table import Table

import spiritrt
from spiritrt.evaluation.commands import OWN_SETS, SETS
from spiritrt.evaluation.likelihood import Scorer
from spiritrt.evaluation.report import mean_metric
from spiritrt.evaluation.stories import DIRECTIONS, storycloze
from spiritrt.models.checkpoints import find
from spiritrt.training.arguments import launch
from spiritrt.training.batches import BatchStream
from spiritrt.training.checkpoint import check_origin, digest, file_digest
from spiritrt.training.lm import Plan, Trainer, run
from spiritrt.training.lm_data import MIXES, load_documents
from spiritrt.training.tokenizer import NanoTokenizer

# columns of the table: the directions, and what the two that change modality give together
COLUMNS = {direction: (direction,) for direction in DIRECTIONS} | {"cross-modal": ("T->S", "S->T")}
ABLATED = ("interleaved", "pairs", "unaligned", "speech", "transcribed")


def train_one(
    mix: str, plan: Plan, units: Path, heard: Path | None, family: Path, work: Path, context: int = 512
) -> tuple[Path, int]:
    """Train on one mix; the folder of a family with the speech parts of `family` and the new language model, and how
    many tokens it read."""
    model = work / "model"
    if not model.is_dir():
        shutil.copytree(family, model)
    files = [heard] if heard else []
    documents = load_documents(units, NanoTokenizer(model), replace(MIXES[mix], context=context), plan.seed, files)
    trainer = Trainer(plan, BatchStream(documents, plan.batch_tokens))
    if (work / "lm.pt").is_file():
        trainer.load(work / "lm.pt")
    run(trainer, work, model, export_minutes=float("inf"))
    if trainer.progress < 1:
        raise SystemExit(f"stopped at step {trainer.steps_done} of {plan.steps}: run again to go on")
    return model, trainer.tokens


def score(model: Path, stories: Path, limit: int | None = None) -> dict[str, dict[str, float | int]]:
    """Accuracy of a model in every direction, by mean and by sum, every story against the endings of ten others."""
    report = storycloze(Scorer(spiritrt.load(str(model), progress=False)), str(model), stories, limit, others=10)
    return {part: metric.as_json() for part, metric in report.parts.items()}


def summary(
    results: dict[str, list[dict[str, dict[str, float | int]]]],
) -> dict[str, dict[str, dict[str, float | int]]]:
    """Mean accuracy over the seeds and its standard error, by mix and column (mean a token)."""
    return {
        mix: {
            column: mean_metric(
                "accuracy", [mean(float(r[f"{direction} mean"]["accuracy"]) for direction in directions) for r in runs]
            ).as_json()
            for column, directions in COLUMNS.items()
        }
        for mix, runs in results.items()
        if runs
    }


def show(figures: dict[str, dict[str, dict[str, float | int]]], console: Console) -> None:
    """Print the table: a mix a row."""
    table = Table(title="Topic-StoryCloze, accuracy ± standard error over seeds")
    for column in ("documents", *COLUMNS):
        table.add_column(column)
    for mix, row in figures.items():
        cells = [f"{100 * row[c]['accuracy']:.1f} ± {100 * row[c]['spread']:.1f}" for c in COLUMNS]
        table.add_row(mix, *cells)
    console.print(table)


def ablate(
    mixes: Sequence[str],
    seeds: int,
    plan: Plan,
    units: Path,
    heard: Path | None,
    family: Path,
    work: Path,
    stories: Path,
    limit: int | None = None,
) -> dict[str, dict[str, dict[str, float | int]]]:
    """Train and score every mix for every seed; writes `work/ablation.json` after each and returns the summary.

    Raises ValueError where a run in `work` is of another plan, other data or other stories.
    """
    told = sorted(file for file in stories.iterdir() if file.is_file()) if stories.is_dir() else [stories]
    files = {"units": [units], "heard": [heard] if heard else [], "stories": told}
    of_data = {name: file_digest(*those) for name, those in files.items()}
    results: dict[str, list[dict[str, dict[str, float | int]]]] = {mix: [] for mix in mixes}
    tokens: dict[str, list[int]] = {mix: [] for mix in mixes}
    for seed in range(seeds):
        for mix in mixes:
            folder = work / f"{mix}-{seed}"
            done, origin = folder / "stories.json", folder / "origin.json"
            made_of = {"plan": digest(asdict(replace(plan, seed=seed))), **of_data, "limit": limit}
            if folder.is_dir():
                check_origin(json.loads(origin.read_text("utf-8")) if origin.is_file() else None, made_of)
            if not done.is_file():
                folder.mkdir(parents=True, exist_ok=True)
                origin.write_text(json.dumps(made_of), encoding="utf-8")
                model, read = train_one(mix, replace(plan, seed=seed), units, heard, family, folder)
                run = {"tokens": read, "stories": score(model, stories, limit)}
                done.write_text(json.dumps(run, indent=1), encoding="utf-8")
            run = json.loads(done.read_text(encoding="utf-8"))
            results[mix].append(run["stories"])
            tokens[mix].append(run["tokens"])
            report = {"summary": summary(results), "plan": asdict(plan), "tokens": tokens, "runs": results}
            (work / "ablation.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    return summary(results)


def main() -> None:
    parser = argparse.ArgumentParser(description="Interleaving against pairs and against none, same tokens, same size.")
    parser.add_argument("--units", type=Path, default=Path("build/nano/units.jsonl"))
    parser.add_argument("--heard", type=Path, help="units that the trained encoder emits")
    parser.add_argument("--model", default="nano", help="family of the speech parts and the tokenizer")
    parser.add_argument("--work", type=Path, default=Path("build/ablation"))
    parser.add_argument("--stories", type=Path, default=SETS / OWN_SETS["storycloze"])
    parser.add_argument("--mixes", nargs="+", choices=ABLATED, default=["interleaved", "pairs", "unaligned"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=int, help="score only so many stories, drawn with the seed")
    parser.add_argument("--steps", type=int, default=600, help="optimizer steps of each run")
    parser.add_argument("--batch-tokens", type=int, default=Plan().batch_tokens)
    parser.add_argument("--width", type=int, default=Plan().width)
    parser.add_argument("--layers", type=int, default=Plan().layers)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    plan = Plan(
        steps=args.steps, batch_tokens=args.batch_tokens, width=args.width, layers=args.layers,
        inner=round(2.75 * args.width),
    )  # fmt: skip
    family = find(args.model).folder
    figures = ablate(args.mixes, args.seeds, plan, args.units, args.heard, family, args.work, args.stories, args.limit)
    show(figures, Console())


if __name__ == "__main__":
    launch(main)
