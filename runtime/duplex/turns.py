"""Who is speaking: voice activity of the microphone, where a turn begins, and where it ends."""

from dataclasses import dataclass

import numpy as np

from spiritrt.audio import RATE_HZ, Samples

FRAME_SAMPLES = RATE_HZ // 50  # 20 ms
LONGEST_GAP_MS = 100  # inside words


@dataclass(frozen=True, slots=True)
class TurnConfig:
    """When speech begins and ends. Levels are dB relative to full scale, root mean square over 20 ms."""

    threshold_db: float = -45.0  # quieter is silence, whatever the background
    above_noise_db: float = 12.0  # speech is so much louder than the background
    onset_ms: int = 60  # so much speech begins a turn
    endpoint_ms: int = 600  # so much silence ends it
    barge_in_ms: int = 200  # so much speech over the reply stops it
    max_turn_s: float = 30.0  # a longer turn ends here

    def __post_init__(self) -> None:
        for name in ("onset_ms", "endpoint_ms", "barge_in_ms"):
            if getattr(self, name) < 20 or getattr(self, name) % 20:
                raise ValueError(f"{name} must be a positive multiple of 20, got {getattr(self, name)}")
        if self.max_turn_s <= 0:
            raise ValueError(f"max_turn_s must be positive, got {self.max_turn_s}")


class VoiceActivity:
    """Energy-based voice activity of a microphone, 20 ms frame by frame.

    The background level follows the quietest sound of the last seconds: down at once, up by 3 dB a second. A run of
    speech begins with a frame of speech and goes on over gaps of up to 100 ms, as there are inside words.
    """

    def __init__(self, config: TurnConfig) -> None:
        self._config = config
        self._rest = np.zeros(0, np.float32)
        self._noise_db = -70.0
        self.frames = 0  # frames judged
        self.silence_ms = 0  # silence in a row
        self.end_run()

    def accept(self, samples: Samples) -> list[bool]:
        """Whether each completed 20 ms frame of the microphone is speech; a remainder is kept for the next call."""
        self._rest = np.concatenate([self._rest, samples])
        whole = len(self._rest) // FRAME_SAMPLES
        frames = self._rest[: whole * FRAME_SAMPLES].reshape(whole, FRAME_SAMPLES)
        self._rest = self._rest[whole * FRAME_SAMPLES :]
        return [self._judge(frame) for frame in frames]

    def end_run(self) -> None:
        """Ends the run of speech: the next speech begins a new one."""
        self.speech_ms = 0  # speech in the run, gaps not counted
        self.run_start = self.frames  # frame at which the run began

    @property
    def steady(self) -> bool:
        """Whether at least half of the run is speech; clicks are not."""
        return 2 * self.speech_ms >= 20 * (self.frames - self.run_start)

    def _judge(self, frame: Samples) -> bool:
        level_db = 10 * np.log10(np.mean(np.square(frame, dtype=np.float64)) + 1e-10)
        self._noise_db = min(self._noise_db + 0.06, level_db)
        config = self._config
        active = bool(level_db > max(config.threshold_db, min(self._noise_db, -30.0) + config.above_noise_db))
        if active and not self.speech_ms:
            self.run_start = self.frames
        self.frames += 1
        if active:
            self.speech_ms += 20
            self.silence_ms = 0
        else:
            self.silence_ms += 20
            if self.silence_ms > LONGEST_GAP_MS:
                self.end_run()
        return active
