"""The microphone's sound as far as somebody may still ask for it, by sample number."""

import numpy as np

from spiritrt.audio import RATE_HZ, Samples

CAPACITY_S = 16.0


class Microphone:
    """Samples from `start` on, `capacity` at most: who brings more than `room` must wait."""

    def __init__(self, capacity: int = round(CAPACITY_S * RATE_HZ)) -> None:
        self.capacity = capacity
        self.start = 0
        self._sound = np.zeros(2 * capacity, np.float32)  # twice, so that it is moved seldom
        self._begin = self._end = 0

    @property
    def held(self) -> int:
        """Samples held."""
        return self._end - self._begin

    @property
    def room(self) -> int:
        """Samples that can be taken."""
        return self.capacity - self.held

    def append(self, samples: Samples) -> None:
        """Takes the next samples [N], up to `room`."""
        assert len(samples) <= self.room, f"{len(samples)} samples for a room of {self.room}"
        if self._end + len(samples) > len(self._sound):
            held = self.held
            self._sound[:held] = self._sound[self._begin : self._end].copy()
            self._begin, self._end = 0, held
        self._sound[self._end : self._end + len(samples)] = samples
        self._end += len(samples)

    def between(self, start: int, end: int) -> Samples:
        """A copy of the samples [end - start]."""
        assert self.start <= start <= end <= self.start + self.held, f"{start}:{end} is not held"
        begin = self._begin - self.start
        return self._sound[begin + start : begin + end].copy()

    def forget(self, before: int) -> None:
        """Drops what lies before a sample."""
        dropped = min(max(0, before - self.start), self.held)
        self.start += dropped
        self._begin += dropped
