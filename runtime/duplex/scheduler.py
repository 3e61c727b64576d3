"""Many sessions on one set of models: what is worked on next, in which batch, and who is let in.

Everything here runs on one thread and never waits. A step hands each session its inputs, encodes, decodes and vocodes
what is ready, those first who run dry first, and collects the events. No session's tokens depend on any other: who is
worked on when changes nothing but the time. What goes wrong in one session closes that session.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from spiritrt.audio import RATE_HZ, Samples
from spiritrt.duplex.cache_slots import CacheSlots
from spiritrt.duplex.call import MOST_EVENTS, Call
from spiritrt.duplex.clock import VirtualClock
from spiritrt.duplex.config import SessionConfig
from spiritrt.duplex.costs import Average, Busy, Costs
from spiritrt.duplex.reply_sound import VocoderUnit
from spiritrt.duplex.session import Overload, Session
from spiritrt.duplex.stages import Stages
from spiritrt.duplex.stats import Stats
from spiritrt.duplex.trace import SPAN_KINDS, Recorder, SpanKind
from spiritrt.duplex.turns import Activity, Endpoint, EnergyActivity, SilenceEndpoint, Windows, activity_named
from spiritrt.duplex.work import CloseTurn, Encode, Feed, Listen
from spiritrt.engine.steps import Step

W = TypeVar("W")
log = logging.getLogger(__name__)
ENCODES_A_STEP = 1  # where sessions are encoded one by one: so long the next token of a reply may have to wait
UNITS_A_STEP = 2  # of one session, likewise
PREFILL_ALONE, PREFILL_TOGETHER = 128, 2048  # tokens of all sessions beside those that are decoded
HEARD_A_STEP = RATE_HZ // 2  # microphone samples of one session
LOAD_LIMIT = 0.85  # share of the engine thread that sessions may be expected to take
FIRST_HINT_S = 10.0  # before any session has ended


class _Began(NamedTuple):
    """When work began: by the clock, and by the machine's."""

    at: float
    counter: float


class _Flying(NamedTuple):
    """A step whose results may still be on their way."""

    rows: Sequence[tuple[Call, Feed]]
    step: Step
    began: _Began
    seconds: float  # to begin it


class Scheduler:
    """See the module. `clock` gives seconds; a `VirtualClock` makes time another matter.

    `hung_s` without a sign of life from a client that owes one closes its session. `admit` refuses sessions that the
    machine would not keep up with, by what its work has taken so far; without it only the slots count.
    """

    def __init__(
        self,
        stages: Stages,
        clock: Callable[[], float] = time.perf_counter,
        *,
        hung_s: float = 30.0,
        admit: bool = True,
        activity: Activity | None = None,
        endpoint: Endpoint | None = None,
    ) -> None:
        self.stages, self.clock = stages, clock
        self.costs = Costs(stages.family.expressive)
        self.calls: dict[int, Call] = {}
        self.totals = Stats()  # of the sessions that are closed
        self.seconds: dict[SpanKind, float] = dict.fromkeys(SPAN_KINDS, 0.0)  # of work
        self.errors = 0
        self.hung = 0
        self.announce: Callable[[], None] = _nothing  # called when events wait that cannot wait for the step's end
        self._hung_s, self._admit = hung_s, admit
        self._activity, self._endpoint = activity, endpoint
        self._lasted = Average()  # seconds of a session
        self._number = 0

    # Sessions

    def open(self, config: SessionConfig, record: Path | None = None) -> Call:
        """A new session, recorded to a file where one is named.

        Raises Busy where there is no room or no time for it, and ValueError for a setting that this model cannot have.
        """
        stages = self.stages
        if len(self.calls) >= stages.sessions:
            raise Busy(f"all {stages.sessions} sessions are taken", self._hint_s())
        load = self.costs.load(len(self.calls) + 1)
        if self._admit and self.calls and load > LOAD_LIMIT:
            raise Busy(
                f"{len(self.calls)} sessions are held, and one more would take {100 * load:.0f}% of the machine's time",
                self._hint_s(),
            )
        stages.family.check_voice(config.voice, config.style)
        detector = (self._activity or activity_named(config.turns.activity))()
        turns = config.turns
        endpoint = self._endpoint() if self._endpoint else SilenceEndpoint(turns.pause_ms, turns.endpoint_ms)
        session = Session(config, stages.language, detector.window_samples, endpoint)
        recorder = Recorder(record, config, stages.running) if record else None
        self._number += 1
        voice = stages.voices.open(config.voice, config.style)
        encoder, slots = stages.encoder.open(), CacheSlots(stages, config.sampling)
        call = Call(self._number, config, session, Windows(detector), encoder, voice, slots, self.clock(), recorder)
        self.calls[call.number] = call
        return call

    def close(self, call: Call, reason: str = "client", error: str = "") -> None:
        """Ends a session and gives back what it held; closing it again does nothing."""
        if self.calls.pop(call.number, None) is None:
            return
        stages, now = self.stages, self.clock()
        self._collect(call)
        call.finish(reason, error)
        if call.recorder is not None:
            call.recorder.close(now, reason, call.session.finished_context)
        stages.encoder.free(call.encoder_slot)
        stages.voices.free(call.voice_slot)
        call.slots.close()
        self.totals.add(call.session.stats)
        self._lasted.add(now - call.opened_at)

    def warm_up(self) -> None:
        """Holds a short conversation with itself, so that nobody waits for a first time and costs are known."""
        stages = self.stages
        noise = np.random.default_rng(0).standard_normal(2 * RATE_HZ).astype(np.float32) / 10
        sound = np.concatenate([noise, np.zeros(2 * RATE_HZ, np.float32)])
        clock, activity, number = self.clock, self._activity, self._number
        self.clock, self._activity = VirtualClock(), self._activity or EnergyActivity
        try:
            call = self.open(SessionConfig(reply="chain" if stages.language.chain else "continuation", max_reply_s=2.0))
            for start in range(0, len(sound), 320):
                self.hear(call, sound[start : start + 320])
                self.settle()
                self.played(call, call.session.sent)
            self.close(call)
        finally:
            self.clock, self._activity, self._number = clock, activity, number
            self.totals, self._lasted = Stats(), Average()
            self.seconds = dict.fromkeys(SPAN_KINDS, 0.0)

    # Work

    def step(self) -> bool:
        """Does what is ready, once; whether there was anything."""
        worked = [self._hear_inbox(call) for call in list(self.calls.values())]
        if any(worked):  # who is interrupted falls silent before anything is computed
            for call in self.calls.values():
                self._collect(call)
            self.announce()
        moved, flying = self._decode()
        if self.stages.engine.late:  # the turns are encoded while it runs
            worked.append(self._encode())
        for each in flying:
            self._land(each)
        if not self.stages.engine.late:
            worked.append(self._encode())
        worked.append(moved)
        worked.append(self._vocode())
        worked += [self._finish(call) for call in list(self.calls.values())]
        return any(worked)

    def settle(self) -> None:
        """Works until nothing is ready."""
        while self.step():
            pass

    def hear(self, call: Call, samples: Samples) -> None:
        """Hands a session microphone samples [N], up to its room."""
        began = self._begin()
        if call.recorder is not None:
            call.recorder.hear(began.at, samples)
        call.session.hear(samples, call.ears.accept(samples), began.at)
        call.sent_at = began.at
        self.costs.ear.add(self._spent("hear", [call], began) * RATE_HZ / len(samples))

    def played(self, call: Call, position: int) -> None:
        """Tells a session what its client has played. Raises ValueError beyond what was handed out."""
        now, before = self.clock(), call.session.heard
        call.session.played(position, now)
        call.played_at = now
        if call.recorder is not None and call.session.heard != before:
            call.recorder.played(now, call.session.heard)

    def over(self, call: Call) -> None:
        """Ends a reply that was heard whole."""
        now = self.clock()
        if call.recorder is not None:
            call.recorder.over(now)
        call.session.over(now)

    def _hear_inbox(self, call: Call) -> bool:
        """Hands a session what its client sent, in order."""
        left, worked = HEARD_A_STEP, False
        with self._guard(call):
            while call.inbox and left > 0:
                first = call.inbox[0]
                if isinstance(first, int):
                    call.inbox.popleft()
                    self.played(call, first)
                else:
                    count = min(left, call.session.room, len(first))
                    if not count:
                        break
                    call.inbox.popleft()
                    if count < len(first):
                        call.inbox.appendleft(first[count:])
                    call.taken += count
                    left -= count
                    self.hear(call, first[:count])
                worked = True
        return worked

    def _encode(self) -> bool:
        """Encodes pieces of turns, and the ends of those that may be over."""
        wanting: list[tuple[Call, Encode]] = self._wanting(Session.encode_work)
        if self.stages.alone:
            wanting = wanting[:ENCODES_A_STEP]
        pieces: list[tuple[Call, Listen]] = []
        for call, work in wanting:
            with self._guard(call):
                if work.begins:
                    self.stages.encoder.begin(call.encoder_slot, call.config.revise)
                if isinstance(work, CloseTurn):
                    self._close_turn(call, work)
                else:
                    pieces.append((call, work))
        for batch in [[each] for each in pieces] if self.stages.alone else [pieces] if pieces else []:
            self._listen(batch)
        return bool(wanting)

    def _listen(self, pieces: Sequence[tuple[Call, Listen]]) -> None:
        calls, began = [call for call, _ in pieces], self._begin()
        try:
            tokens = self.stages.encoder.listen([(call.encoder_slot, work.piece) for call, work in pieces])
        except Exception as error:
            self._fail(calls, error)
            return
        self.costs.piece.add(self._spent("encode", calls, began) / len(pieces))
        id_of = self.stages.language.vocabulary.id_of
        for call, heard in zip(calls, tokens, strict=True):
            with self._guard(call):
                call.session.listened([id_of(token) for token in heard], self.clock())

    def _close_turn(self, call: Call, work: CloseTurn) -> None:
        began = self._begin()
        tokens = self.stages.encoder.close(call.encoder_slot, work.rest)
        self.costs.closing.add(self._spent("encode", [call], began))
        call.session.closed([self.stages.language.vocabulary.id_of(token) for token in tokens], self.clock())

    def _decode(self) -> tuple[bool, list[_Flying]]:
        """Brings contexts up to date, then begins a step of the language model with a row of each that wants one."""
        worked = False
        rows: list[tuple[Call, Feed]] = []
        left = PREFILL_ALONE if self.stages.alone else PREFILL_TOGETHER
        for call in self._by_due():
            with self._guard(call):
                while (work := call.session.cache_work()) is not None:
                    worked = True
                    if isinstance(work, Feed):
                        prefilled = len(work.ids or ())
                        if prefilled <= left or not rows:
                            rows.append((call, work))
                            left -= prefilled
                        break
                    call.slots.do(work)
                    call.session.fed(None, self.clock())
        return worked, self._launch(rows) if rows else []

    def _launch(self, rows: Sequence[tuple[Call, Feed]]) -> list[_Flying]:
        began = self._begin()
        try:
            step = self.stages.engine.step([call.slots.row(feed) for call, feed in rows])
        except Exception as error:
            if len(rows) > 1:  # the step kept nothing: whose row it was will show
                return [flying for each in rows for flying in self._launch([each])]
            self._fail([rows[0][0]], error)
            return []
        return [_Flying(rows, step, began, time.perf_counter() - began.counter)]

    def _land(self, flying: _Flying) -> None:
        """Takes what a step has drawn."""
        waits = time.perf_counter()
        rows, ids = flying.rows, flying.step.ids
        seconds = flying.seconds + time.perf_counter() - waits
        decode, prefill = ([call for call, feed in rows if (feed.ids is None) is drawn] for drawn in (True, False))
        self.costs.add_step(len(rows), seconds)
        self._note("decode", decode, flying.began, seconds * len(decode) / len(rows))
        self._note("prefill", prefill, flying.began, seconds * len(prefill) / len(rows))
        for (call, feed), drawn in zip(rows, ids, strict=True):
            with self._guard(call):
                call.session.fed(drawn if feed.mask is not None else None, self.clock())

    def _vocode(self) -> bool:
        """Makes sound of the units that are wanted."""
        wanting = self._wanting(Session.vocode_work)
        batches = [[each] for each in wanting] if self.stages.alone else [wanting] if wanting else []
        for batch in batches:
            self._speak(batch)
        return bool(wanting)

    def _speak(self, batch: Sequence[tuple[Call, tuple[bool, VocoderUnit | None]]]) -> None:
        calls, began = {call.voice_slot: call for call, _ in batch}, self._begin()
        voices = self.stages.voices
        try:
            for slot, (_, (begins, _)) in zip(calls, batch, strict=True):
                if begins:
                    voices.begin(slot)
            spoken = voices.speak([(slot, unit) for slot, (_, (_, unit)) in zip(calls, batch, strict=True)])
        except Exception as error:
            self._fail(list(calls.values()), error)
            return
        self.costs.unit.add(self._spent("vocode", list(calls.values()), began) / len(batch))
        for packet in spoken:
            with self._guard(calls[packet.slot]):
                calls[packet.slot].session.vocoded(packet.pcm, packet.units, packet.final, self.clock())

    def _finish(self, call: Call) -> bool:
        """What ends by itself: a reply that was heard whole, a client that is gone."""
        worked = False
        with self._guard(call):
            if call.session.over_due and not call.replayed:
                self.over(call)
                worked = True
            self._collect(call)
        if call.replayed or call.number not in self.calls:
            return worked
        now = self.clock()
        if not call.session.waits_for_playback:
            call.played_at = now
        if len(call.events) > MOST_EVENTS:
            self._reap(call, f"{len(call.events)} events wait for the client, which takes none")
        elif now - call.sent_at > self._hung_s:
            self._reap(call, f"the client has sent no sound for {self._hung_s:.0f} s")
        elif now - call.played_at > self._hung_s:
            self._reap(call, f"the client has not said that it plays anything for {self._hung_s:.0f} s")
        return worked

    # Helpers

    @contextmanager
    def _guard(self, call: Call) -> Iterator[None]:
        """What goes wrong within closes this session, and no other."""
        try:
            yield
        except Exception as error:
            self._fail([call], error)

    def _fail(self, calls: Sequence[Call], error: Exception) -> None:
        self.errors += 1
        for call in calls:
            log.warning("session %d is closed: %s", call.number, error, exc_info=not isinstance(error, ValueError))
            reason = "overload" if isinstance(error, Overload) else "error"
            self.close(call, reason, f"{type(error).__name__}: {error}")

    def _reap(self, call: Call, why: str) -> None:
        self.hung += 1
        self.close(call, "hung", why)

    def _collect(self, call: Call) -> None:
        events = call.session.take_events()
        if call.recorder is not None and events:
            now = self.clock()
            for event in events:
                call.recorder.event(now, event)
        call.events += events

    def _by_due(self) -> list[Call]:
        """Sessions, those first who run dry first."""
        now = self.clock()
        return sorted(self.calls.values(), key=lambda call: call.session.due(now))

    def _wanting(self, ask: Callable[[Session], W | None]) -> list[tuple[Call, W]]:
        """The sessions that want something, and what."""
        found = []
        for call in self._by_due():
            with self._guard(call):
                if (work := ask(call.session)) is not None:
                    found.append((call, work))
        return found

    def _begin(self) -> _Began:
        return _Began(self.clock(), time.perf_counter())

    def _spent(self, kind: SpanKind, calls: Sequence[Call], began: _Began) -> float:
        """Seconds since work for these sessions began; see `_note`."""
        seconds = time.perf_counter() - began.counter
        self._note(kind, calls, began, seconds)
        return seconds

    def _note(self, kind: SpanKind, calls: Sequence[Call], began: _Began, seconds: float) -> None:
        """Adds up the seconds of this thread that work took, and writes it into the sessions' traces."""
        self.seconds[kind] += seconds
        end = self.clock()
        for call in calls:
            if call.recorder is not None:
                call.recorder.span(kind, began.at, end, call.session.due(began.at), len(calls))

    def _hint_s(self) -> float:
        held = max(1, len(self.calls))
        return max(1.0, self._lasted.value / held if self._lasted.count else FIRST_HINT_S)


def _nothing() -> None:
    """Nobody listens."""
