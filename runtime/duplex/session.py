"""One conversation as a pure state machine: no clock, no threads, no model.

In go the microphone with its speech probabilities, what encoder, language model and vocoder made of the work that the
session asked for, and what the client has played; each with the time. Out come work and events. Which tokens a session
draws depends on the microphone, on what was played and on the order of the two; never on when work was done.

- listening: nobody replies. Units of a turn are fed to the context as they are committed.
- thinking ahead: the turn may be over. Its end is fed to a copy of the context and the reply is drafted there. Speech
  drops the draft, the endpoint adopts it.
- speaking: a reply is due, being made or played.
- ducked: somebody speaks over the reply. Nothing is handed out or decoded until it is clear who goes on.
"""

from typing import Literal

from spiritrt.audio import RATE_HZ, Samples
from spiritrt.duplex.config import SessionConfig, samples_of
from spiritrt.duplex.contexts import Contexts
from spiritrt.duplex.echo import EchoGate
from spiritrt.duplex.events import Ducked, Event, Interrupted, ReplyEnded, Resumed, SpeechStarted, SpeechStopped
from spiritrt.duplex.microphone import Microphone
from spiritrt.duplex.playout import Playout
from spiritrt.duplex.reply import MOST_SAMPLES_A_UNIT, UNITS_AHEAD, Reply, Units
from spiritrt.duplex.reply_sound import VocoderUnit
from spiritrt.duplex.reply_tokens import Language
from spiritrt.duplex.stats import Stats
from spiritrt.duplex.turn import Turn
from spiritrt.duplex.turns import EndpointDetector, SpeechRun
from spiritrt.duplex.work import PIECE_SAMPLES, CacheWork, Encode, Evict

HISTORY_SAMPLES = samples_of(3000)  # sound before an onset that is kept
REOPEN_SAMPLES = samples_of(6000)  # so long after the endpoint a turn whose reply nobody heard may go on
FIRST_SOUND_S = 0.06  # after the endpoint, the goal
UNITS_DUE_S = 0.3  # after they were heard

State = Literal["listening", "thinking_ahead", "speaking", "ducked"]


class Overload(RuntimeError):
    """The machine is too far behind for this session to go on."""


class Session:
    """See the module. `window` samples have one speech probability each. Not for two threads at once.

    Raises ValueError where the context has no room for a conversation.
    """

    def __init__(self, config: SessionConfig, language: Language, window: int, endpoint: EndpointDetector) -> None:
        self._config, self._language, self._endpoint = config, language, endpoint
        self.stats = Stats()
        self._contexts = Contexts(language, config)
        self._run = SpeechRun(config.turns, window)
        self._window = window
        self._gate = EchoGate(config.echo)
        self._microphone = Microphone()
        self._turn: Turn | None = None
        self._reply: Reply | None = None
        self._ducked = False
        self._owed: int | None = None  # speech during a reply in text began here
        self._encoded_to = 0  # microphone sample up to which turns have been closed
        self._playout = Playout(config, self._gate, self.stats)
        self._events: list[Event] = []
        self._now = 0.0
        self._waits_since: float | None = None  # work on what was heard

    # What goes in

    @property
    def room(self) -> int:
        """Samples of the microphone that can be taken now."""
        return self._microphone.room

    def hear(self, samples: Samples, probabilities: list[float], now: float) -> None:
        """Takes microphone samples [N], up to `room`, with the speech probability of each window that they complete."""
        self._now = now
        self._microphone.append(samples)
        self.stats.heard_samples += len(samples)
        for probability in probabilities:
            self._judge(probability)
        self._note_waiting()
        self._release()

    def played(self, position: int, now: float) -> None:
        """Says that the loudspeaker has reached an output position.

        Raises ValueError for a position beyond what was handed out.
        """
        self._now = now
        self._playout.acknowledge(position, self._reply, now)
        if self.heard:
            self._contexts.adopt()
        self._release()

    def listened(self, ids: list[int], now: float) -> None:
        """Answers `Listen`: tokens of the turn that are now committed."""
        self._now = now
        turn = self._turn
        assert turn is not None, "a turn is listened to until it is closed"
        turn.begun = True
        turn.fed += PIECE_SAMPLES
        if ids:
            self._contexts.main.feed([*turn.opening, *ids])
            turn.tokens += len(ids)
            self.stats.heard_tokens += len(ids)
        self._note_waiting()

    def closed(self, ids: list[int], now: float) -> None:
        """Answers `CloseTurn`: the tokens beyond those that were committed or, where turns are revised, all of them."""
        self._now = now
        turn, reply = self._turn, self._reply
        assert turn is not None and reply is not None, "only the turn of a reply is closed"
        turn.begun = True
        reply.closing = False
        if not turn.tokens and not ids:
            reply.reason = "nothing"
            return
        if self._config.revise:
            self._contexts.think(reply, [*turn.marker, *ids], turn.position)
        else:
            self._contexts.think(reply, [*turn.opening, *ids])

    def fed(self, drawn: int | None, now: float) -> None:
        """Answers the `CacheWork` that was asked for last."""
        self._now = now
        work = self._contexts.done()
        if isinstance(work, Evict):
            self.stats.evicted_tokens += work.dropped
        self._note_waiting()
        if drawn is None:
            return
        reply = self._reply
        assert reply is not None, f"nobody waits for {drawn}"
        reply.take(drawn)
        self.stats.drawn_tokens += 1
        self._release()

    def vocoded(self, pcm: Samples, units: Units, final: bool, now: float) -> None:
        """Answers `vocode_work`, any number of times: sound, and which units of the reply made how much of it."""
        self._now = now
        reply = self._reply
        assert reply is not None, "no reply is being made"
        reply.vocoded(pcm, units, final)
        self._release()

    def over(self, now: float) -> None:
        """Ends a reply that was heard whole: see `over_due`."""
        self._now = now
        reply = self._reply
        assert reply is not None and self.over_due, "the reply is not over"
        if reply.reason != "nothing":
            self._contexts.adopt()
            self._contexts.close_reply(reply, reply.kept, reply.whole)
        self._events.append(ReplyEnded(self._run.clock, reply.reason, reply.sound.samples))
        self.stats.replies += 1
        self._end_reply()
        self._turn = None

    # What comes out

    @property
    def state(self) -> State:
        """See the module."""
        if self._reply is None:
            return "listening"
        if not self._reply.adopted:
            return "thinking_ahead"
        return "ducked" if self._ducked else "speaking"

    @property
    def context(self) -> tuple[int, ...]:
        """The ids that the context holds once the work that is queued is done."""
        return tuple(self._contexts.main.ids)

    @property
    def sent(self) -> int:
        """Output position up to which sound was handed out."""
        return self._playout.sent

    @property
    def played_to(self) -> int:
        """Output position up to which the client has played."""
        return self._playout.played

    @property
    def finished_context(self) -> tuple[int, ...]:
        """`context` without a reply that is still being made: how far that has come depends on the machine."""
        return self._contexts.before(self._reply)

    @property
    def heard(self) -> int:
        """Samples of the running reply that were heard."""
        return self._reply.heard if self._reply else 0

    @property
    def waits_for_playback(self) -> bool:
        """Whether the client has sound that it should be playing."""
        return self._reply is not None and not self._ducked and self._reply.sent > self._reply.heard

    @property
    def reply_offset(self) -> int:
        """Output position at which the running reply began, or the next one will."""
        return self._playout.sent if self._reply is None or not self._reply.adopted else self._reply.offset

    @property
    def over_due(self) -> bool:
        """Whether the reply was made and heard whole, so that `over` is to be called."""
        reply = self._reply
        if reply is None or not reply.adopted or not reply.reason or reply.outbox:
            return False
        return not reply.unheard and self._contexts.settled

    def take_events(self) -> list[Event]:
        """What happened since the last call."""
        events, self._events = self._events, []
        return events

    def encode_work(self) -> Encode | None:
        """What the encoder shall do next, or None. The answer comes before anything else goes in."""
        turn, reply = self._turn, self._reply
        if turn is None or (turn.ended is not None and (reply is None or not reply.closing)):
            return None
        return turn.next_work(self._microphone, reply.close_at if reply is not None and reply.closing else None)

    def cache_work(self) -> CacheWork | None:
        """What the language model shall do next, or None. The answer is `fed`, before anything else goes in."""
        reply = self._reply
        if self._contexts.settled and reply is not None and reply.next is not None and self._may_go_on(reply):
            self._contexts.go_on(reply)
        return self._contexts.next_work()

    def vocode_work(self) -> tuple[bool, VocoderUnit | None] | None:
        """The unit that the vocoder shall say next (None there: the reply's end), and whether it is the first."""
        reply = self._reply
        return reply.next_unit() if reply is not None and self._wants_sound(reply) else None

    def due(self, now: float) -> float:
        """The time by which the next work should be done: when the client runs dry, or the person waits."""
        reply = self._reply
        if reply is None:
            return (now if self._waits_since is None else self._waits_since) + UNITS_DUE_S
        if not reply.sent:
            return reply.wanted_at
        return self._playout.dry_at(reply.offset + reply.sound.samples)

    @property
    def lead_ms(self) -> float:
        """Sound of the reply that is made and not yet heard."""
        reply = self._reply
        return 0.0 if reply is None else 1000 * reply.unheard / RATE_HZ

    @property
    def held(self) -> dict[str, tuple[int, int]]:
        """What every buffer holds and may hold: samples, or pieces of work."""
        reply = self._reply
        lead = samples_of(max(self._config.lead_ms, self._config.draft_ms))
        return {
            "microphone": (self._microphone.held, self._microphone.capacity),
            "units": (len(reply.units) if reply else 0, 2 * UNITS_AHEAD),
            "unheard": (reply.unheard if reply else 0, lead + 2 * MOST_SAMPLES_A_UNIT),
            "sent": (reply.sent - reply.heard if reply else 0, samples_of(self._config.send_ahead_ms)),
        }

    # Turns

    def _judge(self, probability: float) -> None:
        """One window of the microphone."""
        start = self._run.clock
        window = self._microphone.between(start, start + self._window)
        reply = self._reply
        if not self._gate.passes(window, start, self._playout.played, reply is not None and reply.adopted):
            probability = 0.0
        speech = self._run.accept(probability)
        if reply is not None and reply.adopted:
            self._overlap(reply)
        elif self._turn is not None:
            self._in_turn(self._turn, window, speech)
        elif self._owed is not None or self._run.confirmed:
            self._begin_turn(self._run.start if self._owed is None else self._owed)
        self._forget()

    def _in_turn(self, turn: Turn, window: Samples, speech: bool) -> None:
        run, turns = self._run, self._config.turns
        tail = samples_of(turns.tail_ms)
        if speech and run.confirmed and self._reply is not None:
            self._drop_draft(self._reply)
        turn.hear(run, tail)
        decision = self._endpoint.accept(window, speech, 1000 * (run.clock - turn.speech_end) / RATE_HZ)
        turn.overlong = run.clock - turn.start >= turns.max_turn_s * RATE_HZ
        if turn.overlong:
            decision = "end"
        if self._reply is None and (decision == "end" or (decision == "pause" and not speech)):
            self._think(turn.end_at(run.clock, tail))
        if decision == "end":
            self._adopt(turn)

    def _begin_turn(self, began: int) -> None:
        run = self._run
        pre_roll = began - samples_of(self._config.turns.pre_roll_ms)
        kept = HISTORY_SAMPLES if self._owed is None else self._microphone.capacity // 2
        start = max(pre_roll, run.clock - kept, self._encoded_to)
        main = self._contexts.main
        main.relieve()
        marker = self._contexts.opening()
        self._turn = Turn(start, max(run.confirmed_end, start), marker, main.position, limit=run.clock)
        self._owed = None
        self._endpoint.reset()
        self._events.append(SpeechStarted(run.clock, began))

    def _overlap(self, reply: Reply) -> None:
        """A window of the microphone while a reply is up."""
        run, turns = self._run, self._config.turns
        if reply.text_only:  # nothing sounds, so nothing is interrupted: the turn begins afterwards
            if run.confirmed and self._owed is None:
                self._owed = run.start
        elif not self._ducked:
            if run.lasts(samples_of(turns.duck_ms)):
                self._ducked = True
                self._events.append(Ducked(run.clock))
        elif run.lasts(samples_of(turns.barge_in_ms)):
            self._interrupt(reply)
        elif run.clock - run.end >= samples_of(turns.release_ms):
            self._ducked = False
            self._playout.resume(self._now)
            self.stats.false_alarms += 1
            self._events.append(Resumed(run.clock, self._playout.played))

    def _note_waiting(self) -> None:
        """Since when something that was heard waits to be encoded or fed to the context."""
        turn = self._turn
        if self._contexts.settled and (turn is None or turn.limit - turn.needed < PIECE_SAMPLES):
            self._waits_since = None
        elif self._waits_since is None:
            self._waits_since = self._now

    def _forget(self) -> None:
        """Drops sound that nobody will ask for."""
        clock, turn, reply = self._run.clock, self._turn, self._reply
        keep = clock - HISTORY_SAMPLES
        if self._owed is not None:
            owed = self._owed - samples_of(self._config.turns.pre_roll_ms)
            keep = min(keep, max(owed, clock - self._microphone.capacity // 2))
        if turn is not None and (turn.ended is None or reply is None or reply.closing or self._reopens(turn, reply)):
            keep = min(keep, turn.needed)
        self._microphone.forget(keep)

    # Replies

    def _think(self, close_at: int) -> None:
        """The turn may end at `close_at`: a reply is drafted."""
        turns = self._config.turns
        wait_s = (turns.endpoint_ms - turns.pause_ms) / 1000
        most = self._contexts.reply_tokens
        self._reply = Reply(close_at, self._config, self._language, most, self._now + wait_s)
        self.stats.drafts += 1

    def _drop_draft(self, reply: Reply) -> None:
        """The person goes on."""
        self.stats.dropped_drafts += 1
        self.stats.wasted_tokens += reply.drawn
        self._contexts.drop()
        self._reply = None

    def _adopt(self, turn: Turn) -> None:
        """The turn is over: its draft becomes the reply."""
        reply = self._reply
        assert reply is not None
        reply.adopted = True
        reply.wanted_at = self._now + FIRST_SOUND_S
        reply.offset = self._playout.sent
        turn.ended = self._run.clock
        self._encoded_to = reply.close_at
        if turn.overlong or self._run.confirmed:  # what the turn ended in does not speak over its reply
            self._run.cut()
        self._events.append(SpeechStopped(self._run.clock, turn.speech_end))

    def _reopens(self, turn: Turn, reply: Reply) -> bool:
        """Whether speech now goes on with the turn rather than beginning another: nobody has heard a reply."""
        if turn.overlong or turn.ended is None or reply.heard:
            return False
        return self._run.clock - turn.ended <= REOPEN_SAMPLES

    def _interrupt(self, reply: Reply) -> None:
        """The person speaks over the reply: what was not heard leaves the context."""
        run, turn = self._run, self._turn
        assert turn is not None
        self._contexts.stop_drawing()
        reopens = self._reopens(turn, reply)
        if reply.closing and not reopens:
            raise Overload(f"the turn that ended {REOPEN_SAMPLES // RATE_HZ} s ago is not encoded yet")
        self._events.append(Interrupted(run.clock, 1000 * reply.heard / RATE_HZ, reply.heard))
        self.stats.interruptions += 1
        heard_tokens = reply.sound.tokens_heard(reply.heard)
        self.stats.unheard_tokens += max(0, reply.drawn - heard_tokens)
        self._gate.drop(self._playout.played)
        if reopens:
            # what was held back of its silence is part of it after all
            self._contexts.drop()
            turn.ended = None
            turn.limit = run.clock
            turn.speech_end = run.confirmed_end
            self._encoded_to = turn.start
            self._endpoint.reset()
            self._end_reply()
            self._events.append(SpeechStarted(run.clock, run.start))
            return
        if reply.heard:
            self._contexts.close_reply(reply, heard_tokens, whole=False)
        elif reply.reason != "nothing":
            self._contexts.adopt()
            self._contexts.main.truncate(reply.start)
        self._end_reply()
        self._begin_turn(run.start)

    def _end_reply(self) -> None:
        self._reply = None
        self._ducked = False

    # Sound

    def _may_go_on(self, reply: Reply) -> bool:
        """Whether the next token of a reply is wanted now."""
        if self._ducked or reply.reason or len(reply.units) >= UNITS_AHEAD:
            return False
        return (reply.adopted or self._config.think_ahead) and self._wants_sound(reply)

    def _wants_sound(self, reply: Reply) -> bool:
        limit = samples_of(self._config.lead_ms if reply.adopted else self._config.draft_ms)
        return not self._ducked and reply.unheard < limit

    def _release(self) -> None:
        """Hands out what the client may have."""
        if self._reply is not None and self._reply.adopted and not self._ducked:
            self._events += self._playout.release(self._reply, self._now)
