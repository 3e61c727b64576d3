"""Recorded sessions, again: the same inputs in the same order, and a comparison of what comes out, to the last bit."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import merge

import numpy as np

from spiritrt.audio import Samples
from spiritrt.duplex.call import Call
from spiritrt.duplex.clock import VirtualClock
from spiritrt.duplex.events import AudioOut, Event, TextOut
from spiritrt.duplex.scheduler import Scheduler
from spiritrt.duplex.stages import Stages
from spiritrt.duplex.trace import Ended, Happened, Heard, Over, Played, Record, Sound, Trace, digest
from spiritrt.duplex.turns import Activity, Endpoint

Input = Heard | Played | Over


class ReplayError(ValueError):
    """A trace that cannot be replayed as it was recorded."""


@dataclass(slots=True)
class Replay:
    """What came of a trace. `differences` is empty where all that was recorded came again, bit for bit.

    How much of a reply had been handed out when it was cut depends on the machine. So the packets of each reply are
    compared as far as they had gone then; what was heard of them is the same in any case.
    """

    events: list[Event] = field(default_factory=list)
    packets: int = 0  # that were compared
    samples: int = 0
    tokens: int = 0
    differences: list[str] = field(default_factory=list)
    model: Samples = field(default_factory=lambda: np.zeros(0, np.float32))  # the sound that was handed out

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return not self.differences


def replay(
    traces: Sequence[Trace], stages: Stages, activity: Activity | None = None, endpoint: Endpoint | None = None
) -> list[Replay]:
    """Replays traces beside each other, their inputs in the order of their times, on an infinitely fast machine.

    Detectors of one's own have to be brought again. Raises ReplayError for a trace whose session could not have gone
    this way, and what `Scheduler.open` raises.
    """
    clock = VirtualClock()
    scheduler = Scheduler(stages, clock, admit=False, activity=activity, endpoint=endpoint)
    calls: list[Call] = []
    try:
        for trace in traces:
            call = scheduler.open(trace.config)
            call.replayed = True
            calls.append(call)
        streams = [
            [(record.at, number, record) for record in trace.records if isinstance(record, Input)]
            for number, trace in enumerate(traces)
        ]
        results = [Replay() for _ in traces]
        for at, number, record in merge(*streams, key=lambda entry: entry[:2]):
            clock.advance_to(at)
            _apply(scheduler, calls[number], record)
            scheduler.settle()
            results[number].events += calls[number].take_events()
        for trace, call, result in zip(traces, calls, results, strict=True):
            _compare(trace, call, result)
        return results
    finally:
        for call in calls:
            scheduler.close(call)


def _apply(scheduler: Scheduler, call: Call, record: Input) -> None:
    if call.closed:
        return  # as it was then: the comparison says so where it was not
    if isinstance(record, Heard):
        scheduler.hear(call, record.samples)
    elif isinstance(record, Played):
        position = call.session.reply_offset + record.heard
        if position > call.session.sent:
            raise ReplayError(f"at {record.at:.3f} s {record.heard} samples of a reply were played, which has fewer")
        scheduler.played(call, position)
    elif call.session.over_due:
        scheduler.over(call)
    else:
        raise ReplayError(f"at {record.at:.3f} s a reply ended that is not over")


def _compare(trace: Trace, call: Call, result: Replay) -> None:
    """Fills in what differs from the trace."""
    packets = [event for event in result.events if isinstance(event, AudioOut)]
    result.model = np.concatenate([np.zeros(0, np.float32), *(packet.pcm for packet in packets)])
    then, now = _by_reply(trace.records), _by_reply(result.events)
    if len(then) > len(now):
        result.differences.append(f"there were {len(then)} replies, and now {len(now)}")
    for number, (before, after) in enumerate(zip(then, now, strict=False), start=1):
        if not after.text.startswith(before.text):
            result.differences.append(f"reply {number} was {before.text!r}, and is {after.text!r}")
        if len(before.packets) > len(after.packets):
            result.differences.append(f"reply {number} had {len(before.packets)} packets, and now {len(after.packets)}")
        for index, (old, new) in enumerate(zip(before.packets, after.packets, strict=False)):
            result.packets += 1
            result.samples += new.samples
            result.tokens += len(new.tokens)
            if old != new:
                result.differences.append(f"reply {number} differs from packet {index} on")
                break
    end = trace.records[-1] if trace.records else None
    if isinstance(end, Ended) and end.reason != "error":
        context = call.session.finished_context
        if context[: len(end.context)] != end.context:
            result.differences.append(f"the context was {end.context}, and is {context}")


@dataclass(frozen=True, slots=True)
class _Packet:
    samples: int
    tokens: tuple[int, ...]
    digest: bytes


@dataclass(slots=True)
class _Reply:
    packets: list[_Packet] = field(default_factory=list)
    text: str = ""


def _by_reply(happened: Sequence[Record] | Sequence[Event]) -> list[_Reply]:
    """What was handed out, reply by reply: one ends where an event says so."""
    replies = [_Reply()]
    for each in happened:
        if isinstance(each, Sound):
            replies[-1].packets.append(_Packet(each.samples, each.tokens, each.digest))
        elif isinstance(each, AudioOut):
            replies[-1].packets.append(_Packet(len(each.pcm), each.tokens, digest(each.pcm)))
        elif isinstance(each, TextOut):
            replies[-1].text += each.text
        elif isinstance(each, Happened) and each.name == "TextOut":
            replies[-1].text += str(each.fields["text"])
        elif (each.name if isinstance(each, Happened) else type(each).__name__) in ("Interrupted", "ReplyEnded"):
            replies.append(_Reply())
    return replies
