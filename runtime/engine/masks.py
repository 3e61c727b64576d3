"""Sets of ids that may be drawn, each registered once, and which part of the head they need."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from spiritrt.kernels.linear import HEAD_BLOCK
from spiritrt.kernels.sampling_state import SamplingState

CAPACITY = 128
EVERYTHING = 0  # the mask that allows every id


class Masks:
    """Rows of `state.masks`, counted by how often they were asked for. Row 0 allows every one of `vocabulary` ids."""

    def __init__(self, state: SamplingState, vocabulary: int) -> None:
        self._state, self._vocabulary = state, vocabulary
        self._rows: dict[bytes, int] = {}
        self._keys: dict[int, bytes] = {}
        self._users: dict[int, int] = {}
        self._free = list(range(len(state.masks) - 1, EVERYTHING, -1))
        self._blocks: dict[int, np.ndarray] = {}
        self._hold(np.packbits(np.ones(vocabulary, np.bool_)).tobytes(), EVERYTHING, np.ones(vocabulary, np.bool_))

    def add(self, allowed: Tensor) -> int:
        """The number of a set of ids, bool [V]. Raises ValueError where it is empty, or there are too many sets."""
        if allowed.dtype != torch.bool or allowed.shape != (self._vocabulary,):
            raise ValueError(f"a mask must be bool [{self._vocabulary}], got {allowed.dtype} {list(allowed.shape)}")
        marked = allowed.cpu().numpy()
        key = np.packbits(marked).tobytes()
        if key not in self._rows:
            if not self._free:
                raise ValueError(f"{len(self._keys)} masks are in use; drop one that is not needed any more")
            self._state.set_mask(self._free[-1], allowed)
            self._hold(key, self._free.pop(), marked)
        mask = self._rows[key]
        self._users[mask] += 1
        return mask

    def drop(self, mask: int) -> bool:
        """Says that one who asked for this mask does not need it any more; returns whether nobody does."""
        if mask not in self._keys or self._users[mask] < 1:
            raise ValueError(f"mask {mask} is not in use")
        self._users[mask] -= 1
        if self._users[mask] or mask == EVERYTHING:
            return False
        del self._rows[self._keys.pop(mask)], self._users[mask], self._blocks[mask]
        self._free.append(mask)
        return True

    def check(self, mask: int) -> None:
        """Raises ValueError for a mask that does not exist."""
        if mask not in self._keys:
            raise ValueError(f"there is no mask {mask}; ask the engine for one with `mask`")

    def needed(self, masks: Iterable[int]) -> Tensor:
        """Blocks of the head [ceil(V / HEAD_BLOCK)] uint8, on the host, that hold an id which one of `masks` allows."""
        union = np.logical_or.reduce([self._blocks[mask] for mask in masks])
        return torch.from_numpy(union.astype(np.uint8))

    def _hold(self, key: bytes, mask: int, marked: np.ndarray) -> None:
        self._rows[key], self._keys[mask], self._users[mask] = mask, key, 0
        padded = np.pad(marked, (0, -len(marked) % HEAD_BLOCK))
        self._blocks[mask] = np.any(padded.reshape(-1, HEAD_BLOCK), axis=1)
