"""`spiritrt bench ...`: runs a benchmark, prints its summary, and writes all of it as JSON."""

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Benchmarks: what a stream costs and how far it is from offline.")

Model = Annotated[str, typer.Option("--model", "-m", help="nano, an official name, or a model folder.")]
Audio = Annotated[Path | None, typer.Option(help="Folder of recordings (by default those that are shipped).")]
Output = Annotated[Path | None, typer.Option("--json", help="File for all results.")]
Clips = Annotated[int, typer.Option(help="Most recordings to take.", min=1)]
Seconds = Annotated[float, typer.Option(help="Most sound to take of each.", min=1.0)]
Shape = Annotated[bool, typer.Option("--official-shape", help="Random weights of the published size: times alone.")]


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
) -> None:
    """HubertStream against offline: unit agreement, edit rate and time over its settings.

    Example: spiritrt bench encoder --audio recordings/ --json encoder.json --plot encoder.png
    """
    from spiritrt.bench.encoder import bench_encoder
    from spiritrt.bench.encoder import plot as draw

    result = bench_encoder(model, audio, clips, seconds, official_shape, grid)
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
) -> None:
    """VocoderStream against offline: exactness, time by slots, and what a shorter look-ahead costs.

    Example: spiritrt bench vocoder --audio recordings/ --json vocoder.json
    """
    from spiritrt.bench.vocoder import bench_vocoder

    _report(bench_vocoder(model, audio, clips, seconds, official_shape), output)


def _report(result: dict, output: Path | None) -> None:
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({"summary": result["summary"], "machine": result["machine"]}, indent=1))
