"""A client without a person: a script instead, and a loudspeaker that keeps count. Both run on packets of 20 ms."""

from collections import deque
from collections.abc import Sequence

import numpy as np

from spiritrt.audio import RATE_HZ, Samples
from spiritrt.duplex.events import (
    AudioOut,
    Ducked,
    Event,
    Interrupted,
    ReplyEnded,
    Resumed,
    SpeechStarted,
    SpeechStopped,
)
from spiritrt.duplex.script import Line

PACKET_SAMPLES = RATE_HZ // 50
PATIENCE_S = 12.0  # how long the person waits for a reply


class Loudspeaker:
    """Plays what it is given, packet by packet, and obeys the session's events."""

    def __init__(self) -> None:
        self._queue: deque[tuple[int, Samples]] = deque()  # output position, sound
        self._ducked = False
        self._in_reply = False
        self.position = 0  # output position reached
        self.heard = 0  # samples of the running reply
        self.underruns = 0  # packets at which it ran dry within a reply
        self.queued = 0  # samples
        self._dry = 0  # packets since it ran dry: only a reply that goes on shows that it was not its end

    def take(self, event: Event) -> None:
        """An event of the session."""
        if isinstance(event, AudioOut):
            self._queue.append((event.start_sample, event.pcm))
            self.queued += len(event.pcm)
            self.underruns += self._dry
            self._dry = 0
        elif isinstance(event, Ducked):
            self._ducked = True
        elif isinstance(event, Resumed):
            self._ducked = False
        elif isinstance(event, Interrupted | ReplyEnded):
            self._queue.clear()
            self._ducked = self._in_reply = False
            self.heard = self.queued = self._dry = 0

    def tick(self) -> Samples:
        """The next packet [PACKET_SAMPLES] that sounds; zeros where there is nothing."""
        out = np.zeros(PACKET_SAMPLES, np.float32)
        if self._ducked:
            return out
        done = 0
        while self._queue and done < PACKET_SAMPLES:
            start, pcm = self._queue.popleft()
            count = min(len(pcm), PACKET_SAMPLES - done)
            out[done : done + count] = pcm[:count]
            done += count
            self.position = start + count
            if count < len(pcm):
                self._queue.appendleft((start + count, pcm[count:]))
        self.heard += done
        self.queued -= done
        self._dry += self._in_reply and done < PACKET_SAMPLES
        self._in_reply = done > 0 or self._in_reply
        return out


class ScriptedPerson:
    """Says the lines of a script: each after the reply to the one before, or into it.

    A line that nobody answers is waited for in vain for `PATIENCE_S`.
    """

    def __init__(self, lines: Sequence[Line]) -> None:
        self._lines = deque(lines)
        self._saying: Samples | None = None
        self._quiet = 0  # packets since both fell silent
        self._answered = True  # whether a reply to what was said has ended
        self._replying = False
        self.said: list[tuple[float, str, float]] = []  # (seconds, name, length) of the lines that were begun
        self.packets = 0

    @property
    def over(self) -> bool:
        """Whether all is said and answered, or waited for long enough."""
        if self._lines or self._saying is not None or self._replying:
            return False
        return self._quiet_s >= (1.0 if self._answered else PATIENCE_S)

    def take(self, event: Event) -> None:
        """An event of the session."""
        if isinstance(event, SpeechStarted):
            self._answered = False
        elif isinstance(event, SpeechStopped):
            self._replying = True
        elif isinstance(event, Interrupted | ReplyEnded):
            self._replying = False
            self._quiet = 0
            self._answered = isinstance(event, ReplyEnded)

    def tick(self, heard: int) -> Samples:
        """The next packet of the microphone, with `heard` samples of the running reply heard so far."""
        self.packets += 1
        if self._saying is None and self._lines and self._wants_to_speak(self._lines[0], heard):
            line = self._lines.popleft()
            self._saying = line.samples
            seconds = (self.packets - 1) * PACKET_SAMPLES / RATE_HZ
            self.said.append((seconds, line.name, len(line.samples) / RATE_HZ))
        if self._saying is None:
            self._quiet = 0 if self._replying else self._quiet + 1
            return np.zeros(PACKET_SAMPLES, np.float32)
        packet, rest = self._saying[:PACKET_SAMPLES], self._saying[PACKET_SAMPLES:]
        self._saying = rest if len(rest) else None
        self._quiet = 0
        return np.pad(packet, (0, PACKET_SAMPLES - len(packet)))

    @property
    def _quiet_s(self) -> float:
        return self._quiet * PACKET_SAMPLES / RATE_HZ

    def _wants_to_speak(self, line: Line, heard: int) -> bool:
        if line.interrupt_s is not None and self._replying:
            return heard >= line.interrupt_s * RATE_HZ
        if line.interrupt_s is not None and not self._answered:
            return self._quiet_s >= PATIENCE_S
        return self._quiet_s >= (line.pause_s if self._answered else PATIENCE_S)
