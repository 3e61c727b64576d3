"""From what was noticed to figures: percentiles, goals, and what broke."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import ceil

from spiritrt.bench.duplex.drive import Run

PARTS = (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
MOST_VALUES = 4000  # of one kind that are kept in a file
LATENCIES = (
    "end_of_turn_to_audio", "silence_to_audio", "barge_in_to_silence", "onset_to_silence", "resume", "interrupted",
)  # fmt: skip
OTHERS = ("jitter", "backlog", "sent_late")
LONGEST_BACKLOG_MS = 1000.0  # who is heard so late is not heard in real time

DEFINITIONS = {
    "end_of_turn_to_audio_ms": "the client sent the packet that decided the endpoint -> the first sound is with it",
    "silence_to_audio_ms": "the person fell silent -> the first sound; the endpoint's silence is part of it",
    "barge_in_to_silence_ms": "the client sent the packet that decided that somebody speaks over the reply -> it is "
    "told to fall silent, and does; false alarms count too",
    "onset_to_silence_ms": "speech that became an interruption began -> the client falls silent",
    "resume_ms": "the client sent the packet that decided that it was a false alarm -> the reply sounds again",
    "interrupted_ms": "the client sent the packet that decided that it was an interruption -> it knows",
    "deadline_misses": "packets that came more than 2 ms after a loudspeaker without a buffer of its own had run dry",
    "lead_ms": "sound that the client still had when a packet came",
    "jitter_ms": "time between two packets of a reply less the sound between them (RFC 3550's D), absolute",
    "backlog_ms": "microphone that waited to be heard when a packet was sent, the most of each second",
    "sent_late_ms": "how late the bench's own clients sent their packets, the latest of each second",
    "wasted_token_share": "tokens of drafts that were thought ahead in vain, of all that were drawn",
    "unheard_token_share": "tokens of replies that were cut off before they were heard, of all that were drawn",
    "stages": "share of the time that the engine thread works on each stage",
    "cpu_share": "CPU time of the whole process, the clients' side included, over the time: 1 is a core",
}


@dataclass(frozen=True, slots=True)
class Goals:
    """In milliseconds, by percentile."""

    first_audio_p50: float
    first_audio_p99: float
    silence_p99: float


def goals_of(device: str) -> Goals:
    """The project's: on a CPU with nano, and on a GPU with the 7B."""
    return Goals(60, 90, 60) if device.startswith("cuda") else Goals(120, 200, 40)


def quantiles(values: Sequence[float]) -> dict[str, float | int | None]:
    """p50, p95, p99 (nearest rank: a value that occurred), max and count; None where there are no values."""
    ordered = sorted(values)
    found: dict[str, float | int | None] = {
        name: round(ordered[ceil(part * len(ordered)) - 1], 2) if ordered else None for name, part in PARTS
    }
    return {**found, "max": round(ordered[-1], 2) if ordered else None, "count": len(ordered)}


def lead(values: Sequence[float]) -> dict[str, float | int | None]:
    """The lower end: min, p1, p5 and p50."""
    ordered = sorted(values)
    found: dict[str, float | int | None] = {"min": round(ordered[0], 2) if ordered else None}
    for name, part in (("p1", 0.01), ("p5", 0.05), ("p50", 0.5)):
        found[name] = round(ordered[ceil(part * len(ordered)) - 1], 2) if ordered else None
    return {**found, "count": len(ordered)}


def record(run: Run, goals: Goals) -> dict:
    """A run as JSON has it."""
    noticed, stats = run.noticed, run.stats
    drawn = max(1, stats.drawn_tokens)
    return {
        "sessions": run.sessions,
        "seconds": round(run.seconds, 2),
        "held": held(run),
        "broken": broken(run, goals),
        **{f"{name}_ms": quantiles(getattr(noticed, name)) for name in (*LATENCIES, *OTHERS)},
        "lead_ms": lead(noticed.lead),
        "deadline_misses": len(noticed.late),
        "worst_miss_ms": round(max(noticed.late, default=0.0), 2),
        "wasted_token_share": round(stats.wasted_tokens / drawn, 4),
        "unheard_token_share": round(stats.unheard_tokens / drawn, 4),
        "turns": noticed.turns,
        "packets": noticed.packets,
        "replies": dict(noticed.replies),
        "closed": dict(+noticed.closed),
        "errors": noticed.errors[:20],
        "stats": asdict(stats),
        "busy": round(run.busy, 4),
        "stages": {kind: round(share, 4) for kind, share in run.stages.items()},
        "cpu_share": round(run.cpu_share, 4),
        "gpu": asdict(run.gpu) if run.gpu else None,
        "rss_mb": round(run.rss_mb, 1),
        "pages_returned": run.pages_returned,
        "values_ms": {
            name: [round(value, 2) for value in getattr(noticed, name)[:MOST_VALUES]]
            for name in (*LATENCIES, "late", "lead")
        },
    }  # fmt: skip


def held(run: Run) -> bool:
    """Whether every session got through in real time: no deadline missed, nobody closed, everybody heard."""
    noticed = run.noticed
    lost = sum(count for reason, count in noticed.closed.items() if reason != "client")
    return not noticed.late and not lost and max(noticed.backlog, default=0.0) < LONGEST_BACKLOG_MS


def broken(run: Run, goals: Goals) -> list[str]:
    """What is beyond its limit, in words."""
    noticed = run.noticed
    lost = {reason: count for reason, count in noticed.closed.items() if reason != "client" and count}
    found = [f"{counted(count, 'session')} closed: {reason}" for reason, count in lost.items()]
    if noticed.late:
        found.append(f"{counted(len(noticed.late), 'deadline')} missed, by up to {max(noticed.late):.0f} ms")
    first, silence = quantiles(noticed.end_of_turn_to_audio), quantiles(noticed.barge_in_to_silence)
    for what, value, limit in (
        ("first audio p50", first["p50"], goals.first_audio_p50),
        ("first audio p99", first["p99"], goals.first_audio_p99),
        ("silence p99", silence["p99"], goals.silence_p99),
        ("backlog of the microphone", max(noticed.backlog, default=0.0), LONGEST_BACKLOG_MS),
    ):
        if value is not None and value > limit:
            found.append(f"{what} {value:.0f} ms, the limit is {limit:.0f}")
    if not run.pages_returned:
        found.append("pages of the cache were not given back")
    return found


def counted(count: int, what: str) -> str:
    """`1 session`, `2 sessions`."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def summary(records: Sequence[dict]) -> dict:
    """The figures of the run with the most sessions that held, or of the first where none did."""
    chosen = max((record for record in records if record["held"]), key=lambda r: r["sessions"], default=records[0])
    names = ("end_of_turn_to_audio_ms", "barge_in_to_silence_ms", "resume_ms")
    return {
        **{name: chosen[name] for name in names},
        "deadline_misses": chosen["deadline_misses"],
        "sessions": chosen["sessions"],
        "sessions_held": chosen["sessions"] if chosen["held"] else 0,
        "wasted_token_share": chosen["wasted_token_share"],
    }
