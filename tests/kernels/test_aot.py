"""The ahead-of-time gate: it passes a sound kernel, and says what is wrong with each of three that are not."""

import os
import subprocess
import sys

import pytest

from spiritrt.kernels import aot
from spiritrt.kernels.aot_case import AotCase

OP = """
import triton
import triton.language as tl
from spiritrt.kernels.aot_case import AotCase


@triton.jit
def add_one(p_x, p_y, n, b: tl.constexpr):
    o = tl.program_id(0) * b + tl.arange(0, b)
    tl.store(p_y + o, tl.load(p_x + o, mask=o < n).to(tl.float32) + 1, mask=o < n)


@triton.jit
def hoard(p_x, p_y, b: tl.constexpr):
    o = tl.arange(0, b)
    total = tl.zeros((b,), tl.float32)
    for i in range(4):
        total = total * tl.load(p_x + i * b + o) + tl.sum(total)
    tl.store(p_y + o, total)


@triton.jit
def transpose(p_x, p_y, b: tl.constexpr, c: tl.constexpr):
    x = tl.load(p_x + tl.arange(0, b)[:, None] * c + tl.arange(0, c)[None, :])
    tl.store(p_y + tl.arange(0, c)[:, None] * b + tl.arange(0, b)[None, :], tl.trans(x))


@triton.jit
def misspelt(p_x, b: tl.constexpr):
    tl.store(p_x + tl.arange(0, b), nothing)


BOTH = {"p_x": "*fp32", "p_y": "*fp32"}
AOT = [
    AotCase("add", add_one, {"p_x": "*bf16", "p_y": "*bf16", "n": "i32"}, {"b": 128}, aligned=("n",)),
    AotCase("add fp8", add_one, {"p_x": "*fp8e4nv", "p_y": "*fp32", "n": "i32"}, {"b": 128}),
    AotCase("hoard", hoard, BOTH, {"b": 8192}, num_warps=1),
    AotCase("transpose", transpose, BOTH, {"b": 128, "c": 512}, num_warps=16),
    AotCase("misspelt", misspelt, {"p_x": "*fp32"}, {"b": 128}),
]
"""


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory):
    """Runs the gate on the op above, in a process of its own: this one may be interpreting kernels."""
    root = tmp_path_factory.mktemp("gate")
    (root / "few_ops").mkdir()
    (root / "few_ops" / "__init__.py").touch()
    (root / "few_ops" / "op.py").write_text(OP)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "spiritrt.kernels.aot", "--package", "few_ops", "--cache", str(root / "cache")]
        return subprocess.run(
            [*command, *arguments], env={**environment, "PYTHONPATH": str(root)}, capture_output=True, text=True
        )

    return run


def test_gate_names_what_is_wrong_and_keeps_what_is_right(gate) -> None:
    first = gate("--arch", "90")
    assert first.returncode == 1, first.stderr
    failures = [line for line in first.stdout.splitlines() if line.startswith("FAIL")]
    assert [line.split()[1] for line in failures] == ["op/hoard", "op/transpose", "op/misspelt"]
    spills, shared, error = failures
    assert "spills" in spills and f"above {aot.SPILL_BYTES}" in spills
    assert "shared memory 26" in shared and f"above {aot.SHARED_LIMITS[90]}" in shared
    assert "nothing is not defined" in error
    assert "5 kernels, 5 compiled now, 3 failed" in first.stdout
    again = gate("--arch", "90")
    assert again.returncode == 1 and "5 kernels, 1 compiled now, 3 failed" in again.stdout


def test_an_op_without_cases_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        aot.main(["--op", "nothing"])
    assert "no AOT cases in nothing; there are: " in capsys.readouterr().err


class Kernel:
    arg_names = ("p_x", "n", "b")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"signature": {"p_x": "*fp32"}}, "given twice: n"),
        ({"constexprs": {"b": 1, "n": 2}}, "given twice: n"),
        ({"signature": {"p_x": "*fp32", "n": "i32", "m": "i32"}}, "unknown or given twice: m"),
        ({"aligned": ("b",)}, "no run-time argument: b"),
        ({"num_warps": 3}, "got 3"),
        ({"num_stages": 0}, "got 0"),
    ],
)
def test_a_case_must_fit_its_kernel(changed: dict, message: str) -> None:
    right = {"signature": {"p_x": "*fp32", "n": "i32"}, "constexprs": {"b": 64}}
    AotCase("case", Kernel(), **right)
    with pytest.raises(ValueError, match=message):
        AotCase("case", Kernel(), **{**right, **changed})


def test_fp8_needs_a_chip_that_has_it() -> None:
    case = AotCase("case", Kernel(), {"p_x": "*fp8e4nv", "n": "i32"}, {"b": 64})
    assert not case.runs_on(80) and case.runs_on(90)
    assert not AotCase("case", Kernel(), {"p_x": "*fp32", "n": "i32"}, {"b": 64}, arch=100).runs_on(90)
