"""`spiritrt eval`: the table on standard output, the JSON in a file, errors in one line."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from spiritrt.cli import app
from spiritrt.evaluation import commands, recognition


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
    assert "main figure: T mean" in result.stdout and "chance" in result.stdout
    report = json.loads((tmp_path / "deep" / "out.json").read_text())
    assert set(report["summary"]) == {"accuracy", "count", "spread", "parts"}
    assert report["evaluation"] == "storycloze" and report["summary"]["count"] == 1
    assert "the shipped small set" not in result.stdout
    assert "the shipped small set" in " ".join(run("storycloze", "--limit", "1").stdout.split())


@pytest.mark.parametrize("name", ["wuggy", "blimp", "storycloze", "salmon", "mmlu"])
def test_the_seed_draws_what_a_limit_leaves(run, name: str, tmp_path: Path):
    drawn = []
    for seed in ("0", "0", "3"):
        result = run(name, "--limit", "1", "--seed", seed, "--json", str(tmp_path / "out.json"))
        assert result.exit_code == 0, result.output
        report = json.loads((tmp_path / "out.json").read_text())
        assert report["settings"]["seed"] == int(seed)
        assert report["settings"]["chance"] == (0.25 if name == "mmlu" else 0.5)
        drawn.append([line.get("id") or line["question"] for line in report["lines"]])
    assert drawn[0] == drawn[1]
    # pairs of salmon are made by the seed and numbered
    assert drawn[0] != drawn[2] or name == "salmon"


def test_unknown_names_and_missing_data(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert run("nonsense").exit_code == 2
    error = run("asr", "--data", str(tmp_path / "absent")).exception
    assert isinstance(error, FileNotFoundError)
    assert str(error) == f"no data at {tmp_path / 'absent'}: --data takes a folder or file that is there"
    monkeypatch.setattr(commands, "SETS", tmp_path)
    error = run("asr").exception
    assert isinstance(error, FileNotFoundError) and str(error).endswith("give --data")


def test_a_missing_judge_is_said_before_a_model_is_loaded(monkeypatch):
    monkeypatch.setattr(recognition.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install"):
        commands.run("dialogue", model="a model that is not there")


@pytest.mark.parametrize(
    ("arguments", "option", "takers"),
    [
        (("wuggy", "--shots", "3"), "--shots", "mmlu, asr, tts, intent"),
        (("asr", "--stop-word", "x.wav"), "--stop-word", "tts"),
        (("mmlu", "--speakers"), "--speakers", "asr, resynthesis"),
        (("intent", "--text-classifier", "x"), "--text-classifier", "stsp"),
        (("salmon", "--speech-classifier", "x"), "--speech-classifier", "stsp"),
        (("asr", "--save-to", "x"), "--save-to", "tts, resynthesis, dialogue"),
    ],
)
def test_an_option_of_other_evaluations_is_an_error(run, arguments: tuple[str, ...], option: str, takers: str):
    error = run(*arguments).exception
    assert isinstance(error, ValueError)
    assert str(error) == f"{option} means nothing to {arguments[0]}: it belongs to {takers}"


@pytest.mark.parametrize(("option", "value"), [("shots", 0), ("speakers", True), ("save_to", Path("made"))])
def test_evaluations_take_their_own_options(option: str, value: object, monkeypatch):
    monkeypatch.setattr(recognition, "Recognizer", lambda threads: None)
    for name in commands.TAKEN_BY[f"--{option.replace('_', '-')}"]:
        with pytest.raises(FileNotFoundError, match="no data at absent"):
            commands.run(name, data=Path("absent"), **{option: value})


def test_every_evaluation_has_a_small_set():
    assert set(commands.OWN_SETS) == {name.value for name in commands.Evaluation}
    for place in commands.OWN_SETS.values():
        assert (commands.SETS / place).is_dir(), place
