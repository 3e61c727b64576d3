"""Options that the commands share."""

from typing import Annotated

import typer

Model = Annotated[str, typer.Option("--model", "-m", help="nano, nano-expressive, an official name, or a folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")]
