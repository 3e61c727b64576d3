"""`spiritrt finetune`: LoRA on one's own shards."""

import json
from pathlib import Path
from typing import Annotated

import typer

from spiritrt.options import Device, Json, Model


def finetune(
    shards: Annotated[list[Path], typer.Argument(metavar="SHARD...", help="Folders of spiritrt.training.shards.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the new family.")],
    model: Model = "nano",
    task: Annotated[str, typer.Option(help="asr, tts or interleaved.")] = "asr",
    steps: Annotated[int, typer.Option(help="Optimizer steps.", min=1)] = 500,
    minutes: Annotated[float, typer.Option(help="Stop after so long; the same command goes on.")] = 60.0,
    rank: Annotated[int, typer.Option(help="Of the change of each matrix.", min=1)] = 16,
    rate: Annotated[float, typer.Option(help="Highest learning rate.")] = 2e-4,
    text_words: Annotated[
        tuple[int, int], typer.Option(help="interleaved: least and most words of a text span (paper: 10 30).")
    ] = (3, 10),
    speech_words: Annotated[
        tuple[int, int], typer.Option(help="interleaved: the same of a speech span (paper: 5 15).")
    ] = (3, 8),
    context: Annotated[int, typer.Option(help="Most tokens of a document.")] = 1024,
    batch_tokens: Annotated[int, typer.Option(help="Tokens of a batch.")] = 4096,
    accumulate: Annotated[int, typer.Option(help="Batches of a step.", min=1)] = 1,
    precision: Annotated[
        str | None, typer.Option(help="fp32 or bf16 (default: bf16 on CUDA, fp32 elsewhere).", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the data and the adapters.")] = 0,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Fine-tune a language model on a task with LoRA, and write it as a family of its own.

    Example: spiritrt finetune shard --task asr --model nano --out nano-asr
    """
    from spiritrt.training.finetune import FinetunePlan
    from spiritrt.training.finetune import finetune as train
    from spiritrt.training.interleave import SpanPlan

    plan = FinetunePlan(
        task=task, rank=rank, alpha=2 * rank, rate=rate, steps=steps, batch_tokens=batch_tokens, accumulate=accumulate,
        context=context, spans=SpanPlan(text_words, speech_words), seed=seed,
        precision=precision or ("bf16" if device.startswith("cuda") else "fp32"),
    )  # fmt: skip
    losses = train(model, shards, out, plan, minutes, device)
    result = {"out": str(out), "steps": len(losses), "first_loss": losses[:1], "last_loss": losses[-1:]}
    print(
        json.dumps(result) if as_json else f"{out}: {len(losses)} steps, loss {losses[-1]:.3f}" if losses else str(out)
    )
