"""What happened in a session, written down while it happens: enough to repeat it, and to see where the time went.

A trace is one gzip file: a line of JSON that says what was running, then records of one byte of kind, eight of time
(seconds, float64), four of length, and a payload. Inputs come in the order in which the session took them; that order,
not their times, is what its tokens depend on. A file that was cut off is read as far as it goes.
"""

import gzip
import hashlib
import json
import logging
import struct
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from spiritrt.audio import Samples
from spiritrt.duplex.config import EchoConfig, SessionConfig, TurnConfig
from spiritrt.duplex.events import AudioOut, Event

log = logging.getLogger(__name__)
FORMAT = 1
MOST_BYTES = 256 << 20  # before compression: two hours of microphone, and the rest
_HEAD = struct.Struct("<BdI")
_SPAN = struct.Struct("<BddH")
_SOUND = struct.Struct("<qI16s")
SpanKind = Literal["hear", "encode", "prefill", "decode", "vocode"]
SPAN_KINDS: tuple[SpanKind, ...] = ("hear", "encode", "prefill", "decode", "vocode")


@dataclass(frozen=True, slots=True, eq=False)
class Heard:
    """Microphone samples that the session took."""

    at: float
    samples: Samples


@dataclass(frozen=True, slots=True)
class Played:
    """The client had played so many samples of the running reply."""

    at: float
    heard: int


@dataclass(frozen=True, slots=True)
class Over:
    """The running reply was over: made and heard whole."""

    at: float


@dataclass(frozen=True, slots=True)
class Sound:
    """A packet that was handed out: its samples by number and digest, and the tokens that begin in it."""

    at: float
    start_sample: int
    samples: int
    digest: bytes
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Happened:
    """Another event: its name and its fields."""

    at: float
    name: str
    fields: dict[str, str | int | float]


@dataclass(frozen=True, slots=True)
class Span:
    """Work for the session, from `at` to `end`, due at `due`, with `rows` sessions in the batch."""

    at: float
    end: float
    kind: SpanKind
    due: float
    rows: int


@dataclass(frozen=True, slots=True)
class Ended:
    """The session was closed. `context` are the ids of its context, without a reply that was still being made."""

    at: float
    reason: str
    context: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Full:
    """The trace reached its bound here: the session went on without it."""

    at: float


Record: TypeAlias = Heard | Played | Over | Sound | Happened | Span | Ended | Full
_KINDS: tuple[type, ...] = (Heard, Played, Over, Sound, Happened, Span, Ended, Full)


@dataclass(slots=True)
class Trace:
    """A trace as it was read. `running`: model, versions, kernels."""

    config: SessionConfig
    running: dict[str, str | int | float | bool]
    records: list[Record] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        """Whether it holds the session from its beginning to its end."""
        return (
            bool(self.records)
            and isinstance(self.records[-1], Ended)
            and not any(isinstance(record, Full) for record in self.records)
        )


class Recorder:
    """Writes one session's trace. After `most_bytes`, or on a disk that is full, it stops; the session goes on.

    Raises FileNotFoundError where the file's folder is not there: its name may be wrong, so it is not made.
    """

    def __init__(
        self,
        file: Path,
        config: SessionConfig,
        running: dict[str, str | int | float | bool],
        most_bytes: int = MOST_BYTES,
    ) -> None:
        if not file.parent.is_dir():
            raise FileNotFoundError(f"the trace {file} has no folder to go into: mkdir -p {file.parent}")
        self._file = gzip.GzipFile(file, "wb", compresslevel=1)
        self._left = most_bytes
        self._full = self._broken = False
        head = {"spiritrt_trace": FORMAT, "config": asdict(config), "running": running}
        self._file.write(json.dumps(head).encode() + b"\n")

    def hear(self, at: float, samples: Samples) -> None:
        """Microphone samples [N] that the session took."""
        scaled = np.round(samples * 32768)
        whole = bool(np.all(np.abs(samples) < 1) and np.array_equal(scaled / 32768, samples))
        payload = b"\1" + scaled.astype("<i2").tobytes() if whole else b"\0" + samples.astype("<f4").tobytes()
        self._write(Heard, at, payload)

    def played(self, at: float, heard: int) -> None:
        """An acknowledgement that moved the session."""
        self._write(Played, at, struct.pack("<q", heard))

    def over(self, at: float) -> None:
        """A reply that is over."""
        self._write(Over, at, b"")

    def event(self, at: float, event: Event) -> None:
        """What the client is told."""
        if isinstance(event, AudioOut):
            tokens = np.asarray(event.tokens, "<i4").tobytes()
            sound = _SOUND.pack(event.start_sample, len(event.pcm), digest(event.pcm))
            self._write(Sound, at, sound + tokens)
        else:
            self._write(Happened, at, json.dumps([type(event).__name__, asdict(event)]).encode())

    def span(self, kind: SpanKind, at: float, end: float, due: float, rows: int) -> None:
        """Work that was done for the session."""
        self._write(Span, at, _SPAN.pack(SPAN_KINDS.index(kind), end, due, min(rows, 65535)))

    def close(self, at: float, reason: str, context: tuple[int, ...]) -> None:
        """The end of the session, and of the file."""
        if self._file.closed:
            return
        self._left = max(self._left, 1 << 20)
        self._full = self._broken
        self._write(Ended, at, json.dumps([reason, list(context)]).encode())
        try:
            self._file.close()
        except OSError as error:
            self._break(error)

    def _write(self, kind: type, at: float, payload: bytes) -> None:
        if self._full or self._file.closed:
            return
        self._left -= _HEAD.size + len(payload)
        if self._left < 0:
            self._full = True
            kind, payload = Full, b""
        try:
            self._file.write(_HEAD.pack(_KINDS.index(kind), at, len(payload)) + payload)
        except OSError as error:
            self._break(error)

    def _break(self, error: OSError) -> None:
        """A disk that is full ends the trace, and not the session."""
        self._full = self._broken = True
        log.warning("a trace ends here: %s", error)


def read(file: Path) -> Trace:
    """Reads a trace, as far as it goes. Raises ValueError where it is none, or of another format."""
    try:
        with gzip.open(file, "rb") as stream:
            head = json.loads(stream.readline())
            if head["spiritrt_trace"] != FORMAT:
                raise ValueError(f"its format is {head['spiritrt_trace']}, and this is spiritrt's format {FORMAT}")
            fields = head["config"]
            config = SessionConfig(
                **{**fields, "turns": TurnConfig(**fields["turns"]), "echo": EchoConfig(**fields["echo"])}
            )
            trace = Trace(config, head["running"])
            trace.records += _records(stream)
            return trace
    except (ValueError, KeyError, TypeError, EOFError, gzip.BadGzipFile, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not a trace: {error}") from error


def _records(stream: gzip.GzipFile) -> Iterator[Record]:
    while True:
        try:
            head = stream.read(_HEAD.size)
            if len(head) < _HEAD.size:
                return
            kind, at, length = _HEAD.unpack(head)
            payload = stream.read(length)
        except (EOFError, zlib.error, gzip.BadGzipFile):
            return
        if len(payload) < length:
            return
        yield _parse(kind, at, payload)


def _parse(kind: int, at: float, payload: bytes) -> Record:
    if kind >= len(_KINDS):
        raise ValueError(f"there is no record of kind {kind}")
    made = _KINDS[kind]
    if made is Heard:
        stored = np.frombuffer(payload, "<i2" if payload[0] else "<f4", offset=1)
        return Heard(at, (stored / np.float32(32768) if payload[0] else stored).astype(np.float32))
    if made is Played:
        return Played(at, struct.unpack("<q", payload)[0])
    if made is Sound:
        start, samples, checked = _SOUND.unpack_from(payload)
        return Sound(at, start, samples, checked, tuple(np.frombuffer(payload, "<i4", offset=_SOUND.size).tolist()))
    if made is Happened:
        name, fields = json.loads(payload)
        return Happened(at, name, fields)
    if made is Span:
        number, end, due, rows = _SPAN.unpack(payload)
        return Span(at, end, SPAN_KINDS[number], due, rows)
    if made is Ended:
        reason, context = json.loads(payload)
        return Ended(at, reason, tuple(context))
    return Over(at) if made is Over else Full(at)


def digest(pcm: Samples) -> bytes:
    """16 bytes that tell sound apart to the last bit."""
    return hashlib.blake2b(pcm.astype("<f4", copy=False).tobytes(), digest_size=16).digest()
