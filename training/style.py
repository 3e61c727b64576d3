"""Training of the style classifier: a small wav2vec2 that names the style of every second of speech.

Classes are the styles of the manifests (`lively`, `subdued`, ...) in alphabetical order, with `--voices` each for
women's and for men's voices; their names stand in the config's `id2label`. The layout is the official one,
`Wav2Vec2ForSequenceClassification` of the base variant.

    python -m spiritrt.training.style --corpus CORPUS --out build/nano --model MODEL --minutes 20
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from spiritrt.models.checkpoints import save_part
from spiritrt.models.style import StyleClassifier, StyleConfig, encode_style
from spiritrt.training.arguments import add_settings, autocast, check_precision, launch, parse, settings
from spiritrt.training.augment import Augmentation, augment
from spiritrt.training.checkpoint import (
    Average,
    Budget,
    Schedule,
    check_origin,
    rounded,
    set_lr,
)
from spiritrt.training.corpora.manifest import RATE_HZ, Utterance, cut_utterances, read_corpora
from spiritrt.training.loop import ALONE, resume, train
from spiritrt.training.processes import Place

Floats = NDArray[np.float32]
GENDERED = re.compile("[a-z]([fm])_")


def official_config(styles: Sequence[str]) -> dict[str, object]:
    """`config.json` of nano's size for these styles."""
    return {
        "architectures": ["Wav2Vec2ForSequenceClassification"], "model_type": "wav2vec2",
        "conv_dim": [32, 48, 64, 64, 96, 96, 96], "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
        "conv_stride": [5, 2, 2, 2, 2, 2, 2], "conv_bias": False, "feat_extract_norm": "group",
        "feat_extract_activation": "gelu", "hidden_act": "gelu", "hidden_size": 96, "intermediate_size": 192,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_conv_pos_embeddings": 32,
        "num_conv_pos_embedding_groups": 8, "classifier_proj_size": 48, "layer_norm_eps": 1e-5,
        "id2label": {str(i): style for i, style in enumerate(styles)},
    }  # fmt: skip


@dataclass(frozen=True, slots=True)
class StyleTraining:
    """How the classifier is trained: `batch` crops of whole seconds a batch, every style as often as the others, and
    `accumulate` batches a step.

    There is no change of speed in the augmentation: rate and pitch are what a style is.
    """

    steps: int = 3000
    batch: int = 8
    accumulate: int = 1
    seconds: int = 2
    lr: float = 1e-3
    augmented_share: float = 0.5
    smoothing: float = 0.05
    augmentation: Augmentation = field(default_factory=lambda: Augmentation(speed_share=0.0, telephone_share=0.0))
    precision: str = "fp32"
    seed: int = 7

    def __post_init__(self) -> None:
        check_precision(self.precision)
        if min(self.seconds, self.batch, self.accumulate, self.steps) < 1:
            raise ValueError(f"seconds, batch, accumulate and steps must be at least 1: {self}")
        if not 0 <= self.augmented_share <= 1 or not 0 <= self.smoothing < 1:
            raise ValueError(f"augmented_share and smoothing are shares: {self}")


class StyleData:
    """Random crops by style; a batch is a function of (seed, index) alone."""

    def __init__(self, clips: Sequence[tuple[str, Floats]], training: StyleTraining) -> None:
        """`clips` are (style, samples). Raises ValueError for fewer than two styles with clips that are long enough."""
        self.training = training
        self.length = training.seconds * RATE_HZ
        by_style: dict[str, list[Floats]] = {}
        for style, samples in clips:
            if len(samples) >= self.length:
                by_style.setdefault(style, []).append(samples)
        self.styles = sorted(by_style)
        if len(self.styles) < 2:
            raise ValueError(
                f"two styles or more with utterances of {training.seconds} s are needed, got {self.styles}"
            )
        self.clips = [by_style[style] for style in self.styles]

    def batch(self, index: int) -> tuple[Tensor, Tensor]:
        """Sound [B, N] and labels [B]."""
        t = self.training
        rng = np.random.default_rng((t.seed, index))
        labels = rng.integers(len(self.styles), size=t.batch)
        rows = []
        for label in labels:
            clip = self.clips[label][int(rng.integers(len(self.clips[label])))]
            first = int(rng.integers(len(clip) - self.length + 1))
            sound = clip[first : first + self.length]
            rows.append(augment(sound, t.augmentation, rng) if rng.random() < t.augmented_share else sound)
        return torch.from_numpy(np.stack(rows)), torch.from_numpy(labels)


class StyleTrainer:
    """Classifier, optimizer and averaged weights; `step()` returns the figures of one step."""

    def __init__(self, data: StyleData, training: StyleTraining, place: Place = ALONE) -> None:
        torch.manual_seed(training.seed)
        self.data, self.training, self.place, self.device = data, training, place, place.device
        self.config = official_config(data.styles)
        self.model = StyleClassifier(StyleConfig.from_official(self.config)).to(self.device)
        if self.device.type == "cpu":
            in_float32(self.model.wav2vec2.encoder.pos_conv_embed.conv)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), training.lr, (0.9, 0.98), weight_decay=0.02)
        self.schedule = Schedule(training.lr, training.steps, warmup=min(100, training.steps))
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
        sound, labels = (column.to(self.device) for column in self.data.batch(index))
        with autocast(self.device, self.training.precision):
            logits = self.model(sound).float()  # [B, seconds, styles]
        targets = labels[:, None].expand(logits.shape[:2])
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), label_smoothing=self.training.smoothing)
        hits = (logits.argmax(-1) == targets).float().mean()
        return loss, {"loss": float(loss.detach()), "accuracy": float(hits)}

    def state(self) -> dict[str, object]:
        return {
            "step": self.step_index, "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
            "average": self.average.tensors, "styles": self.data.styles,
        }  # fmt: skip

    def resume(self, state: Mapping[str, object]) -> None:
        """Raises ValueError where the state is of other styles."""
        check_origin({"the styles": state["styles"]}, {"the styles": self.data.styles})
        self.model.load_state_dict(state["model"])  # type: ignore[arg-type]
        self.optimizer.load_state_dict(state["optimizer"])  # type: ignore[arg-type]
        self.average.load(state["average"])  # type: ignore[arg-type]
        self.step_index = int(state["step"])  # type: ignore[call-overload]

    def shipped(self) -> StyleClassifier:
        """A copy with averaged weights in fp16, in eval mode."""
        model = StyleClassifier(StyleConfig.from_official(self.config))
        tensors = rounded(self.model.state_dict() | self.average.tensors)
        model.load_state_dict({name: value.float() for name, value in tensors.items()})
        return model.eval()


def in_float32(conv: nn.Conv1d) -> None:
    """Lets `conv` compute in float32 under autocast too.

    With AMX oneDNN's bf16 convolutions (torch 2.13) are wrong by more than their own size where a group has fewer than
    16 channels and the kernel is a long one of a multiple of 4: nano's positional one, 12 channels and 32 frames.
    """
    forward = conv.forward

    def exact(input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            return forward(input.float())

    conv.forward = exact  # type: ignore[method-assign]


def gender_of(speaker: str) -> str | None:
    """`f` or `m` of a name such as Kokoro's (`af_bella`), or of a blend of two of the same; None of any other."""
    letters = {match[1] if (match := GENDERED.match(part)) else None for part in speaker.split("+")}
    return letters.pop() if len(letters) == 1 else None


def read_clips(
    corpora: Sequence[Path], voices: bool = False
) -> tuple[list[tuple[str, Floats]], list[tuple[str, Floats]]]:
    """(class, samples) of the training and of the held-out utterances; with `voices` classes are `lively f` and so on,
    and utterances of voices without a known gender are left out. Raises ValueError where that leaves none."""
    found: tuple[list[tuple[str, Floats]], list[tuple[str, Floats]]] = ([], [])
    left_out: dict[str, int] = {}
    for corpus, utterances in read_corpora(corpora).items():
        pairs: list[tuple[Utterance, Floats]] = list(cut_utterances(corpus, utterances))
        for u, samples in pairs:
            gender = gender_of(u.speaker)
            if voices and gender is None:
                left_out[u.speaker] = left_out.get(u.speaker, 0) + 1
                continue
            found[u.split != "train"].append((f"{u.style} {gender}" if voices else u.style, samples))
    if left_out:
        names = ", ".join(sorted(left_out)[:5])
        said = f"{sum(left_out.values())} utterances whose speakers' names ({names}) do not begin as af_ or bm_ do"
        if not found[0]:
            raise ValueError(f"--voices: nothing but {said}")
        print(f"left out: {said}", file=sys.stderr)
    return found


def evaluate(model: StyleClassifier, styles: Sequence[str], clips: Sequence[tuple[str, Floats]]) -> dict[str, float]:
    """On whole held-out utterances: share of seconds that are named right, in all and by style."""
    right: dict[str, list[float]] = {}
    for style, samples in clips:
        if style in styles and len(samples) >= RATE_HZ // 2:
            codes = encode_style(model, torch.from_numpy(samples))
            right.setdefault(style, []).append(float((codes == styles.index(style)).float().mean()))
    figures = {f"accuracy, {style}": round(float(np.mean(values)), 4) for style, values in sorted(right.items())}
    if not right:
        return {}
    everything = [value for values in right.values() for value in values]
    return {
        "accuracy": round(float(np.mean(everything)), 4),
        "balanced": round(float(np.mean(list(figures.values()))), 4),
    } | figures


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the style classifier and export it as a family's style part.")
    parser.add_argument("--corpus", type=Path, nargs="+", required=True, help="folders with a manifest.jsonl")
    parser.add_argument("--out", type=Path, default=Path("build/nano"), help="folder of style.ckpt and style.log")
    parser.add_argument("--model", type=Path, required=True, help="family to export into")
    parser.add_argument("--voices", action="store_true", help="classes of their own for women's and for men's voices")
    parser.add_argument("--minutes", type=float, default=20)
    add_settings(parser, StyleTraining())
    args = parse(parser, "style")
    clips, held_out = read_clips(args.corpus, args.voices)
    training = settings(StyleTraining, args)
    place = Place.take(args.device)
    trainer = StyleTrainer(StyleData(clips, training), training, place)
    args.out.mkdir(parents=True, exist_ok=True)
    budget = Budget(args.minutes, before_s=resume(trainer, args.out / "style.ckpt"))
    train(trainer, training.steps, args.out / "style.ckpt", args.out / "style.log", budget, place=place)
    place.leave()
    if place.rank > 0:
        return
    shipped = trainer.shipped()
    save_part(args.model, "style", trainer.config, rounded(shipped.state_dict()))
    print(json.dumps({"step": trainer.step_index, **evaluate(shipped, trainer.data.styles, held_out)}))


if __name__ == "__main__":
    launch(main)
