"""More speech for what `spiritrt.training.units` made: targets with the unit ids that are there already.

    python -m spiritrt.training.extend_units --out build/nano --corpus build/nano/corpus2

Sound, targets and units of the new corpora are added in place; whatever was trained on the old ones goes on from its
checkpoint. Where `clusters.npz` is missing it is recovered from the targets: the centre of a unit is the mean of the
frames that carry it. With `--model`, a family whose encoder was not trained on the new speech, `fresh_units.jsonl` gets
what it hears there: an encoder errs less on what it was trained on than on anything it will hear later, and a language
model has to read the latter (`lm --heard encoder_units.jsonl fresh_units.jsonl`).
"""

import argparse
import json
import random
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from spiritrt.models.checkpoints import find
from spiritrt.models.family import Family
from spiritrt.models.hubert import encode_units
from spiritrt.training.arguments import launch
from spiritrt.training.clusters import Clusters, Floats, Ints
from spiritrt.training.corpora.manifest import AudioStore, Utterance, cut_utterances, read_corpora, unit_lines
from spiritrt.training.units import (
    Teacher,
    UnitPlan,
    frame_phones,
    load_classifier,
    soft_targets,
    write_targets,
    write_units,
)

Item = TypeVar("Item")
RECOVER_CLIPS = 800  # half an hour: some 90 frames a unit


def recover(store: AudioStore, units: dict[str, Ints], inventory: list[str], plan: UnitPlan) -> Clusters:
    """Clusters from the targets of training clips of a store; prints how many of their frames they assign as before."""
    teacher = Teacher(torch.get_num_threads())
    train = {i: row for i, row in units.items() if store.clips[i].split == "train" and len(row)}
    if len(train) > RECOVER_CLIPS:
        train = {i: train[i] for i in random.Random(plan.seed).sample(sorted(train), RECOVER_CLIPS)}
    features = {i: teacher(store.read(store.clips[i])) for i in bar(train, "teacher, old")}
    clusters = Clusters.recovered(features, train, inventory, plan.segment_share, plan.pca_dims, plan.seed)
    names = np.array(inventory)
    same = sum(int((clusters.assign(features[i], names[row].tolist()) == row).sum()) for i, row in train.items())
    print(f"recovered clusters give {same / sum(map(len, train.values())):.1%} of the old frames their old unit")
    return clusters


def extend(out: Path, corpora: Sequence[Path], plan: UnitPlan, model: str | None = None) -> dict[str, float]:
    """Add corpora to the work folder `out`, with what the encoder of the family `model` hears in them; returns how much
    was added. Raises ValueError for ids that are there."""
    family = None if model is None else Family(find(model), progress=False)
    store = AudioStore(out)
    with np.load(out / "targets.npz") as file:
        arrays: dict[str, NDArray[np.int16] | NDArray[np.float16]] = {key: file[key] for key in file.files}
    inventory = json.loads((out / "inventory.json").read_text(encoding="utf-8"))
    if not (out / "clusters.npz").is_file():
        units = {k.removesuffix("/units"): v.astype(np.int64) for k, v in arrays.items() if k.endswith("/units")}
        recover(store, units, inventory, plan).save(out / "clusters.npz")
    clusters = Clusters.load(out / "clusters.npz")
    if list(clusters.inventory) != inventory:
        raise ValueError(f"{out / 'clusters.npz'} and {out / 'inventory.json'} are of different inventories")
    items: list[tuple[Utterance, Floats]] = [
        pair for corpus, members in read_corpora(corpora).items() for pair in cut_utterances(corpus, members)
    ]
    # a run that was killed between the files is finished by the next: what the store has is not stored twice
    fresh = [(u, samples) for u, samples in items if u.id not in store.clips]
    listed = (out / "units.jsonl").read_text(encoding="utf-8")
    known = {entry["id"] for entry in unit_lines(out / "units.jsonl")}
    if done := [u.id for u, _ in items if u.id in known]:
        raise ValueError(f"{len(done)} utterances are in {out / 'units.jsonl'} already, such as {done[0]!r}")
    if fresh:
        store.extend(out, fresh)
    teacher = Teacher(torch.get_num_threads())
    classifier = load_classifier(out / "unit_classifier.pt", teacher.width, len(inventory))
    made: dict[str, Ints] = {}
    for u, samples in bar(items, "teacher"):
        features = teacher(samples)
        made[u.id] = clusters.assign(features, frame_phones(u, samples, plan.silence_db))
        arrays |= {f"{u.id}/units": made[u.id].astype(np.int16)} | soft_targets(u.id, classifier, features)
    write_targets(out / "targets.npz", arrays)
    if family is not None:
        hubert, quantizer = family.hubert, family.quantizer
        heard = {u.id: encode_units(hubert, quantizer, torch.from_numpy(x)).tolist() for u, x in bar(items, "encoder")}
        file = out / "fresh_units.jsonl"
        before = file.read_text(encoding="utf-8") if file.is_file() else ""
        write_units(file, [u for u, _ in items], lambda i: heard[i], before=before)
    write_units(out / "units.jsonl", [u for u, _ in items], lambda i: made[i].tolist(), before=listed)
    return {"utterances": len(items), "hours": round(sum(u.duration_s for u, _ in items) / 3600, 3)}


def bar(items: Iterable[Item], name: str) -> Iterable[Item]:
    return tqdm(items, desc=name, file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description="Add corpora to a work folder, with the units that it has.")
    parser.add_argument("--out", type=Path, default=Path("build/nano"))
    parser.add_argument("--corpus", type=Path, nargs="+", required=True, help="folders with a manifest.jsonl")
    parser.add_argument("--model", help="family whose encoder has not heard them yet: what it hears is written as well")
    parser.add_argument("--segment-share", type=float, default=UnitPlan().segment_share, help="as the units were made")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(json.dumps(extend(args.out, args.corpus, UnitPlan(segment_share=args.segment_share), args.model)))


if __name__ == "__main__":
    launch(main)
