"""The unit inventory as numbers: which unit a frame of teacher features is, once its phone is known.

`spiritrt.training.units` makes it from a first corpus; more speech gets the same unit ids by it, so that encoders and
vocoders go on from their checkpoints.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
SILENCE = "SIL"


def smooth_over_segments(features: Floats, phones: Sequence[str], share: float) -> Floats:
    """Mix the mean feature of each run of equal phones into its frames; [T, D] to [T, D]."""
    mixed = features.copy()
    start = 0
    for t in range(1, len(phones) + 1):
        if t == len(phones) or phones[t] != phones[start]:
            mixed[start:t] = (1 - share) * features[start:t] + share * features[start:t].mean(axis=0)
            start = t
    return mixed


def main_axes(features: Floats, dims: int, generator: torch.Generator, sample: int = 20000) -> Floats:
    """Principal axes [D, dims] of features [N, D], from a random sample of them."""
    stacked = torch.from_numpy(features)
    drawn = stacked[torch.randperm(len(stacked), generator=generator)[:sample]]
    return torch.linalg.svd(drawn - drawn.mean(dim=0), full_matrices=False).Vh[:dims].T.contiguous().numpy()


@dataclass(frozen=True, slots=True)
class Clusters:
    """`inventory`: the phone class of each unit; `axes` [D, P] and `centres` [units, P]: of the smoothed features."""

    inventory: tuple[str, ...]
    axes: Floats
    centres: Floats
    segment_share: float

    def __post_init__(self) -> None:
        if self.centres.shape != (len(self.inventory), self.axes.shape[1]):
            raise ValueError(
                f"centres {self.centres.shape} do not fit {len(self.inventory)} units and axes {self.axes.shape}"
            )

    def assign(self, features: Floats, phones: Sequence[str]) -> Ints:
        """Units [T] of teacher features [T, D] whose phone classes are known; an unknown class counts as silence."""
        points = torch.from_numpy(smooth_over_segments(features @ self.axes, phones, self.segment_share))
        names, labels = np.array(self.inventory), np.array(phones)
        units = np.zeros(len(labels), np.int64)
        for phone in sorted(set(phones)):
            own = np.flatnonzero(names == phone)
            if not len(own):
                own = np.flatnonzero(names == SILENCE)
            where = labels == phone
            nearest = torch.cdist(points[torch.from_numpy(where)], torch.from_numpy(self.centres[own])).argmin(dim=1)
            units[where] = own[nearest.numpy()]
        return units

    def save(self, path: Path) -> None:
        partial = path.with_name("partial-" + path.name)
        np.savez(
            partial, inventory=np.array(self.inventory), axes=self.axes, centres=self.centres,
            segment_share=np.array(self.segment_share),
        )  # fmt: skip
        os.replace(partial, path)

    @classmethod
    def load(cls, path: Path) -> "Clusters":
        """Raises FileNotFoundError where there is no file."""
        if not path.is_file():
            raise FileNotFoundError(f"no clusters at {path}: run `python -m spiritrt.training.units` first")
        with np.load(path) as arrays:
            return cls(
                tuple(arrays["inventory"].tolist()), arrays["axes"], arrays["centres"], float(arrays["segment_share"])
            )

    @classmethod
    def recovered(
        cls,
        features: Mapping[str, Floats],
        units: Mapping[str, Ints],
        inventory: Sequence[str],
        segment_share: float,
        dims: int,
        seed: int,
    ) -> "Clusters":
        """The clusters behind units [T] that clips were given earlier: each centre is the mean of its frames.

        A unit that no frame has lies at the mean of its phone's frames.
        """
        names = np.array(inventory)
        ids = sorted(units)
        generator = torch.Generator().manual_seed(seed)
        axes = main_axes(np.concatenate([features[i] for i in ids]), dims, generator)
        points = np.concatenate(
            [smooth_over_segments(features[i] @ axes, names[units[i]].tolist(), segment_share) for i in ids]
        )
        owners = np.concatenate([units[i] for i in ids])
        centres = np.empty((len(names), dims), np.float32)
        for unit, phone in enumerate(names):
            own = owners == unit
            chosen = points[own] if own.any() else points[names[owners] == phone]
            centres[unit] = chosen.mean(axis=0) if len(chosen) else points.mean(axis=0)
        return cls(tuple(inventory), axes, centres, segment_share)
