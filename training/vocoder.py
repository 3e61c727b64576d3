"""Training of the unit HiFi-GAN: spectral losses first, then two light discriminators, then the duration predictor.

Only the voices that nano speaks with are trained on. `lively` and `subdued` lines are left out: units carry no pitch,
and what the input cannot tell the output can only blur.

    python -m spiritrt.training.vocoder --out build/nano --minutes 85
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from tqdm import tqdm

from spiritrt.models.checkpoints import save_part
from spiritrt.models.vocoder import ResidualBlock, Vocoder, VocoderConfig, vocoder_from_official
from spiritrt.training.checkpoint import Average, Budget, Schedule, load_checkpoint, rounded, save_checkpoint, set_lr
from spiritrt.training.corpora.manifest import AudioStore, Clip
from spiritrt.training.discriminators import Discriminators, adversarial_loss, discriminator_loss, feature_loss
from spiritrt.training.losses import SpectralLoss
from spiritrt.training.units import HOP_SAMPLES

SPEAKERS = ("am_michael", "bf_emma", "af_heart", "bm_george")
OFFICIAL_CONFIG: dict[str, object] = {
    "resblock": "1",
    "upsample_rates": [5, 4, 4, 4, 2],
    "upsample_kernel_sizes": [11, 8, 8, 8, 4],
    "upsample_initial_channel": 320,
    "resblock_kernel_sizes": [3, 7],
    "resblock_dilation_sizes": [[1, 3], [1, 3]],
    "num_embeddings": 501,
    "embedding_dim": 128,
    "model_in_dim": 256,
    "code_hop_size": 640,
    "sampling_rate": 16000,
    "multispkr": "from_input_file",
    "num_speakers": len(SPEAKERS),
    "dur_predictor_params": {
        "encoder_embed_dim": 128,
        "var_pred_hidden_dim": 128,
        "var_pred_kernel_size": 3,
        "var_pred_dropout": 0.3,
    },
    "speakers": list(SPEAKERS),
}
Units = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class VocoderTraining:
    """How the vocoder is trained; times in frames of 40 ms, steps are optimizer steps."""

    steps: int = 11000
    gan_from: int = 11000
    batch: int = 2
    frames: int = 32
    lr: float = 1e-3
    gan_lr: float = 2e-4
    gan_frames: int = 12
    swap_units: float = 0.04
    encoder_share: float = 0.7
    duration_steps: int = 900
    styles: tuple[str, ...] = ("neutral", "fast", "slow")
    speaker_weights: tuple[float, ...] = (0.33, 0.16, 0.35, 0.16)
    seed: int = 7

    def __post_init__(self) -> None:
        if min(self.steps, self.batch, self.frames, self.gan_frames) < 1 or self.gan_frames > self.frames:
            raise ValueError(f"steps, batch and frames must be positive, gan_frames at most frames: {self}")
        if len(self.speaker_weights) != len(SPEAKERS):
            raise ValueError(f"speaker_weights needs {len(SPEAKERS)} values, got {self.speaker_weights}")


class VocoderData:
    """Random aligned crops of units and sound; a batch is a function of (seed, step) alone."""

    def __init__(
        self,
        store: AudioStore,
        targets: Mapping[str, Units],
        encoded: Sequence[Mapping[str, Units]],
        inventory: list[str],
        training: VocoderTraining,
    ) -> None:
        self.store, self.targets, self.encoded, self.training = store, targets, encoded, training
        self.by_speaker: list[list[Clip]] = [
            [
                clip for clip in store.clips.values()
                if clip.speaker == speaker and clip.split == "train" and clip.style in training.styles
                and len(targets.get(clip.id, ())) >= training.frames
            ]
            for speaker in SPEAKERS
        ]  # fmt: skip
        empty = [s for s, clips in zip(SPEAKERS, self.by_speaker, strict=True) if not clips]
        if empty:
            raise ValueError(f"no training utterances of {training.frames} frames for the voices {empty}")
        self.weights = [np.array([c.length for c in clips], float) for clips in self.by_speaker]
        names = np.array(inventory)
        self.siblings = [np.flatnonzero(names == name) for name in names]

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Units [B, F], speakers [B] and sound [B, F * 640] for a step."""
        t = self.training
        rng = np.random.default_rng((t.seed, step))
        units, sound = np.empty((t.batch, t.frames), np.int64), np.empty((t.batch, t.frames * HOP_SAMPLES), np.float32)
        share = np.array(t.speaker_weights) / sum(t.speaker_weights)
        speakers = rng.choice(len(SPEAKERS), size=t.batch, p=share)
        for row, speaker in enumerate(speakers):
            weights = self.weights[speaker]
            clip = self.by_speaker[speaker][rng.choice(len(weights), p=weights / weights.sum())]
            line = self.targets[clip.id]
            if self.encoded and rng.random() < t.encoder_share:
                line = self.encoded[int(rng.integers(len(self.encoded)))].get(clip.id, line)
            first = int(rng.integers(len(line) - t.frames + 1))
            cut = line[first : first + t.frames].copy()
            for at in np.flatnonzero(rng.random(t.frames) < t.swap_units):
                cut[at] = rng.choice(self.siblings[cut[at]])
            units[row] = cut
            sound[row] = self.store.read(clip, first * HOP_SAMPLES, t.frames * HOP_SAMPLES)
        return torch.from_numpy(units), torch.from_numpy(speakers), torch.from_numpy(sound)


def build_vocoder() -> Vocoder:
    """A fresh vocoder with weight norm on every convolution of the generator."""
    vocoder = Vocoder(VocoderConfig.from_official(OFFICIAL_CONFIG))
    for up in vocoder.ups:
        assert isinstance(up, nn.ConvTranspose1d)
        nn.init.kaiming_normal_(up.weight, nonlinearity="leaky_relu", a=0.1)
        with torch.no_grad():  # each output sample sees kernel / stride taps only
            up.weight.mul_((up.weight.shape[1] * up.stride[0] / up.weight.shape[0]) ** 0.5)
    for module in vocoder.resblocks:
        assert isinstance(module, ResidualBlock)
        for dilated, plain in zip(module.convs1, module.convs2, strict=True):
            assert isinstance(dilated, nn.Conv1d) and isinstance(plain, nn.Conv1d)
            nn.init.kaiming_normal_(dilated.weight, nonlinearity="leaky_relu", a=0.1)
            nn.init.kaiming_normal_(plain.weight, nonlinearity="leaky_relu", a=0.1)
            with torch.no_grad():
                plain.weight.mul_(0.3)
    nn.init.normal_(vocoder.conv_post.weight, std=0.02)
    for conv in generator_convs(vocoder):
        weight_norm(conv)
    return vocoder


def generator_convs(vocoder: Vocoder) -> Iterator[nn.Module]:
    yield vocoder.conv_pre
    yield from vocoder.ups
    for block in vocoder.resblocks:
        yield from (m for m in block.modules() if isinstance(m, nn.Conv1d))
    yield vocoder.conv_post


def folded(vocoder: Vocoder, average: Average | None) -> Vocoder:
    """A copy in eval mode with averaged weights and weight norm folded, as it is shipped."""
    return vocoder_from_official(OFFICIAL_CONFIG, vocoder.state_dict() | (average.tensors if average else {}))


def run_lengths(units: Units) -> tuple[Units, Units]:
    """Deduplicated units [R] and how many frames each lasted [R]."""
    if not len(units):
        return units, units
    starts = np.flatnonzero(np.r_[True, np.diff(units) != 0])
    return units[starts], np.diff(np.r_[starts, len(units)])


def fit_durations(vocoder: Vocoder, lines: list[Units], seed: int, steps: int, batch: int = 16) -> None:
    """Train the duration predictor of `vocoder` in place on frame units; the unit embedding stays as it is."""
    assert vocoder.dur_predictor is not None
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    pairs = [run_lengths(line) for line in lines if len(line) > 2]
    predictor = vocoder.dur_predictor.train()
    optimizer = torch.optim.AdamW(predictor.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = Schedule(2e-3, steps, warmup=50)
    for step in tqdm(range(steps), desc="durations", file=sys.stderr):
        set_lr(optimizer, schedule(step))
        chosen = [pairs[i] for i in rng.integers(len(pairs), size=batch)]
        width = max(len(units) for units, _ in chosen)
        units, frames = torch.zeros(batch, width, dtype=torch.long), torch.zeros(batch, width)
        for row, (u, d) in enumerate(chosen):
            # unequal rows are filled up by running on from the start, so that no padding is learnt
            repeat = np.resize(np.arange(len(u)), width)
            units[row], frames[row] = torch.from_numpy(u[repeat]), torch.from_numpy(d[repeat].astype(np.float32))
        x = predictor(vocoder.dict(units).detach())
        loss = (x - torch.log(frames + 1)).square().clamp_max(4).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    vocoder.eval()


@torch.no_grad()
def duration_error(vocoder: Vocoder, lines: list[Units]) -> dict[str, float]:
    """Mean absolute error in frames a unit, and predicted over real total length, on frame units."""
    errors, made, real = [], 0, 0
    for units, frames in map(run_lengths, lines):
        predicted = vocoder.durations(torch.from_numpy(units)[None])[0].numpy()
        errors.append(np.abs(predicted - frames))
        made, real = made + int(predicted.sum()), real + int(frames.sum())
    return {"duration_error_frames": float(np.concatenate(errors).mean()), "length_ratio": made / real}


class VocoderTrainer:
    """Model, discriminators, optimizers and their state; `step()` makes one optimizer step and returns its losses."""

    def __init__(self, data: VocoderData, training: VocoderTraining) -> None:
        torch.manual_seed(training.seed)
        self.data, self.training = data, training
        self.vocoder, self.discriminators = build_vocoder(), Discriminators()
        trained = [p for n, p in self.vocoder.named_parameters() if not n.startswith("dur_predictor")]
        self.optimizer = torch.optim.AdamW(trained, lr=training.lr, betas=(0.8, 0.99), weight_decay=0.0)
        self.d_optimizer = torch.optim.AdamW(self.discriminators.parameters(), lr=training.gan_lr, betas=(0.8, 0.99))
        self.average = Average(self.vocoder)
        self.loss = SpectralLoss()
        self.step_index = 0

    def learning_rate(self) -> float:
        t = self.training
        if self.step_index < t.gan_from:
            return Schedule(t.lr, t.gan_from, floor=t.gan_lr / t.lr)(self.step_index)
        return t.gan_lr

    def step(self) -> dict[str, float]:
        t = self.training
        units, speakers, real = self.data.batch(self.step_index)
        set_lr(self.optimizer, self.learning_rate())
        made = self.vocoder(units, speakers)
        spectral = self.loss(made, real)
        losses = {"spectral": float(spectral.detach())}
        total = spectral
        if self.step_index >= t.gan_from:
            rng = np.random.default_rng((t.seed, self.step_index, 1))
            first = int(rng.integers(t.frames - t.gan_frames + 1)) * HOP_SAMPLES
            a, b = (x[:, first : first + t.gan_frames * HOP_SAMPLES] for x in (made, real))
            d_loss = discriminator_loss(self.discriminators(a.detach()), self.discriminators(b))
            self.d_optimizer.zero_grad(set_to_none=True)
            d_loss.backward()
            self.d_optimizer.step()
            self.discriminators.requires_grad_(False)
            with torch.no_grad():
                of_real = self.discriminators(b)
            of_made = self.discriminators(a)
            self.discriminators.requires_grad_(True)
            adversarial, features = adversarial_loss(of_made), feature_loss(of_made, of_real)
            total = 15 * spectral + adversarial + 2 * features
            losses |= {"d": float(d_loss.detach()), "g": float(adversarial.detach()), "fm": float(features.detach())}
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(self.vocoder.parameters(), 20.0 if self.step_index >= t.gan_from else 5.0)
        self.optimizer.step()
        self.average.update(self.vocoder, self.step_index)
        self.step_index += 1
        return losses

    def state(self) -> dict[str, object]:
        return {
            "step": self.step_index, "vocoder": self.vocoder.state_dict(), "optimizer": self.optimizer.state_dict(),
            "discriminators": self.discriminators.state_dict(), "d_optimizer": self.d_optimizer.state_dict(),
            "average": self.average.tensors,
        }  # fmt: skip

    def resume(self, state: Mapping[str, object]) -> None:
        self.vocoder.load_state_dict(state["vocoder"])  # type: ignore[arg-type]
        self.optimizer.load_state_dict(state["optimizer"])  # type: ignore[arg-type]
        self.discriminators.load_state_dict(state["discriminators"])  # type: ignore[arg-type]
        self.d_optimizer.load_state_dict(state["d_optimizer"])  # type: ignore[arg-type]
        self.average.load(state["average"])  # type: ignore[arg-type]
        self.step_index = int(state["step"])  # type: ignore[call-overload]


def read_units(path: Path) -> dict[str, Units]:
    """Frame units of every utterance of a units file (JSON lines)."""
    if not path.is_file():
        raise FileNotFoundError(f"no units at {path}: run `python -m spiritrt.training.units` first")
    with path.open(encoding="utf-8") as lines:
        return {item["id"]: np.array(item["units"], np.int64) for item in map(json.loads, lines)}


def export(trainer: VocoderTrainer, model: Path, lines: list[Units], held_out: list[Units]) -> dict[str, float]:
    """Fit durations to `lines` on averaged weights and write the `vocoder` part (fp16) of the family in `model`."""
    shipped = folded(trainer.vocoder, trainer.average)
    fit_durations(shipped, lines, trainer.training.seed, trainer.training.duration_steps)
    save_part(model, "vocoder", OFFICIAL_CONFIG, rounded(shipped.state_dict()))
    return {"step": float(trainer.step_index), **duration_error(shipped, held_out)}


def main() -> None:
    defaults = VocoderTraining()
    parser = argparse.ArgumentParser(description="Train the unit vocoder and export it.")
    parser.add_argument(
        "--out", type=Path, default=Path("build/nano"), help="folder that spiritrt.training.units wrote"
    )
    parser.add_argument("--model", type=Path, default=Path("models/nano"), help="family to export into")
    parser.add_argument("--minutes", type=float, default=80)
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument(
        "--gan-from",
        type=int,
        default=defaults.gan_from,
        help="step at which discriminators join (off where not below --steps)",
    )
    parser.add_argument("--batch", type=int, default=defaults.batch)
    parser.add_argument("--frames", type=int, default=defaults.frames)
    parser.add_argument("--lr", type=float, default=defaults.lr)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--export-only", action="store_true", help="export the last checkpoint without training")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    training = VocoderTraining(
        steps=args.steps, gan_from=args.gan_from, batch=args.batch, frames=args.frames, lr=args.lr, seed=args.seed
    )
    with np.load(args.out / "targets.npz") as arrays:
        targets = {k.removesuffix("/units"): arrays[k].astype(np.int64) for k in arrays.files if k.endswith("/units")}
    files = [args.out / "encoder_units.jsonl", args.out / "encoder_units_noisy.jsonl"]
    encoded = [read_units(file) for file in files if file.is_file()]
    inventory = json.loads((args.out / "inventory.json").read_text(encoding="utf-8"))
    store = AudioStore(args.out)
    trainer = VocoderTrainer(VocoderData(store, targets, encoded, inventory, training), training)
    path = args.out / "vocoder.ckpt"
    state = load_checkpoint(path)
    if state is not None:
        trainer.resume(state)
    if not args.export_only:
        train(trainer, path, args.out / "vocoder.log", Budget(args.minutes))
    neutral = [clip for clip in store.clips.values() if clip.style == "neutral" and clip.id in targets]
    lines, held_out = (
        [(encoded[0] if encoded else targets)[clip.id] for clip in neutral if (clip.split == "train") == trained]
        for trained in (True, False)
    )
    print(json.dumps(export(trainer, args.model, lines, held_out)))


def train(trainer: VocoderTrainer, path: Path, log: Path, budget: Budget) -> None:
    """Step until the budget or the steps are used up; checkpoints to `path`, mean losses to `log` (JSON lines)."""
    steps = trainer.training.steps
    progress = tqdm(total=steps, initial=trainer.step_index, desc="vocoder", file=sys.stderr, mininterval=10)
    sums: dict[str, float] = {}
    began, counted = time.monotonic(), 0
    with log.open("a", encoding="utf-8") as out, budget:
        while trainer.step_index < steps and not budget.spent():
            for name, value in trainer.step().items():
                sums[name] = sums.get(name, 0.0) + value
            counted += 1
            progress.update()
            if counted == 100:
                line = {"step": trainer.step_index, "s_a_step": round((time.monotonic() - began) / counted, 3)}
                out.write(json.dumps(line | {k: round(v / counted, 4) for k, v in sums.items()}) + "\n")
                out.flush()
                sums, began, counted = {}, time.monotonic(), 0
            if budget.save_due():
                save_checkpoint(path, trainer.state())
    progress.close()
    save_checkpoint(path, trainer.state())


if __name__ == "__main__":
    main()
