"""What changes from pass to pass, in device tensors that stay where they are, so that a CUDA graph can read them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spiritrt.engine.steps import Pass

T = TypeVar("T")
ALIGNMENT = 16


@dataclass(frozen=True, slots=True)
class Fields(Generic[T]):
    """Of R rows with T tokens: decode rows of one token first, then prefill rows.

    ids          [T] int64: negative where the id drawn last in the slot is meant
    positions    [R] int64: of the token to draw, for its noise
    last         [R] int64: the token after which a row draws
    token_slots  [T] int32: slot of each decode row's token
    slots        [R] int32
    starts       [R] int32: tokens that the slot holds before
    offsets      [R + 1] int32: of the prefill rows, from the first of their tokens
    draw_slots   [R] int32: slot in which to draw, negative where nothing is to be drawn
    """

    ids: T
    positions: T
    last: T
    token_slots: T
    slots: T
    starts: T
    offsets: T
    draw_slots: T


@dataclass(frozen=True, slots=True)
class Shape:
    """How much of the fields a pass fills: what a captured graph is made for, and what a host may know.

    `gather` is whether fewer rows draw than there are tokens. `longest` and `reach` are bounds as in AttentionBatch.
    """

    decode: int
    prefill: int
    tokens: int
    draws: int
    gather: bool
    longest: int
    reach: int


class StepInputs:
    """Fields on the device for up to `rows` rows and `tokens` tokens, filled by one copy a pass."""

    def __init__(self, rows: int, tokens: int, device: torch.device) -> None:
        layout = {
            "ids": (tokens, torch.int64), "positions": (rows, torch.int64), "last": (rows, torch.int64),
            "token_slots": (tokens, torch.int32), "slots": (rows, torch.int32), "starts": (rows, torch.int32),
            "offsets": (rows + 1, torch.int32), "draw_slots": (rows, torch.int32),
        }  # fmt: skip
        self._places: dict[str, tuple[int, int, type]] = {}
        end = 0
        for name, (count, dtype) in layout.items():
            start = -(-end // ALIGNMENT) * ALIGNMENT
            end = start + count * dtype.itemsize
            self._places[name] = (start, end, np.int64 if dtype == torch.int64 else np.int32)
        self._bytes = torch.zeros(end, dtype=torch.uint8, device=device)
        views = {name: self._bytes[slice(*self._places[name][:2])].view(dtype) for name, (_, dtype) in layout.items()}
        self.fields: Fields[Tensor] = Fields(**views)
        self._pinned = device.type == "cuda"

    def fill(
        self, work: Pass, noise_offsets: Sequence[int], scratch_slot: int, bucket: int = 0
    ) -> tuple[Shape, list[int]]:
        """Queues the copy of a pass's fields; returns its shape, and whose each drawn id is (a row, or -1: nobody's).

        `noise_offsets` [slots] is added to the positions of drawn tokens. With `bucket` the pass, of decode rows alone,
        gets so many: the rest write to the scratch slot's page and draw nothing.
        """
        assert not (bucket and work.prefill) and len(work.decode) <= (bucket or len(work.decode))
        host, raw = self._host()
        decode = bucket or len(work.decode)
        padding = decode - len(work.decode)
        slots = [piece.slot for piece in work.decode] + [scratch_slot] * padding
        host.ids[:decode] = [-1 if piece.ids is None else piece.ids[0] for piece in work.decode] + [0] * padding
        host.token_slots[:decode] = slots
        host.slots[: decode + len(work.prefill)] = slots + [piece.slot for piece in work.prefill]
        starts = [piece.start for piece in work.decode] + [0] * padding + [piece.start for piece in work.prefill]
        host.starts[: len(starts)] = starts
        host.offsets[0], end = 0, decode
        for row, piece in enumerate(work.prefill):
            assert piece.ids is not None
            host.ids[end : end + piece.tokens] = piece.ids
            end += piece.tokens
            host.offsets[row + 1] = end - decode
        host.token_slots[decode:end] = scratch_slot
        drawing = [piece for piece in work.pieces if piece.draw or bucket]
        gather = len(drawing) < end and not bucket
        ends = [decode + int(offset) for offset in host.offsets[1 : len(work.prefill) + 1]]
        lasts = [*range(len(work.decode)), *(after - 1 for after in ends)]
        host.last[: len(drawing)] = [
            last for last, piece in zip(lasts, work.pieces, strict=True) if piece.draw or bucket
        ]
        draws = len(drawing) + padding
        host.positions[:draws] = [noise_offsets[p.slot] + p.start + p.tokens for p in drawing] + [0] * padding
        host.draw_slots[:draws] = [piece.slot if piece.draw else -1 for piece in drawing] + [-1] * padding
        self._bytes.copy_(raw, non_blocking=True)
        longest = max((piece.tokens for piece in work.prefill), default=1)
        reach = max((piece.start + piece.tokens for piece in work.pieces), default=1)
        whose = [piece.row if piece.draw else -1 for piece in drawing]
        return Shape(decode, len(work.prefill), end, draws, gather, longest, reach), whose

    def _host(self) -> tuple[Fields[NDArray], Tensor]:
        # pinned memory comes from PyTorch's cache, which keeps it until the copy is done
        raw = torch.empty(self._bytes.shape, dtype=torch.uint8, pin_memory=self._pinned)
        view = raw.numpy()
        return Fields(**{name: view[start:end].view(dtype) for name, (start, end, dtype) in self._places.items()}), raw
