"""How a session takes turns, replies and paces its sound, and what the runtime holds. All of it is checked here."""

from dataclasses import dataclass, field
from typing import Literal

from spiritrt.audio import RATE_HZ
from spiritrt.sampling import Sampling

ReplyPolicy = Literal["continuation", "chain", "text"]
LONGEST_GAP_MS = 100  # of silence inside words
PAUSE_MS = 190  # of silence after which a turn may be over
LEAST_AHEAD_MS = 80  # sound that a client must take ahead of its loudspeaker
REPLY_POLICIES: tuple[ReplyPolicy, ...] = ("continuation", "chain", "text")
ACTIVITIES = ("silero", "energy")


@dataclass(frozen=True, slots=True)
class TurnConfig:
    """When speech begins, pauses, ends and interrupts. Times are rounded up to the detector's windows.

    `activity` names the detector: "silero" (a small neural network, needs silero-vad and onnxruntime) or "energy".
    """

    activity: str = "silero"
    threshold: float = 0.5  # probability of speech from which a window is speech
    onset_ms: int = 90  # so much speech begins a turn
    pause_ms: int = PAUSE_MS  # so much silence is a likely end: the reply is thought ahead
    endpoint_ms: int = 600  # so much silence is the end of the turn
    duck_ms: int = 60  # so much speech over the reply ducks it
    barge_in_ms: int = 320  # so much speech over the reply stops it
    release_ms: int = 220  # so much silence after less of it lets the reply go on
    pre_roll_ms: int = 120  # sound before the onset that belongs to the turn
    tail_ms: int = 120  # silence after the last speech that stays in the turn
    max_turn_s: float = 30.0  # a longer turn ends here

    def __post_init__(self) -> None:
        check_activity(self.activity)
        for name in ("onset_ms", "duck_ms", "barge_in_ms", "release_ms", "max_turn_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("pre_roll_ms", "tail_ms"):
            if not 0 <= getattr(self, name) <= 1000:
                raise ValueError(f"{name} must be from 0 to 1000, got {getattr(self, name)}")
        if not 0 < self.threshold < 1:
            raise ValueError(f"threshold must be between 0 and 1, got {self.threshold}")
        if not self.tail_ms <= self.pause_ms <= self.endpoint_ms or self.pause_ms <= LONGEST_GAP_MS:
            raise ValueError(
                f"pause_ms must be above {LONGEST_GAP_MS}, from tail_ms to endpoint_ms, got {self.pause_ms} with "
                f"tail_ms {self.tail_ms} and endpoint_ms {self.endpoint_ms}"
            )
        if self.duck_ms > self.barge_in_ms:
            raise ValueError(f"duck_ms {self.duck_ms} must not exceed barge_in_ms {self.barge_in_ms}")


@dataclass(frozen=True, slots=True)
class EchoConfig:
    """Whether the microphone hears the loudspeaker.

    `cancelled`: the client removes the echo, and every sound over a reply counts. Otherwise a gate lets a window of the
    microphone count as speech only where it is `margin_db` louder than the echo to be expected: the loudspeaker's level
    within `reach_ms` plus `gain_db` (loudspeaker to microphone). The cost: who interrupts more quietly than that is not
    heard, and neither is the first `reach_ms` after a reply.
    """

    cancelled: bool = True
    gain_db: float = -6.0
    margin_db: float = 6.0
    reach_ms: int = 300

    def __post_init__(self) -> None:
        if not 0 < self.reach_ms <= 2000:
            raise ValueError(f"reach_ms must be above 0 and at most 2000, got {self.reach_ms}")
        for name in ("gain_db", "margin_db"):
            if not -60 <= getattr(self, name) <= 60:
                raise ValueError(f"{name} must be from -60 to 60 dB, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class SessionConfig:
    """How a session talks.

    `reply`: "continuation" goes on in speech, as any Spirit LM does; "chain" writes down what was heard and the answer,
    then speaks it (for a model trained on that form, as nano is); "text" answers in text alone.

    Decoding pauses while `lead_ms` of sound wait to be heard; the client is never handed more than `send_ahead_ms` that
    it has not played. `think_ahead` decodes a reply before the endpoint is certain, up to `draft_ms` of sound; the
    tokens of the session are the same without it. `revise` encodes a turn once more, whole, when it may be over: the
    context is rewound to the first token that differs from what was committed while it was heard, and corrected.
    """

    reply: ReplyPolicy = "continuation"
    voice: int | None = None  # speaker of the vocoder
    style: int | None = None  # named style of a Base vocoder
    seed: int = 0
    temperature: float = 0.3
    top_p: float = 0.9
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    turns: TurnConfig = field(default_factory=TurnConfig)
    echo: EchoConfig = field(default_factory=EchoConfig)
    think_ahead: bool = True
    revise: bool = False
    draft_ms: int = 480
    lead_ms: int = 640
    send_ahead_ms: int = 480
    max_reply_s: float = 12.0
    max_text_tokens: int = 80
    silence_s: float = 1.0  # so much silence at its end ends a reply
    repeats: int = 4  # so often the same group of up to 8 tokens ends it, over `repeated_tokens` at least
    repeated_tokens: int = 32
    context_tokens: int | None = None  # window of the context; None: the model's

    def __post_init__(self) -> None:
        for name, kind in (("turns", TurnConfig), ("echo", EchoConfig)):
            if not isinstance(getattr(self, name), kind):
                raise ValueError(f"{name} must be {kind.__name__}(...), got {getattr(self, name)!r}")
        if self.reply not in REPLY_POLICIES:
            raise ValueError(f"reply must be one of {', '.join(REPLY_POLICIES)}, got {self.reply!r}")
        if self.lead_ms < 100 or not LEAST_AHEAD_MS <= self.send_ahead_ms <= self.lead_ms:
            raise ValueError(
                f"lead_ms must be at least 100 and send_ahead_ms from {LEAST_AHEAD_MS} to lead_ms, got "
                f"{self.lead_ms} and {self.send_ahead_ms}"
            )
        for name in ("draft_ms", "max_reply_s", "max_text_tokens", "silence_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.max_reply_s > 120:
            raise ValueError(f"max_reply_s must be at most 120, got {self.max_reply_s}")
        _ = self.sampling

    @property
    def sampling(self) -> Sampling:
        """How tokens are drawn."""
        return Sampling(self.temperature, self.top_p, self.top_k, self.min_p, self.repetition_penalty, self.seed)


def check_activity(name: str) -> None:
    """Raises ValueError where there is no activity detector of that name."""
    if name not in ACTIVITIES:
        raise ValueError(f"activity must be {' or '.join(map(repr, ACTIVITIES))}, got {name!r}")


def samples_of(ms: float) -> int:
    """Samples of so many milliseconds."""
    return round(ms * RATE_HZ / 1000)
