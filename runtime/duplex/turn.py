"""One turn of the person: which of its sound may be encoded, and where it may end."""

from dataclasses import dataclass

from spiritrt.duplex.config import samples_of
from spiritrt.duplex.microphone import Microphone
from spiritrt.duplex.turns import SpeechRun
from spiritrt.duplex.work import PIECE_SAMPLES, CloseTurn, Encode, Listen

HOLD_SAMPLES = samples_of(2000)  # silence that waits to see whether the turn goes on, rather than being encoded


@dataclass(slots=True)
class Turn:
    """A turn of the person, from microphone sample `start`."""

    start: int
    speech_end: int
    marker: tuple[int, ...]  # that it begins with
    position: int  # of the context, where it begins
    limit: int  # sound before this sample may be encoded
    fed: int = 0  # samples that the encoder has
    begun: bool = False  # whether the encoder knows of it
    tokens: int = 0  # that were committed
    ended: int | None = None  # sample at which the endpoint was decided
    overlong: bool = False

    @property
    def opening(self) -> tuple[int, ...]:
        """The marker, while it is still to be fed."""
        return () if self.tokens else self.marker

    @property
    def needed(self) -> int:
        """Sample from which on its sound is still to be encoded."""
        return self.start + self.fed

    def hear(self, run: SpeechRun, tail: int) -> None:
        """A window of it was judged. Of silence no more than `tail` samples are encoded, while it may be its end."""
        if run.confirmed:
            self.speech_end = run.confirmed_end
            self.limit = run.clock
        self.limit = max(self.limit, min(run.clock, self.speech_end + tail), run.clock - HOLD_SAMPLES)

    def end_at(self, clock: int, tail: int) -> int:
        """Where it ends if it is over now: a matter of the sound alone, never of how far the encoder has come."""
        if self.overlong:
            return clock
        pieces = self.start + (self.limit - self.start) // PIECE_SAMPLES * PIECE_SAMPLES
        return max(min(clock, self.speech_end + tail), pieces)

    def next_work(self, microphone: Microphone, close_at: int | None) -> Encode | None:
        """The next piece to encode, up to `close_at` where it is to be closed there, and then its end."""
        at = self.needed
        limit = self.limit if close_at is None else close_at
        if limit - at >= PIECE_SAMPLES:
            return Listen(microphone.between(at, at + PIECE_SAMPLES), not self.begun)
        return None if close_at is None else CloseTurn(microphone.between(at, limit), not self.begun)
