"""Which unit frames of which slot are merged in a step: the host's half of `embed_frames`.

Streams of one slot bring frames at 1 Hz (style), 12.5 Hz (pitch) and 25 Hz (HuBERT; 24.99 in the public code), not in
step with one another. A frame is merged as soon as no stream that lags behind could still bring an earlier one. Whether
it is depends on how many frames came and not on what they are, so the host knows it without waiting for the device, and
only deduplication is left to the kernel. Times are counted in ticks of 1/62475 s, in which all three rates are whole.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

KINDS = ("style", "pitch", "hubert")  # in the order of ties
TICKS = (62475, 4998, 2500)  # a frame
# columns of FramePlan.numbers
SLOT, SOURCE, KNOWN, ARRIVED, BEGIN, END, COLUMNS = 0, 1, 4, 7, 10, 13, 16


@dataclass(frozen=True, slots=True)
class FrameRow:
    """How many new frames a slot brings. `final`: the recording ends with them, so nothing is waited for any more."""

    slot: int
    style: int = 0
    pitch: int = 0
    hubert: int = 0
    final: bool = False

    def __post_init__(self) -> None:
        for kind in KINDS:
            if getattr(self, kind) < 0:
                raise ValueError(f"slot {self.slot}: the number of {kind} frames must not be negative")


@dataclass(frozen=True, slots=True, eq=False)
class FramePlan:
    """What is merged in one step.

    numbers  [R, 16] int64: the slot; then for style, pitch and HuBERT each: where the row's new codes begin, the frames
             held before, the frames there are now, the first frame to merge, and the last but one
    width    M: the most tokens of a row, duplicates counted
    frames   the most frames of one kind that a row merges
    """

    numbers: Tensor
    width: int
    frames: int


@dataclass(frozen=True, slots=True, eq=False)
class FrameTokens:
    """Tokens of a step's frames; places of a row after its tokens are padding.

    ids         [R, M] int64, -1 as padding
    positions   [R, M] int64: in the slot, -1 as padding
    page_slots  [R, M] int64: page * page_size + offset, -1 as padding
    counts      [R] int32: tokens of each row
    x, normed   [R * M, C]: 0 as padding
    """

    ids: Tensor
    positions: Tensor
    page_slots: Tensor
    counts: Tensor
    x: Tensor
    normed: Tensor


class FrameSlots:
    """Frames of S slots that wait to be merged, with the last merged one of each kind. Not for two threads at once.

    `held` [S, 3, capacity] int32 has frame i of a recording at i % capacity. `firsts` are the ids of style 0, pitch 0
    and HuBERT unit 0; -1 where the model has no such stream.
    """

    def __init__(
        self, slots: int, firsts: tuple[int, int, int], capacity: int = 64, device: torch.device | str = "cpu"
    ) -> None:
        if slots < 1 or capacity < 2:
            raise ValueError(f"slots must be at least 1 and capacity at least 2, got {slots} and {capacity}")
        if firsts[2] < 0:
            raise ValueError(f"the first HuBERT unit needs an id, got {firsts[2]}")
        self.firsts, self.capacity = firsts, capacity
        self.held = torch.zeros(slots, len(KINDS), capacity, dtype=torch.int32, device=device)
        self._known = [[0, 0, 0] for _ in range(slots)]
        self._merged = [[0, 0, 0] for _ in range(slots)]

    def reset(self, slot: int) -> None:
        """Forgets a slot's frames: the next is the first of a recording."""
        self._known[slot], self._merged[slot] = [0, 0, 0], [0, 0, 0]

    def plan(self, rows: Sequence[FrameRow], width: int | None = None) -> FramePlan:
        """Takes the next frames of `rows` into account and says what `embed_frames` is to merge now.

        The codes are then to lie one after the other in one tensor: of each row its style, pitch and HuBERT codes.
        `width` (default: what is needed) fixes the shape of the outputs, as a CUDA graph wants it. Raises ValueError,
        with nothing taken, for frames of a stream that there is not, for a slot given twice, where more frames would
        wait than fit, and where `width` is too small.
        """
        if twice := [row.slot for i, row in enumerate(rows) if row.slot in {other.slot for other in rows[:i]}]:
            raise ValueError(f"slot {twice[0]} is given twice")
        numbers: list[list[int]] = []
        source = widest = frames = 0
        for row in rows:
            counts = [row.style, row.pitch, row.hubert]
            known, begin = self._known[row.slot], self._merged[row.slot]
            arrived = [have + count for have, count in zip(known, counts, strict=True)]
            end = arrived if row.final else self._certain(arrived)
            for kind, first, count, now, start in zip(KINDS, self.firsts, counts, arrived, begin, strict=True):
                if first < 0 and count:
                    raise ValueError(f"slot {row.slot}: there is no {kind} stream, got {count} frames")
                if now - start >= self.capacity:
                    raise ValueError(
                        f"slot {row.slot}: {now - start} {kind} frames would wait and {self.capacity - 1} fit; take "
                        "fewer at a time, or bring frames of the streams that lag behind"
                    )
            sources = [source, source + counts[0], source + counts[0] + counts[1]]
            source += sum(counts)
            numbers.append([row.slot, *sources, *known, *arrived, *begin, *end])
            merged = [last - first for first, last in zip(begin, end, strict=True)]
            widest, frames = max(widest, sum(merged)), max(frames, *merged)
        if width is not None and width < widest:
            raise ValueError(f"{widest} tokens do not fit a width of {width}")
        for row, line in zip(rows, numbers, strict=True):
            self._known[row.slot], self._merged[row.slot] = line[ARRIVED:BEGIN], line[END:COLUMNS]
            if row.final:
                self.reset(row.slot)
        packed = torch.tensor(numbers, dtype=torch.int64).view(-1, COLUMNS)
        return FramePlan(packed.to(self.held.device, non_blocking=True), max(widest, 1) if width is None else width,
                         max(frames, 1))  # fmt: skip

    def _certain(self, arrived: Sequence[int]) -> list[int]:
        """Frames of each kind that come before anything that any stream could still bring."""
        heads = [(now * TICKS[kind], kind) for kind, now in enumerate(arrived) if self.firsts[kind] >= 0]
        time, order = min(heads)
        return [
            min(now, (time + TICKS[kind] - (kind >= order)) // TICKS[kind]) if self.firsts[kind] >= 0 else 0
            for kind, now in enumerate(arrived)
        ]
