"""The command `spiritrt`. Standard output carries the result alone; progress, logs and errors go to standard error."""

import json
import sys
import warnings
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

import spiritrt
from spiritrt import audio
from spiritrt.bench import commands as bench_commands
from spiritrt.duplex import commands as duplex_commands
from spiritrt.engine.forward import kernel_choices
from spiritrt.evaluation import commands as evaluation_commands
from spiritrt.kernels import commands as kernel_commands
from spiritrt.options import Device, Json, Model
from spiritrt.tokens.units import Units, merge
from spiritrt.tokens.vocabulary import SpeechToken, format_speech, parse_speech
from spiritrt.training import commands as training_commands

app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False,
    help="Spirit LM: text and speech in one stream, offline and in real time.",
)  # fmt: skip
app.add_typer(bench_commands.app, name="bench")
app.add_typer(kernel_commands.app, name="kernels")
app.command("eval")(evaluation_commands.evaluate)
app.command("finetune")(training_commands.finetune)
app.command("talk")(duplex_commands.talk)
app.command("replay")(duplex_commands.replay)
app.command("trace")(duplex_commands.trace)
errors = Console(stderr=True)

Dtype = Annotated[str, typer.Option(help="Of the language model: auto, float32, bfloat16, float16.")]
Weights = Annotated[str, typer.Option(help="Stored as: auto, fp32, fp16, bf16, int8, fp8. Goes before --dtype.")]
Kernel = Annotated[
    list[str] | None, typer.Option(help="OP=VARIANT, such as linear=torch; repeatable. See spiritrt kernels list.")
]
Temperature = Annotated[float, typer.Option(help="0 is greedy.")]
TopP = Annotated[float, typer.Option(help="Nucleus sampling.")]
Seed = Annotated[int, typer.Option(help="Same seed, same output.")]
Speaker = Annotated[int | None, typer.Option(help="Voice of the vocoder (by default the third, number 2).")]
Style = Annotated[int | None, typer.Option(help="Named style of a Base vocoder (by default number 8).")]
Channel = Annotated[int | None, typer.Option(help="Channel to take, from 0 (by default their mean).")]
Shots = Annotated[
    Path | None, typer.Option(help='JSON lines of examples: {"audio": FILE, "text": WORDS}; paths from that file.')
]


class OutputKind(StrEnum):
    """What to generate."""

    TEXT = "text"
    SPEECH = "speech"
    ARBITRARY = "arbitrary"


def main() -> None:
    """Runs the command; what a user can mend is one line on standard error and exit status 2."""
    warnings.showwarning = lambda message, *_: errors.print(f"warning: {message}", markup=False, soft_wrap=True)
    try:
        app()
    except BrokenPipeError:
        sys.exit(1)
    except (ValueError, ImportError, OSError) as error:
        message = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else error
        errors.print(f"error: {message}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)


def _version(asked: bool) -> None:
    if asked:
        print(f"spiritrt {spiritrt.__version__}")
        raise typer.Exit()


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of the command itself."""


def _print(value: object, as_json: bool) -> None:
    print(json.dumps(value, ensure_ascii=False) if as_json else value)


def _fail(message: str) -> NoReturn:
    raise ValueError(message)


def _read_shots(file: Path | None) -> list[tuple[str, str]]:
    """(audio, text) of each line of a shots file."""
    if file is None:
        return []
    shots = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            try:
                entry = json.loads(line)
                shots.append((str(file.parent / entry["audio"]), str(entry["text"])))
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f'{file}:{number}: expected {{"audio": FILE, "text": WORDS}}, got {line!r}') from error
    return shots


@app.command()
def generate(
    model: Model = "nano",
    prompt: Annotated[str | None, typer.Option(help="A prompt string: text, [Text], [Speech][Hu99]...")] = None,
    text: Annotated[list[str] | None, typer.Option(help="Text items, after the audio items.")] = None,
    speech: Annotated[list[Path] | None, typer.Option(help="Audio files to put before the text.")] = None,
    output: Annotated[OutputKind, typer.Option(help="What to generate.")] = OutputKind.ARBITRARY,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens to generate.")] = 200,
    greedy: Annotated[bool, typer.Option("--greedy", help="Take the most likely token: --temperature 0.")] = False,
    temperature: Temperature = 0.8,
    top_p: TopP = 0.95,
    top_k: Annotated[int, typer.Option(help="0 is off.")] = 0,
    min_p: Annotated[float, typer.Option(help="0 is off.")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="1 is off.")] = 1.0,
    seed: Seed = 0,
    channel: Channel = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="WAV file for the speech of the output.")] = None,
    speaker: Speaker = None,
    style: Style = None,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    weights: Weights = "auto",
    kernel: Kernel = None,
    as_json: Json = False,
) -> None:
    """Continue a prompt in text, speech or both.

    Example: spiritrt generate --speech q.wav --text " so he said" --output speech -o reply.wav
    """
    items: list[spiritrt.Text | spiritrt.Speech] = [spiritrt.Speech(file, channel=channel) for file in speech or []]
    items += [spiritrt.Text(item) for item in text or []]
    if out is not None and output is OutputKind.TEXT:
        _fail(f"--out {out} is for speech, and --output text makes none")
    if out is not None:
        audio.check_name(out)
    if (prompt is None) == (not items):
        _fail("give either --prompt STRING, or --speech and --text items")
    sampling = spiritrt.Sampling(0.0 if greedy else temperature, top_p, top_k, min_p, repetition_penalty, seed)
    lm = spiritrt.load(model, device, dtype, weights=weights, kernels=kernel_choices(kernel or []))
    result = lm.generate(
        items if prompt is None else prompt, output.value, sampling, max_new_tokens, speaker=speaker, style=style
    )
    if out is not None:
        if not len(result.samples):
            _fail(f"the output holds no speech, so {out} was not written; the output was {result.raw!r}")
        audio.save(out, result.samples)
    if as_json:
        items_out = [
            {"text": item.text} if isinstance(item, spiritrt.Text) else {"speech": item.tokens, "seconds": item.seconds}
            for item in result
        ]
        fields = {"ids": result.ids, "text": result.raw, "logprobs": result.logprobs, "finish": result.finish}
        written = {} if out is None else {"out": str(out)}
        _print({**fields, "prompt_ids": result.prompt_ids, "items": items_out, **written}, True)
    else:
        print(result.raw)
        if out is not None:
            errors.print(str(out), markup=False, highlight=False, soft_wrap=True)  # not among the tokens


@app.command()
def encode(
    source: Annotated[Path, typer.Argument(metavar="AUDIO", help="WAV, FLAC, OGG, OPUS or MP3, any rate.")],
    model: Model = "nano",
    channel: Channel = None,
    pitch_tracker: Annotated[str, typer.Option(help="For Expressive: fcpe or yaapt.")] = "fcpe",
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Print the speech tokens of a recording.

    Example: spiritrt encode q.wav --model nano --json
    """
    lm = spiritrt.load(model, device, lazy=True, pitch_tracker=pitch_tracker)
    units = lm.encode(str(source), channel=channel)
    tokens = format_speech(merge(units))
    if not as_json:
        print(tokens)
        return
    raw = {"hubert": units.hubert, "pitch": units.pitch, "style": units.style}
    _print({"tokens": tokens, **{name: codes for name, codes in raw.items() if codes is not None}}, True)


@app.command()
def decode(
    units: Annotated[
        str | None,
        typer.Argument(help="Token string, JSON of encode, or a file of either; standard input where left out."),
    ] = None,
    model: Model = "nano",
    out: Annotated[Path, typer.Option("--out", "-o", help="WAV file to write.")] = Path("out.wav"),
    float32: Annotated[bool, typer.Option("--float", help="Write 32-bit float samples.")] = False,
    speaker: Speaker = None,
    style: Style = None,
    seed: Seed = 0,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Turn speech tokens, or the raw units that `encode --json` prints, into sound.

    A token string gets predicted durations; raw units sound exactly as long as they are.

    Example: spiritrt encode q.wav --json | spiritrt decode -o again.wav
    """
    audio.check_name(out)
    parsed = _read_units(sys.stdin.read() if units is None or units == "-" else units)
    lm = spiritrt.load(model, device, lazy=True)
    speech = lm.decode(parsed, speaker, style, seed)
    samples = speech.array
    audio.save(out, samples, float32=float32)
    result = {"out": str(out), "samples": len(samples), "rate": speech.rate}
    _print(result if as_json else str(out), as_json)


def _read_units(given: str) -> Units | list[SpeechToken]:
    """The units that are given as tokens or JSON, or in a file of that name, which errors then name."""
    if given.lstrip().startswith(("[", "{")) or not given.strip():
        return _parse_units(given.strip())
    text = Path(given).read_text(encoding="utf-8")
    try:
        return _parse_units(text.strip())
    except ValueError as error:
        raise ValueError(f"{given}: {error}") from error


def _parse_units(given: str) -> Units | list[SpeechToken]:
    """Raw frames where `given` is the JSON that `encode --json` prints, else the tokens of a token string."""
    if not given.startswith("{"):
        if not given:
            _fail("no units to decode: the input is empty")
        return parse_speech(given)
    try:
        codes = json.loads(given)
    except ValueError as error:
        raise ValueError(f"units are neither a token string nor JSON: {error}") from error
    if "hubert" not in codes:
        if isinstance(codes.get("tokens"), str):
            return parse_speech(codes["tokens"])
        _fail(f"units as JSON need 'hubert' (raw frames at 25 Hz) or 'tokens', got {', '.join(codes)}")
    return Units(codes["hubert"], codes.get("pitch"), codes.get("style"))


@app.command()
def transcribe(
    source: Annotated[Path, typer.Argument(metavar="AUDIO", help="The recording.")],
    model: Model = "nano",
    shots: Shots = None,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens to generate.")] = 100,
    channel: Channel = None,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    weights: Weights = "auto",
    kernel: Kernel = None,
    as_json: Json = False,
) -> None:
    """Write down what is said (few-shot speech recognition in the paper's form).

    Example: spiritrt transcribe q.wav --model spirit-lm-base-7b --shots ten.jsonl
    """
    examples = _read_shots(shots)
    lm = spiritrt.load(model, device, dtype, weights=weights, kernels=kernel_choices(kernel or []))
    words = lm.transcribe(spiritrt.Speech(source, channel=channel), examples, max_new_tokens=max_new_tokens)
    _print({"text": words} if as_json else words, as_json)


@app.command()
def speak(
    text: Annotated[str, typer.Argument(help="What to say.")],
    model: Model = "nano",
    shots: Shots = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="WAV file to write.")] = Path("out.wav"),
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens to generate.")] = 300,
    temperature: Temperature = 0.6,
    top_p: TopP = 0.9,
    seed: Seed = 0,
    speaker: Speaker = None,
    style: Style = None,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    weights: Weights = "auto",
    kernel: Kernel = None,
    as_json: Json = False,
) -> None:
    """Say a text (few-shot speech synthesis in the paper's form).

    Example: spiritrt speak "good morning, how are you?" -o hello.wav
    """
    audio.check_name(out)
    sampling = spiritrt.Sampling(temperature, top_p, seed=seed)
    examples = [(words, source) for source, words in _read_shots(shots)]
    lm = spiritrt.load(model, device, dtype, weights=weights, kernels=kernel_choices(kernel or []))
    speech = lm.speak(text, examples, sampling, max_new_tokens, speaker, style)
    audio.save(out, speech.array)
    result = {"out": str(out), "tokens": speech.tokens, "seconds": speech.seconds}
    _print(result if as_json else str(out), as_json)


@app.command()
def convert(
    model: Annotated[str, typer.Option("--model", "-m", help="Official name, or a checkpoint folder.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder for the model.")],
    as_json: Json = False,
) -> None:
    """Rewrite a model as one folder of safetensors and JSON, which every command loads.

    Example: spiritrt convert --model spirit-lm-base-7b --out models/base
    """
    from spiritrt.models import checkpoints

    done = checkpoints.convert(model, out)
    size = sum(file.stat().st_size for part in done.parts.values() for file in part.files)
    result = {"out": str(out), "parts": list(done.parts), "bytes": size}
    _print(result if as_json else f"{out}: {', '.join(done.parts)}, {size / 1e6:.1f} MB", as_json)


@app.command()
def calibrate(
    recordings: Annotated[Path, typer.Argument(metavar="FOLDER", help="Recordings to take the statistics from.")],
    model: Model,
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write.")] = Path("statistics.safetensors"),
    clips: Annotated[int, typer.Option(help="Most recordings to take.", min=1)] = 200,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Take the statistics that a streaming encoder's GroupNorm can use instead of the recording's own.

    They are for HubertStream(norm="calibrated", calibration=load_statistics(FILE)) in Python.

    Meta's encoder has such a norm; nano's has none.

    Example: spiritrt calibrate recordings/ --model spirit-lm-base-7b -o statistics.safetensors
    """
    import torch

    from spiritrt.bench.measure import load_clips
    from spiritrt.duplex.calibration import calibrate as take
    from spiritrt.duplex.calibration import save_statistics

    family = spiritrt.load(model, device, lazy=True).family
    sounds = [clip for group in load_clips(recordings, clips, seconds=100.0).values() for clip in group]
    save_statistics(take(family.hubert, map(torch.from_numpy, sounds)), out)
    result = {"out": str(out), "recordings": len(sounds), "seconds": sum(map(len, sounds)) / audio.RATE_HZ}
    _print(result if as_json else f"{out}: from {len(sounds)} recordings", as_json)


@app.command()
def doctor(
    model: Annotated[str | None, typer.Option("--model", "-m", help="A model to check as well.")] = None,
    as_json: Json = False,
) -> None:
    """Show versions, devices, optional parts, and whether a model is complete; exit status 1 where something is wrong.

    Example: spiritrt doctor --model spirit-lm-base-7b
    """
    from spiritrt.doctor import examine, render

    report = examine(model)
    _print(report if as_json else render(report), as_json)
    raise typer.Exit(0 if report["ok"] else 1)


if __name__ == "__main__":
    main()
