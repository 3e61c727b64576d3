"""A trace of selected variants, and the command that counts what their kernels do."""

import shlex
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from spiritrt.bench.kernels.cases import BenchCase, Setting
from spiritrt.bench.kernels.run import Selection, supported

CALLS = 5
MOST = 20  # cases in one trace: what a person can look at


def write_trace(here: Setting, cases: Sequence[BenchCase], selection: Selection, file: Path) -> list[str]:
    """Traces a few calls of every selected variant for Perfetto or Chrome; returns the names of their spans."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if here.device.type == "cuda" else [])
    runs = [(case, variant, case.make()) for case in cases[:MOST] for variant in supported(case, selection)]
    with torch.inference_mode():
        for _, variant, problem in runs:  # compile first
            variant.fn(*problem.arguments)
        with profile(activities=activities) as trace:
            for case, variant, problem in runs:
                with record_function(f"{case.name} {variant.name}"):
                    for _ in range(CALLS):
                        variant.fn(*problem.arguments)
                    if here.device.type == "cuda":
                        torch.cuda.synchronize(here.device)
    file.parent.mkdir(parents=True, exist_ok=True)
    trace.export_chrome_trace(str(file))
    return [f"{case.name} {variant.name}" for case, variant, _ in runs]


def counters_command(selection: Selection, preset: str, file: Path) -> str:
    """What to run to see the hardware's counters of the same kernels."""
    options = [
        f"--{name} {shlex.quote(value)}"
        for name, values in (("op", selection.ops), ("variant", selection.variants), ("shape", selection.shapes),
                             ("type", selection.dtypes))
        for value in values
    ]  # fmt: skip
    report = shlex.quote(str(file.with_suffix("")))
    return " ".join([
        "ncu --set full --clock-control none", f"-o {report}",
        "spiritrt bench kernels --repeats 1 --device cuda", f"--preset {preset}", *options,
    ])  # fmt: skip
