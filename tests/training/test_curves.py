"""Logs become curves: repeated steps, cut lines, plots and events."""

import json
from pathlib import Path

import pytest

from spiritrt.training.curves import plot, read_log, write_events


@pytest.fixture
def log(tmp_path: Path) -> Path:
    lines = [{"step": 50, "loss": 2.0, "note": "x"}, {"step": 100, "loss": 1.5}, {"step": 100, "loss": 1.25, "lr": 1}]
    path = tmp_path / "lm.log"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 150, "lo')
    return path


def test_the_last_line_of_a_step_counts_and_a_cut_line_does_not(log: Path):
    assert read_log(log) == {"loss": [(50, 2.0), (100, 1.25)], "lr": [(100, 1.0)]}
    log.write_text('{"loss": 1}\n{"step": 2}\n')
    with pytest.raises(ValueError, match="line 1"):
        read_log(log)


def test_a_plot_has_every_figure(log: Path, tmp_path: Path):
    pytest.importorskip("matplotlib")
    plot({"lm": read_log(log), "other": {"loss": [(1, 3.0)]}}, tmp_path / "plots" / "curves.png")
    assert (tmp_path / "plots" / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_events_are_read_back(log: Path, tmp_path: Path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write_events({"lm": read_log(log)}, tmp_path / "events")
    events = EventAccumulator(str(tmp_path / "events" / "lm"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(50, 2.0), (100, 1.25)]
