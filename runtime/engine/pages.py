"""Which pages hold the tokens of which slot: reference counts and copy on write. Tensors are `kv_cache.py`'s."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

SCRATCH_PAGE = 0  # no slot ever holds it: rows that only fill a batch up write there


class OutOfPages(ValueError):
    """The pool has too few free pages; nothing has been changed."""


class OutOfSlots(ValueError):
    """All slots are open; nothing has been changed."""


@dataclass(frozen=True, slots=True)
class Eviction:
    """How contents move when the middle of a slot is dropped.

    Page `copied[0]` is copied whole to `copied[1]` first; then token `source[i]` moves to `target[i]`, both counted as
    page * page_size + offset. Source and target pages have none in common.
    """

    dropped: int
    copied: tuple[int, int] | None = None
    source: tuple[int, ...] = ()
    target: tuple[int, ...] = ()


@dataclass(slots=True)
class _Slot:
    length: int = 0
    pages: list[int] = field(default_factory=list)  # as many as `length` needs, never more


class PageAccount:
    """The books of a pool of `pages` pages, shared by `slots` sequences of up to `context` tokens.

    A page that more than one slot holds is never written: whoever appends to it gets a copy first. `table`
    [slots + 1, pages a slot] int32 holds the page numbers, which run from 1; its last row is that of the scratch slot.
    `stale` lists the entries (flat) that changed since whoever reads it cleared it.
    """

    def __init__(self, slots: int, pages: int, page_size: int, context: int) -> None:
        for name, value in (("slots", slots), ("pages", pages), ("page_size", page_size), ("context", context)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.slots, self.pages, self.page_size, self.context = slots, pages, page_size, context
        self.table = np.full((slots + 1, self.pages_for(context)), SCRATCH_PAGE, np.int32)
        self.stale: list[int] = []
        self._open: dict[int, _Slot] = {}
        self._free_slots = list(range(slots - 1, -1, -1))
        self._free = list(range(pages, 0, -1))
        self._references = [0] * (pages + 1)

    @property
    def free_pages(self) -> int:
        return len(self._free)

    @property
    def free_slots(self) -> int:
        return len(self._free_slots)

    def pages_for(self, tokens: int) -> int:
        """Pages that so many tokens fill or begin."""
        return -(-tokens // self.page_size)

    def length(self, slot: int) -> int:
        """Tokens that the slot holds."""
        return self._slot(slot).length

    def pages_of(self, slot: int) -> tuple[int, ...]:
        """The slot's pages in the order of their tokens."""
        return tuple(self._slot(slot).pages)

    def references(self, page: int) -> int:
        """Slots that hold this page."""
        return self._references[page]

    def open(self) -> int:
        """A new empty slot. Raises OutOfSlots where all are open."""
        if not self._free_slots:
            raise OutOfSlots(f"all {self.slots} slots are open; close one first")
        slot = self._free_slots.pop()
        self._open[slot] = _Slot()
        return slot

    def close(self, slot: int) -> None:
        """Gives the slot and its pages back."""
        self.truncate(slot, 0)
        del self._open[slot]
        self._free_slots.append(slot)

    def fork(self, slot: int) -> int:
        """A new slot with the same tokens, on the same pages. Raises OutOfSlots."""
        held = self._slot(slot)
        copy = self.open()
        for page in held.pages:
            self._references[page] += 1
            self._append(copy, page)
        self._open[copy].length = held.length
        return copy

    def truncate(self, slot: int, length: int) -> None:
        """Keeps the first `length` tokens. Raises ValueError where fewer are held."""
        held = self._slot(slot)
        if not 0 <= length <= held.length:
            raise ValueError(f"cannot truncate to {length} tokens: slot {slot} holds {held.length}")
        keep = self.pages_for(length)
        self._release(reversed(held.pages[keep:]))
        held.length = length
        del held.pages[keep:]

    def reserve(self, wanted: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Makes room for so many new tokens of each (slot, tokens); the tokens count as held from now on.

        Returns the (source, target) pages to copy before anything is written. Raises OutOfPages where the pool has too
        little for all of them, and ValueError for a slot that is named twice or would outgrow the context; nothing has
        changed then.
        """
        copied = self._check(wanted)
        copies = []
        for slot, tokens in wanted:
            held = self._open[slot]
            if slot in copied:
                shared = held.pages.pop()
                self._references[shared] -= 1
                self._append(slot, self._take())
                copies.append((shared, held.pages[-1]))
            held.length += tokens
            while len(held.pages) < self.pages_for(held.length):
                self._append(slot, self._take())
        return copies

    def evict_middle(self, slot: int, keep_prefix: int, keep_recent: int) -> Eviction:
        """Drops all but the first `keep_prefix` and the last `keep_recent` tokens of a slot.

        Pages that lie in the prefix stay; all that follows moves to other pages. Raises OutOfPages where there are not
        enough, counting those that the dropped tokens give back; nothing has changed then.
        """
        held = self._slot(slot)
        if keep_prefix < 0 or keep_recent < 0:
            raise ValueError(f"keep_prefix and keep_recent must not be negative, got {keep_prefix} and {keep_recent}")
        dropped = held.length - keep_prefix - keep_recent
        if dropped <= 0:
            return Eviction(0)
        if not keep_recent:
            self.truncate(slot, keep_prefix)
            return Eviction(dropped)
        size, recent = self.page_size, held.length - keep_recent
        whole = keep_prefix // size
        middle = held.pages[self.pages_for(keep_prefix) : recent // size]
        needed = self.pages_for(keep_prefix + keep_recent) - whole
        available = len(self._free) + sum(self._references[page] == 1 for page in middle)
        if needed > available:
            raise OutOfPages(
                f"evicting needs {needed} pages and {available} of {self.pages} are or become free; close a slot first"
            )
        old = held.pages
        self._release(middle)
        held.length, held.pages = keep_prefix + keep_recent, old[:whole]
        for _ in range(needed):
            self._append(slot, self._take())
        self._release(old[whole : self.pages_for(keep_prefix)])
        self._release(old[max(recent // size, self.pages_for(keep_prefix)) :])
        return Eviction(
            dropped,
            (old[whole], held.pages[whole]) if keep_prefix % size else None,
            tuple(old[t // size] * size + t % size for t in range(recent, recent + keep_recent)),
            tuple(held.pages[t // size] * size + t % size for t in range(keep_prefix, held.length)),
        )

    def _check(self, wanted: Sequence[tuple[int, int]]) -> set[int]:
        """The slots whose last page must be copied; raises what `reserve` says."""
        if len({slot for slot, _ in wanted}) < len(wanted):
            raise ValueError(f"a slot is named twice in {[slot for slot, _ in wanted]}")
        needed = 0
        copied: set[int] = set()
        holders: dict[int, int] = {}  # of shared pages, as they will be
        for slot, tokens in wanted:
            held = self._slot(slot)
            if tokens < 0 or held.length + tokens > self.context:
                raise ValueError(
                    f"slot {slot}: {held.length} + {tokens} tokens do not fit: the context is {self.context} tokens"
                )
            needed += self.pages_for(held.length + tokens) - len(held.pages)
            if tokens and held.length % self.page_size:
                page = held.pages[-1]
                count = holders.get(page, self._references[page])
                if count > 1:
                    holders[page] = count - 1
                    copied.add(slot)
                    needed += 1
        if needed > len(self._free):
            raise OutOfPages(
                f"{needed} pages are needed and {len(self._free)} of {self.pages} are free; close or truncate a slot"
            )
        return copied

    def _slot(self, slot: int) -> _Slot:
        if slot not in self._open:
            raise ValueError(f"slot {slot} is not open")
        return self._open[slot]

    def _take(self) -> int:
        page = self._free.pop()
        self._references[page] = 1
        return page

    def _release(self, pages: Iterable[int]) -> None:
        for page in pages:
            self._references[page] -= 1
            if not self._references[page]:
                self._free.append(page)

    def _append(self, slot: int, page: int) -> None:
        pages = self._open[slot].pages
        self.table[slot, len(pages)] = page
        self.stale.append(slot * self.table.shape[1] + len(pages))
        pages.append(page)
