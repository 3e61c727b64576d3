"""Handing sound out: never further ahead than the client may have it, and what was played of it."""

from spiritrt.audio import RATE_HZ
from spiritrt.duplex.config import SessionConfig, samples_of
from spiritrt.duplex.echo import EchoGate
from spiritrt.duplex.events import AudioOut, Event
from spiritrt.duplex.reply import Reply
from spiritrt.duplex.stats import Stats

LATE_S = 0.002  # what no loudspeaker notices
ACKNOWLEDGED_SAMPLES = samples_of(200)  # a client that has reported less is slow, and not dry


class Playout:
    """The output of one session: positions count all samples that were ever handed out, and are never taken back."""

    def __init__(self, config: SessionConfig, gate: EchoGate, stats: Stats) -> None:
        self._ahead = samples_of(config.send_ahead_ms)
        self._gate, self._stats = gate, stats
        self.sent = 0
        self.played = 0
        self._anchor = (0, 0.0)  # the client was at an output position at a time, and plays

    def acknowledge(self, position: int, reply: Reply | None, now: float) -> None:
        """The client has reached an output position. Raises ValueError for one beyond what was handed out."""
        if position > self.sent:
            raise ValueError(f"played({position}): only {self.sent} samples have been handed out")
        if position <= self.played:
            return
        if reply is None or position <= reply.offset:
            self._stats.late_acknowledgements += 1
            return
        self.played = position
        self._anchor = (position, now)
        reply.heard = position - reply.offset

    def resume(self, now: float) -> None:
        """The client, which had stopped, plays on."""
        self._anchor = (self.played, now)

    def release(self, reply: Reply, now: float) -> list[Event]:
        """Hands out what the client may have now."""
        events: list[Event] = [*reply.take_texts()]
        while reply.outbox and reply.sent - reply.heard + len(reply.outbox[0][0]) <= self._ahead:
            pcm, tokens = reply.outbox.popleft()
            self._note_lateness(reply, now)
            self._gate.hand_out(self.sent, pcm)
            events.append(AudioOut(pcm, tokens, self.sent))
            self.sent += len(pcm)
            reply.sent += len(pcm)
            self._stats.sent_samples += len(pcm)
        return events

    def dry_at(self, position: int) -> float:
        """When a client that plays on reaches an output position."""
        at, since = self._anchor
        return since + (position - at) / RATE_HZ

    def _note_lateness(self, reply: Reply, now: float) -> None:
        late_s = now - self.dry_at(self.sent)
        if late_s < 0 and reply.sent:
            return
        if reply.sent and late_s > LATE_S and reply.sent - reply.heard <= ACKNOWLEDGED_SAMPLES:
            self._stats.misses += 1
            self._stats.worst_miss_ms = max(self._stats.worst_miss_ms, 1000 * late_s)
        self._anchor = (self.sent, now)
