"""The engine's slots of one session, and the work on its contexts done there."""

from spiritrt.duplex.reply_tokens import Mask
from spiritrt.duplex.stages import Stages
from spiritrt.duplex.work import Adopt, CacheWork, Drop, Feed, ForgetDrawn, Fork, Target, Truncate
from spiritrt.engine.steps import Row
from spiritrt.sampling import Sampling


class CacheSlots:
    """The main context, which begins with the shared prefix, and sometimes a draft."""

    def __init__(self, stages: Stages, sampling: Sampling) -> None:
        """Takes a slot. Raises OutOfSlots."""
        self._engine, self._masks, self._sampling = stages.engine, stages.masks, sampling
        self.main = stages.engine.share_prefix(stages.prefix)
        self.draft: int | None = None
        self._drawing: dict[int, Mask | None] = {}  # how each slot is set to draw

    def close(self) -> None:
        """Gives everything back."""
        self._drop(self.main)
        if self.draft is not None:
            self._drop(self.draft)

    def row(self, feed: Feed) -> Row:
        """The row of a step that does this work."""
        slot = self._slot(feed.target)
        if feed.mask is not None and self._drawing.get(slot) != feed.mask:
            self._engine.set_sampling(slot, self._sampling, self._masks[feed.mask])
            self._drawing[slot] = feed.mask
        return Row(slot, feed.ids, draw=feed.mask is not None)

    def do(self, work: CacheWork) -> None:
        """Work that needs no step. Raises OutOfPages or OutOfSlots before anything is done."""
        engine = self._engine
        if isinstance(work, Fork):
            self.draft = engine.fork(self.main)
            self._drawing[self.draft] = self._drawing.get(self.main)
        elif isinstance(work, Adopt):
            old, self.main, self.draft = self.main, self._slot("draft"), None
            self._drop(old)
        elif isinstance(work, Drop):
            self._drop(self._slot("draft"))
            self.draft = None
        elif isinstance(work, ForgetDrawn):
            engine.clear_seen(self._slot("draft"))
        elif isinstance(work, Truncate):
            engine.truncate(self._slot(work.target), work.length)
        else:
            assert not isinstance(work, Feed), "rows are done in steps"
            engine.evict_middle(self._slot(work.target), work.keep_prefix, work.keep_recent)

    def _slot(self, target: Target) -> int:
        slot = self.main if target == "main" else self.draft
        assert slot is not None, f"there is no {target}"
        return slot

    def _drop(self, slot: int) -> None:
        self._engine.close(slot)
        self._drawing.pop(slot, None)
