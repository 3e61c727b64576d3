"""What the scripted people of the bench say: real recordings in an order, and at moments, that are drawn at random."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spiritrt.audio import RATE_HZ, Samples, load
from spiritrt.bench.measure import SOUND_FILES
from spiritrt.duplex.script import RECORDINGS, Line

BACKCHANNEL_S = 0.7  # what is shorter is no turn
LONGEST_S = 12.0  # so much of a recording is said at most
MOST_FILES = 200
LONGEST_PAUSE_S = 8.0

# how often each kind of line is drawn
SCENARIOS: Mapping[str, Mapping[str, float]] = {
    "mixed": {"turn": 4, "interruption": 2, "backchannel": 1.5, "noise": 1.5, "silence": 1},
    "turns": {"turn": 1},
    "interruptions": {"turn": 1, "interruption": 2},
    "backchannels": {"turn": 1, "backchannel": 1},
    "noise": {"turn": 1, "noise": 2},
    "silence": {"turn": 1, "silence": 3},
}


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """Something that can be said: `samples` at 16 kHz."""

    name: str
    samples: Samples


@dataclass(frozen=True, slots=True)
class Material:
    """Recordings to draw from, sorted by what they can be used for."""

    turns: tuple[Recording, ...]
    backchannels: tuple[Recording, ...]

    def __post_init__(self) -> None:
        if not self.turns or not self.backchannels:
            raise ValueError("a conversation needs a recording of a turn, and one of a backchannel")


def shipped_material() -> Material:
    """The recordings that come with the package."""
    entries = json.loads((RECORDINGS / "lines.json").read_text(encoding="utf-8"))
    return _sorted_by_length([Recording(entry["file"], load(RECORDINGS / entry["file"])) for entry in entries])


def material_of(folder: Path | None) -> Material:
    """The recordings of a folder and its subfolders, up to 200 of them; the shipped ones without a folder.

    What is shorter than 0.7 s is a backchannel; where there is none, the shipped ones are used. Raises ValueError for
    a folder without a recording of a turn.
    """
    if folder is None:
        return shipped_material()
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SOUND_FILES)
    taken = files[:: -(-len(files) // MOST_FILES)] if files else []
    recordings = [Recording(str(file.relative_to(folder)), load(file)) for file in taken]
    if not any(len(recording.samples) >= BACKCHANNEL_S * RATE_HZ for recording in recordings):
        raise ValueError(f"{folder} holds no recording of {BACKCHANNEL_S} s or more ({', '.join(SOUND_FILES)})")
    if all(len(recording.samples) >= BACKCHANNEL_S * RATE_HZ for recording in recordings):
        recordings += shipped_material().backchannels
    return _sorted_by_length(recordings)


def script(material: Material, scenario: str, seconds: float, seed: int) -> list[Line]:
    """Lines for so much talk at least, the same for the same seed.

    A turn, and a silence before one, is said after the reply before it; interruptions, backchannels and noise are put
    at a random point into a reply or, where that ends before, said or heard after it. Raises ValueError for an unknown
    scenario.
    """
    if scenario not in SCENARIOS:
        raise ValueError(f"scenario must be one of {', '.join(SCENARIOS)}, got {scenario!r}")
    kinds, weights = zip(*SCENARIOS[scenario].items(), strict=True)
    shares = np.asarray(weights) / sum(weights)
    rng = np.random.default_rng(seed)
    lines: list[Line] = []
    lasts = 0.0
    while lasts < seconds:
        line = _LINES[rng.choice(kinds, p=shares)](material, rng)
        lines.append(line)
        lasts += len(line.samples) / RATE_HZ + (line.pause_s if line.interrupt_s is None else 0.0)
    return lines


def noise_burst(rng: np.random.Generator) -> Samples:
    """A knock: 60 to 250 ms of noise of a random colour, that dies away; -26 to -8 dB at its peak."""
    count = int(rng.uniform(0.06, 0.25) * RATE_HZ)
    taps = int(rng.integers(1, 24))
    noise = np.convolve(rng.standard_normal(count + taps - 1), np.ones(taps), "valid")
    noise *= np.exp(-np.linspace(0, rng.uniform(2, 6), count))
    return (noise / np.abs(noise).max() * 10 ** (rng.uniform(-26, -8) / 20)).astype(np.float32)


def _turn(material: Material, rng: np.random.Generator) -> Line:
    recording = material.turns[rng.integers(len(material.turns))]
    return Line(recording.name, recording.samples, pause_s=rng.uniform(0.3, 1.5))


def _interruption(material: Material, rng: np.random.Generator) -> Line:
    turn = _turn(material, rng)
    return Line(turn.name, turn.samples, turn.pause_s, interrupt_s=rng.uniform(0.1, 2.5))


def _backchannel(material: Material, rng: np.random.Generator) -> Line:
    recording = material.backchannels[rng.integers(len(material.backchannels))]
    return Line(recording.name, recording.samples, rng.uniform(0.3, 1.5), interrupt_s=rng.uniform(0.1, 1.5))


def _noise(material: Material, rng: np.random.Generator) -> Line:
    return Line("noise", noise_burst(rng), rng.uniform(0.3, 1.5), interrupt_s=rng.uniform(0.1, 1.5))


def _silence(material: Material, rng: np.random.Generator) -> Line:
    turn = _turn(material, rng)
    return Line(turn.name, turn.samples, pause_s=rng.uniform(2.0, LONGEST_PAUSE_S))


_LINES: Mapping[str, Callable[[Material, np.random.Generator], Line]] = {
    "turn": _turn,
    "interruption": _interruption,
    "backchannel": _backchannel,
    "noise": _noise,
    "silence": _silence,
}


def _sorted_by_length(recordings: list[Recording]) -> Material:
    longest = round(LONGEST_S * RATE_HZ)
    short = [recording for recording in recordings if len(recording.samples) < BACKCHANNEL_S * RATE_HZ]
    turns = [
        Recording(recording.name, recording.samples[:longest]) for recording in recordings if recording not in short
    ]
    return Material(tuple(turns), tuple(short))
