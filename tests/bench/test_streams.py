"""The benchmarks of the streams: what they report is there and makes sense."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

import spiritrt
from spiritrt.bench import encoder, prosody, vocoder
from spiritrt.bench.measure import Timed, load_clips, quantiles_ms
from spiritrt.cli import app

SMALL = ["--clips", "1", "--seconds", "1.5"]


@pytest.fixture(autouse=True)
def little_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "SLOTS", (1, 8))
    monkeypatch.setattr(vocoder, "SLOTS", (1, 8))
    monkeypatch.setattr(vocoder, "LOOK_AHEADS", (0, 8))
    monkeypatch.setattr(prosody, "PITCH_WINDOWS", ((800, 320, 160), (1600, 8000, 0)))
    monkeypatch.setattr(prosody, "STYLE_WINDOWS", ((3, 240), (10, 1000)))
    # two threads wait for each other at every operation where the machine is busy
    monkeypatch.setattr(os, "cpu_count", lambda: 1)


def report(tmp_path: Path, *arguments: str) -> dict:
    """What a benchmark wrote, once it printed the same summary."""
    file = tmp_path / "deep" / "result.json"
    result = CliRunner().invoke(app, ["bench", *arguments, *SMALL, "--json", str(file)], catch_exceptions=False)
    assert result.exit_code == 0
    written = json.loads(file.read_text())
    assert json.loads(result.stdout)["summary"] == written["summary"]
    return written


def test_vocoder_bench_reports_exactness_and_what_low_latency_costs(tmp_path: Path) -> None:
    written = report(tmp_path, "vocoder")
    summary = written["summary"]
    assert summary["max_abs_error"] <= 1e-5
    assert 0 <= summary["python_share"] < 1
    none, eight = written["low_latency"]
    assert none["snr_db"] < eight["snr_db"] and none["log_mel_db"] > eight["log_mel_db"]
    steps = written["step"]["by_slots"]
    assert steps["8"]["p50"] > steps["1"]["p50"] > 0
    assert summary["eight_slots_over_one"] == {"one_thread": round(steps["8"]["p50"] / steps["1"]["p50"], 2)}


def test_vocoder_bench_takes_expressive_vocoders(tmp_path: Path, official: Path) -> None:
    model = official / "spiritlm_model" / "spirit-lm-expressive-7b"
    written = report(tmp_path, "vocoder", "--model", str(model))
    assert written["codes"] == "unit, pitch, style"
    assert written["summary"]["max_abs_error"] <= 1e-5


def test_encoder_bench_reports_agreement_and_draws_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = report(tmp_path, "encoder", "--no-grid")
    summary = written["summary"]
    assert summary["unlimited_window_is_offline"] is True
    assert 0 < summary["agreement"] <= 1 and 0 <= summary["edit_rate"] < 1
    assert summary["look_ahead_ms"] == written["default"]["look_ahead_ms"]
    assert written["default_by_folder"][""]["agreement"] == summary["agreement"]
    pyplot = pytest.importorskip("matplotlib.pyplot", reason="drawing needs matplotlib")
    picture = tmp_path / "encoder.png"
    drawn: list = []
    monkeypatch.setattr(pyplot, "close", drawn.append)
    encoder.plot(written, picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert drawn[0].axes[0].get_legend_handles_labels()[1] == [f"{encoder.LEFT_MS / 1000:g} s"], "one setting, one line"


def test_prosody_bench_reports_agreement_that_grows_with_the_window(tmp_path: Path, official: Path) -> None:
    model = official / "spiritlm_model" / "spirit-lm-expressive-7b"
    written = report(tmp_path, "prosody", "--model", str(model))
    for kind in ("pitch", "style"):
        default, everything = written[kind]
        assert 0 <= default["agreement"] <= everything["agreement"] <= 1
        assert default["rtf"] > 0
        assert written["summary"][kind]["edit_rate"] == default["edit_rate"]
    assert written["pitch"][1]["agreement"] == 1  # one window held the whole clip
    with pytest.raises(ValueError, match="nano has no pitch and style tokens"):
        prosody.bench_prosody("nano", None, 1, 1.0)


class Native:
    """Calls back, and is called from there, as a stream does whose steps are recorded."""

    def step(self, clock: list[float]) -> None:
        clock[0] += 1

    def step_with(self, compute: Callable[[], None]) -> None:
        compute()


def test_what_a_native_call_calls_back_is_not_native(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    native = Timed(Native())

    def compute() -> None:
        clock[0] += 10  # Python's
        native.step(clock)  # type: ignore[operator]

    native.step(clock)  # type: ignore[operator]
    native.step_with(compute)  # type: ignore[operator]
    assert clock[0] == 12 and native.seconds == 2


def test_quantiles_and_clips() -> None:
    assert quantiles_ms([0.001 * n for n in range(10)]) == {"p50": 5.0, "p20": 2.0, "p80": 8.0}
    assert [len(clip) for clip in load_clips(None, 2, 0.5)[""]] == [8000, 8000]
    groups = load_clips(Path(spiritrt.__file__).parent, 1, 1.0)
    assert list(groups) == ["duplex"]
    with pytest.raises(ValueError, match="holds no sound files"):
        load_clips(Path(__file__).parent, 1, 1.0)
