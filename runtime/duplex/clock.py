"""Time that does not pass by itself, so that an hour of conversation needs no hour."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class VirtualClock:
    """Seconds since its beginning. It stands still but for `advance_to` and, where `charged`, while it is `running`.

    Charged, it passes while the machine computes and skips what it would wait: deadlines are kept or missed as in real
    time. `timer` says how long computing took: with the thread's own time (`time.thread_time`), what else runs on the
    machine does not count. Uncharged the machine is infinitely fast, and everything repeats exactly.
    """

    def __init__(self, charged: bool = False, timer: Callable[[], float] = time.perf_counter) -> None:
        self._charged, self._timer = charged, timer
        self._time = 0.0
        self._since: float | None = None

    def __call__(self) -> float:
        return self._time + (0.0 if self._since is None else self._timer() - self._since)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Time in which work is done."""
        if self._charged:
            self._since = self._timer()
        try:
            yield
        finally:
            self._time, self._since = self(), None

    def advance_to(self, seconds: float) -> None:
        """Waits until then; never goes back."""
        assert self._since is None, "the clock is running"
        self._time = max(self._time, seconds)
