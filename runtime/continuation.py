"""Prompts continued together on one engine: they join and leave from step to step, and none knows of the others."""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from spiritrt.engine.engine import Engine
from spiritrt.engine.steps import Row, Step
from spiritrt.sampling import Sampling


@dataclass(slots=True)
class Continuation:
    """A prompt and what follows it: `ids` and their `logprobs` over the full vocabulary, and why it ended (`finish`).

    `allowed` [rows] marks ids that may be drawn. `reason` says of the ids so far why the last one ends the output, None
    where it does not; "end" is an id that is no part of it.
    """

    prompt_ids: Sequence[int]
    allowed: Tensor
    sampling: Sampling
    max_new_tokens: int
    reason: Callable[[list[int]], str | None]
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: str | None = None

    def take(self, token: int, logprob: float, context: int) -> None:
        """Takes the next drawn id of a model with so long a context."""
        self.ids.append(token)
        self.logprobs.append(logprob)
        self.finish = self.reason(self.ids)
        if self.finish == "end":
            del self.ids[-1], self.logprobs[-1]
        elif self.finish is None and len(self.ids) >= self.max_new_tokens:
            self.finish = "length"
        elif self.finish is None and len(self.prompt_ids) + len(self.ids) > context:
            self.finish = "context"


@dataclass(slots=True)
class _Running:
    """A continuation in its slot; `asked` counts the ids that steps were asked for."""

    work: Continuation
    slot: int
    mask: int
    pages: int  # that it may come to fill
    asked: int = 0

    def row(self) -> Row:
        self.asked += 1
        return Row(self.slot, tuple(self.work.prompt_ids) if self.asked == 1 else None)


def run(engine: Engine, continuations: Iterable[Continuation]) -> None:
    """Continues all of them to their end, as many at once as the engine has slots and pages for.

    Raises OutOfPages or OutOfSlots where others hold what even one of them needs.
    """
    waiting = deque(continuations)
    running: list[_Running] = []
    flight: deque[tuple[list[_Running], Step]] = deque()
    try:
        while waiting or running:
            while waiting and (started := _start(engine, waiting[0], running)) is not None:
                running.append(started)
                waiting.popleft()
            ready = [each for each in running if _may_go_on(engine, each)]
            if ready:
                flight.append((ready, engine.step([each.row() for each in ready])))
            # results that arrive late are read when the next step is on its way
            if not ready or len(flight) > engine.late:
                _read(engine, *flight.popleft())
            for each in [each for each in running if each.work.finish is not None]:
                _end(engine, each)
                running.remove(each)
    finally:
        for each in running:
            _end(engine, each)


def _start(engine: Engine, work: Continuation, running: Sequence[_Running]) -> _Running | None:
    """Opens a slot, or None where this one has to wait for others to end."""
    account = engine.cache.account
    pages = account.pages_for(min(len(work.prompt_ids) + work.max_new_tokens, engine.context))
    promised = sum(each.pages - len(account.pages_of(each.slot)) for each in running)
    if running and (pages + promised > engine.free_pages or not account.free_slots):
        return None
    slot = engine.open()
    try:
        mask = engine.mask(work.allowed)
    except ValueError:
        engine.close(slot)
        raise
    engine.set_sampling(slot, work.sampling, mask, full_logprobs=True)
    return _Running(work, slot, mask, pages)


def _may_go_on(engine: Engine, each: _Running) -> bool:
    if each.asked == 0:
        return True
    return each.asked < each.work.max_new_tokens and engine.room(each.slot) > 0


def _read(engine: Engine, drawn: Sequence[_Running], step: Step) -> None:
    for each, token, logprob in zip(drawn, step.ids, step.logprobs, strict=True):
        if each.work.finish is None:  # an id after the end comes of steps that were on their way
            each.work.take(token, logprob, engine.context)


def _end(engine: Engine, each: _Running) -> None:
    engine.close(each.slot)
    engine.drop_mask(each.mask)
