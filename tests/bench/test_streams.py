"""The benchmarks of the two streams: what they report is there and makes sense."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from spiritrt.bench import encoder, vocoder
from spiritrt.bench.measure import load_clips, quantiles_ms
from spiritrt.cli import app

SMALL = ["--clips", "1", "--seconds", "1.5"]


@pytest.fixture(autouse=True)
def few_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(encoder, "SLOTS", (1, 8))
    monkeypatch.setattr(vocoder, "SLOTS", (1, 8))
    monkeypatch.setattr(vocoder, "LOOK_AHEADS", (0, 8))


def test_vocoder_bench_reports_exactness_and_what_low_latency_costs(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "vocoder.json"
    result = CliRunner().invoke(app, ["bench", "vocoder", *SMALL, "--json", str(file)], catch_exceptions=False)
    assert result.exit_code == 0
    report = json.loads(file.read_text())
    assert json.loads(result.stdout)["summary"] == report["summary"]
    assert report["summary"]["max_abs_error"] <= 1e-5
    assert 0 <= report["summary"]["python_share"] < 1
    none, eight = report["low_latency"]
    assert none["snr_db"] < eight["snr_db"] and none["log_mel_db"] > eight["log_mel_db"]
    assert report["step"]["by_slots"]["8"]["p50"] > 0


def test_encoder_bench_reports_agreement_and_draws_it(tmp_path: Path) -> None:
    file, picture = tmp_path / "encoder.json", tmp_path / "encoder.png"
    arguments = ["bench", "encoder", *SMALL, "--no-grid", "--json", str(file)]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    report = json.loads(file.read_text())
    summary = report["summary"]
    assert summary["unlimited_window_is_offline"] is True
    assert 0 < summary["agreement"] <= 1 and 0 <= summary["edit_rate"] < 1
    assert summary["look_ahead_ms"] == report["default"]["look_ahead_ms"]
    pytest.importorskip("matplotlib", reason="drawing needs matplotlib")
    encoder.plot(report, picture)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_quantiles_and_clips() -> None:
    assert quantiles_ms([0.001 * n for n in range(10)]) == {"p50": 5.0, "p20": 2.0, "p80": 8.0}
    clip = load_clips(None, 1, 0.5)[0]
    assert len(clip) == 8000
    with pytest.raises(ValueError, match="holds no sound files"):
        load_clips(Path(__file__).parent, 1, 1.0)
