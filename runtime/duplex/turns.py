"""Who is speaking: voice activity of the microphone, window by window, and where a turn ends.

Both are protocols, so that other detectors can be brought. Here is an activity detector by energy and an endpoint by
silence; `silero.py` has the activity detector that is used where it is installed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import numpy as np

from spiritrt.audio import RATE_HZ, Samples
from spiritrt.duplex.config import LONGEST_GAP_MS, TurnConfig, check_activity, samples_of

HYSTERESIS = 0.15  # speech goes on down to so much below the threshold
Decision = Literal["", "pause", "end"]


class ActivityDetector(Protocol):
    """Says how likely each window of one session's microphone is speech. Keeps its own state; one thread."""

    @property
    def window_samples(self) -> int:
        """Samples of a window, at 16 kHz."""

    def accept(self, window: Samples) -> float:
        """Takes the next window [window_samples], float32, and returns the probability of speech in it."""


class EndpointDetector(Protocol):
    """Decides where a turn of one session ends. Keeps its own state; one thread."""

    def reset(self) -> None:
        """A turn begins."""

    def accept(self, window: Samples, speech: bool, silence_ms: float) -> Decision:
        """Takes a window of the turn: "pause" where it may end here, "end" where it does, "" where it goes on.

        `silence_ms` has passed since the last confirmed speech. A pause may be said again and again; only the first of
        a silence counts.
        """


Activity: TypeAlias = Callable[[], ActivityDetector]
Endpoint: TypeAlias = Callable[[], EndpointDetector]


@dataclass(slots=True)
class SilenceEndpoint:
    """The end of a turn by silence alone: a likely one after `pause_ms`, a certain one after `endpoint_ms`."""

    pause_ms: int
    endpoint_ms: int

    def reset(self) -> None:
        """Nothing is kept from turn to turn."""

    def accept(self, window: Samples, speech: bool, silence_ms: float) -> Decision:
        """See `EndpointDetector`."""
        if silence_ms >= self.endpoint_ms:
            return "end"
        return "pause" if silence_ms >= self.pause_ms else ""


class EnergyActivity:
    """Voice activity by loudness, in windows of 20 ms, without a model: 1 for speech, 0 for silence.

    The background level follows the quietest sound of the last seconds: down at once, up by 3 dB a second. Speech is
    `above_noise_db` louder than that, and never quieter than `threshold_db` (full scale, root mean square).
    """

    window_samples = RATE_HZ // 50

    def __init__(self, threshold_db: float = -45.0, above_noise_db: float = 12.0) -> None:
        self._threshold_db, self._above_noise_db = threshold_db, above_noise_db
        self._noise_db = -70.0

    def accept(self, window: Samples) -> float:
        """See `ActivityDetector`."""
        level_db = power_db(window)
        self._noise_db = min(self._noise_db + 0.06, level_db)
        return float(level_db > max(self._threshold_db, min(self._noise_db, -30.0) + self._above_noise_db))


class Windows:
    """Cuts a microphone into windows and has each judged once: any split of the sound gives the same judgements."""

    def __init__(self, detector: ActivityDetector) -> None:
        self._detector = detector
        self._rest = np.zeros(0, np.float32)

    def accept(self, samples: Samples) -> list[float]:
        """Probabilities of the windows that `samples` [N] complete; a remainder is kept."""
        size = self._detector.window_samples
        sound = np.concatenate([self._rest, samples]) if len(self._rest) else samples
        whole = len(sound) // size * size
        self._rest = sound[whole:].copy()
        return [self._detector.accept(sound[start : start + size]) for start in range(0, whole, size)]


class SpeechRun:
    """Speech in a row: from its first window on, over gaps of up to 100 ms, as there are inside words.

    All positions are microphone samples. A run is confirmed once it holds `onset` samples of speech and at least half
    of it is speech: clicks are not.
    """

    def __init__(self, config: TurnConfig, window: int) -> None:
        self._window = window
        self._threshold = config.threshold
        self._onset = samples_of(config.onset_ms)
        self._gap = samples_of(LONGEST_GAP_MS)
        self.clock = 0  # samples judged
        self.start = 0  # where the run began
        self.end = 0  # end of its last window of speech
        self.speech = 0  # samples of speech in it; 0: there is no run
        self.confirmed_end = 0  # end of the last window of speech of a confirmed run

    def accept(self, probability: float) -> bool:
        """Takes the next window; returns whether it is speech."""
        active = probability >= self._threshold - (HYSTERESIS if self.speech else 0.0)
        if active and not self.speech:
            self.start = self.clock
        self.clock += self._window
        if active:
            self.speech += self._window
            self.end = self.clock
        elif self.speech and self.clock - self.end > self._gap:
            self.speech = 0
        if self.confirmed:
            self.confirmed_end = self.end
        return active

    def cut(self) -> None:
        """Ends the run: the next speech begins another."""
        self.speech = 0

    @property
    def steady(self) -> bool:
        """Whether at least half of the run is speech."""
        return 2 * self.speech >= self.end - self.start

    @property
    def confirmed(self) -> bool:
        """Whether there is a run that is speech beyond doubt."""
        return self.lasts(self._onset)

    def lasts(self, samples: int) -> bool:
        """Whether there is a run with so much speech in it."""
        return self.speech >= samples and self.speech > 0 and self.steady


def power_db(window: Samples) -> float:
    """Level of a window in dB relative to full scale, root mean square; -100 for silence."""
    return float(10 * np.log10(np.mean(np.square(window, dtype=np.float64)) + 1e-10))


def activity_named(name: str) -> Activity:
    """The activity detector "silero" or "energy". Raises ValueError that says how to install what is missing."""
    check_activity(name)
    if name == "energy":
        return EnergyActivity
    from spiritrt.duplex.silero import silero_activity

    return silero_activity()
