"""What the trainers' command lines share: settings from a YAML file, threads, a device, and errors in one line.

A file has one section a trainer, by the name of its module, with its options in their long names (`configs/nano.yaml`
makes nano). What the command line says as well wins.
"""

import argparse
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
import yaml
from torch.nn.attention import SDPBackend, sdpa_kernel

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

CPU = torch.device("cpu")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
SECTIONS = {"units", "encoder", "hubert", "vocoder", "tokenizer", "lm", "pitch", "style"}
Settings = TypeVar("Settings", bound="DataclassInstance")


def launch(main: Callable[[], None]) -> None:
    """Runs the `main` of a module; a ValueError or a missing file is one line on standard error and exit status 1.

    Other errors keep their traceback, as these do under `python -X dev`.
    """
    try:
        main()
    except (ValueError, FileNotFoundError) as error:
        if sys.flags.dev_mode:
            raise
        message = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else error
        sys.exit(f"error: {message}")


def parse(
    parser: argparse.ArgumentParser, section: str, argv: Sequence[str] | None = None, device: bool = True
) -> argparse.Namespace:
    """The arguments of a trainer; adds `--config`, `--threads` and `--device`, and sets torch's threads.

    `argv` is the process's own by default. A file that cannot be read, or says what `parser` does not know, ends the
    process with a usage error, as an argument would.
    """
    assert section in SECTIONS
    parser.add_argument("--config", type=Path, help=f"YAML file with these options in its section {section!r}")
    parser.add_argument("--threads", type=int, default=1)
    if device:
        parser.add_argument("--device", type=torch.device, default=CPU, help="cpu, cuda, cuda:1 ...")
    line = list(sys.argv[1:] if argv is None else argv)
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--config", type=Path)
    file: Path | None = early.parse_known_args(line)[0].config
    try:
        said = [] if file is None else options(file, section)
    except (OSError, ValueError, yaml.YAMLError) as error:
        parser.error(str(error))
    args = parser.parse_args(said + line)
    if getattr(args, "minutes", 1) <= 0:
        parser.error(f"--minutes must be positive, got {args.minutes:g}")
    if device and args.device.type == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device {args.device}: this torch sees no CUDA device; leave it out for the CPU")
    torch.set_num_threads(args.threads)
    return args


def check_precision(precision: str) -> None:
    """Raises ValueError where `precision` is none of `PRECISIONS`."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")


def check_batches(precision: str, accumulate: int) -> None:
    """Raises ValueError as `check_precision` does, and for fewer batches a step than one."""
    check_precision(precision)
    if accumulate < 1:
        raise ValueError(f"accumulate must be at least 1, got {accumulate}")


@contextmanager
def autocast(device: torch.device, precision: str) -> Iterator[None]:
    """The context of a forward pass in `precision`; weights, their gradients and the losses stay float32.

    On a CPU bf16 pays where there is AMX (matrix products 4 to 6 times as fast as in float32), and nowhere else;
    torch's flash attention loses there what the products win, so attention is spelled out.
    """
    with torch.autocast(device.type, PRECISIONS[precision], enabled=precision != "fp32"), ExitStack() as stack:
        if device.type == "cpu" and precision != "fp32":
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield


def add_settings(parser: argparse.ArgumentParser, defaults: "DataclassInstance", but: Collection[str] = ()) -> None:
    """An option for every number, text and tuple of them in a dataclass, `but` those of these names."""
    for entry in fields(defaults):
        value = getattr(defaults, entry.name)
        many = isinstance(value, tuple)
        kind = type(value[0] if many and value else value)
        if entry.name not in but and kind in (int, float, str):
            flag = f"--{entry.name.replace('_', '-')}"
            parser.add_argument(flag, type=kind, default=value, nargs="+" if many else None)


def settings(kind: type[Settings], args: argparse.Namespace, **others: object) -> Settings:
    """The dataclass that `add_settings` was given, with the values of `args` and `others`."""
    given = {entry.name: getattr(args, entry.name) for entry in fields(kind) if hasattr(args, entry.name)}
    return kind(**{name: tuple(v) if isinstance(v, list) else v for name, v in given.items()} | others)


def options(file: Path, section: str) -> list[str]:
    """A section of a YAML file as a command line; empty where the file has no such section.

    Raises ValueError where the file, or the section, is no mapping, and for a section that is no trainer.
    """
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not isinstance(content.get(section, {}), dict):
        raise ValueError(f"{file}: not a mapping of sections to options")
    if unknown := sorted(set(content) - SECTIONS):
        raise ValueError(
            f"{file}: no trainer is called {', '.join(map(str, unknown))}; there are {', '.join(sorted(SECTIONS))}"
        )
    line = []
    for name, value in content.get(section, {}).items():
        if value is False:
            continue
        line.append(f"--{name.replace('_', '-')}")
        if value is not True:
            line += [str(item) for item in (value if isinstance(value, list) else [value])]
    return line
