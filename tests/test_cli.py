"""The command: results on standard output, everything else on standard error, clear errors."""

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner

from spiritrt.cli import app
from spiritrt.doctor import _extension

RUN = CliRunner()
CLIP = Path(__file__).parents[1] / "runtime/duplex/recordings/7143-88743-0029.flac"


def _json(*arguments: str, stdin: str | None = None) -> dict:
    result = RUN.invoke(app, [*arguments, "--json"], input=stdin, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.parametrize(
    "command", ["generate", "encode", "decode", "transcribe", "speak", "convert", "calibrate", "doctor", "talk"]
)
def test_every_command_explains_itself_with_an_example(command: str) -> None:
    result = RUN.invoke(app, [command, "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert result.exit_code == 0
    assert f"Example: spiritrt {command}" in result.output.replace("| spiritrt", "spiritrt") or command == "decode"
    assert "--model" in result.output and "--json" in result.output


def test_encode_prints_tokens_and_raw_units(tmp_path: Path) -> None:
    plain = RUN.invoke(app, ["encode", str(CLIP)], catch_exceptions=False)
    assert plain.stdout.startswith("[Hu") and plain.stdout.count("\n") == 1
    units = _json("encode", str(CLIP))
    assert units["tokens"] == plain.stdout.strip()
    assert len(units["hubert"]) == pytest.approx(25 * soundfile.info(CLIP).duration, abs=2)
    assert "pitch" not in units


def test_decode_takes_tokens_json_files_and_standard_input(tmp_path: Path) -> None:
    raw = {"hubert": [5, 5, 5, 80, 80, 9]}
    out = tmp_path / "a.wav"
    assert _json("decode", json.dumps(raw), "-o", str(out), "--float")["samples"] == 6 * 640
    info = soundfile.info(out)
    assert (info.samplerate, info.subtype, info.frames) == (16000, "FLOAT", 3840)
    (tmp_path / "units.json").write_text(json.dumps(raw))
    _json("decode", str(tmp_path / "units.json"), "-o", str(tmp_path / "b.wav"), "--float")
    _json("decode", "-o", str(tmp_path / "c.wav"), "--float", stdin=json.dumps(raw))
    first, *others = (soundfile.read(tmp_path / f"{name}.wav")[0] for name in "abc")
    for other in others:
        np.testing.assert_array_equal(first, other)
    tokens = _json("decode", "[Hu5][Hu80][Hu9]", "-o", str(tmp_path / "d.wav"))
    assert tokens["samples"] % 640 == 0 and tokens["samples"] >= 3 * 640
    assert soundfile.info(tmp_path / "d.wav").subtype == "PCM_16"


def test_generate_is_repeatable_and_says_what_it_did(tmp_path: Path) -> None:
    prompt = "[Text]what day is it[Speech][Hu46]"
    arguments = ["generate", "--prompt", prompt, "--output", "speech", "--max-new-tokens", "12"]
    greedy = _json(*arguments, "--greedy")
    assert greedy == _json(*arguments, "--greedy")
    assert 1 < len(greedy["ids"]) == len(greedy["logprobs"]) <= 12
    assert greedy["finish"] == ("length" if len(greedy["ids"]) == 12 else "end")
    assert all(logprob <= 0 for logprob in greedy["logprobs"])
    assert greedy["text"].startswith("[Hu") and greedy["items"][0]["seconds"] > 0
    hot = (*arguments, "--temperature", "1.5", "--top-p", "1.0")
    seeds = {tuple(_json(*hot, "--seed", seed)["ids"]) for seed in ("1", "2", "3")}
    assert len(seeds) > 1
    assert _json(*arguments, "-o", str(tmp_path / "out.wav"))["out"] == str(tmp_path / "out.wav")
    plain = RUN.invoke(app, [*arguments, "--greedy", "-o", str(tmp_path / "out.wav")], catch_exceptions=False)
    assert plain.stdout == greedy["text"] + "\n" and plain.stderr == f"{tmp_path / 'out.wav'}\n"
    assert soundfile.info(tmp_path / "out.wav").frames > 0


def test_generate_with_quantized_weights_and_chosen_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPIRITRT_CACHE_DIR", str(tmp_path))
    arguments = ["generate", "--prompt", "[Speech][Hu3]", "--output", "speech", "--max-new-tokens", "6", "--greedy"]
    chosen = ["--kernel", "linear=torch", "--kernel", "sampling=reference"]
    assert _json(*arguments, "--weights", "int8")["ids"]
    assert [file.suffix for file in tmp_path.iterdir()] == [".safetensors"]
    assert _json(*arguments, *chosen)["ids"] == _json(*arguments)["ids"]


def test_transcribe_and_speak_answer(tmp_path: Path) -> None:
    assert isinstance(_json("transcribe", str(CLIP), "--max-new-tokens", "20")["text"], str)
    spoken = _json("speak", "good morning", "-o", str(tmp_path / "hello.wav"))
    assert spoken["seconds"] > 0.3 and spoken["tokens"].startswith("[Hu")


def test_talk_simulated_reports_in_numbers(tmp_path: Path) -> None:
    out = tmp_path / "new" / "talk.wav"
    summary = _json("talk", "--simulated", "-o", str(out))
    assert len(summary["turns"]) >= 2
    assert any(turn["finish"] == "interrupted" for turn in summary["turns"]), "the reader goes on over the reply"
    assert any(turn["first_audio_ms"] is not None for turn in summary["turns"])
    assert summary["stats"]["false_alarms"] == 1, "a backchannel interrupts nothing"
    assert _json("replay", summary["trace"])["same"] is True
    assert soundfile.info(out).channels == 2


def test_doctor_finds_nano_complete_and_a_wrong_folder_not(tmp_path: Path) -> None:
    report = _json("doctor", "--model", "nano")
    assert report["ok"] and report["models"]["nano"]["complete"]
    assert set(report["models"]["nano"]["parts"]) >= {"lm", "hubert", "quantizer", "vocoder"}
    broken = RUN.invoke(app, ["doctor", "--model", str(tmp_path), "--json"])
    assert broken.exit_code == 1 and not json.loads(broken.stdout)["ok"]


def test_doctor_names_packages_by_one_name_and_a_model_once_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPIRITLM_CHECKPOINTS_DIR", raising=False)
    assert set(_examined("spirit-lm-base-7b")["optional"]) >= {"silero-vad", "faster-whisper"}
    for name in ("spirit-lm-base-7b", "nowhere"):
        lines = RUN.invoke(app, ["doctor", "--model", name]).stdout.splitlines()
        about = [line.strip() for line in lines if line.strip().startswith(f"model {name}")]
        assert about[0] == f"model {name}: cannot be read, see below" and len(about) == 2
        assert not about[1].removeprefix(f"model {name}: ").startswith((name, "no model")), about[1]


def test_doctor_says_how_an_extension_of_another_torch_is_rebuilt(monkeypatch: pytest.MonkeyPatch) -> None:
    problems: list[str] = []
    monkeypatch.setattr(torch, "__version__", "99.0.1+cpu")
    _extension(problems)
    assert len(problems) == 1 and "running 99.0.1+cpu; rebuild it in a clone: pip install --no-build" in problems[0]


def _examined(model: str) -> dict:
    return json.loads(RUN.invoke(app, ["doctor", "--model", model, "--json"]).stdout)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["encode", "nothing.wav"], "nothing.wav: no such sound file"),
        (["transcribe", str(CLIP.parent)], "recordings: a folder, not a sound file"),
        (["speak", "hi", "-o", "hi.mp3"], "hi.mp3: sound is written as WAV, not .mp3: name it hi.wav"),
        (["generate", "--prompt", "x", "-o", "hi.txt"], "hi.txt: sound is written as WAV"),
        (["decode", "[Hu1]", "-o", "hi.flac"], "hi.flac: sound is written as WAV"),
        (["talk", "-o", "hi.ogg"], "hi.ogg: sound is written as WAV"),
        (["replay", "call.trace", "-o", "hi.ogg"], "hi.ogg: sound is written as WAV"),
        (["generate", "--prompt", "[Speech][Hu600]"], "unknown token [Hu600]: this model has Hu0 to Hu500"),
        (["generate", "--prompt", "x", "--device", "gpu"], "'gpu' cannot be used here: it must be cpu, cuda or cuda:N"),
        (["decode", "[Hu9999]"], "unknown token [Hu9999]: this model has Hu0 to Hu500"),
        (["decode", '{"pitch": [1]}'], "need 'hubert'"),
        (["generate"], "give either --prompt STRING, or --speech and --text items"),
        (["generate", "--prompt", "x", "--weights", "int4"], "weights must be one of auto, fp32, fp16, bf16, int8"),
        (["generate", "--prompt", "x", "--kernel", "linear"], "as OP=VARIANT, such as linear=torch, got 'linear'"),
        (["generate", "--prompt", "x", "--top-p", "0"], "top_p must be above 0 and at most 1, got 0.0"),
        (["speak", "hi", "--speaker", "9"], "speaker 9 is out of range"),
        (["talk", "--endpoint-ms", "50"], "--endpoint-ms must be at least 190, got 50"),
        (["encode", str(CLIP), "--model", "nowhere"], "no model 'nowhere'"),
        (["transcribe", str(CLIP), "--shots", "none.jsonl"], "none.jsonl: No such file"),
    ],
)
def test_mistakes_are_one_line_on_standard_error(arguments: list[str], message: str) -> None:
    command = [sys.executable, "-c", "from spiritrt.cli import main; main()", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    assert result.stdout == ""
    assert message in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "units are neither a token string nor JSON"),
        ('{"pitch": [1]}', "need 'hubert'"),
        ("hello", "not a speech token at character 0: 'hello'"),
        ("", "the input is empty"),
    ],
)
def test_a_file_of_units_that_holds_none_is_named(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "bad.json"
    file.write_text(content)
    error = RUN.invoke(app, ["decode", str(file)]).exception
    assert isinstance(error, ValueError) and str(error).startswith(f"{file}: ") and message in str(error)


@pytest.mark.parametrize("module", ["spiritrt", "spiritrt.cli"])
def test_the_command_runs_as_a_module_and_says_its_version(module: str) -> None:
    command = [sys.executable, "-m", module, "--version"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert result.stdout == f"spiritrt {metadata.version('spiritrt')}\n"


def test_the_encoder_s_norm_is_calibrated_where_it_has_one(tmp_path: Path) -> None:
    folder = Path(__file__).parent / "data/golden"
    result = RUN.invoke(app, ["calibrate", str(folder / "audio"), "--model", "nano", "-o", str(tmp_path / "s")])
    assert isinstance(result.exception, ValueError)
    assert "extractor_mode 'layer_norm' has no statistics" in str(result.exception)
