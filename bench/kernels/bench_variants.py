"""The same cases under pytest-benchmark, which keeps, compares and plots runs in its own way: see `make bench`."""

from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from spiritrt.bench.kernels.cases import BenchCase, setting
from spiritrt.bench.kernels.run import Selection, distance, expectation, select, supported
from spiritrt.bench.kernels.timing import Stopwatch
from spiritrt.bench.shapes import preset
from spiritrt.kernels.registry import Variant

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HERE = setting(preset("7b" if DEVICE.type == "cuda" else "nano"), DEVICE)
PAIRS = [(case, variant) for case in select(HERE, Selection()) for variant in supported(case, Selection())]


@pytest.mark.parametrize(("case", "variant"), PAIRS, ids=[f"{case.name} {variant.name}" for case, variant in PAIRS])
@torch.inference_mode()
def bench_variant(benchmark: BenchmarkFixture, case: BenchCase, variant: Variant) -> None:
    problem = case.make()
    error, wrong = distance(problem.results(variant.fn(*problem.arguments)), expectation(case), case.tolerance)
    assert wrong is None, wrong
    benchmark.group = case.name
    benchmark.extra_info.update(bytes=case.bytes, flops=case.flops, error=error)
    stopwatch = Stopwatch(DEVICE)
    benchmark.pedantic(_finished(variant, problem.arguments), setup=stopwatch.flush, rounds=20, warmup_rounds=2)


def _finished(variant: Variant, arguments: tuple) -> Callable[[], None]:
    """A call that ends when the device has."""

    def call() -> None:
        variant.fn(*arguments)
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    return call
