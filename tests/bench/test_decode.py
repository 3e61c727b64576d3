"""The bench of decode steps: formats are compared with the plain model first, and what does not fit is said so."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from spiritrt.bench import decode, decode_report, transformers_decode
from spiritrt.bench.decode import Cell, Grid, StepTimes, Timed
from spiritrt.bench.environment import Ceilings
from spiritrt.bench.shapes import preset
from spiritrt.bench.transformers_decode import EAGER, beside
from spiritrt.cli import app

QUICK = ["bench", "decode", "--shape", "tiny", "--device", "cpu", "--rows", "1", "--rows", "3", "--context", "40"]


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "STEPS", 4)
    monkeypatch.setattr(decode_report, "ceilings", lambda device, dtype: Ceilings(5e9, 5e9, 5e10))


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, [*QUICK, *arguments], catch_exceptions=False)


def test_steps_are_timed_against_the_floor(tmp_path: Path) -> None:
    file = tmp_path / "decode.json"
    shown = invoke("--weights", "fp32", "--weights", "int8", "--cache", "bf16", "--no-compare", "--json", str(file))
    assert shown.exit_code == 0, shown.stdout
    report = json.loads(file.read_text())
    assert report["environment"]["shape"] == "tiny" and report["not_measured"] == []
    assert report["logprob_differences"]["weights=int8 cache=bf16"] < 0.1
    cells = {(cell["weights"], cell["rows"]): cell for cell in report["cells"]}
    assert set(cells) == {("fp32", 1), ("fp32", 3), ("int8", 1), ("int8", 3)}
    config = preset("tiny").config
    layer = 3 * 64 * 64 + 64 * 64 + 3 * 64 * 96  # qkv, out, gate and up and down
    weights = 4 * (config.num_hidden_layers * layer + config.vocab_size * 64)
    token = 2 * config.num_hidden_layers * 64 * 2  # keys and values in bf16
    for rows in (1, 3):
        cell = cells["fp32", rows]
        assert cell["bytes"] == weights + rows * 41 * token
        assert cell["floor_ms"] == pytest.approx(1e3 * cell["bytes"] / 5e9, abs=1e-4)
        assert 0 < cell["p20"] <= cell["p50"] <= cell["p80"] and cell["host_ms"] > 0
    assert cells["int8", 1]["bytes"] < cells["fp32", 1]["bytes"] / 2


def test_the_table_goes_by_rows_then_context_then_who_and_formats() -> None:
    cells = [Cell(16, 64, "bf16", "bf16"), Cell(1, 256, "bf16", "bf16"), Cell(1, 64, "int8", "bf16")]
    timed = [Timed(cell, times=StepTimes(1.0, 1.0, 1.0)) for cell in cells]
    timed += [Timed(Cell(1, 64, "fp32", "fp32"), by) for by in ("transformers", "engine")]
    shown = decode_report.table(timed, Ceilings(5e9, 5e9, 5e10), "")
    columns = [list(column.cells) for column in shown.columns[:4]]
    assert list(zip(*columns, strict=True)) == [
        ("1", "64", "engine", "fp32"), ("1", "64", "engine", "int8"), ("1", "64", "transformers", "fp32"),
        ("1", "256", "engine", "bf16"), ("16", "64", "engine", "bf16"),
    ]  # fmt: skip


def test_a_format_that_is_off_gets_fail_and_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "TOLERANCES", dict.fromkeys(decode.TOLERANCES, 1e-12))
    shown = invoke("--weights", "int8", "--cache", "fp32", "--no-compare")
    assert shown.exit_code == 1 and "FAIL" in shown.stdout
    assert "log-probabilities are off by" in shown.stdout


def test_a_cell_that_does_not_fit_is_said_so_and_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = decode.steps

    def full(engine: object, cell: Cell) -> object:
        if cell.rows == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return timed(engine, cell)

    monkeypatch.setattr(decode, "steps", full)
    shown = invoke("--weights", "fp32", "--cache", "fp32", "--no-compare")
    assert shown.exit_code == 0, shown.stdout
    assert "engine rows=3 context=40 weights=fp32 cache=fp32: out of memory" in shown.stdout
    assert any("100%" not in line and "│    1 │      40 │" in line for line in shown.stdout.splitlines())


def test_what_there_is_no_time_for_is_listed() -> None:
    shown = invoke("--weights", "fp32", "--cache", "fp32", "--no-compare", "--minutes", "1e-9")
    assert shown.exit_code == 0 and "no time was left for 2 cells" in shown.stdout


def test_transformers_runs_beside_on_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers_decode, "TOKENS", 3)
    config, cpu = preset("tiny").config, torch.device("cpu")
    ids = list(range(3, 20))
    judge = decode.judged(config, torch.float32, cpu, ids)
    cells = Grid((1, 2), (16,), ("fp32",), ("fp32",)).cells("fp32", "fp32")
    arguments = (config, torch.float32, cpu, cells)
    one, two = beside(*arguments, judge, ids, EAGER, None, lambda line: None)
    assert (one.cell.rows, two.cell.rows) == (1, 2)
    assert one.wrong is None and one.times is not None and one.times.p50 > 0
    other = [value + 1 for value in judge]
    wrong, _ = beside(*arguments, other, ids, EAGER, None, lambda line: None)
    assert wrong.times is None and wrong.wrong is not None and "off by 1" in wrong.wrong


def test_the_middle_context_and_the_ends_of_the_rows_come_first() -> None:
    cells = Grid().cells("bf16", "bf16")
    assert len(cells) == len(set(cells)) == 18
    assert [(cell.rows, cell.context) for cell in cells[:3]] == [(1, 1024), (128, 1024), (64, 1024)]


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ((0, 16, "fp32", "fp32"), "at least 1, got 0 and 16"),
        ((1, 16, "int4", "fp32"), "weights must be one of fp32, fp16, bf16, int8, fp8, got 'int4'"),
        ((1, 16, "fp32", "int8"), "cache must be one of .*bf16.*, got 'int8'"),
    ],
)
def test_a_cell_that_cannot_be(cell: tuple[int, int, str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Cell(*cell)
