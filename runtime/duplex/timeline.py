"""A trace as a timeline for ui.perfetto.dev (Chrome's JSON trace format): a row a stage, one for the loudspeaker."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from spiritrt.audio import RATE_HZ
from spiritrt.duplex.playout import LATE_S
from spiritrt.duplex.trace import Ended, Full, Happened, Heard, Over, Played, Record, Sound, Span, Trace

ROWS = ("microphone", "encode", "prefill", "decode", "vocode", "playout", "session")
_US = 1e6


def export(trace: Trace) -> dict[str, list[dict]]:
    """The object to be written as JSON. Times are microseconds since the first sample of the microphone."""
    start = min((_begin(record) for record in trace.records), default=0.0)
    events: list[dict] = [_named("process_name", 0, f"session of {trace.running['model']}")]
    for number, row in enumerate(ROWS):
        events += [
            _named("thread_name", number, row),
            {**_named("thread_sort_index", number, ""), "args": {"sort_index": number}},
        ]
    for record in trace.records:
        events += _work(record, start)
    events += _microphone(trace.records, start)
    events += _playout(trace.records, start)
    return {"traceEvents": events}


def _begin(record: Record) -> float:
    return record.at - len(record.samples) / RATE_HZ if isinstance(record, Heard) else record.at


def _work(record: Record, start: float) -> Iterator[dict]:
    """What a record shows, sound apart."""
    at = record.at - start
    if isinstance(record, Span) and record.kind != "hear":
        due = record.due - start
        yield _slice(
            record.kind, record.kind, at, record.end - record.at, {"rows": record.rows, "due_s": round(due, 4)}
        )
        if record.end > record.due:
            yield _mark(record.kind, "late", record.end - start, {"by_ms": 1000 * (record.end - record.due)})
    elif isinstance(record, Happened):
        yield _mark("session", record.name, at, record.fields)
    elif isinstance(record, Played):
        yield _mark("playout", "played", at, {"samples": record.heard})
    elif isinstance(record, Over | Full):
        yield _mark("session", "reply over" if isinstance(record, Over) else "the trace is full", at, {})
    elif isinstance(record, Ended):
        yield _mark("session", f"closed: {record.reason}", at, {"context_tokens": len(record.context)})


def _microphone(records: Sequence[Record], start: float) -> Iterator[dict]:
    """Packets as they were taken, one after the other: those that had to wait are short."""
    taken = start
    for record in records:
        if isinstance(record, Heard):
            begin = max(taken, _begin(record))
            taken = record.at
            yield _slice("microphone", "packet", begin - start, taken - begin, {"samples": len(record.samples)})


@dataclass(slots=True)
class _Packet:
    """Sound that a client has: `begin` is when it plays it, `due` when it needed it, if it was playing."""

    begin: float
    start_sample: int
    samples: int
    tokens: int
    due: float | None

    @property
    def end(self) -> float:
        return self.begin + self.samples / RATE_HZ

    def slice(self, start: float) -> dict:
        fields: dict[str, int | float] = {"start_sample": self.start_sample, "tokens": self.tokens}
        if self.due is not None:
            fields["due_s"] = round(self.due - start, 4)
        return _slice("playout", "packet", self.begin - start, self.samples / RATE_HZ, fields)


def _playout(records: Sequence[Record], start: float) -> Iterator[dict]:
    """Packets as a client plays them that obeys the session's events at once, and needs no time for anything."""
    queue: list[_Packet] = []
    free = 0.0  # when the client has played all that it has
    in_reply = False
    for record in records:
        name = record.name if isinstance(record, Happened) else ""
        if isinstance(record, Sound):
            due = free if in_reply else None
            if due is not None and record.at - due > LATE_S:
                yield _mark("playout", "miss", record.at - start, {"by_ms": 1000 * (record.at - due)})
            begin = max(free, record.at)
            packet = _Packet(begin, record.start_sample, record.samples, len(record.tokens), due)
            queue.append(packet)
            free, in_reply = packet.end, True
        elif name == "Ducked":
            played, queue = _pause(queue, record.at)
            yield from (packet.slice(start) for packet in played)
        elif name == "Resumed":
            free = record.at
            for packet in queue:
                packet.begin, free = free, free + packet.samples / RATE_HZ
        elif name in ("Interrupted", "ReplyEnded"):
            if name == "ReplyEnded":
                yield from (packet.slice(start) for packet in queue)
            queue, free, in_reply = [], record.at, False
    yield from (packet.slice(start) for packet in queue)


def _pause(queue: Sequence[_Packet], at: float) -> tuple[list[_Packet], list[_Packet]]:
    """What a client that stops at a time has played of its queue, and what it keeps."""
    played, kept = [], []
    for packet in queue:
        samples = min(max(0, round((at - packet.begin) * RATE_HZ)), packet.samples)
        if samples:
            played.append(replace(packet, samples=samples))
        if samples < packet.samples:
            rest = packet.samples - samples
            kept.append(replace(packet, start_sample=packet.start_sample + samples, samples=rest, due=None))
    return played, kept


def _slice(row: str, name: str, at: float, seconds: float, fields: dict) -> dict:
    return {
        "name": name, "ph": "X", "pid": 1, "tid": ROWS.index(row), "ts": at * _US, "dur": seconds * _US, "args": fields,
    }  # fmt: skip


def _mark(row: str, name: str, at: float, fields: dict) -> dict:
    return {"name": name, "ph": "i", "s": "t", "pid": 1, "tid": ROWS.index(row), "ts": at * _US, "args": fields}


def _named(what: str, row: int, name: str) -> dict:
    return {"name": what, "ph": "M", "pid": 1, "tid": row, "args": {"name": name}}
