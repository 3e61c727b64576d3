"""What the encoder is trained on: random augmented crops of a corpus with the units under each of their frames."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from spiritrt.training.arguments import check_batches
from spiritrt.training.augment import Augmentation, augment, change_speed, draw_speed
from spiritrt.training.checkpoint import digest
from spiritrt.training.corpora.manifest import UNLABELLED, AudioStore, Clip, of_units
from spiritrt.training.units import FRAME_SPAN_SAMPLES, HOP_SAMPLES

Units = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class EncoderTraining:
    """How the encoder is trained; `batch_frames` frames of 40 ms a batch, cut in crops of one of `crop_frames`, and
    `accumulate` batches a step.

    `teacher_share` is how much of the targets is the teacher's where phone times are known as well (`read_targets`).
    The share of augmented crops grows from none to `augmented_share` over `clean_steps`. `phone_weight` weighs the loss
    over phones (the summed probability of their units) that gets a young encoder going, `spectrum_weight` the loss of a
    linear read-out of the log mel spectrum from the convolution stack, which is not shipped. In `chunked_share` of the
    steps attention is cut as a stream's is: `chunk_frames` at a time, with `look_ahead_frames` after them.
    """

    steps: int = 11200
    batch_frames: int = 256
    accumulate: int = 1
    crop_frames: tuple[int, ...] = (40, 80)
    lr: float = 1.2e-3
    dropout: float = 0.15
    unlabelled_share: float = 0.5
    silence_share: float = 0.2
    jitter_samples: int = 160
    clean_steps: int = 2500
    augmented_share: float = 0.8
    teacher_share: float = 0.5
    phone_weight: float = 0.5
    spectrum_weight: float = 0.3
    chunked_share: float = 0.3
    chunk_frames: int = 4
    look_ahead_frames: int = 8
    augmentation: Augmentation = field(default_factory=Augmentation)
    precision: str = "fp32"
    seed: int = 7

    def __post_init__(self) -> None:
        check_batches(self.precision, self.accumulate)
        if not self.crop_frames or min(self.crop_frames) < 2 or max(self.crop_frames) > self.batch_frames:
            raise ValueError(f"crop_frames must lie in 2..batch_frames ({self.batch_frames}), got {self.crop_frames}")
        if self.clean_steps < 1 or self.phone_weight < 0 or not 0 <= self.augmented_share <= 1:
            raise ValueError(f"bad clean_steps, phone_weight or augmented_share: {self}")
        if not 0 <= self.teacher_share < 1:
            raise ValueError(f"teacher_share must lie in [0, 1), got {self.teacher_share}")
        if not 0 <= self.unlabelled_share < 1 or not 0 <= self.silence_share <= 1:
            raise ValueError(f"bad shares: unlabelled {self.unlabelled_share}, silence {self.silence_share}")
        if not 0 <= self.chunked_share <= 1 or self.chunk_frames < 1 or self.look_ahead_frames < 0:
            raise ValueError(f"bad chunked_share, chunk_frames or look_ahead_frames: {self}")


@dataclass(frozen=True, slots=True)
class Targets:
    """Targets of one clip: `units` [T, K] and their probabilities [T, K]; the first is the exact one where phone times
    are known, the likeliest where they are not."""

    units: Units
    probs: Floats


def read_targets(path: Path, teacher_share: float = 0.0) -> dict[str, Targets]:
    """Targets of every clip in `targets.npz` of `spiritrt.training.units`.

    Where phone times give one unit a frame, `teacher_share` of the probability goes to what the teacher heard: it knows
    how sure one can be, above all where one phone ends and the next begins.
    """
    targets = {}
    with np.load(of_units(path)) as file:
        arrays = {key: file[key] for key in file.files}
    for key in arrays:
        clip_id, _, kind = key.rpartition("/")
        if clip_id in targets or kind == "top_probs":
            continue
        exact = arrays.get(f"{clip_id}/units")
        columns, probs = [], []
        if exact is not None:
            columns, probs = [exact[:, None]], [np.ones((len(exact), 1), np.float32)]
        if f"{clip_id}/top_units" in arrays and (exact is None or teacher_share):
            share = 1.0 if exact is None else teacher_share
            probs = [column * (1 - share) for column in probs]
            columns.append(arrays[f"{clip_id}/top_units"])
            probs.append(arrays[f"{clip_id}/top_probs"].astype(np.float32) * share)
        targets[clip_id] = Targets(np.hstack(columns).astype(np.int64), np.hstack(probs))
    return targets


def chunked_attention(frames: int, chunk: int, look_ahead: int) -> Tensor:
    """Which frames (columns) each frame may attend to: all before, its own chunk and `look_ahead` after it; [T, T]."""
    at = torch.arange(frames)
    return at[None] < ((at // chunk + 1) * chunk + look_ahead)[:, None]


def source_frames(frames: int, first_sample: float, speed: float) -> Units:
    """Frame of the clip under each of `frames` output frames; output sample n is source sample first + n * speed."""
    centre = np.arange(frames) * HOP_SAMPLES + FRAME_SPAN_SAMPLES / 2
    return np.round((first_sample + centre * speed - FRAME_SPAN_SAMPLES / 2) / HOP_SAMPLES).astype(np.int64)


class EncoderData:
    """Random augmented crops with their targets; a batch is a function of (seed, step) alone."""

    def __init__(
        self,
        store: AudioStore,
        targets: Mapping[str, Targets],
        inventory: Sequence[str],
        silence_unit: int,
        training: EncoderTraining,
    ) -> None:
        self.store, self.targets, self.training, self.silence_unit = store, targets, training, silence_unit
        self.made_of = {"units": digest(list(inventory))}
        phones = sorted(set(inventory))
        self.phone_of = F.one_hot(
            torch.tensor([phones.index(p) for p in inventory]), len(phones)
        ).float()  # [units, phones]
        clips = [
            c for c in store.clips.values() if c.split == "train" and c.id in targets and len(targets[c.id].units) > 2
        ]
        self.labelled = [c for c in clips if c.speaker != UNLABELLED]
        self.unlabelled = [c for c in clips if c.speaker == UNLABELLED]
        if not self.labelled:
            raise ValueError("no training clips with unit targets")
        self.width = max(targets[c.id].units.shape[1] for c in clips)
        self.weights = {id(group): self._by_speaker(group) for group in (self.labelled, self.unlabelled)}

    @staticmethod
    def _by_speaker(clips: list[Clip]) -> NDArray[np.float64]:
        """Draw speakers by the square root of how much they said, and their clips by length."""
        total: dict[str, int] = {}
        for clip in clips:
            total[clip.speaker] = total.get(clip.speaker, 0) + clip.length
        weight = np.array([clip.length / total[clip.speaker] ** 0.5 for clip in clips], np.float64)
        return weight / weight.sum() if len(weight) else weight

    def crop(
        self, clip: Clip, frames: int, rng: np.random.Generator, clean: bool = False
    ) -> tuple[Floats, Units, Floats]:
        """Sound [N] of `frames` frames, target units [frames, K] and probabilities [frames, K]."""
        t = self.training
        speed = 1.0 if clean else draw_speed(t.augmentation, rng)
        length = (frames - 1) * HOP_SAMPLES + FRAME_SPAN_SAMPLES
        needed = int(length * speed) + 64
        spare = clip.length - needed
        if spare <= 0 or rng.random() < t.silence_share:
            # silence goes before or after: up to half the crop, or half of a clip that is shorter than the crop
            half = min(needed, clip.length) // 2
            first = int(rng.integers(min(spare, 0) - half, max(spare, 0) + half + 1))
        else:
            first = int(rng.integers(spare + 1)) // HOP_SAMPLES * HOP_SAMPLES
            first += int(rng.integers(-t.jitter_samples, t.jitter_samples + 1))
        source = np.zeros(needed, np.float32)
        begin, end = max(first, 0), min(first + needed, clip.length)
        source[begin - first : end - first] = self.store.read(clip, begin, end - begin)
        sound = np.zeros(length, np.float32)
        played = change_speed(source, speed)[:length]
        sound[: len(played)] = played
        target = self.targets[clip.id]
        index = source_frames(frames, first, speed)
        inside = (index >= 0) & (index < len(target.units))
        units = np.full((frames, self.width), self.silence_unit)
        probs = np.zeros((frames, self.width), np.float32)
        probs[:, 0] = 1
        k = target.units.shape[1]
        units[inside, :k], probs[inside, :k] = target.units[index[inside]], target.probs[index[inside]]
        return sound if clean else augment(sound, t.augmentation, rng), units, probs

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Sound [B, N], units [B, F, K] and probabilities [B, F, K] for a step."""
        t = self.training
        rng = np.random.default_rng((t.seed, step))
        frames = int(rng.choice(t.crop_frames))
        rows = []
        for _ in range(t.batch_frames // frames):
            use_unlabelled = bool(self.unlabelled) and rng.random() < t.unlabelled_share
            group = self.unlabelled if use_unlabelled else self.labelled
            clip = group[rng.choice(len(group), p=self.weights[id(group)])]
            rows.append(
                self.crop(
                    clip, frames, rng, clean=bool(rng.random() >= t.augmented_share * min(1.0, step / t.clean_steps))
                )
            )
        sound, units, probs = (np.stack(column) for column in zip(*rows, strict=True))
        return torch.from_numpy(sound), torch.from_numpy(units), torch.from_numpy(probs)

    def sees(self, step: int, frames: int) -> Tensor | None:
        """The attention mask of a step, None for all of the crop."""
        t = self.training
        if np.random.default_rng((t.seed, step, 1)).random() >= t.chunked_share:
            return None
        return chunked_attention(frames, t.chunk_frames, t.look_ahead_frames)
