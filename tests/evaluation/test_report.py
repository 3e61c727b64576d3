"""Figures with their spread, and what of them stands in the table and the JSON."""

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from spiritrt.evaluation.report import Metric, Report, mean_metric, progress, rate_metric

HALF = Metric("accuracy", 0.5, 4, 0.1)


def test_a_mean_has_the_standard_error_of_the_mean():
    metric = mean_metric("accuracy", [1.0, 0.0, 1.0, 0.5])
    assert metric.value == 0.625 and metric.count == 4
    assert metric.spread == pytest.approx(np.std([1, 0, 1, 0.5], ddof=1) / 2)
    assert mean_metric("accuracy", [1.0]).spread == 0.0
    with pytest.raises(ValueError, match="no items"):
        mean_metric("accuracy", [])


def test_a_rate_weighs_items_by_their_length_and_is_spread_by_bootstrap():
    errors, words = [1, 0, 4, 1] * 25, [10, 2, 8, 5] * 25
    metric = rate_metric("wer", errors, words)
    assert metric.value == pytest.approx(6 / 25) and metric.count == 100
    assert metric == rate_metric("wer", errors, words) != rate_metric("wer", errors, words, seed=1)
    # the delta method's standard error of a ratio
    residual = np.array(errors) - metric.value * np.array(words)
    assert metric.spread == pytest.approx(residual.std() / 10 / np.mean(words), rel=0.15)
    with pytest.raises(ValueError, match="no items"):
        rate_metric("wer", [1], [0])


def test_the_summary_has_the_metric_by_its_name(tmp_path: Path):
    part = Metric("cer", 0.1, 7, 0.01)
    lines = ({"id": "a", "heard": "ü"},)
    report = Report("asr", "nano", Metric("wer", 0.25, 7, 0.05), {"characters": part}, {"shots": 2}, ("a note",), lines)
    report.write(tmp_path / "deep" / "asr.json")
    read = json.loads((tmp_path / "deep" / "asr.json").read_text())
    assert read["summary"] == {
        "wer": 0.25, "count": 7, "spread": 0.05, "parts": {"characters": {"cer": 0.1, "count": 7, "spread": 0.01}},
    }  # fmt: skip
    assert read["settings"] == {"shots": 2} and read["lines"] == [{"id": "a", "heard": "ü"}]
    out = StringIO()
    report.show(Console(file=out, width=100))
    assert "25.0%" in out.getvalue() and "characters" in out.getvalue() and "note: a note" in out.getvalue()


@pytest.mark.parametrize(
    ("main", "parts", "labels"),
    [
        (HALF, {"T mean": replace(HALF), "S mean": HALF}, ["main figure: S mean", "T mean"]),
        (HALF, {"words": replace(HALF), "speech": Metric("wer", 0.5, 4, 0.1)}, ["main figure: words", "speech"]),
        (HALF, {"one": Metric("accuracy", 1.0, 2, 0.0)}, ["main figure", "one"]),
        (HALF, {}, ["main figure"]),
    ],
)
def test_the_main_figure_has_a_name_and_stands_once(main: Metric, parts: dict[str, Metric], labels: list[str]):
    out = StringIO()
    Report("x", "nano", main, parts).show(Console(file=out, width=100))
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.getvalue().splitlines() if "│" in line]
    assert [row[0] for row in rows] == labels and "chance" not in out.getvalue()


def test_the_chance_stands_beside_accuracies():
    out = StringIO()
    parts = {"other": Metric("wer", 0.5, 4, 0.1)}
    Report("x", "nano", HALF, parts, {"chance": 0.25}).show(Console(file=out, width=100))
    assert "chance" in out.getvalue() and out.getvalue().count("25.0%") == 1


def test_progress_gives_the_items_and_nothing_on_standard_output(capsys):
    assert list(progress([3, 1], "x")) == [3, 1]
    assert capsys.readouterr().out == ""
