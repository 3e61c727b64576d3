"""Batches of documents without end: a document a row, rows of like length together; or packed.

A document a row cannot leak into another, and begins at position 0, as at inference; packed rows keep both by a mask.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from spiritrt.training.interleave import rng_of
from spiritrt.training.packing import Packed, pack, pack_batch


@dataclass(frozen=True, slots=True)
class Batch:
    """`ids` [B, T] with EOS-padded ends, and the loss `weights` [B, T] of predicting each id (0 at the padding)."""

    ids: Tensor
    weights: Tensor

    @property
    def tokens(self) -> int:
        """Ids with a loss weight or before one: what was read, without the padding."""
        return int(self.weights.ne(0).sum())

    def to(self, device: torch.device) -> Batch:
        return Batch(self.ids.to(device), self.weights.to(device))


def group_by_length(lengths: Sequence[int], tokens: int, rng: random.Random) -> list[list[int]]:
    """Positions of documents grouped so that a padded group has at most `tokens` tokens; every position once.

    Groups hold documents of neighbouring lengths and come in random order. A document longer than `tokens` is alone.
    """
    groups: list[list[int]] = []
    for position in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if groups and (len(groups[-1]) + 1) * lengths[position] <= tokens:
            groups[-1].append(position)
        else:
            groups.append([position])
    rng.shuffle(groups)
    return groups


def make_batch(documents: Sequence[tuple[list[int], list[float]]]) -> Batch:
    """One document a row, padded at the end."""
    width = max(len(ids) for ids, _ in documents)
    ids = torch.full((len(documents), width), 2, dtype=torch.long)
    weights = torch.zeros(len(documents), width)
    for row, (document, document_weights) in enumerate(documents):
        ids[row, : len(document)] = torch.tensor(document)
        weights[row, : len(document)] = torch.tensor(document_weights)
    return Batch(ids, weights)


class HasContext(Protocol):
    """Settings of a mix that batches depend on: the most tokens of a document."""

    @property
    def context(self) -> int: ...


class DocumentSource(Protocol):
    """An endless set of documents, each a function of (seed, epoch, index)."""

    @property
    def mix(self) -> HasContext: ...

    @property
    def seed(self) -> int: ...

    def document(self, epoch: int, index: int) -> tuple[list[int], list[float]]: ...


class BatchStream:
    """Batches without end: window after window of documents, each window grouped by length, or with `packed` put
    together in rows of the mix's context.

    Batch number `group` of window `epoch` depends on the arguments alone; `state` is where the next one lies, and
    setting it continues there exactly, in a stream of the same `shape`.
    """

    def __init__(self, documents: DocumentSource, tokens: int, window: int = 1024, packed: bool = False) -> None:
        if tokens < documents.mix.context or window < 1:
            raise ValueError(f"a batch of {tokens} tokens must hold a document of {documents.mix.context}")
        self.documents, self.tokens, self.window, self.packed = documents, tokens, window, packed
        self.epoch, self.group = 0, 0
        self._loaded = -1
        self._made: list[tuple[list[int], list[float]]] = []
        self._groups: list[list[int]] = []
        self._rows: list[list[int]] = []

    @property
    def state(self) -> tuple[int, int]:
        return self.epoch, self.group

    @state.setter
    def state(self, position: tuple[int, int]) -> None:
        self.epoch, self.group = position

    @property
    def shape(self) -> dict[str, int]:
        """What the batches of a window depend on beside its documents."""
        return {
            "packed": int(self.packed), "tokens": self.tokens, "context": self.documents.mix.context,
            "window": self.window,
        }  # fmt: skip

    def resume(self, position: tuple[int, int], shape: Mapping[str, int]) -> None:
        """Continue at the `state` of a stream of `shape`: exactly there, or at the next window if this has another."""
        self.state = position if shape == self.shape else (position[0] + 1, 0)

    def next(self) -> Batch | Packed:
        """The next batch."""
        if self._loaded != self.epoch:
            self._load()
        if self.group >= len(self._groups):  # a position in other documents, which made more batches
            self.epoch, self.group = self.epoch + 1, 0
            self._load()
        group = self._groups[self.group]
        batch: Batch | Packed
        if self.packed:
            batch = pack_batch([[self._made[position] for position in self._rows[row]] for row in group])
        else:
            batch = make_batch([self._made[position] for position in group])
        self.group += 1
        if self.group == len(self._groups):
            self.epoch, self.group = self.epoch + 1, 0
        return batch

    def _load(self) -> None:
        """Makes the documents of the window, and groups them."""
        self._made = [self.documents.document(self.epoch, index) for index in range(self.window)]
        rng = rng_of(self.documents.seed, self.epoch, -1)
        lengths = [len(ids) for ids, _ in self._made]
        if self.packed:
            self._rows = pack(lengths, self.documents.mix.context)
            rng.shuffle(self._rows)
            many = self.tokens // self.documents.mix.context
            self._groups = [list(range(i, min(i + many, len(self._rows)))) for i in range(0, len(self._rows), many)]
        else:
            self._groups = group_by_length(lengths, self.tokens, rng)
        self._loaded = self.epoch
