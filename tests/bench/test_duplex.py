"""`spiritrt bench duplex` from end to end: nano and a random language model, in real time, simulated and soaked."""

import json
import re
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from spiritrt.bench.duplex import soak as soaking
from spiritrt.cli import app

PNG = b"\x89PNG"


def bench(*arguments: str) -> Result:
    words = ["bench", "duplex", "--activity", "energy", *arguments]
    return CliRunner().invoke(app, words, catch_exceptions=False)


def test_simulated_conversations_are_reported_in_all_forms(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="drawing needs matplotlib")
    file, html, plot = tmp_path / "deep" / "duplex.json", tmp_path / "duplex.html", tmp_path / "duplex.png"
    files = ["--json", str(file), "--html", str(html), "--plot", str(plot), "--traces", str(tmp_path / "traces")]
    result = bench("--simulated", "--seconds", "14", "--sessions", "1,2", "--seed", "1", *files)
    assert result.exit_code == 0, result.output
    written = json.loads(file.read_text())
    summary = written["summary"]
    assert [run["sessions"] for run in written["runs"]] == [1, 2]
    for run in written["runs"]:
        assert run["turns"] >= run["sessions"] and run["packets"] > 5 * run["sessions"]
        assert run["end_of_turn_to_audio_ms"]["count"] >= run["sessions"]
        assert 0 < run["end_of_turn_to_audio_ms"]["p50"] <= run["end_of_turn_to_audio_ms"]["max"]
        assert run["closed"] == {"client": run["sessions"]} and run["errors"] == []
        assert run["pages_returned"] is True and run["rss_mb"] > 100
        assert all(share > 0 for share in run["stages"].values()) and run["busy"] == pytest.approx(
            sum(run["stages"].values()), abs=1e-3
        )
        assert 0 <= run["wasted_token_share"] < 1 and run["seconds"] == pytest.approx(14, abs=1)
    for name in ("end_of_turn_to_audio_ms", "barge_in_to_silence_ms", "resume_ms"):
        assert {"p50", "p99", "max"} <= set(summary[name])
    assert {"deadline_misses", "sessions", "wasted_token_share"} <= set(summary)
    assert written["environment"]["priority"].startswith(("normal, nice ", "real time, "))
    assert "computing is charged" in written["clock"] and "sampling=" in written["running"]["kernels"]
    page = html.read_text()
    assert page.count("data:image/png;base64,") == 2 and not re.search(r"(src|href)=.(https?:)?//", page)
    assert plot.read_bytes().startswith(PNG) and len(page) < 1_000_000
    counts = [
        "/".join(str(run[name]["count"]) for name in ("end_of_turn_to_audio_ms", "barge_in_to_silence_ms", "resume_ms"))
        for run in written["runs"]
    ]
    assert "audio" in result.output and all(count in result.output for count in counts)
    assert (tmp_path / "traces" / "session-1.trace").stat().st_size > 1000


def test_a_conversation_in_real_time_with_another_kernel(tmp_path: Path) -> None:
    file = tmp_path / "duplex.json"
    result = bench("--seconds", "4", "--scenario", "turns", "--kernel", "sampling=reference", "--json", str(file))
    assert result.exit_code == 0, result.output
    written = json.loads(file.read_text())
    (run,) = written["runs"]
    assert written["clock"] == "in real time" and 4 <= run["seconds"] < 30
    assert "sampling=reference" in written["running"]["kernels"]
    assert 3.5 * 16000 < run["stats"]["heard_samples"] <= 4 * 16000 and run["turns"] >= 1
    assert run["sent_late_ms"]["count"] == 4 and run["cpu_share"] > 0


def test_a_language_model_of_random_weights_between_nanos_ears_and_voice(tmp_path: Path) -> None:
    file = tmp_path / "duplex.json"
    arguments = ["--shape", "tiny", "--max-reply", "2", "--context", "400", "--scenario", "turns"]
    result = bench(*arguments, "--simulated", "--seconds", "12", "--sessions", "2", "--json", str(file))
    assert result.exit_code == 0, result.output
    written = json.loads(file.read_text())
    (run,) = written["runs"]
    assert written["model"] == "tiny shape, random weights"
    assert run["end_of_turn_to_audio_ms"]["count"] >= 2 and run["closed"] == {"client": 2}
    assert run["replies"].get("length", 0) >= 2, "it babbles until the end"


def test_a_soak_gives_everything_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soaking, "CALL_S", (2.0, 6.0))
    monkeypatch.setattr(soaking, "HUNG_S", 1.5)
    monkeypatch.setattr(soaking, "VANISHING", 0.5)
    file, html = tmp_path / "soak.json", tmp_path / "soak.html"
    result = bench("--soak", "--seconds", "25", "--sessions", "3", "--json", str(file), "--html", str(html))
    assert result.exit_code == 0, result.output
    written = json.loads(file.read_text())
    soak, (run,) = written["soak"], written["runs"]
    assert run["closed"] == {"client": soak["opened"]} and not any("closed" in what for what in run["broken"])
    assert soak["ok"] and soak["pages"]["before"] == soak["pages"]["after"] and soak["errors"] == 0
    assert soak["opened"] > 6 and soak["vanished"] == soak["reaped"] > 0
    assert min(sample["free_pages"] for sample in soak["samples"]) < soak["pages"]["before"]
    assert soak["rss_mb"]["end"] > 0 and len(soak["samples"]) > 10
    assert "minutes of calls" in html.read_text()


def test_what_cannot_be_is_said() -> None:
    for arguments, message in (
        (["--sessions", "1,many"], "sessions must be numbers such as 1,2,4, got '1,many'"),
        (["--sessions", "0"], "sessions must be at least 1, got 0"),
        (["--soak", "--find-limit"], "--soak and --find-limit are two benches"),
        (["--reply", "text"], "reply must be continuation or chain, which sound, got 'text'"),
        (["--shape", "giant"], "shape must be one of 7b, nano, tiny, got 'giant'"),
        (["--seconds", "0"], "seconds must be positive, got 0"),
        (["--device", "gpu"], "device 'gpu' cannot be used here: it must be cpu, cuda or cuda:N"),
    ):
        with pytest.raises(ValueError, match=message):
            bench(*arguments)
