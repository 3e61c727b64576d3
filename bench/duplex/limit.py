"""How many sessions this machine holds in real time, and what breaks first where it does not."""

from collections.abc import Callable
from dataclasses import dataclass, field

from spiritrt.bench.duplex.drive import Run
from spiritrt.bench.duplex.figures import Goals, broken, held

COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)


@dataclass(slots=True)
class Limit:
    """`held` sessions were held, `breaks_at` were not (None: as many as were tried are held)."""

    runs: list[Run] = field(default_factory=list)
    goals_held: int = 0  # the most that also met all goals
    held: int = 0
    breaks_at: int | None = None
    first: list[str] = field(default_factory=list)  # what broke there

    def record(self) -> dict:
        """As JSON has it."""
        at = next((run for run in self.runs if run.sessions == self.breaks_at), None)
        return {
            "sessions_held": self.held,
            "sessions_within_goals": self.goals_held,
            "breaks_at": self.breaks_at,
            "first": self.first,
            "stages_there": {kind: round(share, 3) for kind, share in at.stages.items()} if at else {},
        }


def find_limit(run: Callable[[int], Run], most: int, goals: Goals, tell: Callable[[str], None]) -> Limit:
    """Tries more and more sessions up to `most` until some are not held, then the numbers between."""
    limit = Limit()

    def holds(sessions: int) -> bool:
        tell(f"{sessions} sessions")
        made = run(sessions)
        limit.runs.append(made)
        return held(made)

    below, above = 0, most + 1
    for count in COUNTS:
        if count > most:
            break
        if not holds(count):
            above = count
            break
        below = count
    while above - below > 1:
        middle = (below + above) // 2
        if holds(middle):
            below = middle
        else:
            above = middle
    limit.runs.sort(key=lambda made: made.sessions)
    limit.held = below
    within = [made.sessions for made in limit.runs if held(made) and not broken(made, goals)]
    limit.goals_held = max(within, default=0)
    if above <= most:
        limit.breaks_at = above
        limit.first = broken(next(made for made in limit.runs if made.sessions == above), goals)
    return limit
