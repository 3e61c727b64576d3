"""RMSNorm with the residual added: one row, and as many as a prefill brings."""

from collections.abc import Iterator
from functools import partial

from spiritrt.bench.kernels.cases import NAMES, BenchCase, Problem, Setting


def cases(here: Setting) -> Iterator[BenchCase]:
    width = here.preset.config.hidden_size
    for rows in (*here.rows, 512):
        yield BenchCase(
            "rms_norm", f"rows={rows} width={width}", NAMES[here.activations], here.case(rows=rows),
            partial(_make, here, rows), 4 * rows * width * here.activations.itemsize,
            tolerance=here.tolerance, importance=2,
        )  # fmt: skip


def _make(here: Setting, rows: int) -> Problem:
    config, generator = here.preset.config, here.generator()
    x, residual = (here.random(rows, config.hidden_size, generator=generator) for _ in range(2))
    weight = 1 + 0.1 * here.random(config.hidden_size, generator=generator)
    return Problem((x, weight, config.rms_norm_eps, residual))
