"""`spiritrt eval`: the table on standard output, the JSON in a file, errors in one line."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from spiritrt.cli import app
from spiritrt.evaluation import commands


@pytest.fixture
def run(official: Path):
    def call(*arguments: str):
        model = str(official / "spiritlm_model" / "spirit-lm-base-7b")
        return CliRunner().invoke(app, ["eval", *arguments, "--model", model])

    return call


def test_table_and_json(run, tmp_path: Path):
    (tmp_path / "stories.jsonl").write_text(
        '{"id": 1, "prompt": {"text": "Once."}, "right": {"text": "Yes."}, "wrong": {"text": "No."}}\n'
    )
    result = run("storycloze", "--data", str(tmp_path), "--json", str(tmp_path / "deep" / "out.json"))
    assert result.exit_code == 0, result.output
    assert "storycloze" in result.stdout and "accuracy" in result.stdout
    report = json.loads((tmp_path / "deep" / "out.json").read_text())
    assert set(report["summary"]) == {"accuracy", "count", "spread", "parts"}
    assert report["evaluation"] == "storycloze" and report["summary"]["count"] == 1


def test_unknown_names_and_missing_data(run, tmp_path: Path):
    assert run("nonsense").exit_code == 2
    result = run("asr", "--data", str(tmp_path / "absent"))
    assert isinstance(result.exception, FileNotFoundError) and "give --data" in str(result.exception)


def test_a_missing_judge_is_said_before_a_model_is_loaded(monkeypatch):
    from spiritrt.evaluation import recognition

    monkeypatch.setattr(recognition.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install"):
        commands.run("dialogue", model="a model that is not there")


def test_every_evaluation_has_a_small_set():
    assert set(commands.OWN_SETS) == {name.value for name in commands.Evaluation}
    for place in commands.OWN_SETS.values():
        assert (commands.SETS / place).is_dir(), place
