"""The check for CUDA machines, tried on a CPU: it runs through, and goes on after a failure, which it names."""

import json
from pathlib import Path

import pytest

from spiritrt.bench import gpu_check


def test_it_runs_through(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    test = tmp_path / "test_one.py"
    test.write_text("def test_one():\n    assert True\n")
    status = gpu_check.main(
        ["--device", "cpu", "--shape", "tiny", "--minutes", "3", "--tests", str(test), "--out", str(tmp_path)]
    )
    shown = capfd.readouterr().out
    assert status == 0, shown
    report = json.loads((tmp_path / "cpu" / "check.json").read_text())
    notes = {check["name"]: check["note"] for check in report["checks"]}
    assert all(check["failure"] is None for check in report["checks"]) and report["seconds"] < 180
    assert "1 passed" in notes["kernels and engine against their references (pytest)"]
    assert notes["greedy as on the CPU: spirit-lm-base-7b"].startswith("32 tokens")
    assert notes["same bits beside others: fp32, cache fp32"].startswith("16 tokens")
    assert notes["graph as eager: fp32, cache fp32"] == "not checked: a CPU has no graphs"
    assert json.loads((tmp_path / "cpu" / "decode.json").read_text())["cells"][0]["p50"] > 0
    assert notes["bench duplex"].startswith(("1 of 1 sessions held", "0 of 1 sessions held"))
    assert json.loads((tmp_path / "cpu" / "duplex.json").read_text())["model"] == "tiny shape, random weights"
    assert len((tmp_path / "cpu" / "kernels.jsonl").read_text().splitlines()) > 1
    assert f"{len(notes)} of {len(notes)} checks passed" in shown


def test_it_goes_on_after_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing = tmp_path / "test_failing.py"
    failing.write_text("def test_two():\n    assert 1 + 1 == 3\n")
    monkeypatch.setattr(gpu_check, "golden_models", lambda: [tmp_path / "no_model"])
    monkeypatch.setattr(gpu_check, "formats", lambda check: [])
    monkeypatch.setattr(gpu_check, "kernels", lambda check, until: "fine")
    monkeypatch.setattr(gpu_check, "decode", lambda check, until: "fine")
    monkeypatch.setattr(gpu_check, "duplex", lambda check, until: "fine")
    status = gpu_check.main(["--device", "cpu", "--shape", "tiny", "--tests", str(failing), "--out", str(tmp_path)])
    shown = capsys.readouterr().out
    assert status == 1
    assert "FAILED kernels and engine against their references (pytest): exit status 1" in shown
    assert "assert (1 + 1) == 3" in shown
    assert "FAILED greedy as on the CPU: no_model: FileNotFoundError" in shown
    assert "3 of 5 checks passed" in shown
    report = json.loads((tmp_path / "cpu" / "check.json").read_text())
    assert [check["failure"] is None for check in report["checks"]] == [
        False,
        False,
        True,
        True,
        True,
    ]


def test_a_command_that_takes_too_long_is_ended_and_named() -> None:
    with pytest.raises(gpu_check.Failure, match="not done after 1 s; the end of its output: begun"):
        gpu_check.subprocess_output(["sh", "-c", "echo begun; exec sleep 30"], 1.0)


def test_sequences_that_differ_in_a_bit_are_told_apart() -> None:
    same = [(5, -1.25), (6, -0.5)]
    assert gpu_check.equal(same, list(same)) == "2 tokens"
    with pytest.raises(gpu_check.Failure, match=r"token 1: id 6 at -0\.5 and id 6 at -0\.50000001"):
        gpu_check.equal(same, [same[0], (6, -0.50000001)])
