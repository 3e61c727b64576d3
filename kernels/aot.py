"""Compiles every Triton kernel for the chips it is meant for, on a machine without a GPU, and checks what it takes.

An op's file lists its kernels as `AOT`, with the argument types and block sizes they are launched with. The gate fails
on a compile error, on registers spilled to memory above `SPILL_BYTES` a thread, and on more shared memory than a block
may have. Results are kept by a hash of the kernel's source and settings, so that only what changed compiles again.

    python -m spiritrt.kernels.aot [--op sampling] [--arch 90] [--cache build/aot]
"""

import argparse
import hashlib
import importlib
import json
import multiprocessing
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from spiritrt.kernels.aot_case import AotCase

SHARED_LIMITS = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}  # bytes a block may have: CUDA C++ guide, table 27
SPILL_BYTES = 64  # a thread; what a few registers over the limit cost is noise beside the memory traffic of these ops
PROCESSES = 2


@dataclass(frozen=True, slots=True)
class Compiled:
    """What a case came to on one chip. `error` is set where it did not compile or exceeds a limit."""

    op: str
    name: str
    arch: int
    registers: int = 0
    spills: int = 0  # bytes a thread
    shared: int = 0  # bytes a block
    seconds: float = 0.0
    cached: bool = False
    error: str | None = None


def cases(package: str = "spiritrt.kernels") -> dict[str, Sequence[AotCase]]:
    """The `AOT` lists of all modules of a package, by module name. Raises ValueError for a name used twice in one."""
    found: dict[str, Sequence[AotCase]] = {}
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        listed = getattr(importlib.import_module(f"{package}.{module.name}"), "AOT", ())
        names = [case.name for case in listed]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"{module.name}: AOT has cases of the same name: {', '.join(sorted(twice))}")
        if listed:
            found[module.name] = listed
    return found


def compile_case(op: str, case: AotCase, arch: int) -> Compiled:
    """Compiles for one chip and reads registers, spills and shared memory off the machine code."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    at = case.kernel.arg_names.index
    aligned = [name for name, kind in case.signature.items() if kind.startswith("*") or name in case.aligned]
    source = ASTSource(
        fn=case.kernel,
        signature={name: case.signature.get(name, "constexpr") for name in case.kernel.arg_names},
        constexprs={(at(name),): value for name, value in case.constexprs.items()},
        attrs={(at(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    began = time.perf_counter()
    try:
        made = triton.compile(
            source,
            target=GPUTarget("cuda", arch, 32),
            options={"num_warps": case.num_warps, "num_stages": case.num_stages},
        )
        registers, spills = _resources(made.asm["cubin"])
    except Exception as error:  # whatever the compiler raises is the finding of this case, not the end of the run
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        message = " ... ".join(dict.fromkeys((lines[0].strip(), lines[-1].strip())))
        return Compiled(op, case.name, arch, seconds=round(time.perf_counter() - began, 2), error=f"compile: {message}")
    shared, seconds = made.metadata.shared, round(time.perf_counter() - began, 2)
    wrong = []
    if spills > SPILL_BYTES:
        wrong.append(f"spills {spills} bytes a thread, above {SPILL_BYTES}")
    if shared > SHARED_LIMITS[arch]:
        wrong.append(f"shared memory {shared} bytes, above {SHARED_LIMITS[arch]}")
    return Compiled(op, case.name, arch, registers, spills, shared, seconds, error="; ".join(wrong) or None)


def check(
    selected: Mapping[str, Sequence[AotCase]],
    archs: Sequence[int],
    cache: Path,
    package: str = "spiritrt.kernels",
    processes: int = PROCESSES,
) -> Iterator[Compiled]:
    """Compiles what the cache does not hold, in parallel, and yields every result. Compile errors are not kept."""
    cache.mkdir(parents=True, exist_ok=True)
    todo: dict[tuple[str, str, int], Path] = {}
    for op, listed in selected.items():
        for case in listed:
            for arch in archs:
                if not case.runs_on(arch):
                    continue
                file = cache / f"{_key(case, arch)}.json"
                if file.exists():
                    yield Compiled(**{**json.loads(file.read_text()), "op": op, "name": case.name, "cached": True})
                else:
                    todo[op, case.name, arch] = file
    if not todo:
        return
    with tempfile.TemporaryDirectory() as scratch:  # Triton's own cache, which knows less than ours, goes there
        pool = ProcessPoolExecutor(
            min(processes, len(todo)), multiprocessing.get_context("spawn"), _keep_in, (scratch,)
        )
        with pool:
            for key, result in zip(todo, pool.map(partial(_compile_named, package), todo), strict=True):
                if result.registers:
                    todo[key].write_text(json.dumps(asdict(result)))
                yield result


def table(results: Sequence[Compiled]) -> Table:
    """Registers, spills and shared memory of each case, a column a chip."""
    archs = sorted({result.arch for result in results})
    shown = Table(title="registers / spilled bytes a thread / shared KiB", title_justify="left")
    for column in ("op", "case", *(f"sm_{arch}" for arch in archs)):
        shown.add_column(column, no_wrap=True)
    by_case: dict[tuple[str, str], dict[int, Compiled]] = {}
    for result in results:
        by_case.setdefault((result.op, result.name), {})[result.arch] = result
    for (op, name), made in by_case.items():
        shown.add_row(op, name, *(_cell(made.get(arch)) for arch in archs))
    return shown


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the gate; exit status 1 where a case fails."""
    parser = argparse.ArgumentParser(prog="python -m spiritrt.kernels.aot", description=__doc__.splitlines()[0])
    parser.add_argument("--op", action="append", help="only these (file names in kernels/)")
    parser.add_argument("--arch", action="append", type=int, choices=sorted(SHARED_LIMITS), help="only these chips")
    parser.add_argument("--cache", type=Path, default=Path("build/aot"), help="folder of results")
    parser.add_argument("--package", default="spiritrt.kernels", help="where the ops are")
    given = parser.parse_args(arguments)
    began = time.perf_counter()
    found = cases(given.package)
    if unknown := set(given.op or ()) - set(found):
        parser.error(f"no AOT cases in {', '.join(sorted(unknown))}; there are: {', '.join(found)}")
    selected = {op: listed for op, listed in found.items() if given.op is None or op in given.op}
    results = list(check(selected, given.arch or list(SHARED_LIMITS), given.cache, given.package))
    order = {(op, case.name): n for n, (op, case) in enumerate((op, c) for op, listed in found.items() for c in listed)}
    results.sort(key=lambda result: (order[result.op, result.name], result.arch))
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table(results))
    failed = [result for result in results if result.error is not None]
    for result in failed:
        console.print(f"FAIL {result.op}/{result.name} sm_{result.arch}: {result.error}", style="red", soft_wrap=True)
    fresh = sum(not result.cached for result in results)
    console.print(
        f"{len(results)} kernels, {fresh} compiled now, {len(failed)} failed, in {time.perf_counter() - began:.0f} s"
    )
    return 1 if failed or not results else 0


def _keep_in(folder: str) -> None:
    os.environ["TRITON_CACHE_DIR"] = folder


def _compile_named(package: str, key: tuple[str, str, int]) -> Compiled:
    op, name, arch = key
    listed: Sequence[AotCase] = importlib.import_module(f"{package}.{op}").AOT
    return compile_case(op, next(case for case in listed if case.name == name), arch)


def _key(case: AotCase, arch: int) -> str:
    import triton

    settings = (sorted(case.signature.items()), sorted((k, str(v)) for k, v in case.constexprs.items()), case.aligned)
    limits = (case.num_warps, case.num_stages, arch, SPILL_BYTES, SHARED_LIMITS[arch])
    text = repr((triton.__version__, case.kernel.cache_key, settings, limits))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers and spilled bytes of a thread, the worst of the functions inside."""
    import triton.backends.nvidia

    tool = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [tool, "--dump-resource-usage", file.name], check=True, capture_output=True, text=True
        ).stdout
    found = re.findall(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text)
    if not found:
        raise RuntimeError(f"cuobjdump names no registers: {text!r}")
    # Triton puts nothing on the stack but spilled registers
    return max(int(registers) for registers, _, _ in found), max(int(stack) + int(local) for _, stack, local in found)


def _cell(result: Compiled | None) -> str:
    if result is None:
        return "-"
    if result.error is not None and not result.registers:
        return "[red]FAIL"
    shade = "[red]" if result.error else ""
    return f"{shade}{result.registers} / {result.spills} / {result.shared / 1024:.1f}"


if __name__ == "__main__":
    sys.exit(main())
