"""`spiritrt bench ...`: runs a benchmark, prints its summary, and writes all of it as JSON."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from spiritrt.options import Model

app = typer.Typer(no_args_is_help=True, help="Benchmarks: first proved right, then timed.")

Audio = Annotated[Path | None, typer.Option(help="Folder of recordings (by default those that are shipped).")]
Output = Annotated[Path | None, typer.Option("--json", help="File for all results.")]
Clips = Annotated[int, typer.Option(help="Most recordings to take.", min=1)]
Seconds = Annotated[float, typer.Option(help="Most sound to take of each.", min=1.0)]
Shape = Annotated[bool, typer.Option("--official-shape", help="Random weights of the published size: times alone.")]
Threads = Annotated[int, typer.Option(help="On a CPU.", min=1)]
Device = Annotated[str, typer.Option(help="Where to run: cpu, cuda, cuda:1, ...")]


@app.command()
def encoder(
    model: Model = "nano",
    audio: Audio = None,
    output: Output = None,
    plot: Annotated[Path | None, typer.Option(help="PNG of agreement against latency (needs matplotlib).")] = None,
    clips: Clips = 4,
    seconds: Seconds = 8.0,
    official_shape: Shape = False,
    grid: Annotated[bool, typer.Option(help="All settings, or the default one alone.")] = True,
    device: Device = "cpu",
) -> None:
    """HubertStream against offline: unit agreement, edit rate and time over its settings.

    Example: spiritrt bench encoder --audio recordings/ --json encoder.json --plot encoder.png
    """
    from spiritrt.bench.encoder import bench_encoder
    from spiritrt.bench.encoder import plot as draw

    if plot is not None and official_shape:
        raise ValueError("--plot draws agreement with offline, which random weights (--official-shape) do not have")
    result = bench_encoder(model, audio, clips, seconds, official_shape, grid, device)
    if plot is not None:
        draw(result, plot)
    _report(result, output)


@app.command()
def vocoder(
    model: Model = "nano",
    audio: Audio = None,
    output: Output = None,
    clips: Clips = 4,
    seconds: Seconds = 8.0,
    official_shape: Shape = False,
    device: Device = "cpu",
) -> None:
    """VocoderStream against offline: exactness, time by slots, and what a shorter look-ahead costs.

    Example: spiritrt bench vocoder --audio recordings/ --json vocoder.json
    """
    from spiritrt.bench.vocoder import bench_vocoder

    _report(bench_vocoder(model, audio, clips, seconds, official_shape, device), output)


@app.command()
def prosody(model: Model, audio: Audio = None, output: Output = None, clips: Clips = 4, seconds: Seconds = 8.0) -> None:
    """PitchStream and StyleStream of an Expressive model against offline: agreement, edit rate and time.

    Example: spiritrt bench prosody --model spirit-lm-expressive-7b --audio recordings/ --json prosody.json
    """
    from spiritrt.bench.prosody import bench_prosody

    _report(bench_prosody(model, audio, clips, seconds), output)


@app.command()
def kernels(
    op: Annotated[list[str] | None, typer.Option(help="Only these ops; may be given several times.")] = None,
    variant: Annotated[list[str] | None, typer.Option(help="Only these variants, `reference` among them.")] = None,
    shape: Annotated[list[str] | None, typer.Option(help="Only shapes with these words: `qkv rows=1`.")] = None,
    dtype: Annotated[list[str] | None, typer.Option("--type", help="Only bf16, int8, fp8, fp32 ...")] = None,
    preset: Annotated[str | None, typer.Option(help="7b (default on CUDA), nano (default on a CPU) or tiny.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    warm: Annotated[bool, typer.Option("--warm", help="Leave the inputs in the caches between calls.")] = False,
    threads: Threads = 1,
    repeats: Annotated[int, typer.Option(help="Most timed calls of a variant on a shape.", min=1)] = 200,
    minutes: Annotated[float | None, typer.Option(help="Stop then; the most important shapes come first.")] = None,
    output: Annotated[Path | None, typer.Option("--json", help="JSON lines of all results.")] = None,
    plot: Annotated[Path | None, typer.Option(help="PNG of the roofline (needs matplotlib).")] = None,
    profile: Annotated[Path | None, typer.Option(help="Write a trace for Perfetto instead of timing.")] = None,
    tune: Annotated[bool, typer.Option("--tune", help="First find the GPU's block sizes: kernels/configs.")] = False,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(help="Two files of --json: what changed. Runs nothing.")
    ] = None,
    fail: Annotated[str, typer.Option(help="With --compare: how much slower a median may be.")] = "5%",
) -> None:
    """Every variant of every op against its reference, then against the clock and the floor.

    Exit status 1 where a variant is wrong, or with --compare slower than it was.

    Example: spiritrt bench kernels --op linear --shape rows=1 --json linear.jsonl
    """
    from rich.console import Console

    from spiritrt.bench.kernels.command import Options, bench_kernels, compare_runs, share
    from spiritrt.bench.kernels.run import Selection

    console = Console(width=None if sys.stdout.isatty() else 160)
    if compare is not None:
        raise typer.Exit(0 if compare_runs(*compare, share(fail), console) else 1)
    selection = Selection(tuple(op or ()), tuple(variant or ()), tuple(shape or ()), tuple(dtype or ()))
    options = Options(device, preset, selection, not warm, repeats, 0.25, minutes, output, plot, profile, tune, threads)
    results = bench_kernels(options, console)
    raise typer.Exit(1 if any(result.wrong is not None for result in results) else 0)


@app.command()
def decode(
    shape: Annotated[str | None, typer.Option(help="7b (default on CUDA), nano (default on a CPU) or tiny.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    rows: Annotated[list[int] | None, typer.Option(help="Rows of a step; may be given several times.")] = None,
    context: Annotated[list[int] | None, typer.Option(help="Tokens that each row holds before.")] = None,
    weights: Annotated[list[str] | None, typer.Option(help="fp32, bf16, int8, fp8.")] = None,
    cache: Annotated[list[str] | None, typer.Option(help="Of keys and values: fp32, bf16, fp8.")] = None,
    compare: Annotated[bool, typer.Option(help="Time `transformers` generate beside it.")] = True,
    threads: Threads = 1,
    minutes: Annotated[float | None, typer.Option(help="Stop then; the most important cells come first.")] = None,
    output: Output = None,
) -> None:
    """Decode steps of the engine on random weights: milliseconds against the floor, and beside transformers.

    Exit status 1 where an engine's log-probabilities are not those of the plain model.

    Example: spiritrt bench decode --rows 1 --rows 64 --weights int8 --json decode.json
    """
    from rich.console import Console

    from spiritrt.bench.decode_report import DecodeOptions, bench_decode

    options = DecodeOptions(
        shape, device, tuple(rows or ()), tuple(context or ()), tuple(weights or ()), tuple(cache or ()), compare,
        minutes, threads, output,
    )  # fmt: skip
    right = bench_decode(options, Console(width=None if sys.stdout.isatty() else 160))
    raise typer.Exit(0 if right else 1)


@app.command()
def duplex(
    model: Model = "nano",
    shape: Annotated[
        str | None, typer.Option(help="Random weights of this size (7b, tiny) in place of the model's own.")
    ] = None,
    audio: Audio = None,
    sessions: Annotated[str, typer.Option(help="Sessions at once; several numbers are so many runs: 1,2,4.")] = "1",
    seconds: Annotated[float, typer.Option(help="Of conversation, a run; with --soak of all of it.")] = 60.0,
    scenario: Annotated[
        str, typer.Option(help="mixed, turns, interruptions, backchannels, noise or silence.")
    ] = "mixed",
    simulated: Annotated[
        bool, typer.Option("--simulated", help="As fast as it goes: computing is charged, waiting skipped.")
    ] = False,
    find_limit: Annotated[
        bool, typer.Option("--find-limit", help="More and more sessions, up to --sessions, until some are not held.")
    ] = False,
    soak: Annotated[
        bool, typer.Option("--soak", help="Calls that open and close, simulated: is anything left behind?")
    ] = False,
    reply: Annotated[
        str | None, typer.Option(help="continuation or chain; by default as the model is trained.")
    ] = None,
    activity: Annotated[str, typer.Option(help="What decides where speech is: silero or energy.")] = "silero",
    context: Annotated[int | None, typer.Option(help="Tokens of a session's context; by default the model's.")] = None,
    max_reply: Annotated[float, typer.Option(help="Seconds of a reply, at most.")] = 12.0,
    kernel: Annotated[list[str] | None, typer.Option(help="OP=VARIANT, such as sampling=torch; repeatable.")] = None,
    weights: Annotated[str, typer.Option(help="auto, fp32, bf16, int8, fp8.")] = "auto",
    cache: Annotated[str, typer.Option(help="Of keys and values: auto, fp32, bf16, fp8.")] = "auto",
    seed: Annotated[int, typer.Option(help="Of scripts and replies.")] = 0,
    device: Device = "cpu",
    minutes: Annotated[float | None, typer.Option(help="Begin no run that would not end by then.")] = None,
    output: Output = None,
    html: Annotated[Path | None, typer.Option(help="One page with tables and pictures (needs matplotlib).")] = None,
    plot: Annotated[Path | None, typer.Option(help="PNG of the first picture (needs matplotlib).")] = None,
    traces: Annotated[Path | None, typer.Option(help="Folder for the sessions' traces, see spiritrt trace.")] = None,
) -> None:
    """Scripted people talk with the runtime: how long they wait, what they miss, how many it holds.

    They take turns, interrupt at random points, say "right" into a reply, knock, and are silent. Exit status 1 where
    something was left behind: pages of the cache, or in a soak a session.

    Example: spiritrt bench duplex --sessions 1,2,4 --json duplex.json --html duplex.html
    """
    from rich.console import Console

    from spiritrt.bench.duplex.command import DuplexOptions, bench_duplex, numbers

    options = DuplexOptions(
        model, shape, audio, numbers(sessions), seconds, scenario, simulated, find_limit, soak, reply, activity,
        context, max_reply, seed, device, weights, cache, tuple(kernel or ()), minutes, output, html, plot, traces,
    )  # fmt: skip
    clean = bench_duplex(options, Console(width=None if sys.stdout.isatty() else 200))
    raise typer.Exit(0 if clean else 1)


def _report(result: dict, output: Path | None) -> None:
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({"summary": result["summary"], "machine": result["machine"]}, indent=1))
