"""What a session wants done, as values: it decides, somebody else computes."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from spiritrt.audio import Samples
from spiritrt.duplex.config import samples_of
from spiritrt.duplex.reply_tokens import Mask

PIECE_MS = 160
PIECE_SAMPLES = samples_of(PIECE_MS)  # a turn is encoded in pieces of so much, so that no token depends on packets
Target = Literal["main", "draft"]


@dataclass(frozen=True, slots=True, eq=False)
class Listen:
    """Encode the next piece of the turn; `begins`: it is the first of a new one. Answer: `Session.listened`."""

    piece: Samples
    begins: bool


@dataclass(frozen=True, slots=True, eq=False)
class CloseTurn:
    """Encode how the turn ends with `rest`, in case it does; it may go on all the same. Answer: `Session.closed`."""

    rest: Samples
    begins: bool


@dataclass(frozen=True, slots=True)
class Feed:
    """Append `ids` (None: the id last drawn) to a context and, with a mask, draw the next id.

    Answer: `Session.fed` with the id that was drawn, or None.
    """

    target: Target
    ids: tuple[int, ...] | None
    mask: Mask | None = None


@dataclass(frozen=True, slots=True)
class Fork:
    """Make the draft a copy of the main context. Answer of this and all below: `Session.fed`."""


@dataclass(frozen=True, slots=True)
class Adopt:
    """The draft becomes the main context, which is dropped."""


@dataclass(frozen=True, slots=True)
class Drop:
    """Drop the draft."""


@dataclass(frozen=True, slots=True)
class Truncate:
    """Keep the first `length` tokens of a context."""

    target: Target
    length: int


@dataclass(frozen=True, slots=True)
class Evict:
    """Drop all but the first `keep_prefix` and the last `keep_recent` tokens of a context: `dropped` of them."""

    target: Target
    keep_prefix: int
    keep_recent: int
    dropped: int


@dataclass(frozen=True, slots=True)
class ForgetDrawn:
    """A reply begins in the draft: the repetition penalty starts anew."""


Encode: TypeAlias = Listen | CloseTurn
CacheWork: TypeAlias = Feed | Fork | Adopt | Drop | Truncate | Evict | ForgetDrawn
