"""What one context of the language model holds, and the work that brings it there."""

from collections import deque
from collections.abc import Sequence

from spiritrt.duplex.reply_tokens import Mask
from spiritrt.duplex.work import CacheWork, Evict, Feed, Fork, Target, Truncate

ROW_TOKENS = 128  # ids of one piece of work at most: the engine splits rows there in any case


class Context:
    """The ids of a context once all work that was queued for it is done.

    Positions count from the beginning of the call, so they stay valid where the middle of the context was dropped: what
    lies there is then simply gone. Beyond `window` tokens the prefix and the most recent half of the window are kept.
    """

    def __init__(self, queue: deque[CacheWork], prefix: Sequence[int], window: int) -> None:
        self.ids = list(prefix)
        self.target: Target = "main"
        self.evicted = 0
        self._queue = queue
        self._prefix = len(prefix)
        self._window = window

    @property
    def position(self) -> int:
        """Where the next token goes."""
        return len(self.ids) + self.evicted

    def feed(self, ids: Sequence[int], mask: Mask | None = None) -> None:
        """Appends ids and, with a mask, draws what comes next."""
        for start in range(0, len(ids), ROW_TOKENS):
            row = tuple(ids[start : start + ROW_TOKENS])
            self.make_room(len(row))
            last = start + ROW_TOKENS >= len(ids)
            self._queue.append(Feed(self.target, row, mask if last else None))
            self.ids += row

    def feed_drawn(self, drawn: int, mask: Mask) -> None:
        """Appends the id last drawn and draws the next."""
        self.make_room(1)
        self._queue.append(Feed(self.target, None, mask))
        self.ids.append(drawn)

    def draw_again(self, mask: Mask) -> None:
        """Draws what comes after the last token."""
        last = self.ids[-1]
        self.truncate(self.position - 1)
        self.feed([last], mask)

    def truncate(self, position: int) -> None:
        """Keeps what lies before `position`; the prefix in any case."""
        length = max(position - self.evicted, self._prefix)
        if length < len(self.ids):
            self._queue.append(Truncate(self.target, length))
            del self.ids[length:]

    def rewrite(self, position: int, ids: Sequence[int]) -> None:
        """Makes `ids` what follows `position`: rewinds to the first that differs, and feeds from there on."""
        self.feed(self.rewind(position, ids))

    def rewind(self, position: int, ids: Sequence[int]) -> Sequence[int]:
        """Drops what follows `position` from the first token that is not that of `ids`; those left to be fed."""
        start = position - self.evicted
        if start < self._prefix:  # its beginning was dropped meanwhile
            start, ids = self._prefix, ids[-(self._window // 2) :]
        held = self.ids[start:]
        same = 0
        while same < min(len(held), len(ids)) and held[same] == ids[same]:
            same += 1
        self.truncate(start + same + self.evicted)
        return ids[same:]

    def make_room(self, tokens: int) -> None:
        """Drops the middle where so many more tokens would not fit the window."""
        if len(self.ids) + tokens > self._window:
            self._evict(max(0, min(self._window // 2, self._window - self._prefix - tokens)))

    def relieve(self) -> None:
        """Drops the middle early, between turns, where three quarters of the window are full."""
        if 4 * len(self.ids) > 3 * self._window:
            self._evict(self._window // 2)

    def _evict(self, recent: int) -> None:
        dropped = len(self.ids) - self._prefix - recent
        if dropped <= 0:
            return
        self._queue.append(Evict(self.target, self._prefix, recent, dropped))
        del self.ids[self._prefix : self._prefix + dropped]
        self.evicted += dropped

    def fork(self) -> "Context":
        """A draft that goes on from here."""
        draft = Context(self._queue, (), self._window)
        draft.ids, draft.target = list(self.ids), "draft"
        draft.evicted, draft._prefix = self.evicted, self._prefix
        self._queue.append(Fork())
        return draft
