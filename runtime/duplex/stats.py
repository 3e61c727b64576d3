"""What is counted of a session."""

from dataclasses import dataclass, fields


@dataclass(slots=True)
class Stats:
    """Counts of one session, or of several together: tokens, samples, and what went wrong."""

    heard_tokens: int = 0  # of the person, fed to the context as they were committed
    drawn_tokens: int = 0
    wasted_tokens: int = 0  # drawn for drafts that were dropped
    unheard_tokens: int = 0  # drawn for replies that were cut, beyond what was heard
    drafts: int = 0
    dropped_drafts: int = 0
    replies: int = 0
    interruptions: int = 0
    false_alarms: int = 0  # ducked and resumed
    evicted_tokens: int = 0
    misses: int = 0  # packets handed out after the client had run dry
    worst_miss_ms: float = 0.0
    late_acknowledgements: int = 0  # of sound that had been cut off before
    sent_samples: int = 0
    heard_samples: int = 0  # of the microphone

    def add(self, other: "Stats") -> None:
        """Adds another session's counts."""
        for counter in fields(self):
            mine, others = getattr(self, counter.name), getattr(other, counter.name)
            together = max(mine, others) if counter.name == "worst_miss_ms" else mine + others
            setattr(self, counter.name, together)
