"""Figures of the duplex bench: percentiles, what is held, what broke first."""

from io import StringIO

import pytest
from rich.console import Console

from spiritrt.bench.duplex.drive import Run
from spiritrt.bench.duplex.figures import broken, goals_of, held, lead, quantiles, record, summary
from spiritrt.bench.duplex.limit import find_limit
from spiritrt.bench.duplex.report import COLUMNS, cells_of, limit_in_words, table
from spiritrt.bench.duplex.use import parse

GOALS = goals_of("cpu")


def run(sessions: int, first_audio: float = 50.0, misses: int = 0, closed: str = "client") -> Run:
    made = Run(sessions, seconds=60.0)
    made.noticed.end_of_turn_to_audio.extend([first_audio] * 10)
    made.noticed.barge_in_to_silence.extend([10.0, 20.0])
    made.noticed.late.extend([30.0] * misses)
    made.noticed.lead.extend([100.0, 300.0])
    made.noticed.closed[closed] += sessions
    made.stats.drawn_tokens, made.stats.wasted_tokens = 200, 30
    made.stages = {"encode": 0.2, "decode": 0.3}
    return made


def test_percentiles_are_values_that_occurred() -> None:
    values = [float(n) for n in range(1, 101)]
    assert quantiles(values) == {"p50": 50.0, "p95": 95.0, "p99": 99.0, "max": 100.0, "count": 100}
    assert quantiles([7.0]) == {"p50": 7.0, "p95": 7.0, "p99": 7.0, "max": 7.0, "count": 1}
    assert quantiles([]) == {"p50": None, "p95": None, "p99": None, "max": None, "count": 0}
    assert lead(values) == {"min": 1.0, "p1": 1.0, "p5": 5.0, "p50": 50.0, "count": 100}


def test_a_run_is_held_unless_a_deadline_was_missed_or_somebody_was_closed() -> None:
    assert held(run(2)) and not held(run(2, misses=1)) and not held(run(2, closed="overload"))
    assert held(run(2, first_audio=500.0)), "late is not lost"
    late = run(2)
    late.noticed.backlog.extend([10.0, 1200.0])
    assert not held(late)
    assert broken(late, GOALS) == ["backlog of the microphone 1200 ms, the limit is 1000"]


def test_what_broke_is_said_with_its_limit() -> None:
    assert broken(run(1), GOALS) == []
    bad = run(3, first_audio=250.0, misses=2, closed="hung")
    bad.noticed.barge_in_to_silence.append(90.0)
    bad.pages_returned = False
    assert broken(bad, GOALS) == [
        "3 sessions closed: hung",
        "2 deadlines missed, by up to 30 ms",
        "first audio p50 250 ms, the limit is 120",
        "first audio p99 250 ms, the limit is 200",
        "silence p99 90 ms, the limit is 40",
        "pages of the cache were not given back",
    ]
    assert goals_of("cuda:1").first_audio_p50 == 60


def test_the_summary_is_of_the_most_sessions_that_were_held() -> None:
    records = [record(made, GOALS) for made in (run(1), run(4, first_audio=70.0), run(8, misses=3))]
    found = summary(records)
    assert found["sessions"] == found["sessions_held"] == 4 and found["deadline_misses"] == 0
    assert found["end_of_turn_to_audio_ms"]["p50"] == 70.0 and found["wasted_token_share"] == 0.15
    assert {"p50", "p99", "max"} <= set(found["barge_in_to_silence_ms"]) and found["resume_ms"]["p99"] is None
    only = summary(records[2:])
    assert (only["sessions"], only["sessions_held"], only["deadline_misses"]) == (8, 0, 3)


@pytest.mark.parametrize(("holds", "most"), [(0, 8), (1, 8), (5, 16), (7, 7), (9, 9), (16, 16), (11, 64)])
def test_the_limit_is_found_whatever_it_is(holds: int, most: int) -> None:
    asked: list[int] = []

    def attempt(sessions: int) -> Run:
        asked.append(sessions)
        return run(sessions, first_audio=40.0 * sessions, misses=5 * (sessions > holds))

    limit = find_limit(attempt, most, GOALS, lambda line: None)
    assert limit.held == holds and len(asked) == len(set(asked)) <= 14
    assert limit.goals_held == min(holds, 3), "of those tried: 40 ms a session, and the goal is 120"
    if holds < most:
        assert limit.breaks_at == holds + 1
        assert limit.first[0] == "5 deadlines missed, by up to 30 ms"
        assert limit.record()["stages_there"] == {"encode": 0.2, "decode": 0.3}
    else:
        assert limit.breaks_at is None and limit.first == []


def test_counts_stand_beside_percentiles_and_a_limit_says_its_clock() -> None:
    made = record(run(2), GOALS)
    assert dict(zip(COLUMNS, cells_of(made), strict=True))["count of each"] == "10/2/0"
    shown = StringIO()
    Console(width=110, file=shown).print(table([made], "nano"))
    assert "10/2/0" in shown.getvalue() and "50/50/50/50" in shown.getvalue(), "it fits"
    limit = find_limit(run, 2, GOALS, lambda line: None).record()
    assert limit_in_words(limit, "in real time").startswith("2 sessions are held in real time, 2 within all goals.")
    assert limit_in_words(limit, "simulated: computing is charged").startswith("2 sessions are held in simulated time,")


def test_what_nvidia_smi_says_is_averaged_and_broken_lines_do_not_count() -> None:
    use = parse("50, 200.5, 1000\n70, 300.5, 3000\n[N/A], 100, 10\n90, 1")
    assert use is not None and (use.busy, use.watts, use.memory_mb) == (0.6, 250.5, 3000)
    assert parse("") is None
