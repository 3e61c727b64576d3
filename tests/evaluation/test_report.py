"""Figures with their spread, and what of them stands in the table and the JSON."""

import json
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from spiritrt.evaluation.report import Metric, Report, mean_metric, progress, rate_metric


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


def test_progress_gives_the_items_and_nothing_on_standard_output(capsys):
    assert list(progress([3, 1], "x")) == [3, 1]
    assert capsys.readouterr().out == ""
