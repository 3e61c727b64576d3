"""One session as the scheduler serves it: its state machine, its slots in the models, and what waits on either side."""

from collections import deque
from dataclasses import dataclass, field
from numbers import Integral

import numpy as np

from spiritrt.audio import RATE_HZ, Samples, check_peak
from spiritrt.duplex.cache_slots import CacheSlots
from spiritrt.duplex.config import SessionConfig
from spiritrt.duplex.events import AudioOut, Closed, Error, Event
from spiritrt.duplex.session import Session
from spiritrt.duplex.trace import Recorder
from spiritrt.duplex.turns import Windows

INBOX_SAMPLES = 10 * RATE_HZ  # microphone that may wait to be heard
NOBODY_WAITS = INBOX_SAMPLES + 1
MOST_INPUTS = 4096  # packets and acknowledgements that may wait, however small
MOST_EVENTS = 1024  # events that may wait for the client


class Full(RuntimeError):
    """More than a buffer holds; nothing was taken."""


@dataclass(slots=True, eq=False)
class Call:
    """See the module. `send` and `played` may be called by another thread than the scheduler's; nothing else."""

    number: int
    config: SessionConfig
    session: Session
    ears: Windows
    encoder_slot: int
    voice_slot: int
    slots: CacheSlots
    opened_at: float
    recorder: Recorder | None = None
    replayed: bool = False  # what ends by itself is then said by a trace
    inbox: deque[Samples | int] = field(default_factory=deque)  # microphone, or an output position
    offered: int = 0  # samples that were ever put into the inbox
    taken: int = 0  # samples that were ever taken out
    wanted: int = NOBODY_WAITS  # room that a sender waits for
    events: deque[Event] = field(default_factory=deque)
    closed: str = ""
    sent_at: float = 0.0  # when the client last sent sound
    played_at: float = 0.0  # when it last said what it has played, or owed no such word
    output_sent: int = 0  # output position up to which the client has got sound

    def __post_init__(self) -> None:
        self.sent_at = self.played_at = self.opened_at

    @property
    def room(self) -> int:
        """Samples that `send` takes now."""
        return INBOX_SAMPLES - (self.offered - self.taken)

    def send(self, samples: Samples) -> None:
        """Takes microphone samples [N], float32 at 16 kHz.

        Raises ValueError for another dtype or shape, NaN or infinite samples and a peak above 16, and Full beyond
        `room`.
        """
        check_samples(samples)
        if len(samples) > self.room or len(self.inbox) >= MOST_INPUTS:
            raise Full(f"{len(samples)} samples, and there is room for {self.room}: the runtime is behind")
        if len(samples):
            self.offered += len(samples)
            self.inbox.append(samples.copy())

    def played(self, position: int) -> None:
        """Says that the loudspeaker has reached an output position.

        Raises ValueError for one that is no whole number or beyond what was sent, and Full where too many inputs wait.
        """
        if not isinstance(position, Integral) or not 0 <= position <= self.output_sent:
            raise ValueError(f"played({position!r}): the client has got {self.output_sent} samples")
        if len(self.inbox) >= MOST_INPUTS:
            raise Full(f"{len(self.inbox)} inputs wait: the runtime is behind")
        self.inbox.append(int(position))

    def take_events(self) -> list[Event]:
        """The events that wait."""
        events = []
        while self.events:
            event = self.events.popleft()
            if isinstance(event, AudioOut):
                self.output_sent = event.start_sample + len(event.pcm)
            events.append(event)
        return events

    def finish(self, reason: str, error: str = "") -> None:
        """Closes the client's side: nothing comes after this."""
        if not self.closed:
            self.closed = reason
            self.inbox.clear()
            self.events += [Error(error), Closed(reason)] if error else [Closed(reason)]


def check_samples(samples: Samples) -> None:
    """Raises ValueError where these are not microphone samples."""
    if not isinstance(samples, np.ndarray) or samples.ndim != 1 or samples.dtype != np.float32:
        what = f"{samples.dtype} {samples.shape}" if isinstance(samples, np.ndarray) else type(samples).__name__
        raise ValueError(f"samples must be float32 [N] at 16 kHz, got {what}")
    finite = np.isfinite(samples)
    if not finite.all():
        raise ValueError(f"samples hold {samples[~finite][0]}, the first at {int(np.argmin(finite))}")
    check_peak(samples, "samples")
