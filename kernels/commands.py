"""`spiritrt kernels`: which variants there are, and which one would run here."""

import json
import sys
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from spiritrt.kernels import Case, KernelError, choose, ops, variants

app = typer.Typer(no_args_is_help=True, help="Kernels of the language model's step and their variants.")


@app.callback()
def kernels() -> None:
    """Kernels of the language model's step and their variants."""


@app.command("list")
def list_variants(
    op: Annotated[str | None, typer.Option(help="Only this op.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show each op's variants, best first, whether they run on this machine's devices, or why not.

    A star marks the variant that runs where none is asked for. SPIRITRT_KERNEL_<OP>=<variant> asks for another.

    Example: spiritrt kernels list --op sampling
    """
    listed = {name: examine(name, cases_here()) for name in ([op] if op else ops())}
    if as_json:
        print(json.dumps(listed))
        return
    devices = list(cases_here())
    table = Table("op", "variant", *devices, "priority", box=None, pad_edge=False)
    for name, entries in listed.items():
        for entry in entries:
            marks = [_mark(entry["devices"][device]) for device in devices]
            table.add_row(name, entry["variant"], *marks, str(entry["priority"]))
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    console.print("* runs there where no variant is asked for", highlight=False)


def cases_here() -> dict[str, Case]:
    """The devices of this machine with the activations they compute in."""
    here = {"cpu": Case("cpu", torch.float32)}
    if torch.cuda.is_available():
        here["cuda"] = Case("cuda", torch.bfloat16, torch.cuda.get_device_capability())
    return here


def examine(op: str, cases: dict[str, Case]) -> list[dict]:
    """Variants of an op: of each device whether it is the one chosen there, and why it cannot run (None: it can)."""
    chosen = {device: _chosen(op, case) for device, case in cases.items()}
    return [
        {
            "variant": variant.name,
            "priority": variant.priority,
            "devices": {
                device: {"chosen": chosen[device] == variant.name, "unsupported": variant.supports(case)}
                for device, case in cases.items()
            },
        }
        for variant in variants(op)
    ]


def _chosen(op: str, case: Case) -> str | None:
    try:
        return choose(op, case).name
    except KernelError:
        return None


def _mark(entry: dict) -> str:
    return escape(entry["unsupported"] or "") or ("yes *" if entry["chosen"] else "yes")
