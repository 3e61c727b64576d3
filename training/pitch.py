"""Training of the F0 VQ-VAE: 64 codes of pitch, 12.5 a second (Polyak et al. 2021, on Jukebox's VQ-VAE).

The encoder and the codebook are those of the official layout (`spiritrt.models.pitch`); the decoder that they are
trained with is not shipped. The codebook follows the encoder by moving averages, codes that nothing uses are started
anew. F0 comes from the tracker that the model will be used with, once for each utterance.

    python -m spiritrt.training.pitch --corpus CORPUS --out build/nano --model MODEL --minutes 20
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from spiritrt.models.checkpoints import save_part
from spiritrt.models.pitch import (
    FcpeTracker,
    PitchQuantizer,
    PitchQuantizerConfig,
    PitchTrack,
    PitchTracker,
    YaaptTracker,
)
from spiritrt.training.arguments import CPU, add_settings, autocast, check_batches, launch, parse, settings
from spiritrt.training.checkpoint import Budget, Schedule, check_origin, digest, file_digest, set_lr
from spiritrt.training.corpora.manifest import cut_utterances, read_corpora
from spiritrt.training.loop import resume, train

SECTION: dict[str, object] = {
    "input_emb_width": 2, "output_emb_width": 64, "levels": 1, "downs_t": [4], "strides_t": [2], "width": 32,
    "depth": 3, "m_conv": 1.0, "dilation_growth_rate": 3,
}  # fmt: skip
OFFICIAL_CONFIG: dict[str, object] = {
    "features": "norm_f0_interp,vuv", "speaker_norm": False, "encoder_params": SECTION, "decoder_params": SECTION,
    "vq_params": {"l_bins": 64, "emb_width": 64, "mu": 0.99, "levels": 1},
}  # fmt: skip
SCALE_HZ = 50.0  # F0 is learnt in this unit; the shipped encoder takes Hz
SAVE_EVERY = 200  # utterances that a kill makes track again
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class PitchTraining:
    """How the quantizer is trained: `batch` crops of `frames` of F0 (200 Hz) a batch, `accumulate` batches a step."""

    steps: int = 6000
    batch: int = 16
    accumulate: int = 1
    frames: int = 512
    lr: float = 1e-3
    commitment: float = 0.1
    voicing_weight: float = 0.5
    decay: float = 0.99
    least_use: float = 0.05
    precision: str = "fp32"
    seed: int = 7

    def __post_init__(self) -> None:
        check_batches(self.precision, self.accumulate)
        if self.frames < 32 or self.frames % 16:
            raise ValueError(f"frames must be a multiple of 16 from 32, got {self.frames}")
        if not 0 < self.decay < 1 or min(self.commitment, self.voicing_weight, self.least_use) < 0:
            raise ValueError(f"decay must lie in (0, 1), weights must not be negative: {self}")


class PitchDecoder(nn.Module):
    """Codes' vectors [B, emb_width, T] back to features [B, 2, 16 T]: the encoder turned round."""

    def __init__(self, config: PitchQuantizerConfig) -> None:
        super().__init__()
        stride, width = config.strides_t, config.width
        layers: list[nn.Module] = [nn.Conv1d(config.emb_width, width, 3, padding=1)]
        for i in range(config.downs_t):
            for depth in range(config.depth):
                dilation = config.dilation_growth_rate ** (config.depth - 1 - depth)
                layers.append(_Residual(width, dilation))
            out = width if i + 1 < config.downs_t else len(config.features)
            layers.append(nn.ConvTranspose1d(width, out, 2 * stride, stride, padding=stride // 2))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class _Residual(nn.Module):
    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.ReLU(), nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation), nn.ReLU(),
            nn.Conv1d(width, width, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class PitchData:
    """Random crops of F0 features; a batch is a function of (seed, index) alone."""

    def __init__(
        self, features: Sequence[Floats], training: PitchTraining, made_of: Mapping[str, object] | None = None
    ) -> None:
        """`features` are [2, T] arrays in Hz and voicing, `made_of` says of what (`track_corpora`).

        Raises ValueError where none is long enough for a crop.
        """
        self.features = [row for row in features if row.shape[1] >= training.frames]
        if not self.features:
            longest = max((row.shape[1] for row in features), default=0)
            raise ValueError(f"no utterance of {training.frames} frames (200 Hz); the longest has {longest}")
        self.training, self.made_of = training, dict(made_of or {})
        lengths = np.array([row.shape[1] for row in self.features], float)
        self._shares = lengths / lengths.sum()

    def batch(self, index: int) -> Tensor:
        """Features [B, 2, frames], F0 in units of `SCALE_HZ`."""
        t = self.training
        rng = np.random.default_rng((t.seed, index))
        rows = []
        for place in rng.choice(len(self.features), size=t.batch, p=self._shares):
            first = int(rng.integers(self.features[place].shape[1] - t.frames + 1))
            rows.append(self.features[place][:, first : first + t.frames])
        made = torch.from_numpy(np.stack(rows).astype(np.float32))
        made[:, 0] /= SCALE_HZ
        return made


class PitchTrainer:
    """Quantizer, decoder, optimizer and the codebook's averages; `step()` returns the figures of one step."""

    def __init__(self, data: PitchData, training: PitchTraining, device: torch.device = CPU) -> None:
        torch.manual_seed(training.seed)
        self.data, self.training, self.device = data, training, device
        config = PitchQuantizerConfig.from_official(OFFICIAL_CONFIG)
        self.quantizer, self.decoder = PitchQuantizer(config).to(device), PitchDecoder(config).to(device)
        self.optimizer = torch.optim.AdamW(
            [*self.quantizer.encoder.parameters(), *self.decoder.parameters()], training.lr, (0.9, 0.98)
        )
        self.schedule = Schedule(training.lr, training.steps, warmup=min(100, training.steps))
        self.codes: Tensor = dict(self.quantizer.named_buffers())["vq.level_blocks.0.k"]
        self.use = torch.ones(config.l_bins, device=device)
        self.sums = torch.zeros_like(self.codes)
        self.step_index = 0

    def step(self) -> dict[str, float]:
        many = self.training.accumulate
        set_lr(self.optimizer, self.schedule(self.step_index))
        figures: dict[str, float] = {}
        made: list[tuple[Tensor, Tensor]] = []
        for index in range(self.step_index * many, (self.step_index + 1) * many):
            loss, of_batch, vectors, chosen = self.loss(index)
            (loss / many).backward()
            made.append((vectors, chosen))
            for name, value in of_batch.items():
                figures[name] = figures.get(name, 0.0) + value / many
        nn.utils.clip_grad_norm_([p for group in self.optimizer.param_groups for p in group["params"]], 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._follow(*(torch.cat(column) for column in zip(*made, strict=True)))
        self.step_index += 1
        share = self.use / self.use.sum()
        return figures | {"codes_used": float(torch.exp(-(share * (share + 1e-9).log()).sum()))}

    def loss(self, index: int) -> tuple[Tensor, dict[str, float], Tensor, Tensor]:
        """The loss of batch `index` and its figures, with the encoder's vectors [N, D] and their codes [N]."""
        t = self.training
        features = self.data.batch(index).to(self.device)
        with autocast(self.device, t.precision):
            encoded = self.quantizer.encoder(features).float()  # [B, D, T]
        flat = encoded.detach().transpose(1, 2).reshape(-1, encoded.shape[1])
        if index == 0:
            self._restart(torch.ones_like(self.use, dtype=torch.bool), flat)
        chosen = self.quantizer.vq(encoded.detach().transpose(1, 2)).argmax(-1)  # [B, T]
        vectors = self.codes[chosen].transpose(1, 2)
        commitment = F.mse_loss(encoded, vectors)
        with autocast(self.device, t.precision):
            made = self.decoder(encoded + (vectors - encoded).detach()).float()
        voiced = features[:, 1]
        # interpolated stretches matter little: nothing is heard of them
        weights = 0.1 + 0.9 * voiced
        f0_loss = ((made[:, 0] - features[:, 0]).square() * weights).sum() / weights.sum()
        voicing_loss = F.mse_loss(made[:, 1], voiced)
        loss = f0_loss + t.voicing_weight * voicing_loss + t.commitment * commitment
        error_hz = (made[:, 0] - features[:, 0]).detach().abs()[voiced > 0.5]
        figures = {
            "loss": float(loss.detach()),
            "f0_error_hz": SCALE_HZ * float(error_hz.mean()) if len(error_hz) else 0.0,
            "voicing_error": float(((made[:, 1].detach() > 0.5) != (voiced > 0.5)).float().mean()),
        }
        return loss, figures, flat, chosen.flatten()

    @torch.no_grad()
    def _follow(self, flat: Tensor, chosen: Tensor) -> None:
        """Moving averages of the vectors of each code; codes that are hardly used begin again at random vectors."""
        t = self.training
        counts = torch.bincount(chosen, minlength=len(self.codes)).float()
        self.use.mul_(t.decay).add_(counts, alpha=1 - t.decay)
        self.sums.mul_(t.decay).add_(torch.zeros_like(self.sums).index_add_(0, chosen, flat), alpha=1 - t.decay)
        self.codes.copy_(self.sums / self.use.clamp_min(1e-3)[:, None])
        self._restart(self.use < t.least_use * len(flat) / len(self.codes), flat)

    @torch.no_grad()
    def _restart(self, which: Tensor, flat: Tensor) -> None:
        count = int(which.sum())
        if count:
            generator = torch.Generator().manual_seed(self.training.seed * 1_000_003 + self.step_index)
            drawn = flat[torch.randint(len(flat), (count,), generator=generator).to(flat.device)]
            self.codes[which] = drawn
            self.use[which] = len(flat) / len(self.codes)
            self.sums[which] = drawn * self.use[which][:, None]

    def state(self) -> dict[str, object]:
        return {
            "step": self.step_index, "quantizer": self.quantizer.state_dict(), "decoder": self.decoder.state_dict(),
            "optimizer": self.optimizer.state_dict(), "use": self.use, "sums": self.sums,
            "made_of": self.data.made_of,
        }  # fmt: skip

    def resume(self, state: Mapping[str, object]) -> None:
        """Raises ValueError where the state is of another corpus or another tracker."""
        check_origin(state.get("made_of"), self.data.made_of)
        self.quantizer.load_state_dict(state["quantizer"])  # type: ignore[arg-type]
        self.decoder.load_state_dict(state["decoder"])  # type: ignore[arg-type]
        self.optimizer.load_state_dict(state["optimizer"])  # type: ignore[arg-type]
        self.use.copy_(state["use"])  # type: ignore[arg-type]
        self.sums.copy_(state["sums"])  # type: ignore[arg-type]
        self.step_index = int(state["step"])  # type: ignore[call-overload]

    def shipped(self) -> dict[str, Tensor]:
        """Weights of the quantizer for F0 in Hz, as the `pitch` part of a family."""
        tensors = {n: value.detach().to("cpu", copy=True) for n, value in self.quantizer.state_dict().items()}
        first = next(name for name in tensors if name.endswith("weight"))
        tensors[first][:, 0] /= SCALE_HZ
        return tensors


def track_corpora(
    corpora: Sequence[Path], tracker: PitchTracker, name: str, cache: Path
) -> tuple[list[Floats], list[Floats], dict[str, object]]:
    """Features [2, T] (normalised F0 in Hz, voicing) of the training and of the held-out utterances; of what they are.

    They are kept in `cache`, under the tracker's `name` and a digest of the sound file and of the cut: what is there is
    not tracked again, and what was cut or recorded anew is.
    """
    known: dict[str, Floats] = dict(np.load(cache)) if cache.is_file() else {}
    quantizer = PitchQuantizer(PitchQuantizerConfig.from_official(OFFICIAL_CONFIG))
    found: tuple[list[Floats], list[Floats]] = ([], [])
    trained: list[str] = []
    fresh = 0
    for corpus, utterances in read_corpora(corpora).items():
        sounds = {file: file_digest(corpus / file) for file in dict.fromkeys(u.file for u in utterances)}
        keys = {u.id: f"{name}-{digest([sounds[u.file], u.offset_s, u.duration_s])}" for u in utterances}
        missing = [u for u in utterances if keys[u.id] not in known]
        pairs = tqdm(cut_utterances(corpus, missing), total=len(missing), desc="F0", file=sys.stderr)
        for u, samples in pairs:
            if u.duration_s >= 0.1:
                track: PitchTrack = tracker(torch.from_numpy(samples))
                known[keys[u.id]] = quantizer.features(track).numpy()
                fresh += 1
                if fresh % SAVE_EVERY == 0:
                    _save(cache, known)
        for u in utterances:
            if (key := keys[u.id]) in known:
                found[u.split != "train"].append(known[key])
                trained += [key] * (u.split == "train")
    if fresh % SAVE_EVERY:
        _save(cache, known)
    return *found, {"tracker": name, "utterances": digest(trained)}


def _save(cache: Path, known: Mapping[str, Floats]) -> None:
    cache.parent.mkdir(parents=True, exist_ok=True)
    partial = cache.with_name("partial-" + cache.name)
    np.savez(partial, **known)  # type: ignore[arg-type]
    os.replace(partial, cache)


@torch.no_grad()
def evaluate(trainer: PitchTrainer, features: Sequence[Floats]) -> dict[str, float]:
    """On whole held-out utterances: mean F0 error in Hz over voiced frames, voicing errors, codes used (perplexity)."""
    errors, wrong, codes = [], [], []
    for row in features:
        length = row.shape[1] // 16 * 16
        if length < 16:
            continue
        given = torch.from_numpy(row[None, :, :length].astype(np.float32)).to(trainer.device, copy=True)
        given[:, 0] /= SCALE_HZ
        chosen = trainer.quantizer(given).argmax(-1)
        made = trainer.decoder(trainer.codes[chosen].transpose(1, 2))
        voiced = given[0, 1] > 0.5
        errors.append((made[0, 0] - given[0, 0]).abs()[voiced])
        wrong.append(((made[0, 1] > 0.5) != voiced).float())
        codes.append(chosen[0])
    if not errors:
        return {}
    share = torch.bincount(torch.cat(codes), minlength=len(trainer.codes)).float()
    share = share / share.sum()
    return {
        "f0_error_hz": SCALE_HZ * float(torch.cat(errors).mean()),
        "voicing_error": float(torch.cat(wrong).mean()),
        "codes_used": float(torch.exp(-(share * (share + 1e-9).log()).sum())),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the F0 VQ-VAE and export it as a family's pitch part.")
    parser.add_argument("--corpus", type=Path, nargs="+", required=True, help="folders with a manifest.jsonl")
    parser.add_argument("--out", type=Path, default=Path("build/nano"), help="folder of pitch.ckpt, f0.npz, pitch.log")
    parser.add_argument("--model", type=Path, required=True, help="family to export into")
    parser.add_argument("--tracker", choices=("fcpe", "yaapt"), default="fcpe")
    parser.add_argument("--minutes", type=float, default=20)
    add_settings(parser, PitchTraining())
    args = parse(parser, "pitch")
    tracker: PitchTracker = FcpeTracker() if args.tracker == "fcpe" else YaaptTracker()
    training = settings(PitchTraining, args)
    features, held_out, made_of = track_corpora(args.corpus, tracker, args.tracker, args.out / "f0.npz")
    trainer = PitchTrainer(PitchData(features, training, made_of), training, args.device)
    budget = Budget(args.minutes, before_s=resume(trainer, args.out / "pitch.ckpt"))
    train(trainer, training.steps, args.out / "pitch.ckpt", args.out / "pitch.log", budget)
    save_part(args.model, "pitch", OFFICIAL_CONFIG, trainer.shipped())
    print(json.dumps({"step": trainer.step_index, **evaluate(trainer, held_out)}))


if __name__ == "__main__":
    launch(main)
