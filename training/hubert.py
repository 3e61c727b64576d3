"""HuBERT without labels: masked prediction of k-means targets in two iterations, and a linear quantizer by CTC.

    python -m spiritrt.training.hubert --corpus CORPUS --out work --stage 1 --minutes 60   # targets from spectra
    python -m spiritrt.training.hubert --corpus CORPUS --out work --stage 2 --minutes 60   # from stage 1's features
    python -m spiritrt.training.hubert --corpus CORPUS --out work --stage quantizer --minutes 20 --model MODEL

A stage hides spans of frames and learns to name their targets (Hsu et al. 2021). The quantizer then learns, by CTC, the
deduplicated units of clean speech from the features of the same speech through a channel and noise: units that do not
change with it (Gat et al. 2023). For units defined by phones see `spiritrt.training.units` and `encoder`.

The encoder has nano's shape; `--shape FILE.yaml` changes what it names, in the official words of `model_cfg` such as
`encoder_layers: 12`. All stages of a folder have one shape.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from spiritrt.models.checkpoints import save_part
from spiritrt.models.hubert import Hubert, HubertConfig, LinearQuantizer
from spiritrt.models.weights import config_section
from spiritrt.training.arguments import add_settings, autocast, check_batches, launch, parse, settings
from spiritrt.training.augment import Augmentation, augment
from spiritrt.training.checkpoint import (
    Average,
    Budget,
    Schedule,
    check_origin,
    digest,
    file_digest,
    load_checkpoint,
    rounded,
    set_lr,
)
from spiritrt.training.corpora.manifest import AudioStore, Clip, cut_utterances, read_corpora
from spiritrt.training.encoder import HUBERT_CONFIG, frame_spectra
from spiritrt.training.loop import ALONE, resume, train
from spiritrt.training.losses import outputs_of
from spiritrt.training.processes import Place
from spiritrt.training.units import FRAME_SPAN_SAMPLES, HOP_SAMPLES, frame_count, k_means

Floats = NDArray[np.float32]
Units = NDArray[np.int64]
NANO = dict(config_section(HUBERT_CONFIG, "model_cfg"))
CODE_DIMS = 128
TEMPERATURE = 0.1
MADE_OF = "made_of"  # beside the clips in a file of targets
MOST_POINTS = 20000  # frames that k-means is fitted on


@dataclass(frozen=True, slots=True)
class MaskedTraining:
    """How a stage is trained: `batch` crops of `frames` of 40 ms a batch, `accumulate` batches a step, `mask_share` of
    the frames hidden in spans of `mask_frames`.

    `layer` is the layer whose features the next stage and the quantizer take, 1-based. `shape` has the words of nano's
    `model_cfg` that are to have other values.
    """

    steps: int = 8000
    batch: int = 4
    accumulate: int = 1
    frames: int = 80
    lr: float = 5e-4
    dropout: float = 0.1
    mask_share: float = 0.5
    mask_frames: int = 5
    layer: int = 4
    augmented_share: float = 0.3
    augmentation: Augmentation = field(default_factory=lambda: Augmentation(speed_share=0.0))
    precision: str = "fp32"
    shape: Mapping[str, object] = field(default_factory=dict)
    seed: int = 7

    def __post_init__(self) -> None:
        check_batches(self.precision, self.accumulate)
        if not 0 < self.mask_share < 1 or not 1 <= self.mask_frames < self.frames:
            raise ValueError(f"mask_share must lie in (0, 1) and mask_frames in 1..frames - 1: {self}")
        if unknown := self.shape.keys() - NANO.keys():
            raise ValueError(f"shape has unknown keys {sorted(unknown)}; known are {', '.join(sorted(NANO))}")
        made = self.hubert
        if not 1 <= self.layer <= made.output_layer:
            raise ValueError(f"layer must lie in 1..{made.output_layer}, got {self.layer}")
        if (spans := (made.hop_samples, made.receptive_samples)) != (HOP_SAMPLES, FRAME_SPAN_SAMPLES):
            raise ValueError(
                f"conv_feature_layers must make a frame of {FRAME_SPAN_SAMPLES} samples every {HOP_SAMPLES}, not of "
                f"{spans[1]} every {spans[0]}"
            )

    @property
    def model_cfg(self) -> dict[str, object]:
        """Nano's with the words of `shape`."""
        return NANO | dict(self.shape)

    @property
    def config(self) -> dict[str, object]:
        """The encoder's configuration; every layer is built."""
        return HUBERT_CONFIG | {"model_cfg": self.model_cfg, "output_layer": self.model_cfg["encoder_layers"]}

    @property
    def hubert(self) -> HubertConfig:
        return HubertConfig.from_official(self.config)


def mask_spans(rows: int, training: MaskedTraining, rng: np.random.Generator) -> Tensor:
    """Which frames are hidden, bool [rows, frames]: random spans (they may overlap), about the wanted share."""
    t = training
    # spans overlap: this many give the share in the mean
    count = max(1, round(np.log(1 - t.mask_share) / np.log(1 - t.mask_frames / t.frames)))
    mask = np.zeros((rows, t.frames), bool)
    for row in mask:
        for first in rng.integers(0, t.frames - t.mask_frames + 1, size=count):
            row[first : first + t.mask_frames] = True
    return torch.from_numpy(mask)


def spectral_features(samples: Tensor) -> Tensor:
    """Log mel spectra and their changes under each frame of `samples` [N]: [T, 256]."""
    spectra = frame_spectra(samples[None])[0]
    change = torch.zeros_like(spectra)
    change[1:] = spectra[1:] - spectra[:-1]
    return torch.cat([spectra, change], dim=1)


@torch.no_grad()
def layer_features(hubert: Hubert, samples: Tensor, layer: int) -> Tensor:
    """Features [T, D] of a layer (1-based) for `samples` [N] at 16 kHz."""
    with outputs_of([hubert.encoder.layers[layer - 1]]) as kept:
        hubert(samples[None])
    return kept[0][0]


@dataclass(frozen=True, slots=True)
class Clusters:
    """Normalisation of features and the centres of their clusters."""

    mean: Tensor
    scale: Tensor
    centres: Tensor

    def assign(self, features: Tensor) -> Tensor:
        """Nearest cluster [T] of features [T, D]."""
        return torch.cdist((features - self.mean) / self.scale, self.centres).argmin(dim=1)

    @classmethod
    def fit(cls, features: Sequence[Tensor], count: int, seed: int) -> Clusters:
        """k-means on at most 20,000 frames. Raises ValueError for fewer frames than clusters."""
        generator = torch.Generator().manual_seed(seed)
        points = torch.cat(list(features))
        points = points[torch.randperm(len(points), generator=generator)[:MOST_POINTS]]
        mean, scale = points.mean(dim=0), points.std(dim=0) + 1e-5
        return cls(mean, scale, k_means((points - mean) / scale, count, generator))


class Data:
    """Random crops of the training clips with their targets; a batch is a function of (seed, index) alone."""

    def __init__(self, store: AudioStore, targets: Mapping[str, Units], training: MaskedTraining) -> None:
        """Raises ValueError where no clip is long enough for a crop."""
        self.store, self.targets, self.training = store, targets, training
        of_targets = digest({name: row.tolist() for name, row in targets.items()})
        self.made_of = {"targets": of_targets} | training.model_cfg
        self.clips: list[Clip] = [
            clip for clip in store.clips.values()
            if clip.split == "train" and len(targets.get(clip.id, ())) >= training.frames
        ]  # fmt: skip
        if not self.clips:
            raise ValueError(f"no training clip of {training.frames} frames")
        lengths = np.array([clip.length for clip in self.clips], float)
        self._shares = lengths / lengths.sum()

    def batch(self, index: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Clean sound and sound to be heard [B, N], targets [B, F], and which frames are hidden [B, F]."""
        t = self.training
        rng = np.random.default_rng((t.seed, index))
        samples = (t.frames - 1) * HOP_SAMPLES + FRAME_SPAN_SAMPLES
        clean, heard, targets = [], [], []
        for place in rng.choice(len(self.clips), size=t.batch, p=self._shares):
            clip = self.clips[place]
            row = self.targets[clip.id]
            first = int(rng.integers(len(row) - t.frames + 1))
            sound = self.store.read(clip, first * HOP_SAMPLES, samples)
            clean.append(sound)
            heard.append(augment(sound, t.augmentation, rng) if rng.random() < t.augmented_share else sound)
            targets.append(row[first : first + t.frames])
        mask = mask_spans(t.batch, t, rng)
        return *(torch.from_numpy(np.stack(column)) for column in (clean, heard, targets)), mask  # type: ignore[return-value]


class MaskedTrainer:
    """Encoder, prediction head, optimizer and averaged weights of one stage."""

    def __init__(self, data: Data, training: MaskedTraining, clusters: int, place: Place = ALONE) -> None:
        torch.manual_seed(training.seed)
        self.data, self.training, self.clusters, self.place = data, training, clusters, place
        self.device = place.device
        config = training.hubert
        width = config.encoder_embed_dim
        self.model = nn.ModuleDict({
            "hubert": Hubert(config, training.dropout), "head": nn.Linear(width, CODE_DIMS),
            "codes": nn.Embedding(clusters, CODE_DIMS),
        }).to(self.device)  # fmt: skip
        self.hidden = nn.Parameter((0.1 * torch.randn(width)).to(self.device))
        self.optimizer = torch.optim.AdamW(
            [*self.model.parameters(), self.hidden], training.lr, (0.9, 0.98), weight_decay=0.01
        )
        self.schedule = Schedule(training.lr, training.steps, warmup=min(400, training.steps))
        self.average = Average(self.model)
        self.step_index = 0

    def step(self) -> dict[str, float]:
        set_lr(self.optimizer, self.schedule(self.step_index))
        self.model.train()
        figures = self.place.backward(self.loss, self.step_index, self.training.accumulate)
        self.place.step(self.optimizer, clip=1.0)
        self.average.update(self.model, self.step_index)
        self.step_index += 1
        return figures

    def loss(self, index: int) -> tuple[Tensor, dict[str, float]]:
        """The loss of batch `index`, and its figures."""
        _, heard, targets, mask = (column.to(self.device) for column in self.data.batch(index))
        hubert = self.model["hubert"]
        assert isinstance(hubert, Hubert)
        with autocast(self.device, self.training.precision):
            local = hubert.post_extract_proj(hubert.layer_norm(hubert.feature_extractor(heard).transpose(1, 2)))
            made = self.model["head"](hubert.encoder(torch.where(mask[..., None], self.hidden, local)))[mask].float()
        codes = self.model["codes"](torch.arange(self.clusters, device=self.device))
        logits = F.normalize(made, dim=-1) @ F.normalize(codes, dim=-1).T / TEMPERATURE
        loss = F.cross_entropy(logits, targets[mask])
        hits = (logits.argmax(-1) == targets[mask]).float().mean()
        return loss, {"loss": float(loss.detach()), "accuracy": float(hits)}

    def state(self) -> dict[str, object]:
        return {
            "step": self.step_index, "model": self.model.state_dict(), "hidden": self.hidden.detach(),
            "optimizer": self.optimizer.state_dict(), "average": self.average.tensors, "made_of": self.data.made_of,
        }  # fmt: skip

    def resume(self, state: Mapping[str, object]) -> None:
        """Raises ValueError where the state is of other targets or of another shape."""
        check_origin(state.get("made_of"), self.data.made_of)
        self.model.load_state_dict(state["model"])  # type: ignore[arg-type]
        with torch.no_grad():
            self.hidden.copy_(state["hidden"])  # type: ignore[arg-type]
        self.optimizer.load_state_dict(state["optimizer"])  # type: ignore[arg-type]
        self.average.load(state["average"])  # type: ignore[arg-type]
        self.step_index = int(state["step"])  # type: ignore[call-overload]

    def shipped(self) -> Hubert:
        """A copy of the encoder with averaged weights, in eval mode."""
        hubert = Hubert(self.training.hubert)
        own = {k.removeprefix("hubert."): v for k, v in self.average.tensors.items() if k.startswith("hubert.")}
        hubert.load_state_dict(own)
        return hubert.eval()


class QuantizerTrainer:
    """A linear quantizer on frozen features: CTC of the clean speech's units from disturbed speech."""

    def __init__(
        self, data: Data, hubert: Hubert, training: MaskedTraining, clusters: int, place: Place = ALONE
    ) -> None:
        torch.manual_seed(training.seed)
        self.data, self.training, self.clusters, self.place = data, training, clusters, place
        self.device = place.device
        self.hubert = hubert.eval().to(self.device)
        width = hubert.config.encoder_embed_dim
        self.model = LinearQuantizer(width, width, clusters).to(self.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), training.lr, weight_decay=0.01)
        self.schedule = Schedule(training.lr, training.steps, warmup=min(100, training.steps))
        self.step_index = 0

    def step(self) -> dict[str, float]:
        set_lr(self.optimizer, self.schedule(self.step_index))
        figures = self.place.backward(self.loss, self.step_index, self.training.accumulate)
        self.place.step(self.optimizer)
        self.step_index += 1
        return figures

    def loss(self, index: int) -> tuple[Tensor, dict[str, float]]:
        """The loss of batch `index`, and its figures."""
        _, heard, targets, _ = (column.to(self.device) for column in self.data.batch(index))
        with autocast(self.device, self.training.precision):
            features = torch.stack([layer_features(self.hubert, row, self.training.layer) for row in heard])
            logits = self.model(features).float()
        runs = [torch.unique_consecutive(row) for row in targets]
        loss = F.ctc_loss(
            logits.log_softmax(-1).transpose(0, 1), torch.cat(runs), torch.full((len(runs),), logits.shape[1]),
            torch.tensor([len(run) for run in runs]), blank=self.clusters, zero_infinity=True,
        )  # fmt: skip
        # frames as well: units must keep their times
        loss = loss + F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        hits = (logits.argmax(-1) == targets).float().mean()
        return loss, {"loss": float(loss.detach()), "accuracy": float(hits)}

    def state(self) -> dict[str, object]:
        return {
            "step": self.step_index, "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
            "made_of": self.data.made_of,
        }  # fmt: skip

    def resume(self, state: Mapping[str, object]) -> None:
        """Raises ValueError where the state is of other targets or of another shape."""
        check_origin(state.get("made_of"), self.data.made_of)
        self.model.load_state_dict(state["model"])  # type: ignore[arg-type]
        self.optimizer.load_state_dict(state["optimizer"])  # type: ignore[arg-type]
        self.step_index = int(state["step"])  # type: ignore[call-overload]


def cluster_store(
    store: AudioStore, features_of: Callable[[Tensor], Tensor], count: int, path: Path, seed: int, source: str = "sound"
) -> dict[str, Units]:
    """Targets of every clip by k-means on its features; fitted on the training clips.

    They are kept in `path`, with `source`, what the features are of: another one, or another `count`, makes them anew.
    """
    made_of = f"{source}, {count} clusters"
    if path.is_file():
        with np.load(path) as arrays:
            if MADE_OF in arrays and str(arrays[MADE_OF]) == made_of:
                return {name: arrays[name].astype(np.int64) for name in arrays.files if name != MADE_OF}
    features = {}
    for clip in tqdm(store.clips.values(), desc="features", file=sys.stderr):
        if frame_count(clip.length) > 1:
            features[clip.id] = features_of(torch.from_numpy(store.read(clip)))
    clusters = Clusters.fit([f for i, f in features.items() if store.clips[i].split == "train"], count, seed)
    targets = {i: clusters.assign(f).numpy() for i, f in features.items()}
    partial = path.with_name("partial-" + path.name)
    arrays = {i: row.astype(np.int16) for i, row in targets.items()}
    np.savez(partial, **arrays, **{MADE_OF: np.array(made_of)})  # type: ignore[arg-type]
    partial.replace(path)
    return targets


def hubert_of(path: Path, training: MaskedTraining) -> Hubert:
    """The encoder of a stage's checkpoint.

    Raises FileNotFoundError where the stage has not been trained, and ValueError where it has another shape.
    """
    state = load_checkpoint(path)
    if state is None:
        raise FileNotFoundError(f"no {path}: train the stage before first")
    check_origin(state.get("made_of"), training.model_cfg, str(path))
    average: Mapping[str, Tensor] = state["average"]  # type: ignore[assignment]
    hubert = Hubert(training.hubert)
    hubert.load_state_dict({k.removeprefix("hubert."): v for k, v in average.items() if k.startswith("hubert.")})
    return hubert.eval()


def read_shape(path: Path | None) -> dict[str, object]:
    """The words of a YAML file that are to replace those of nano's `model_cfg`; none without a file.

    Raises ValueError where the file is no mapping.
    """
    shape: object = {} if path is None else yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(shape, dict):
        raise ValueError(f"{path}: not a mapping of words of model_cfg to values")
    return {str(key): value for key, value in shape.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Train HuBERT by masked prediction, and its linear quantizer.")
    parser.add_argument("--corpus", type=Path, nargs="+", required=True, help="folders with a manifest.jsonl")
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoints, targets and logs")
    parser.add_argument("--stage", choices=("1", "2", "quantizer"), required=True)
    parser.add_argument("--model", type=Path, help="quantizer: family to export hubert and quantizer into")
    parser.add_argument("--clusters", type=int, default=500, help="units (stage 1: at most 100 of them)")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--shape", type=Path, help="YAML file of words of model_cfg: where the shape is not nano's")
    add_settings(parser, MaskedTraining())
    args = parse(parser, "hubert")
    training = settings(MaskedTraining, args, shape=read_shape(args.shape))
    args.out.mkdir(parents=True, exist_ok=True)
    by_corpus = read_corpora(args.corpus)
    place = Place.take(args.device)
    with place.first():
        if not (args.out / "audio.json").is_file():
            sound = (pair for c, members in by_corpus.items() for pair in cut_utterances(c, members))
            AudioStore.write(args.out, sound)
        store = AudioStore(args.out)
    if store.clips.keys() != {u.id for members in by_corpus.values() for u in members}:
        parser.error(f"{args.out / 'audio.json'} holds other utterances than --corpus: choose another --out")
    first = min(100, args.clusters)
    if args.stage == "1":
        with place.first():
            targets = cluster_store(store, spectral_features, first, args.out / "targets_1.npz", args.seed)
    else:
        stage = args.out / ("stage_1.ckpt" if args.stage == "2" else "stage_2.ckpt")
        before = hubert_of(stage, training)
        name = "targets_2.npz" if args.stage == "2" else "targets_units.npz"

        def features_of(samples: Tensor) -> Tensor:
            return layer_features(before, samples, args.layer)

        source = f"layer {args.layer} of {file_digest(stage)}"
        with place.first():
            targets = cluster_store(store, features_of, args.clusters, args.out / name, args.seed, source)
    count = first if args.stage == "1" else args.clusters
    data = Data(store, targets, training)
    path = args.out / (f"stage_{args.stage}.ckpt" if args.stage != "quantizer" else "quantizer.ckpt")
    trainer: MaskedTrainer | QuantizerTrainer
    trainer = (
        QuantizerTrainer(data, before, training, count, place)
        if args.stage == "quantizer"
        else MaskedTrainer(data, training, count, place)
    )
    budget = Budget(args.minutes, before_s=resume(trainer, path))
    train(trainer, training.steps, path, path.with_suffix(".log"), budget, place=place)
    place.leave()
    if place.rank > 0:
        return
    if isinstance(trainer, QuantizerTrainer) and args.model is not None:
        config = training.config | {"output_layer": args.layer}
        save_part(args.model, "hubert", config, rounded(trainer.hubert.state_dict()))
        width = trainer.hubert.config.encoder_embed_dim
        shape = {"model_cfg": {"dim": width, "upstream_dim": width, "vocab_size": count}}
        save_part(args.model, "quantizer", shape, rounded(trainer.model.state_dict()))
    print(json.dumps({"stage": args.stage, "step": trainer.step_index, "clips": len(data.clips)}))


if __name__ == "__main__":
    launch(main)
