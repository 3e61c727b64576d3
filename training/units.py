"""Phone-pure units: what the encoder learns to emit, one target a 40 ms frame.

A unit is (phone class, sub-cluster). Phone classes come from the exact phone times of the corpus; the 500 units are
shared among the classes by the square root of their frame counts; inside a class k-means splits the frames on the
features of a speaker-independent teacher (the encoder of Whisper tiny.en, 50 Hz, two frames joined, normalised over
the utterance). A small classifier from teacher features to units then says how likely each unit is in each frame (top
8 a frame): the only label of speech that has no phone times, and beside the exact one of speech that has them.

    python -m spiritrt.training.units --corpus ../shared/corpus --out build/nano --unlabelled FOLDER
"""

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from spiritrt.evaluation.recognition import whisper_folder
from spiritrt.training.arguments import add_settings, launch, parse, settings
from spiritrt.training.clusters import SILENCE, Clusters, Floats, Ints, main_axes, smooth_over_segments
from spiritrt.training.corpora.manifest import (
    RATE_HZ,
    UNLABELLED,
    AudioStore,
    Clip,
    Utterance,
    cut_utterances,
    of_units,
    read_audio,
    read_corpora,
)

HOP_SAMPLES = 640
FRAME_SPAN_SAMPLES = 720  # receptive field of one frame of the conv stack
TOP_POSTERIORS = 8
STEP_S = 0.01


@dataclass(frozen=True, slots=True)
class UnitPlan:
    """How many units there are, how they are shared among phones and how frames are clustered.

    `segment_share` mixes the mean feature of the phone segment into each of its frames: the higher, the fewer units a
    segment is cut into (shorter token strings), the lower, the finer the units follow the sound.
    """

    n_units: int = 500
    silence_units: int = 6
    min_units: int = 2
    segment_share: float = 0.5
    pca_dims: int = 64
    silence_db: float = -38.0
    seed: int = 7

    def __post_init__(self) -> None:
        if not 0 <= self.segment_share <= 1:
            raise ValueError(f"segment_share must lie in [0, 1], got {self.segment_share}")
        if self.n_units < 2 or self.min_units < 1 or self.silence_units < 1:
            raise ValueError(
                f"unit counts must be positive, got {self.n_units}, {self.min_units}, {self.silence_units}"
            )


def frame_count(samples: int) -> int:
    """Frames that the conv stack makes of `samples` samples at 16 kHz (hop 640, receptive field 720)."""
    return max(0, (samples - FRAME_SPAN_SAMPLES) // HOP_SAMPLES + 1)


def phone_class(symbol: str) -> str | None:
    """The class of a misaki symbol (stress marks dropped), or None for spaces and punctuation."""
    bare = symbol.replace("ˈ", "").replace("ˌ", "")
    return bare if bare and bare.isalpha() else None


def frame_phones(utterance: Utterance, samples: Floats, silence_db: float = -38.0) -> list[str]:
    """Phone class of every 40 ms frame: the phone that covers most of it.

    Spaces and punctuation become silence where the sound is at least `silence_db` under the loudest 10 ms step, else
    they are halved between their neighbours. A phone too short to win a frame takes one from a neighbour that has
    several.
    """
    steps = int(np.ceil(len(samples) / RATE_HZ / STEP_S))
    width = round(RATE_HZ * STEP_S)
    padded = np.zeros(steps * width, np.float32)
    padded[: len(samples)] = samples
    level_db = 10 * np.log10(np.square(padded.reshape(steps, width)).mean(axis=1) + 1e-10)
    silent = level_db < level_db.max() + silence_db
    segments = [(p, s, e) for symbol, s, e in utterance.phones if (p := phone_class(symbol)) is not None]
    if not segments:
        return [SILENCE] * frame_count(len(samples))
    last_word_end = max((word.end_s for word in utterance.words), default=segments[-1][2])
    # owner of each step: index into segments, -1 silence
    owner = np.full(steps, -1)
    times = (np.arange(steps) + 0.5) * STEP_S
    for index, (_, start, end) in enumerate(segments):
        inside = (times >= start) & (times < end)
        owner[inside & ~(silent & (times > last_word_end))] = index
    for index in range(len(segments) - 1):
        gap_start, gap_end = segments[index][2], segments[index + 1][1]
        gap = (times >= gap_start) & (times < gap_end) & ~silent
        middle = (gap_start + gap_end) / 2
        owner[gap & (times < middle)] = index
        owner[gap & (times >= middle)] = index + 1
    frames = frame_count(len(samples))
    first = np.arange(frames) * HOP_SAMPLES / RATE_HZ / STEP_S
    chosen = np.empty(frames, np.int64)
    for t in range(frames):
        cover = owner[round(first[t]) : round(first[t] + FRAME_SPAN_SAMPLES / RATE_HZ / STEP_S)]
        values, counts = np.unique(cover, return_counts=True)
        chosen[t] = values[np.argmax(counts)]
    present = np.bincount(chosen[chosen >= 0], minlength=len(segments))
    for index, (_, start, end) in enumerate(segments):
        if present[index] == 0 and frames:
            t = min(frames - 1, max(0, round(((start + end) / 2 * RATE_HZ - FRAME_SPAN_SAMPLES / 2) / HOP_SAMPLES)))
            if chosen[t] >= 0 and present[chosen[t]] > 1:
                present[chosen[t]] -= 1
                chosen[t], present[index] = index, 1
    return [SILENCE if index < 0 else segments[index][0] for index in chosen]


class Teacher:
    """Whisper tiny.en's encoder in CTranslate2: [N] samples to [T, 768] features, 25 Hz, normalised over the clip."""

    width = 768

    def __init__(self, threads: int = 1) -> None:
        folder = whisper_folder()
        from faster_whisper import WhisperModel

        self.whisper = WhisperModel(
            str(folder), device="cpu", compute_type="float32", cpu_threads=threads, local_files_only=True
        )

    def __call__(self, samples: Floats) -> Floats:
        import ctranslate2

        frames = frame_count(len(samples))
        mel = self.whisper.feature_extractor(samples)  # [80, 100 a second], padded by 30 s
        window = min(3000, mel.shape[1], 100 * (int(np.ceil(len(samples) / RATE_HZ)) + 1))
        mel = np.ascontiguousarray(mel[None, :, : window - window % 4], np.float32)
        encoded = np.array(self.whisper.model.encode(ctranslate2.StorageView.from_array(mel), to_cpu=True))[0]
        pairs = encoded[: 2 * (len(encoded) // 2)].reshape(-1, 2 * encoded.shape[1])[:frames]
        if len(pairs) < frames:
            raise ValueError(f"clip of {len(samples) / RATE_HZ:.1f} s is longer than the teacher's 30 s window")
        return ((pairs - pairs.mean(axis=0)) / (pairs.std(axis=0) + 1e-5)).astype(np.float32)


def share_units(counts: dict[str, int], plan: UnitPlan) -> dict[str, int]:
    """Number of units for each phone class, summing to exactly `plan.n_units`."""
    phones = [phone for phone in sorted(counts) if phone != SILENCE]
    shares = {SILENCE: plan.silence_units} if SILENCE in counts else {}
    left = plan.n_units - sum(shares.values())
    if left < plan.min_units * len(phones):
        raise ValueError(f"{plan.n_units} units are too few for {len(phones)} phones of at least {plan.min_units}")
    weight = {phone: counts[phone] ** 0.5 for phone in phones}
    spare = left - plan.min_units * len(phones)
    exact = {phone: spare * weight[phone] / sum(weight.values()) for phone in phones}
    for phone in phones:
        shares[phone] = plan.min_units + int(exact[phone])
    by_rest = sorted(phones, key=lambda phone: int(exact[phone]) - exact[phone])
    for phone in by_rest[: plan.n_units - sum(shares.values())]:
        shares[phone] += 1
    # no phone gets more units than it has frames; what is left over goes where there are most frames a unit
    for phone in phones:
        while shares[phone] > max(1, counts[phone]):
            richest = max(phones, key=lambda other: counts[other] / shares[other])
            shares[phone] -= 1
            shares[richest] += 1
    return shares


def k_means(points: Tensor, k: int, generator: torch.Generator, rounds: int = 30) -> Tensor:
    """Centres [k, D] of `points` [N, D] by Lloyd's algorithm from k-means++ seeds; empty clusters are re-seeded."""
    if len(points) < k:
        raise ValueError(f"k-means into {k} clusters needs at least as many points, got {len(points)}")
    centres = points[torch.randint(len(points), (1,), generator=generator)]
    nearest = torch.cdist(points, centres).squeeze(1).square()
    for _ in range(k - 1):
        pick = torch.multinomial(nearest.clamp_min(1e-9), 1, generator=generator)
        centres = torch.cat([centres, points[pick]])
        nearest = torch.minimum(nearest, torch.cdist(points, points[pick]).squeeze(1).square())
    for _ in range(rounds):
        owner = torch.cdist(points, centres).argmin(dim=1)
        size = torch.bincount(owner, minlength=k)
        sums = torch.zeros_like(centres).index_add_(0, owner, points)
        empty = size == 0
        centres = sums / size.clamp_min(1)[:, None]
        if empty.any():
            centres[empty] = points[torch.randint(len(points), (int(empty.sum()),), generator=generator)]
    return centres


class UnitClassifier(nn.Module):
    """Teacher features with one frame of context on both sides [T, 3 * 768] to unit logits [T, n_units]."""

    def __init__(self, width: int, n_units: int, hidden: int = 512) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Dropout(0.3), nn.Linear(3 * width, hidden), nn.GELU(), nn.Dropout(0.3), nn.Linear(hidden, n_units)
        )

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features)

    @staticmethod
    def with_context(features: Floats) -> Floats:
        """[T, D] to [T, 3 D]: previous, own and next frame; the ends are repeated."""
        padded = np.concatenate([features[:1], features, features[-1:]])
        return np.concatenate([padded[:-2], padded[1:-1], padded[2:]], axis=1)


def fit_classifier(features: Tensor, units: Tensor, n_units: int, seed: int, epochs: int = 6) -> UnitClassifier:
    """Train the classifier on context features [N, D] and units [N]; label smoothing keeps its posteriors soft."""
    torch.manual_seed(seed)
    model = UnitClassifier(features.shape[1] // 3, n_units)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    batch = 512
    total = epochs * (len(features) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=max(1, total) + 1)
    loss_function = nn.CrossEntropyLoss(label_smoothing=0.05)
    progress = tqdm(total=total, desc="unit classifier", file=sys.stderr)
    for _ in range(epochs):
        order = torch.randperm(len(features))
        for at in range(0, len(order) - batch + 1, batch):
            rows = order[at : at + batch]
            loss = loss_function(model(features[rows]), units[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            progress.update()
    progress.close()
    return model.eval()


def load_classifier(path: Path, width: int, n_units: int) -> UnitClassifier:
    """The classifier that `build` saved, for features [T, width]."""
    model = UnitClassifier(width, n_units)
    model.load_state_dict(torch.load(of_units(path), weights_only=True))
    return model.eval()


@torch.no_grad()
def posteriors(model: UnitClassifier, features: Floats, top: int = TOP_POSTERIORS) -> tuple[Ints, Floats]:
    """The `top` most likely units [T, top] and their renormalised probabilities [T, top] for features [T, D]; all of
    them where there are fewer."""
    logits = model(torch.from_numpy(UnitClassifier.with_context(features)))
    values, units = logits.softmax(dim=-1).topk(min(top, logits.shape[-1]), dim=-1)
    return units.numpy(), (values / values.sum(dim=-1, keepdim=True)).numpy()


def soft_targets(
    clip_id: str, model: UnitClassifier, features: Floats
) -> dict[str, NDArray[np.int16] | NDArray[np.float16]]:
    """The `posteriors` of a clip as `targets.npz` holds them."""
    units, probs = posteriors(model, features)
    return {f"{clip_id}/top_units": units.astype(np.int16), f"{clip_id}/top_probs": probs.astype(np.float16)}


def unit_line(u: Utterance, units: Sequence[int]) -> str:
    """A line of a units file: one unit a 40 ms frame, not deduplicated, with words and phones."""
    words = [{"word": w.word, "start_s": w.start_s, "end_s": w.end_s} for w in u.words]
    line = {
        "id": u.id, "text": u.text, "speaker": u.speaker, "split": u.split, "role": u.role, "dialogue": u.dialogue,
        "units": [int(unit) for unit in units], "words": words, "phones": [list(p) for p in u.phones],
    }  # fmt: skip
    return json.dumps(line, ensure_ascii=False) + "\n"


def write_units(
    path: Path, utterances: Sequence[Utterance], units_of: Callable[[str], Sequence[int]], before: str = ""
) -> None:
    """Write the units file (JSON lines) of `utterances` after the lines `before`."""
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as out:
        out.write(before)
        for u in utterances:
            out.write(unit_line(u, units_of(u.id)))
    os.replace(partial, path)


def unlabelled_clips(folder: Path, min_s: float = 0.5, max_s: float = 15.0) -> list[tuple[Clip, Floats]]:
    """Every sound under `folder` cut in pieces of at most `max_s` seconds; silent and shorter files are left out."""
    files = sorted(
        p for p in folder.rglob("*") if p.suffix in {".wav", ".flac", ".ogg", ".g722", ".raw"} and p.is_file()
    )
    if not files:
        raise FileNotFoundError(f"no sound files under {folder}")
    clips = []
    for path in tqdm(files, desc="unlabelled audio", file=sys.stderr):
        samples = read_audio(path)
        size = int(max_s * RATE_HZ)
        for part, at in enumerate(range(0, len(samples), size)):
            piece = samples[at : at + size]
            if len(piece) >= min_s * RATE_HZ and np.abs(piece).max() > 0.02:
                name = f"{path.relative_to(folder)}#{part}"
                clips.append((Clip(name, 0, 0, UNLABELLED, "neutral", "train"), piece))
    return clips


def make_clusters(
    features: Mapping[str, Floats], phones: Mapping[str, Sequence[str]], plan: UnitPlan, generator: torch.Generator
) -> Clusters:
    """Share the units among the phone classes of training clips and divide each class by k-means."""
    axes = main_axes(np.concatenate(list(features.values())), plan.pca_dims, generator)
    points = torch.from_numpy(
        np.concatenate([smooth_over_segments(f @ axes, phones[i], plan.segment_share) for i, f in features.items()])
    )
    labels = np.concatenate([np.array(phones[i]) for i in features])
    counts = Counter(labels.tolist())
    inventory: list[str] = []
    centres: list[Tensor] = []
    for phone, share in sorted(share_units(counts, plan).items()):
        centres.append(k_means(points[torch.from_numpy(labels == phone)], share, generator))
        inventory += [phone] * share
    return Clusters(tuple(inventory), axes, torch.cat(centres).numpy(), plan.segment_share)


def build(corpora: Sequence[Path], out: Path, plan: UnitPlan, unlabelled: Path | None) -> dict[str, float]:
    """Make targets for corpora and write them under `out`; returns the figures that describe them.

    Writes `audio.npy`, `audio.json` (all sound), `targets.npz` (per clip `top_units`, `top_probs` [T, 8] of the
    classifier, and for labelled ones `units` [T]), `inventory.json` (the phone class of every unit), `clusters.npz`,
    `units.jsonl`.
    """
    by_corpus = read_corpora(corpora)
    utterances = [u for members in by_corpus.values() for u in members]
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(plan.seed)
    generator = torch.Generator().manual_seed(plan.seed)
    audio: list[tuple[Utterance | Clip, Floats]] = [
        pair for corpus, members in by_corpus.items() for pair in cut_utterances(corpus, members)
    ]
    extra = unlabelled_clips(unlabelled) if unlabelled else []
    AudioStore.write(out, [*audio, *extra])

    teacher = Teacher(torch.get_num_threads())
    features: dict[str, Floats] = {}
    for item, samples in tqdm([*audio, *extra], desc="teacher", file=sys.stderr):
        features[item.id] = teacher(samples)
    phones = {
        item.id: frame_phones(item, samples, plan.silence_db) for item, samples in audio if isinstance(item, Utterance)
    }
    train = [u.id for u in utterances if u.split == "train"]
    clusters = make_clusters({i: features[i] for i in train}, phones, plan, generator)
    targets = {u.id: clusters.assign(features[u.id], phones[u.id]) for u in utterances}
    inventory = list(clusters.inventory)
    clusters.save(out / "clusters.npz")

    write_units(out / "units.jsonl", utterances, lambda i: targets[i].tolist())
    (out / "inventory.json").write_text(json.dumps(inventory, ensure_ascii=False), encoding="utf-8")

    x = torch.from_numpy(np.concatenate([UnitClassifier.with_context(features[i]) for i in train]))
    y = torch.from_numpy(np.concatenate([targets[i] for i in train]))
    classifier = fit_classifier(x, y, plan.n_units, plan.seed)
    arrays: dict[str, NDArray[np.int16] | NDArray[np.float16]] = {}
    for clip_id, row in targets.items():
        arrays[f"{clip_id}/units"] = row.astype(np.int16)
    for clip_id, heard in features.items():
        arrays |= soft_targets(clip_id, classifier, heard)
    write_targets(out / "targets.npz", arrays)
    torch.save(classifier.state_dict(), out / "unit_classifier.pt")

    names = np.array(inventory)
    figures: dict[str, float] = {"frames": float(sum(len(row) for row in targets.values()))}
    for split in ("test", "test_voice"):
        ids = [u.id for u in utterances if u.split == split]
        if not ids:
            continue
        guess = np.concatenate([posteriors(classifier, features[i], 1)[0][:, 0] for i in ids])
        truth = np.concatenate([targets[i] for i in ids])
        figures[f"teacher_unit_accuracy_{split}"] = float((guess == truth).mean())
        figures[f"teacher_phone_accuracy_{split}"] = float((names[guess] == names[truth]).mean())
    rows = [targets[i] for i in train if len(targets[i])]
    runs = sum(1 + int((np.diff(row) != 0).sum()) for row in rows)
    figures["tokens_per_s"] = runs / sum(len(row) for row in rows) * 25
    figures["unlabelled_s"] = sum(len(piece) for _, piece in extra) / RATE_HZ
    (out / "units_report.json").write_text(json.dumps(figures, indent=1), encoding="utf-8")
    return figures


def write_targets(path: Path, arrays: dict[str, NDArray[np.int16] | NDArray[np.float16]]) -> None:
    """Write arrays as `np.savez` does; a reader never sees half of them."""
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    os.replace(partial, path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make unit targets for the encoder from a corpus with phone times.")
    parser.add_argument(
        "--corpus", type=Path, nargs="+", default=[Path("../shared/corpus")], help="folders with a manifest.jsonl"
    )
    parser.add_argument("--out", type=Path, default=Path("build/nano"))
    parser.add_argument("--unlabelled", type=Path, help="folder of more speech without labels (teacher posteriors)")
    add_settings(parser, UnitPlan(), but=("n_units",))
    args = parse(parser, "units", device=False)
    print(json.dumps(build(args.corpus, args.out, settings(UnitPlan, args), args.unlabelled), indent=1))


if __name__ == "__main__":
    launch(main)
