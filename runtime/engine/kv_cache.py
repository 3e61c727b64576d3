"""Paged keys and values of many sequences: append, truncate, fork, share a prefix, drop the middle."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spiritrt.engine.pages import SCRATCH_PAGE, OutOfPages, OutOfSlots, PageAccount

__all__ = ["SCRATCH_PAGE", "KVCache", "KVCacheConfig", "OutOfPages", "OutOfSlots"]

PAGE_TOKENS = 16
# (keys, values, source, target, delta, inv_freq): moves tokens and turns their keys by a difference of positions
ShiftRotary = Callable[[Tensor, Tensor, Tensor, Tensor, int, Tensor], None]


@dataclass(frozen=True, slots=True)
class KVCacheConfig:
    """Shape of a pool of `pages` pages of `page_size` tokens, for `slots` sequences of up to `context` tokens."""

    layers: int
    kv_heads: int
    head_dim: int
    slots: int
    pages: int
    context: int
    dtype: torch.dtype = torch.float32
    page_size: int = PAGE_TOKENS

    def __post_init__(self) -> None:
        for name in ("layers", "kv_heads", "head_dim", "slots", "pages", "context", "page_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.dtype.is_floating_point:
            raise ValueError(f"keys and values must be of a floating-point type, got {self.dtype}")

    @property
    def token_bytes(self) -> int:
        """Bytes that one token takes in all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.dtype.itemsize


class KVCache:
    """Keys and values [layers, pages + 1, page_size, kv_heads, head_dim] and who holds which page (`account`).

    Page 0 and the last row of `page_table` [slots + 1, pages a slot] int32 belong to no sequence: rows that only fill a
    batch up write there. What is queued on the device runs in order on one stream, so a page that is free on the host
    may be taken at once. Not for two threads at once.
    """

    def __init__(
        self, config: KVCacheConfig, device: torch.device, shift_rotary: ShiftRotary, inv_freq: Tensor
    ) -> None:
        """`inv_freq` [head_dim / 2] is the angular frequency of each pair of dimensions, in radians a position."""
        self.config = config
        self.account = PageAccount(config.slots, config.pages, config.page_size, config.context)
        shape = (config.layers, config.pages + 1, config.page_size, config.kv_heads, config.head_dim)
        self.keys = torch.empty(shape, dtype=config.dtype, device=device)
        self.values = torch.empty(shape, dtype=config.dtype, device=device)
        # a row that fills up reads what it has just written there, and nothing may be NaN
        self.keys[:, SCRATCH_PAGE].zero_()
        self.values[:, SCRATCH_PAGE].zero_()
        self.page_table = torch.from_numpy(self.account.table.copy()).to(device)
        self._device = device
        self._shift_rotary = shift_rotary
        self._inv_freq = inv_freq.to(device)

    @property
    def free_pages(self) -> int:
        return self.account.free_pages

    @property
    def scratch_slot(self) -> int:
        return self.config.slots

    def open(self) -> int:
        """A new empty slot. Raises OutOfSlots where all are open."""
        return self.account.open()

    def close(self, slot: int) -> None:
        """Gives the slot and its pages back."""
        self.account.close(slot)

    def length(self, slot: int) -> int:
        """Tokens that the slot holds."""
        return self.account.length(slot)

    def room(self, slot: int) -> int:
        """Tokens that still fit in the slot's context; `free_pages` says whether the pool has them."""
        return self.config.context - self.account.length(slot)

    def truncate(self, slot: int, length: int) -> None:
        """Keeps the first `length` tokens. Raises ValueError where fewer are held."""
        self.account.truncate(slot, length)

    def fork(self, slot: int) -> int:
        """A new slot with the same tokens, sharing all pages; who appends first copies the last one. OutOfSlots."""
        return self.account.fork(slot)

    def share_prefix(self, slot: int) -> int:
        """A new slot that begins with all tokens of `slot`, a prefix for many. As `fork`, by what it is used for."""
        return self.account.fork(slot)

    def reserve(self, wanted: Sequence[tuple[int, int]]) -> None:
        """Makes room for so many new tokens of each (slot, tokens); the tokens count as held from now on.

        Raises OutOfPages or ValueError as `PageAccount.reserve` does, before anything is written.
        """
        for source, target in self.account.reserve(wanted):
            self._copy(source, target)

    def evict_middle(self, slot: int, keep_prefix: int, keep_recent: int) -> int:
        """Drops all but the first `keep_prefix` and the last `keep_recent` tokens; returns how many were dropped.

        What follows the prefix is moved, with its keys turned to their new positions (rotations compose). Raises
        OutOfPages before anything is written.
        """
        eviction = self.account.evict_middle(slot, keep_prefix, keep_recent)
        if eviction.copied is not None:
            self._copy(*eviction.copied)
        if eviction.source:
            source, target = (
                self._upload(torch.tensor(indices, dtype=torch.int64)) for indices in (eviction.source, eviction.target)
            )
            self._shift_rotary(self.keys, self.values, source, target, -eviction.dropped, self._inv_freq)
        return eviction.dropped

    def flush(self) -> None:
        """Brings `page_table` up to date; queued on the device, without waiting for it."""
        stale = self.account.stale
        if not stale:
            return
        entries = torch.tensor(stale, dtype=torch.int64)
        values = torch.from_numpy(self.account.table.reshape(-1)[stale])
        self.page_table.view(-1)[self._upload(entries)] = self._upload(values)
        stale.clear()

    def _copy(self, source: int, target: int) -> None:
        self.keys[:, target] = self.keys[:, source]
        self.values[:, target] = self.values[:, source]

    def _upload(self, host: Tensor) -> Tensor:
        """`host` on the device, by way of pinned memory so that nobody waits."""
        if self._device.type != "cuda":
            return host
        return host.pin_memory().to(self._device, non_blocking=True)
