"""Several documents in one row of a batch, without one seeing another: less padding than a document a row.

Every document begins at position 0 and attends to itself alone (a block-diagonal causal mask), so that a packed row has
the loss of its documents one by one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PADDING = -1


def pack(lengths: Sequence[int], context: int) -> list[list[int]]:
    """Positions of documents put together in rows of at most `context` tokens, each once: the longest first, into the
    first row with room (first-fit decreasing). Raises ValueError for a document that is longer than a row.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for position in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[position]
        if length > context:
            raise ValueError(f"document {position} has {length} tokens, a row holds {context}")
        row = next((i for i, left in enumerate(room) if left >= length), None)
        if row is None:
            rows.append([])
            room.append(context)
            row = len(rows) - 1
        rows[row].append(position)
        room[row] -= length
    return rows


@dataclass(frozen=True, slots=True)
class Packed:
    """`ids`, `weights`, `positions`, `documents`, all [B, T]: `documents` numbers those of a row, -1 is padding."""

    ids: Tensor
    weights: Tensor
    positions: Tensor
    documents: Tensor

    @property
    def tokens(self) -> int:
        """Ids with a loss weight: what is learnt from."""
        return int(self.weights.ne(0).sum())

    def to(self, device: torch.device) -> "Packed":
        return Packed(*(column.to(device) for column in (self.ids, self.weights, self.positions, self.documents)))

    @property
    def share(self) -> float:
        """Share of the batch that is not padding."""
        return float(self.documents.ne(PADDING).float().mean())

    def mask(self) -> Tensor:
        """Who attends to whom, bool [B, 1, T, T]: earlier tokens of the own document (padding to itself)."""
        same = self.documents[:, :, None] == self.documents[:, None, :]
        length = self.ids.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=self.ids.device).tril()
        return (same & causal)[:, None]


def pack_batch(rows: Sequence[Sequence[tuple[list[int], list[float]]]], fill: int = 2) -> Packed:
    """Rows of documents (ids, loss weights) as one batch, as wide as the longest row.

    The first token of a document is never predicted from the document before it: its weight is 0.
    """
    width = max(sum(len(ids) for ids, _ in row) for row in rows)
    shape = (len(rows), width)
    ids, weights = torch.full(shape, fill, dtype=torch.long), torch.zeros(shape)
    positions, documents = torch.zeros(shape, dtype=torch.long), torch.full(shape, PADDING)
    for place, row in enumerate(rows):
        start = 0
        for number, (own_ids, own_weights) in enumerate(row):
            end = start + len(own_ids)
            ids[place, start:end] = torch.tensor(own_ids)
            weights[place, start:end] = torch.tensor([0.0, *own_weights[1:]])
            positions[place, start:end] = torch.arange(len(own_ids))
            documents[place, start:end] = number
            start = end
    return Packed(ids, weights, positions, documents)
