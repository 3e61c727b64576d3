"""The echo gate: keeps a model from hearing itself where the client does not cancel echo."""

from collections import deque

from spiritrt.audio import Samples
from spiritrt.duplex.config import EchoConfig, samples_of
from spiritrt.duplex.turns import power_db

BLOCK = samples_of(20)


class EchoGate:
    """Whether a window of the microphone is louder than the echo of what the loudspeaker plays; see `EchoConfig`.

    The loudspeaker is where the client said it is, give or take `reach_ms`: the loudest 20 ms of that stretch count.
    """

    def __init__(self, config: EchoConfig) -> None:
        self._config = config
        self._reach = samples_of(config.reach_ms)
        self._levels: deque[tuple[int, float]] = deque()  # output position at which 20 ms begin, their level
        self._last_playing = 0  # microphone sample

    def hand_out(self, start: int, pcm: Samples) -> None:
        """Notes sound that the client gets, from output position `start`."""
        if not self._config.cancelled:
            for first in range(0, len(pcm), BLOCK):
                self._levels.append((start + first, power_db(pcm[first : first + BLOCK])))

    def passes(self, window: Samples, clock: int, played: int, playing: bool) -> bool:
        """Whether a window counts, at microphone sample `clock`, with the loudspeaker at output position `played`."""
        if self._config.cancelled:
            return True
        if playing:
            self._last_playing = clock
        elif clock - self._last_playing > self._reach:
            self._levels.clear()
        while self._levels and self._levels[0][0] + BLOCK <= played - self._reach:
            self._levels.popleft()
        near = [level for start, level in self._levels if start < played + self._reach]
        if not near:
            return True
        return power_db(window) > max(near) + self._config.gain_db + self._config.margin_db

    def drop(self, played: int) -> None:
        """The client drops what it has not played."""
        while self._levels and self._levels[-1][0] >= played:
            self._levels.pop()
