"""What a scripted person says, and when: recordings for conversations without a person."""

import json
from dataclasses import dataclass
from pathlib import Path

from spiritrt.audio import Samples, load

RECORDINGS = Path(__file__).parent / "recordings"


@dataclass(frozen=True, slots=True, eq=False)
class Line:
    """Something the person says: `samples` at 16 kHz.

    It begins `pause_s` after the reply before it ended or, where `interrupt_s` is given, once so much of that reply has
    been heard.
    """

    name: str
    samples: Samples
    pause_s: float = 0.6
    interrupt_s: float | None = None


def shipped_lines() -> list[Line]:
    """The recordings that come with the package: see recordings/README.md for what they are and their licences."""
    entries = json.loads((RECORDINGS / "lines.json").read_text(encoding="utf-8"))
    return [Line(e["name"], load(RECORDINGS / e["file"]), e["pause_s"], e.get("interrupt_s")) for e in entries]
