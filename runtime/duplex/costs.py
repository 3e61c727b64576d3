"""What work has taken lately, and how many sessions that leaves time for."""

from dataclasses import dataclass, field

from spiritrt.duplex.work import PIECE_MS

SMOOTHING = 0.05  # share of a new measurement
PIECES_A_SECOND = 1000 / PIECE_MS
TOKENS_A_SECOND = {False: 20.0, True: 30.0}  # of speech, Base and Expressive: a little more than read speech has


class Busy(RuntimeError):
    """A session that the runtime has no room for. `retry_after_s`: when it might have."""

    def __init__(self, reason: str, retry_after_s: float) -> None:
        super().__init__(f"{reason}; try again in about {retry_after_s:.0f} s")
        self.retry_after_s = retry_after_s


@dataclass(slots=True)
class Average:
    """A mean that forgets: seconds, or any other number."""

    value: float = 0.0
    count: int = 0

    def add(self, value: float) -> None:
        """Takes another measurement."""
        self.count += 1
        self.value += (value - self.value) * max(SMOOTHING, 1 / self.count)


@dataclass(slots=True)
class Costs:
    """Seconds of the engine thread: a piece of a turn, the end of one, a step of the language model, a unit of sound.

    A step with r rows is taken to cost `step` + r * `row`; both are fitted to the steps that were measured.
    """

    expressive: bool
    piece: Average = field(default_factory=Average)
    closing: Average = field(default_factory=Average)
    unit: Average = field(default_factory=Average)
    ear: Average = field(default_factory=Average)  # a second of microphone
    _rows: Average = field(default_factory=Average)
    _squares: Average = field(default_factory=Average)
    _seconds: Average = field(default_factory=Average)
    _products: Average = field(default_factory=Average)

    def add_step(self, rows: int, seconds: float) -> None:
        """A step of the language model with so many rows."""
        self._rows.add(rows)
        self._squares.add(rows * rows)
        self._seconds.add(seconds)
        self._products.add(rows * seconds)

    @property
    def row(self) -> float:
        """Seconds that one more row costs."""
        spread = self._squares.value - self._rows.value**2
        if spread < 1e-6:
            return 0.3 * self.step
        slope = (self._products.value - self._rows.value * self._seconds.value) / spread
        return min(max(slope, 0.0), self._seconds.value / max(self._rows.value, 1))

    @property
    def step(self) -> float:
        """Seconds of a step, whatever its rows."""
        spread = self._squares.value - self._rows.value**2
        if spread < 1e-6:
            return self._seconds.value / 1.3
        return max(self._seconds.value - self._rows.value * self.row, 0.0)

    def load(self, sessions: int, listening: float = 0.6, speaking: float = 0.6) -> float:
        """Share of the engine thread that so many sessions take, hearing and speaking for such shares of their time."""
        tokens = TOKENS_A_SECOND[self.expressive]
        listen = self.ear.value + listening * (
            PIECES_A_SECOND * (self.piece.value + self.row + self.step / max(1.0, sessions * speaking))
            + 0.5 * self.closing.value
        )
        speak = speaking * tokens * (self.row + self.unit.value)
        return sessions * (listen + speak) + tokens * self.step * min(1.0, sessions * speaking)
