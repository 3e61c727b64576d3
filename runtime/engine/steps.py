"""What a step takes and gives, and how its rows are cut into passes of the model."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PREFILL_TOKENS = 128  # a row's new tokens are computed so many at a time, counted from its first
PASS_TOKENS = 2048  # of all rows in one pass; bounds memory, and changes no result
NOT_DRAWN = -1


@dataclass(frozen=True, slots=True)
class Row:
    """New tokens of one slot, and whether to draw the next one. `ids` None: the id drawn last in this slot."""

    slot: int
    ids: tuple[int, ...] | None = None
    draw: bool = True

    def __post_init__(self) -> None:
        if self.ids is not None and not self.ids:
            raise ValueError(f"a row needs at least one token; slot {self.slot} brings none")

    @property
    def tokens(self) -> int:
        return 1 if self.ids is None else len(self.ids)


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens of row `row` that are computed in one pass; `draw` only in its last piece."""

    row: int
    slot: int
    start: int  # tokens the slot holds before
    ids: tuple[int, ...] | None
    draw: bool

    @property
    def tokens(self) -> int:
        return 1 if self.ids is None else len(self.ids)


@dataclass(frozen=True, slots=True)
class Pass:
    """One run of the model: pieces of one token first (`decode`), then longer ones (`prefill`)."""

    decode: tuple[Piece, ...]
    prefill: tuple[Piece, ...]

    @property
    def pieces(self) -> tuple[Piece, ...]:
        return self.decode + self.prefill


def plan(rows: Sequence[Row], starts: Sequence[int], most_decode: int) -> list[Pass]:
    """Passes that compute `rows`, whose slots hold `starts` tokens; of one token at most `most_decode` in a pass.

    Where a row is cut depends on the row alone, so that its results do not depend on what else is in the step.
    """
    levels: list[list[Piece]] = []
    for index, (row, start) in enumerate(zip(rows, starts, strict=True)):
        ids = row.ids
        for level, first in enumerate(range(0, row.tokens, PREFILL_TOKENS)):
            piece = None if ids is None else ids[first : first + PREFILL_TOKENS]
            if level == len(levels):
                levels.append([])
            last = first + PREFILL_TOKENS >= row.tokens
            levels[level].append(Piece(index, row.slot, start + first, piece, row.draw and last))
    return [work for pieces in levels for work in _group(pieces, most_decode)]


def _group(pieces: Sequence[Piece], most_decode: int) -> list[Pass]:
    """Passes of pieces that may be computed in any order, none of which has too many tokens."""
    single = [piece for piece in pieces if piece.tokens == 1]
    passes = []
    while len(single) > most_decode:
        passes.append(Pass(tuple(single[:most_decode]), ()))
        single = single[most_decode:]
    longer: list[Piece] = []
    total = len(single)
    for piece in pieces:
        if piece.tokens == 1:
            continue
        if longer and total + piece.tokens > PASS_TOKENS:
            passes.append(Pass(tuple(single), tuple(longer)))
            single, longer, total = [], [], 0
        longer.append(piece)
        total += piece.tokens
    return [*passes, Pass(tuple(single), tuple(longer))]


class Step:
    """What a step drew. On CUDA the results arrive while the next step runs; reading them waits for them."""

    def __init__(
        self, order: Sequence[int], drawn: Sequence[tuple[Tensor, Tensor]], arrived: torch.cuda.Event | None
    ) -> None:
        """`order` [R] says which of the `drawn` ids and log-probabilities, on the host, is each row's, or none."""
        self._order = order
        self._drawn = drawn
        self._arrived = arrived

    @property
    def ready(self) -> bool:
        """Whether reading the results would not wait."""
        return self._arrived is None or self._arrived.query()

    @property
    def ids(self) -> list[int]:
        """The id drawn for each row, `NOT_DRAWN` where none was to be."""
        self._wait()
        found = [token for ids, _ in self._drawn for token in ids.tolist()]
        return [NOT_DRAWN if index == NOT_DRAWN else found[index] for index in self._order]

    @property
    def logprobs(self) -> list[float]:
        """The log-probability of each row's id, 0 where none was drawn."""
        self._wait()
        found = [logprob for _, logprobs in self._drawn for logprob in logprobs.tolist()]
        return [0.0 if index == NOT_DRAWN else found[index] for index in self._order]

    def _wait(self) -> None:
        if self._arrived is not None:
            self._arrived.synchronize()
            self._arrived = None
