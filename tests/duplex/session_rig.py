"""A world around one session without any model: every part is a small pure function, and everything is recorded.

The microphone counts its samples, so that what was encoded is known to the sample. The language model draws by a hash
of what its context holds. The vocoder makes sound whose value is its own index, two units late.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from spiritrt.duplex.config import SessionConfig
from spiritrt.duplex.events import AudioOut, Event, Interrupted
from spiritrt.duplex.reply_tokens import Language, Mask
from spiritrt.duplex.session import Session
from spiritrt.duplex.turns import EndpointDetector, SilenceEndpoint
from spiritrt.duplex.work import Adopt, CacheWork, CloseTurn, Drop, Evict, Feed, ForgetDrawn, Fork, Listen, Truncate
from spiritrt.tokens.vocabulary import BOS, EOS, Vocabulary

WINDOW = 512
HOP = 640
COUNTED = 8_000_000  # microphone samples are numbered anew after so many: float32 counts no further than twice that
VOCABULARY = Vocabulary(text_size=40, units=60, rows=128)
LETTERS = " A:bcdefgh"  # text ids 10 and up; 20 is a whole answer's flag
REPLY_UNITS = 25  # the person says units below, the model from here on
SILENT_UNITS = frozenset({57, 58})


def decode(ids: Sequence[int]) -> str:
    return "".join(" A:" if i == 20 else LETTERS[i - 10] if 10 <= i < 20 else "?" for i in ids)


def language(chain: bool = True, window: int = 1200) -> Language:
    return Language(VOCABULARY, decode, chain, window, (BOS, 12, 13), SILENT_UNITS)


def frames_of(unit: int) -> int:
    return 1 + unit % 4


def _numbers(start: int, count: int) -> np.ndarray:
    return (np.arange(start, start + count) % COUNTED).astype(np.float32)


def digest(*what: object) -> int:
    return int.from_bytes(hashlib.blake2b(repr(what).encode(), digest_size=6).digest(), "little")


@dataclass
class Reply:
    """What the fake vocoder knows of the reply it is making."""

    units: list[int] = field(default_factory=list)
    made: int = 0  # units
    samples: int = 0


@dataclass
class World:
    """A session, its fake models, and what came of it."""

    config: SessionConfig
    language: Language
    endpoint: EndpointDetector | None = None  # None: by silence, as configured
    time: float = 0.0
    clock: int = 0
    events: list[Event] = field(default_factory=list)
    main: list[int] = field(default_factory=list)
    draft: list[int] | None = None
    evictions: int = 0
    pieces: list[tuple[int, int]] = field(default_factory=list)  # ranges of the microphone that a turn has fed
    reply: Reply = field(default_factory=Reply)
    rest: int = 0
    drawn: int = 0
    speaks: list[int] = field(default_factory=list)  # units that the model draws next, before it draws by itself

    def __post_init__(self) -> None:
        self.main = list(self.language.prefix)
        turns = self.config.turns
        endpoint = self.endpoint or SilenceEndpoint(turns.pause_ms, turns.endpoint_ms)
        self.session = Session(self.config, self.language, WINDOW, endpoint)

    # inputs

    def hear(self, samples: int, speech: bool) -> None:
        """The next microphone samples, each of which is its own number."""
        self.rest += samples
        probabilities = [0.9 if speech else 0.05] * (self.rest // WINDOW)
        self.rest %= WINDOW
        sound = _numbers(self.clock, samples)
        self.clock += samples
        self.time += samples / 16000
        self.session.hear(sound, probabilities, self.time)
        self._collect()

    def played(self, position: int) -> None:
        self.session.played(position, self.time)
        self._collect()

    def over(self) -> None:
        self.session.over(self.time)
        self._collect()

    # work

    def work(self, kinds: Sequence[str] = ("encode", "cache", "vocode")) -> bool:
        """Does one piece of each kind of work that there is; False where there is none."""
        return any([getattr(self, f"_{kind}")() for kind in kinds])

    def settle(self) -> None:
        while self.work():
            pass

    def _encode(self) -> bool:
        work = self.session.encode_work()
        if work is None:
            return False
        if work.begins:
            self.pieces = []
        if isinstance(work, Listen):
            self._heard(work.piece)
            self.session.listened(self._units(work.piece), self.time)
        elif isinstance(work, CloseTurn):
            rest = self._units(work.rest)
            if work.begins:
                self.pieces = []
            if self.config.revise:  # all of the turn once more: every fifth unit turns out to be another
                start = self.pieces[0][0] if self.pieces else int(work.rest[0]) if len(work.rest) else 0
                end = int(work.rest[-1]) + 1 if len(work.rest) else self.pieces[-1][1]
                rest = self._units(np.arange(start, end, dtype=np.float32))
                rest[::5] = [VOCABULARY.first_unit] * len(rest[::5])
            self.session.closed(rest, self.time)
        self._collect()
        return True

    def _heard(self, piece: np.ndarray) -> None:
        start = int(piece[0])
        assert not self.pieces or self.pieces[-1][1] % COUNTED == start, "a turn is heard without gap or overlap"
        np.testing.assert_array_equal(piece, _numbers(start, len(piece)))
        self.pieces.append((start, start + len(piece)))

    def _units(self, sound: np.ndarray) -> list[int]:
        """One unit a frame, deduplicated here by never being equal."""
        starts = sound[: len(sound) // HOP * HOP : HOP].astype(int)
        return [VOCABULARY.first_unit + start // HOP % REPLY_UNITS for start in starts.tolist()]

    def _cache(self) -> bool:
        work = self.session.cache_work()
        if work is None:
            return False
        self.session.fed(self._do(work), self.time)
        self._collect()
        return True

    def _do(self, work: CacheWork) -> int | None:
        if isinstance(work, Fork):
            assert self.draft is None
            self.draft = list(self.main)
        elif isinstance(work, Adopt):
            assert self.draft is not None
            self.main, self.draft = self.draft, None
        elif isinstance(work, Drop):
            assert self.draft is not None
            self.draft = None
        elif not isinstance(work, ForgetDrawn):
            ids = self.main if work.target == "main" else self.draft
            assert ids is not None
            if isinstance(work, Truncate):
                assert len(self.language.prefix) <= work.length < len(ids)
                del ids[work.length :]
            elif isinstance(work, Evict):
                assert work.dropped == len(ids) - work.keep_prefix - work.keep_recent > 0
                del ids[work.keep_prefix : len(ids) - work.keep_recent]
                self.evictions += 1
            elif isinstance(work, Feed):
                return self._feed(ids, work)
        return None

    def _feed(self, ids: list[int], work: Feed) -> int | None:
        ids += [self.drawn] if work.ids is None else work.ids
        assert len(ids) <= self.language.window, "positions stay within what the model was trained on"
        if work.mask is None:
            return None
        self.drawn = self._draw(ids, work.mask)
        return self.drawn

    def _draw(self, ids: list[int], mask: Mask) -> int:
        number = digest(self.config.seed, ids[-24:], len(ids) % 7)
        if self.speaks:
            return VOCABULARY.first_unit + self.speaks.pop(0)
        if mask in ("speech", "speech_end"):
            if mask == "speech_end" and number % 150 == 0:
                return EOS
            return VOCABULARY.first_unit + REPLY_UNITS + number % (59 - REPLY_UNITS)
        if mask == "text_end" and number % 6 == 0:
            return VOCABULARY.speech_marker
        return 10 + number % 11

    def _vocode(self) -> bool:
        work = self.session.vocode_work()
        if work is None:
            return False
        begins, unit = work
        if begins:
            self.reply = Reply()
        reply = self.reply
        if unit is not None:
            reply.units.append(unit.code)
        last = len(reply.units) - (0 if unit is None else 2)
        ready = [(number, frames_of(reply.units[number]) * HOP) for number in range(reply.made, max(last, reply.made))]
        reply.made = max(reply.made, last)
        if ready or unit is None:
            count = sum(samples for _, samples in ready)
            pcm = np.arange(reply.samples, reply.samples + count, dtype=np.float32)
            reply.samples += count
            self.session.vocoded(pcm, tuple(ready), unit is None, self.time)
        self._collect()
        return True

    def _collect(self) -> None:
        self.events += self.session.take_events()

    # what came of it

    @property
    def sound(self) -> list[AudioOut]:
        return [event for event in self.events if isinstance(event, AudioOut)]

    def kinds(self) -> list[str]:
        """Names of the events, sound left out."""
        return [type(event).__name__ for event in self.events if not isinstance(event, AudioOut)]

    @property
    def interruptions(self) -> list[Interrupted]:
        return [event for event in self.events if isinstance(event, Interrupted)]

    def sent(self) -> int:
        return self.session.sent

    @property
    def reply_sent(self) -> int:
        """Samples of the running reply that were handed out."""
        return self.session.sent - self.session.reply_offset


def replies_in(context: Sequence[int]) -> list[list[int]]:
    """The units of each stretch of the model's own speech that a context holds."""
    runs: list[list[int]] = [[]]
    for i in context:
        unit = i - VOCABULARY.first_unit
        if unit >= REPLY_UNITS:
            runs[-1].append(unit)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]
