"""`spiritrt talk`, `spiritrt replay` and `spiritrt trace`."""

import json
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import Annotated

import typer

from spiritrt.duplex.config import PAUSE_MS
from spiritrt.options import Device, Json, Model

Weights = Annotated[str, typer.Option(help="Of the language model, stored as: auto, fp32, fp16, bf16, int8, fp8.")]
Kernel = Annotated[
    list[str] | None, typer.Option(help="OP=VARIANT, such as linear=torch; repeatable. See spiritrt kernels list.")
]
Prefix = Annotated[Path | None, typer.Option(help="Few-shot examples that the conversation begins with.")]


class ReplyKind(StrEnum):
    """How a model replies."""

    CONTINUATION = "continuation"
    CHAIN = "chain"
    TEXT = "text"


class Detector(StrEnum):
    """Voice activity."""

    SILERO = "silero"
    ENERGY = "energy"


def talk(
    recordings: Annotated[
        list[Path] | None, typer.Argument(metavar="[AUDIO]...", help="What the person says, one file a turn.")
    ] = None,
    model: Model = "nano",
    reply: Annotated[ReplyKind | None, typer.Option(help="By default as the model is trained.")] = None,
    interrupt: Annotated[
        float | None, typer.Option(help="Every file but the first cuts into the reply, so many seconds into it.", min=0)
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Stereo WAV (left: person, right: model).")] = Path(
        "out/talk.wav"
    ),
    trace: Annotated[
        Path | None, typer.Option(help="File for the trace, see spiritrt replay (by default beside the WAV).")
    ] = None,
    simulated: Annotated[bool, typer.Option("--simulated", help="Not in real time: as fast as it goes.")] = False,
    activity: Annotated[Detector, typer.Option(help="What decides where speech is.")] = Detector.SILERO,
    endpoint_ms: Annotated[int, typer.Option(help=f"So much silence ends a turn, {PAUSE_MS} or more.")] = 600,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.3,
    top_p: Annotated[float, typer.Option(help="Nucleus sampling.")] = 0.9,
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 0,
    speaker: Annotated[int | None, typer.Option(help="Voice of the vocoder (by default the third, number 2).")] = None,
    device: Device = "cpu",
    prefix: Prefix = None,
    weights: Weights = "auto",
    kernel: Kernel = None,
    as_json: Json = False,
) -> None:
    """Hold a full-duplex conversation with a model over recordings, and say in numbers what happened.

    The recordings are played in as a microphone would, in 20 ms packets, while the model answers. Without any, it plays
    those that are shipped: a question with a backchannel into its answer, a person who reads aloud and pauses, and a
    question that interrupts.

    Example: spiritrt talk q1.wav q2.wav --interrupt 1.0
    """
    from spiritrt import audio
    from spiritrt.duplex.config import REPLY_POLICIES, SessionConfig, TurnConfig
    from spiritrt.duplex.script import Line, shipped_lines
    from spiritrt.duplex.stages import default_policy
    from spiritrt.duplex.talk import hold_conversation, render
    from spiritrt.engine.forward import kernel_choices
    from spiritrt.models.family import Family

    audio.check_name(out)
    if endpoint_ms < PAUSE_MS:
        raise ValueError(f"--endpoint-ms must be at least {PAUSE_MS}, got {endpoint_ms}")
    lines = [
        Line(file.name, audio.load(file), interrupt_s=interrupt if number else None)
        for number, file in enumerate(recordings or [])
    ] or shipped_lines()
    family = Family.load(model, device)
    turns = TurnConfig(activity=activity.value, endpoint_ms=endpoint_ms)
    policy = next(policy for policy in REPLY_POLICIES if policy == reply) if reply else default_policy(family)
    config = SessionConfig(policy, speaker, seed=seed, temperature=temperature, top_p=top_p, turns=turns)
    trace = out.with_suffix(".trace") if trace is None else trace
    trace.parent.mkdir(parents=True, exist_ok=True)
    report = hold_conversation(
        family, lines, config, not simulated, trace, weights, kernel_choices(kernel or []), prefix
    )
    audio.save(out, report.stereo)
    summary = {**report.summary(), "out": str(out), "trace": str(trace)}
    print(json.dumps(summary, ensure_ascii=False) if as_json else render(report, out, trace))


def replay(
    traces: Annotated[list[Path], typer.Argument(metavar="TRACE...", help="Recorded sessions; several run together.")],
    model: Annotated[str | None, typer.Option("--model", "-m", help="By default the one that was recorded.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="WAV file for the model's sound of the first.")
    ] = None,
    prefix: Prefix = None,
    device: Device = "cpu",
    weights: Annotated[str | None, typer.Option(help="As for talk; by default as recorded.")] = None,
    kernel: Annotated[
        list[str] | None, typer.Option(help="OP=VARIANT; by default as recorded, where the device is of that kind.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Repeat recorded sessions and compare tokens and sound to the last bit; exit status 1 where something differs.

    Those of one model at a time; a few-shot prefix has to be given again.

    Example: spiritrt replay out/talk.trace
    """
    from spiritrt import audio
    from spiritrt.duplex import trace as traces_file
    from spiritrt.duplex.replay import ReplayError
    from spiritrt.duplex.replay import replay as repeat
    from spiritrt.duplex.stages import Stages
    from spiritrt.engine.forward import kernel_choices
    from spiritrt.models.family import Family

    if out is not None:
        audio.check_name(out)
    read = [traces_file.read(file) for file in traces]
    recorded = read[0].running
    models = sorted({str(each.running["model"]) for each in read})
    if model is None and len(models) > 1:
        raise ValueError(f"the traces are of {' and '.join(models)}: replay those of one model at a time")
    for file, each in zip(traces, read, strict=True):
        if prefix is None and int(each.running.get("prefix", 1)) > 1:  # BOS is always there
            raise ValueError(f"recorded with a few-shot prefix: give --prefix FILE, as for {file}")
    family = Family.load(model or models[0], device)
    as_then = str(recorded["device"]).startswith(family.device.type)
    stages = Stages.load(
        family,
        len(read),
        prefix=prefix,
        weights=weights or str(recorded["weights_choice"]),
        cache=str(recorded["cache_choice"]) if as_then else "auto",
        kernels=kernel_choices(kernel or (str(recorded["kernels"]).split() if as_then else [])),
    )
    now = stages.running
    others = [
        {name: (was, now.get(name)) for name, was in each.running.items() if now.get(name) != was} for each in read
    ]
    changes = [[f"recorded with {name} {then}, and now {here}" for name, (then, here) in o.items()] for o in others]
    try:
        results = repeat(read, stages)
    except ReplayError as error:  # elsewhere a reply may be shorter than what was played of it
        raise ReplayError("; ".join(dict.fromkeys([str(error), *chain.from_iterable(changes)]))) from error
    if out is not None:
        audio.save(out, results[0].model)
    if as_json:
        rows = [
            {"trace": str(file), "same": result.same, "packets": result.packets, "samples": result.samples,
             "tokens": result.tokens, "differences": result.differences, "recorded_on": other}
            for file, result, other in zip(traces, results, others, strict=True)
        ]  # fmt: skip
        print(json.dumps({"sessions": rows, "same": all(result.same for result in results)}))
    else:
        for file, result, changed in zip(traces, results, changes, strict=True):
            verdict = "the same" if result.same else "DIFFERENT"
            print(f"{file}: {result.packets} packets, {result.samples} samples, {result.tokens} tokens: {verdict}")
            for line in (*result.differences, *changed):
                print(f"  {line}")
    raise typer.Exit(0 if all(result.same for result in results) else 1)


def trace(
    source: Annotated[Path, typer.Argument(metavar="TRACE", help="A recorded session.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="JSON file for ui.perfetto.dev.")] = Path("call.json"),
    as_json: Json = False,
) -> None:
    """Export a recorded session for Perfetto: what was heard, encoded, decoded and played when, and what was late.

    Example: spiritrt trace out/talk.trace -o call.json
    """
    from spiritrt.duplex.timeline import export
    from spiritrt.duplex.trace import read

    exported = export(read(source))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(exported), encoding="utf-8")
    late = sum(entry["name"] == "miss" for entry in exported["traceEvents"])
    result = {"out": str(out), "events": len(exported["traceEvents"]), "misses": late}
    print(
        json.dumps(result)
        if as_json
        else f"{out}: {result['events']} events, {late} misses; open it in ui.perfetto.dev"
    )
