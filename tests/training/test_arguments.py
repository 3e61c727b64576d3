import argparse
import importlib
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from spiritrt.training import arguments

NANO = Path(arguments.__file__).parent / "configs" / "nano.yaml"
TRAINERS = {
    "units": [], "encoder": [], "vocoder": [], "tokenizer": [], "lm": [], "pitch": ["--corpus", "c", "--model", "m"],
    "style": ["--corpus", "c", "--model", "m"],
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    steps: int = 10
    rate: float = 0.5
    crops: tuple[int, ...] = (1, 2)
    inner: dict[str, int] | None = None


def read(tmp_path: Path, text: str, *line: str) -> argparse.Namespace:
    file = tmp_path / "plan.yaml"
    file.write_text(text)
    parser = argparse.ArgumentParser()
    arguments.add_settings(parser, Plan())
    parser.add_argument("--packed", action="store_true")
    return arguments.parse(parser, "lm", ["--config", str(file), *line])


def test_the_section_of_a_file_is_read_and_the_command_line_wins(tmp_path):
    text = "lm: {steps: 20, rate: 1e-3, crops: [4, 5, 6], packed: true}\nencoder: {steps: 1}"
    args = read(tmp_path, text)
    assert args.packed and args.device == torch.device("cpu")
    assert arguments.settings(Plan, args) == Plan(20, 0.001, (4, 5, 6))
    assert arguments.settings(Plan, read(tmp_path, text, "--steps", "3")).steps == 3
    assert arguments.settings(Plan, read(tmp_path, "encoder: {steps: 1}"), inner={"a": 1}) == Plan(inner={"a": 1})
    assert not read(tmp_path, "lm: {packed: false}").packed


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lm: {stepz: 3}", "--stepz"), ("lm: {steps: many}", "invalid int value: 'many'"), ("- lm", "not a mapping"),
        ("lm: 3", "not a mapping"), ("llm: {steps: 3}", "no trainer is called llm"),
        ("family: nano\nwork: work", "no trainer is called family, work"), ("lm: {steps: [", "flow"),
    ],
)  # fmt: skip
def test_a_bad_file_is_a_usage_error(tmp_path, capsys, text, said):
    with pytest.raises(SystemExit, match="2"):
        read(tmp_path, text)
    assert said in capsys.readouterr().err


def test_a_missing_file_and_a_missing_gpu_are_usage_errors(tmp_path, capsys, monkeypatch):
    with pytest.raises(SystemExit):
        arguments.parse(argparse.ArgumentParser(), "lm", ["--config", str(tmp_path / "none.yaml")])
    assert "none.yaml" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        arguments.parse(argparse.ArgumentParser(), "lm", ["--device", "cuda"])
    assert "--device cuda" in capsys.readouterr().err


@pytest.mark.parametrize("minutes", ["0", "-1.5"])
def test_a_budget_without_time_is_refused_before_anything_is_loaded(minutes, capsys):
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float)
    with pytest.raises(SystemExit):
        arguments.parse(parser, "lm", ["--minutes", minutes])
    assert f"--minutes must be positive, got {minutes}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("steps must be above 0, got -1"), "error: steps must be above 0, got -1"),
        (FileNotFoundError("no shard at x"), "error: no shard at x"),
        (FileNotFoundError(2, "No such file or directory", "x.txt"), "error: x.txt: No such file or directory"),
    ],
)
def test_what_a_user_can_mend_is_one_line(error: Exception, said: str):
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        arguments.launch(main)
    assert ended.value.code == said  # on standard error, with status 1


def test_other_errors_keep_their_traceback():
    def main() -> None:
        raise RuntimeError("a shape")

    with pytest.raises(RuntimeError, match="a shape"):
        arguments.launch(main)
    modules = [file for file in NANO.parents[1].rglob("*.py") if "__main__" in file.read_text("utf-8")]
    assert len(modules) > 20
    assert all(file.read_text("utf-8").endswith("    launch(main)\n") for file in modules)


@pytest.mark.parametrize("name", TRAINERS)
def test_the_shipped_file_is_understood_by_every_trainer(name, monkeypatch):
    trainer = importlib.import_module(f"spiritrt.training.{name}")

    class Understood(Exception):
        pass

    def parse(*given: object, **named: object) -> None:
        raise Understood(arguments.parse(*given, **named))

    monkeypatch.setattr(trainer, "parse", parse)
    monkeypatch.setattr(sys, "argv", [name, "--config", str(NANO), *TRAINERS[name]])
    with pytest.raises(Understood) as caught:
        trainer.main()
    section = arguments.options(NANO, name)
    assert section and all(hasattr(caught.value.args[0], o[2:].replace("-", "_")) for o in section if o[:2] == "--")
