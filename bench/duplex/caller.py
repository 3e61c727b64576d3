"""A scripted person at a client: packets of 20 ms go in, sound comes out, and what a person would notice is noted.

Times are seconds of one clock, the client's. A decision is timed from the moment at which the client sent the packet
with the sample that decided it: so queues, steps in progress and the way back count, and not only the computing.
"""

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import TypeAlias

import numpy as np

from spiritrt.audio import RATE_HZ, Samples
from spiritrt.duplex.client import PACKET_SAMPLES, ScriptedPerson
from spiritrt.duplex.events import (
    AudioOut,
    Closed,
    Ducked,
    Error,
    Event,
    Interrupted,
    ReplyEnded,
    Resumed,
    SpeechStarted,
    SpeechStopped,
)
from spiritrt.duplex.playout import LATE_S
from spiritrt.duplex.script import Line

ROOM_DB = -62.0  # of the microphone's own noise: no room is digitally silent
PACKET_S = PACKET_SAMPLES / RATE_HZ


Milliseconds: TypeAlias = "array[float]"


def _none() -> Milliseconds:
    return array("d")


@dataclass(slots=True)
class Noticed:
    """What people noticed, of one or many calls. Arrays hold an entry an occurrence."""

    end_of_turn_to_audio: Milliseconds = field(default_factory=_none)  # endpoint decided -> first sound is there
    silence_to_audio: Milliseconds = field(default_factory=_none)  # the person fell silent -> the same
    barge_in_to_silence: Milliseconds = field(default_factory=_none)  # speech over the reply decided -> silent
    onset_to_silence: Milliseconds = field(default_factory=_none)  # speech that interrupts began -> silent
    resume: Milliseconds = field(default_factory=_none)  # false alarm decided -> sounds again
    interrupted: Milliseconds = field(default_factory=_none)  # interruption decided -> the client knows
    late: Milliseconds = field(default_factory=_none)  # deadline misses: how long the loudspeaker had been dry
    lead: Milliseconds = field(default_factory=_none)  # sound that was left when a packet came
    jitter: Milliseconds = field(default_factory=_none)  # between two packets, against the sound between them
    backlog: Milliseconds = field(default_factory=_none)  # microphone that waited to be heard: the most of each second
    sent_late: Milliseconds = field(default_factory=_none)  # packets sent after their time: the latest of each second
    turns: int = 0
    packets: int = 0
    replies: Counter[str] = field(default_factory=Counter)  # by how they ended
    closed: Counter[str] = field(default_factory=Counter)  # sessions by why they ended
    errors: list[str] = field(default_factory=list)

    def add(self, other: "Noticed") -> None:
        """Adds what was noticed in another call."""
        for each in fields(self):
            mine, others = getattr(self, each.name), getattr(other, each.name)
            setattr(self, each.name, mine + others)


class Playout:
    """A loudspeaker without a buffer of its own: it sounds from the moment a packet is there until it has no more."""

    def __init__(self) -> None:
        self.position = 0  # output position that it has reached
        self.in_reply = False
        self._start = 0  # of the reply
        self._end = 0  # of what it has
        self._ducked = False
        self._since: tuple[int, float] | None = None  # it was at this position then, and sounds
        self._dry_at: float | None = None

    @property
    def heard(self) -> int:
        """Samples of the running reply that have sounded."""
        return self.position - self._start if self.in_reply else 0

    @property
    def left(self) -> int:
        """Samples that wait to sound."""
        return self._end - self.position

    def advance(self, now: float) -> None:
        """Plays until then."""
        if self._since is None:
            return
        at, since = self._since
        reached = at + round((now - since) * RATE_HZ)
        if reached >= self._end:
            self._dry_at = since + (self._end - at) / RATE_HZ
            self._since, reached = None, self._end
        self.position = max(self.position, reached)

    def take(self, event: Event, now: float) -> float | None:
        """An event of the session; for a packet that comes too late, the seconds for which it was dry."""
        self.advance(now)
        if isinstance(event, AudioOut):
            return self._add(event, now)
        if isinstance(event, Ducked):
            self._ducked, self._since = True, None
        elif isinstance(event, Resumed):
            self._ducked, self._dry_at = False, None
            if self.left:
                self._since = self.position, now
        elif isinstance(event, Interrupted | ReplyEnded):
            self._ducked = self.in_reply = False
            self._since = self._dry_at = None
            self._end = self.position
        return None

    def _add(self, packet: AudioOut, now: float) -> float | None:
        late = None
        if not self.in_reply:
            self.in_reply = True
            self.position = self._start = packet.start_sample
        elif self._dry_at is not None and now - self._dry_at > LATE_S:
            late = now - self._dry_at
        self._end = packet.start_sample + len(packet.pcm)
        if self._since is None and not self._ducked:
            self._since = self.position, now
        self._dry_at = None
        return late


class Caller:
    """See the module. `tick` is called for each packet of the microphone, when its last sample is there."""

    def __init__(self, lines: Sequence[Line], seed: int = 0) -> None:
        self.noticed = Noticed()
        self.playout = Playout()
        self.closed = ""
        self._person = ScriptedPerson(lines)
        self._room = (10 ** (ROOM_DB / 20) * np.random.default_rng(seed).standard_normal(RATE_HZ)).astype(np.float32)
        self._sent_at = array("d")  # of each packet
        self._backlog = self._late = 0.0  # the most in this second
        self._endpoint_at = self._quiet_at = self._resumed_at = 0.0
        self._waits_for_sound = self._waits_to_resume = False
        self._silent_at: float | None = None  # the reply has been silent since, for somebody speaks over it
        self._interrupted = False
        self._packet: tuple[float, float] | None = None  # when the last packet of a reply came, and its seconds

    @property
    def over(self) -> bool:
        """Whether all is said and answered, or the session is closed."""
        return bool(self.closed) or self._person.over

    def tick(self, now: float) -> tuple[Samples, int]:
        """The next packet [PACKET_SAMPLES] of the microphone, and the output position that has been played."""
        self.playout.advance(now)
        at = len(self._sent_at) * PACKET_SAMPLES % RATE_HZ
        self._sent_at.append(now)
        return self._person.tick(self.playout.heard) + self._room[at : at + PACKET_SAMPLES], self.playout.position

    def sent(self, late_ms: float, backlog_ms: float) -> None:
        """Says of the packet of the last `tick` how late it is sent, and how much waits to be heard before it."""
        self._late, self._backlog = max(self._late, late_ms), max(self._backlog, backlog_ms)
        if len(self._sent_at) * PACKET_SAMPLES % RATE_HZ == 0:
            self.noticed.sent_late.append(self._late)
            self.noticed.backlog.append(self._backlog)
            self._late = self._backlog = 0.0

    def take(self, event: Event, now: float) -> None:
        """An event of the session."""
        noticed, playout = self.noticed, self.playout
        self._person.take(event)
        in_reply, left = playout.in_reply, playout.left
        late = playout.take(event, now)
        if isinstance(event, AudioOut):
            self._take_sound(event, now, late, in_reply)
        elif isinstance(event, SpeechStarted):
            noticed.turns += 1
            if self._interrupted and self._silent_at is not None:
                noticed.onset_to_silence.append(1e3 * (self._silent_at - self._sent(event.began)))
            self._interrupted = False
        elif isinstance(event, SpeechStopped):
            self._endpoint_at, self._quiet_at = self._sent(event.at), self._sent(event.ended)
            self._waits_for_sound = True
        elif isinstance(event, Ducked):
            self._silent_at = now if in_reply else None
            if in_reply:
                noticed.barge_in_to_silence.append(1e3 * (now - self._sent(event.at)))
        elif isinstance(event, Resumed):
            self._packet = None
            self._resumed_at = self._sent(event.at)
            self._waits_to_resume = in_reply and not left
            if in_reply and left:
                noticed.resume.append(1e3 * (now - self._resumed_at))
        elif isinstance(event, Interrupted | ReplyEnded):
            self._waits_for_sound = self._waits_to_resume = False
            self._packet = None
            self._interrupted = isinstance(event, Interrupted)
            if isinstance(event, Interrupted):
                noticed.interrupted.append(1e3 * (now - self._sent(event.at)))
            noticed.replies["interrupted" if isinstance(event, Interrupted) else event.reason] += 1
        elif isinstance(event, Error):
            noticed.errors.append(event.message)
        elif isinstance(event, Closed):
            self.closed = event.reason
            noticed.closed[event.reason] += 1

    def _take_sound(self, packet: AudioOut, now: float, late: float | None, goes_on: bool) -> None:
        noticed = self.noticed
        noticed.packets += 1
        if self._waits_for_sound:
            noticed.end_of_turn_to_audio.append(1e3 * (now - self._endpoint_at))
            noticed.silence_to_audio.append(1e3 * (now - self._quiet_at))
        if self._waits_to_resume:
            noticed.resume.append(1e3 * (now - self._resumed_at))
        self._waits_for_sound = self._waits_to_resume = False
        if late is not None:
            noticed.late.append(1e3 * late)
        if goes_on:
            noticed.lead.append(1e3 * (packet.start_sample - self.playout.position) / RATE_HZ)
        if self._packet is not None:
            came_at, lasts = self._packet
            noticed.jitter.append(1e3 * abs(now - came_at - lasts))
        self._packet = now, len(packet.pcm) / RATE_HZ

    def _sent(self, sample: int) -> float:
        """When the packet with the microphone sample before this one was sent."""
        return self._sent_at[min(max(sample - 1, 0) // PACKET_SAMPLES, len(self._sent_at) - 1)]
