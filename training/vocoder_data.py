"""What the vocoder is trained on: aligned crops of units and sound, for Expressive with pitch and style codes."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spiritrt.models.checkpoints import Checkpoint
from spiritrt.models.pitch import PitchQuantizerConfig
from spiritrt.models.style import StyleConfig
from spiritrt.training.arguments import check_precision
from spiritrt.training.checkpoint import digest
from spiritrt.training.corpora.manifest import UNLABELLED, AudioStore, Clip, unit_lines
from spiritrt.training.shards import Shard, Tokenized, tokenizer_versions
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
PITCH_FRAMES, STYLE_FRAMES = 2, 25  # unit frames that a code of pitch or style covers


def expressive_config(pitches: int, styles: int) -> dict[str, object]:
    """The configuration with pitch and style codes as inputs."""
    width = 128
    return OFFICIAL_CONFIG | {
        "num_f0_tokens": pitches, "f0_hop_size": PITCH_FRAMES * HOP_SAMPLES, "num_style_tokens": styles,
        "style_hop_size": STYLE_FRAMES * HOP_SAMPLES, "model_in_dim": 4 * width,
    }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Codes:
    """What an Expressive family hears in a clip: units [T], and pitch and style at the rate of the units."""

    units: Units
    pitch: Units
    style: Units

    @classmethod
    def of(cls, line: Tokenized) -> "Codes":
        """Codes of an utterance of a shard; where pitch or style end early their last code goes on."""
        units = line.frames["Hu"].astype(np.int64)
        at = np.arange(len(units))
        pitch, style = (
            line.frames[kind].astype(np.int64)[np.minimum(at // frames, len(line.frames[kind]) - 1)]
            for kind, frames in (("Pi", PITCH_FRAMES), ("St", STYLE_FRAMES))
        )
        return cls(units, pitch, style)


@dataclass(frozen=True, slots=True)
class Crops:
    """A batch: units [B, F], speakers [B], sound [B, F * 640], and in Expressive pitch and style [B, F]."""

    units: Tensor
    speakers: Tensor
    sound: Tensor
    pitch: Tensor | None = None
    style: Tensor | None = None

    def to(self, device: torch.device) -> "Crops":
        columns = (self.units, self.speakers, self.sound, self.pitch, self.style)
        return Crops(*(None if column is None else column.to(device) for column in columns))  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class VocoderTraining:
    """How the vocoder is trained; times in frames of 40 ms, steps are optimizer steps of `accumulate` batches.

    `others` are voices that help to learn how units sound, in `others_share` of the crops; they are not shipped.
    """

    steps: int = 11000
    gan_from: int = 11000
    batch: int = 2
    accumulate: int = 1
    frames: int = 32
    lr: float = 1e-3
    gan_lr: float = 2e-4
    gan_frames: int = 12
    swap_units: float = 0.04
    encoder_share: float = 0.7
    duration_steps: int = 3600
    speakers: tuple[str, ...] = SPEAKERS
    others: tuple[str, ...] = ()
    others_share: float = 0.35
    precision: str = "fp32"
    seed: int = 7

    def __post_init__(self) -> None:
        check_precision(self.precision)
        if (
            min(self.steps, self.batch, self.accumulate, self.frames, self.gan_frames) < 1
            or self.gan_frames > self.frames
        ):
            raise ValueError(f"steps, batch, accumulate and frames must be positive, gan_frames at most frames: {self}")
        if len(set(self.voices)) != len(self.voices) or not self.speakers:
            raise ValueError(f"speakers and others must be names, each once, got {self.voices}")
        if not 0 <= self.others_share < 1:
            raise ValueError(f"others_share must lie in [0, 1), got {self.others_share}")

    @property
    def voices(self) -> tuple[str, ...]:
        """Everyone who is learnt from, those who are shipped first."""
        return self.speakers + self.others


def with_speakers(config: Mapping[str, object], speakers: Sequence[str]) -> dict[str, object]:
    """`config` of a vocoder with these speakers."""
    return {**config, "num_speakers": len(speakers), "speakers": list(speakers)}


def training_lines(store: AudioStore) -> Counter[str]:
    """How many training utterances of each speaker there are; speech without labels counts for nobody."""
    return Counter(
        clip.speaker for clip in store.clips.values() if clip.split == "train" and clip.speaker != UNLABELLED
    )


def speakers_of(store: AudioStore, wanted: Sequence[str] | None = None) -> tuple[str, ...]:
    """Whom to train on: `wanted`, else nano's own voices where all of them are in `store`, else everyone who is.

    Raises ValueError for a wanted speaker without training utterances.
    """
    there = sorted(training_lines(store))
    if wanted is None:
        return SPEAKERS if set(SPEAKERS) <= set(there) else tuple(there)
    if absent := [name for name in wanted if name not in there]:
        raise ValueError(f"no training utterances of {absent}: the speakers are {', '.join(there)}")
    return tuple(wanted)


class VocoderData:
    """Random aligned crops of units and sound; a batch is a function of (seed, step) alone."""

    def __init__(
        self,
        store: AudioStore,
        targets: Mapping[str, Units],
        encoded: Sequence[Mapping[str, Units]],
        inventory: list[str],
        training: VocoderTraining,
        codes: Mapping[str, Codes] | None = None,
    ) -> None:
        """With `codes` (by clip) units, pitch and style are those, and clips without them are left out."""
        self.codes = codes
        if codes is not None:
            targets, encoded = {i: c.units for i, c in codes.items()}, ()
        self.store, self.targets, self.encoded, self.training = store, targets, encoded, training
        self.by_speaker: list[list[Clip]] = [
            [
                clip for clip in store.clips.values()
                if clip.speaker == speaker and clip.split == "train"
                and len(targets.get(clip.id, ())) >= training.frames
            ]
            for speaker in training.voices
        ]  # fmt: skip
        empty = [s for s, clips in zip(training.voices, self.by_speaker, strict=True) if not clips]
        if empty:
            raise ValueError(f"no training utterances of {training.frames} frames for the voices {empty}")
        self.weights = [np.array([c.length for c in clips], float) for clips in self.by_speaker]
        # a voice with four times the speech is drawn twice as often
        self.shares = np.sqrt([weights.sum() for weights in self.weights])
        if training.others:
            own = np.arange(len(self.shares)) < len(training.speakers)
            for who, share in ((own, 1 - training.others_share), (~own, training.others_share)):
                self.shares[who] *= share / self.shares[who].sum()
        self.shares /= self.shares.sum()
        self.made_of = digest(inventory)
        names = np.array(inventory)
        self.siblings = [np.flatnonzero(names == name) for name in names]

    def batch(self, step: int) -> Crops:
        """Crops for a step."""
        t = self.training
        rng = np.random.default_rng((t.seed, step))
        units, sound = np.empty((t.batch, t.frames), np.int64), np.empty((t.batch, t.frames * HOP_SAMPLES), np.float32)
        pitch, style = np.empty((t.batch, t.frames), np.int64), np.empty((t.batch, t.frames), np.int64)
        speakers = rng.choice(len(t.voices), size=t.batch, p=self.shares)
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
            if self.codes is not None:
                pitch[row] = self.codes[clip.id].pitch[first : first + t.frames]
                style[row] = self.codes[clip.id].style[first : first + t.frames]
        plain = torch.from_numpy(units), torch.from_numpy(speakers), torch.from_numpy(sound)
        if self.codes is None:
            return Crops(*plain)
        return Crops(*plain, torch.from_numpy(pitch), torch.from_numpy(style))


def run_lengths(units: Units) -> tuple[Units, Units]:
    """Deduplicated units [R] and how many frames each lasted [R]."""
    if not len(units):
        return units, units
    starts = np.flatnonzero(np.r_[True, np.diff(units) != 0])
    return units[starts], np.diff(np.r_[starts, len(units)])


def read_codes(shards: Sequence[Path], family: Checkpoint) -> tuple[dict[str, Codes], dict[str, object]]:
    """Codes of every utterance by id, and the configuration for the pitch and style parts of `family`.

    Raises ValueError where a shard was made by other tokenizers than the family's.
    """
    versions = tokenizer_versions(family, ("St", "Pi", "Hu"))
    codes = {}
    for folder in shards:
        shard = Shard(folder, versions)
        for index in range(len(shard)):
            line = shard[index]
            codes[line.id] = Codes.of(line)
    pitches = PitchQuantizerConfig.from_official(family.part("pitch").config).l_bins
    styles = StyleConfig.from_official(family.part("style").config).num_labels
    return codes, expressive_config(pitches, styles)


def read_units(path: Path) -> dict[str, Units]:
    """Frame units of every utterance of a units file, by id. Raises as `unit_lines` does."""
    return {entry["id"]: np.array(entry["units"], np.int64) for entry in unit_lines(path)}
