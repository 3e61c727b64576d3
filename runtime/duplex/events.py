"""What a session tells its client: plain frozen values, in the order in which they happened.

Microphone positions are samples since the session began. Output positions are samples of all sound that was handed out
since then, so `AudioOut.start_sample` of a reply goes on where the reply before it ended, heard or not.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from spiritrt.audio import Samples


@dataclass(frozen=True, slots=True)
class SpeechStarted:
    """The person speaks since microphone sample `began`; it was decided at sample `at`."""

    at: int
    began: int


@dataclass(frozen=True, slots=True)
class SpeechStopped:
    """The turn is over (the endpoint), decided at microphone sample `at`; its speech ended at sample `ended`."""

    at: int
    ended: int


@dataclass(frozen=True, slots=True, eq=False)
class AudioOut:
    """Sound to play: `pcm` float32 [N] at 16 kHz, to follow what was handed out before.

    `tokens` are the ids whose sound begins in it. After playing n of its samples a client calls
    `played(start_sample + n)`.
    """

    pcm: Samples
    tokens: tuple[int, ...]
    start_sample: int


@dataclass(frozen=True, slots=True)
class TextOut:
    """More text: what was heard ("heard", whole) or what the model answers ("reply", piece by piece)."""

    text: str
    source: Literal["heard", "reply"]


@dataclass(frozen=True, slots=True)
class Ducked:
    """Somebody speaks over the reply: stop playing at once, keep what is queued, report the position reached."""

    at: int


@dataclass(frozen=True, slots=True)
class Resumed:
    """It was noise or a backchannel: play on, from output position `sample`, where the loudspeaker stopped."""

    at: int
    sample: int


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The reply is over: drop what is queued. `heard_ms` of it, `heard` samples, were heard; the rest never was."""

    at: int
    heard_ms: float
    heard: int


@dataclass(frozen=True, slots=True)
class ReplyEnded:
    """The reply was heard to its end. `reason`: "end", "silence", "repetition", "length", "context" or "nothing"."""

    at: int
    reason: str
    samples: int


@dataclass(frozen=True, slots=True)
class Error:
    """What went wrong with this session alone. `Closed` follows."""

    message: str


@dataclass(frozen=True, slots=True)
class Closed:
    """Nothing comes after this. `reason`: "client", "error", "hung", "stopping" or "overload"."""

    reason: str


Event: TypeAlias = (
    SpeechStarted | SpeechStopped | AudioOut | TextOut | Ducked | Resumed | Interrupted | ReplyEnded | Error | Closed
)
