"""Variants in competition: who is chosen, why one cannot run, and what the command shows of it."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from spiritrt.cli import app
from spiritrt.kernels import (
    Case,
    KernelError,
    Variant,
    choose,
    linear,
    ops,
    registry,
    rotary_attention,
    rotary_prefill,
    sampling,
    shift_rotary,
    tuned,
    variants,
)
from spiritrt.kernels.aot_case import tuned_cases

CPU = Case("cpu", torch.float32)
CUDA = Case("cuda", torch.bfloat16, (9, 0))
OPS = {
    "embedding", "embed_norm", "embed_frames", "linear", "rms_norm", "rotary_attention", "rotary_prefill", "sampling",
    "shift_rotary",
}  # fmt: skip


@pytest.fixture
def op(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An op of four variants: two run anywhere, one nowhere, one on CUDA alone."""
    monkeypatch.setattr(registry, "_variants", dict(registry._variants))
    monkeypatch.setattr(registry, "gpu_name", lambda device=None: "Some_GPU")
    for name, supports, priority in (
        ("slow", lambda case: None, 0),
        ("quick", lambda case: None, 10),
        ("missing", lambda case: "its package is not installed", 50),
        ("triton", lambda case: None, 20),
    ):
        registry.register(Variant("squares", name, lambda x: x * x, supports, priority))
    yield "squares"


@pytest.fixture
def gpu_file(tmp_path, monkeypatch):
    """Writes the tuned file of the GPU that the tests pretend to have."""
    monkeypatch.setattr(registry, "CONFIGS", tmp_path)
    registry.read_config.cache_clear()
    yield lambda content: (tmp_path / "Some_GPU.json").write_text(content)
    registry.read_config.cache_clear()


class TestChoice:
    def test_auto_takes_the_best_that_runs(self, op):
        assert choose(op, CUDA).name == "triton"

    def test_auto_interprets_nothing_on_a_cpu(self, op):
        assert choose(op, CPU).name == "quick"
        assert choose(op, CPU, "triton").name == "triton"

    def test_a_choice_that_cannot_run_says_why(self, op):
        with pytest.raises(KernelError, match="squares: variant 'missing', asked for, cannot run here: its package is"):
            choose(op, CPU, "missing")
        with pytest.raises(KernelError, match="no variant 'quack', asked for: there are missing, triton, quick, slow"):
            choose(op, CPU, "quack")
        with pytest.raises(KernelError, match="there is no op 'cubes'"):
            choose("cubes", CPU)

    def test_the_call_comes_before_the_environment_before_the_gpu(self, op, gpu_file, monkeypatch):
        gpu_file(json.dumps({"variants": {op: "slow"}}))
        assert choose(op, CUDA).name == "slow" and choose(op, CPU).name == "quick"
        monkeypatch.setenv("SPIRITRT_KERNEL_SQUARES", "quick")
        assert choose(op, CUDA).name == "quick"
        assert choose(op, CUDA, "triton").name == "triton"
        monkeypatch.setenv("SPIRITRT_KERNEL_SQUARES", "missing")
        with pytest.raises(KernelError, match="'missing', asked for by SPIRITRT_KERNEL_SQUARES, cannot run here"):
            choose(op, CPU)

    def test_nothing_that_runs_is_an_error_with_all_the_reasons(self, op, monkeypatch):
        only = {"missing": registry._variants[op]["missing"]}
        monkeypatch.setitem(registry._variants, op, only)
        with pytest.raises(KernelError, match=r"no variant runs on .*: missing: its package is not installed"):
            choose(op, CPU)

    def test_names_are_checked(self, op):
        with pytest.raises(KernelError, match="squares has a variant 'slow' already"):
            registry.register(variants(op)[-1])
        with pytest.raises(KernelError, match="lower case with underscores, got 'Quick'"):
            replace(variants(op)[-1], name="Quick")
        with pytest.raises(KernelError, match="cannot be the name of one"):
            replace(variants(op)[-1], name="auto")
        with pytest.raises(KernelError, match="device must be 'cpu' or 'cuda', got 'tpu'"):
            Case("tpu", torch.float32)


class TestTuned:
    def test_a_shape_comes_before_any_shape(self, gpu_file):
        gpu_file(json.dumps({"tuned": {"linear": {"": {"BLOCK": 64, "warps": 4}, "4096x4096": {"BLOCK": 128}}}}))
        assert tuned("linear", "4096x4096", "Some_GPU") == {"BLOCK": 128, "warps": 4}
        assert tuned("linear", "1x1", "Some_GPU") == {"BLOCK": 64, "warps": 4}
        assert tuned("sampling", "", "Some_GPU") == {} == tuned("linear", "", "Other_GPU")

    def test_a_broken_file_is_named(self, gpu_file):
        gpu_file("{")
        with pytest.raises(KernelError, match=r"Some_GPU.json is no tuned file"):
            tuned("linear", "", "Some_GPU")

    def test_shipped_files_name_variants_that_exist(self):
        for file in registry.CONFIGS.glob("*.json"):
            for op, name in registry.read_config(file.stem).variants.items():
                assert name in {variant.name for variant in variants(op)}


def test_every_op_has_a_reference_and_a_variant_for_any_machine():
    assert set(ops()) == OPS
    for name in OPS:
        known = {variant.name: variant for variant in variants(name)}
        assert {"reference", "torch", "triton"} <= set(known)
        for case in (CPU, CUDA):
            assert known["torch"].supports(case) is None and known["reference"].supports(case) is None
        assert choose(name, CPU).name in ("cpu", "torch")
        assert known["triton"].supports(replace(CUDA, capability=(7, 5))) == "compute capability 7.5 is below 8.0"


def test_without_triton_everything_else_works():
    """In a process of its own, where the package cannot be imported."""
    code = """
import sys
sys.modules["triton"] = None
import torch
from spiritrt.kernels import Case, choose, ops, variants
case = Case("cpu", torch.float32)
for op in ops():
    reasons = {v.name: v.supports(case) for v in variants(op)}
    assert reasons["triton"] == "triton is not installed", reasons
    assert choose(op, case).name in ("cpu", "torch"), choose(op, case)
"""
    ran = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


class TestCommand:
    def test_lists_variants_and_why_not(self, op):
        shown = CliRunner().invoke(app, ["kernels", "list", "--op", op], catch_exceptions=False).stdout
        *rows, star = shown.splitlines()[1:]
        lines = [line.split() for line in rows]
        assert star == "* runs there where no variant is asked for"
        assert [line[1] for line in lines] == ["missing", "triton", "quick", "slow"]
        assert "its package is not installed" in shown and lines[2][2:4] == ["yes", "*"]

    def test_as_json(self, op):
        listed = json.loads(CliRunner().invoke(app, ["kernels", "list", "--json"], catch_exceptions=False).stdout)
        assert set(listed) == OPS | {op}
        on_cpu = {entry["variant"]: entry["devices"]["cpu"] for entry in listed[op]}
        assert on_cpu["missing"] == {"chosen": False, "unsupported": "its package is not installed"}
        assert on_cpu["quick"] == {"chosen": True, "unsupported": None}

    def test_an_op_that_does_not_exist_is_named(self):
        result = CliRunner().invoke(app, ["kernels", "list", "--op", "cubes"])
        assert isinstance(result.exception, KernelError) and "there is no op 'cubes'" in str(result.exception)


def test_tuned_sizes_are_compiled_for_the_chip_that_they_are_for(gpu_file):
    """Beside each op's own, and only where they differ."""
    gpu_file(json.dumps({"arch": 90, "tuned": {
        "linear": {"12288x4096_bfloat16": {"warps": 8}}, "linear_gemv": {"4096x11008_int8": {"stages": 2}},
        "rotary_attention": {"d128_kv32_g1_bfloat16": {"split": 256, "dot": 0}},
        "rotary_prefill": {"d128_kv32_g1_float8_e4m3fn": {"tall_block_n": 64}},
        "sampling": {"": {"BLOCK": 2048}}, "shift_rotary": {"": {"warps": 2}},
    }}))  # fmt: skip
    extra = {}
    for op in (linear, rotary_attention, rotary_prefill, sampling, shift_rotary):
        own, cases = op._aot_cases(None), tuned_cases(op._aot_cases)
        assert cases[: len(own)] == own
        for case in cases[len(own) :]:
            assert case.runs_on(90) and not case.runs_on(80) and not case.runs_on(100)
            extra[case.name.removesuffix("_Some_GPU")] = case
    assert {case.num_warps for name, case in extra.items() if "bf16_bf16_12288" in name} == {8}
    assert extra["gemv_bf16_int8_4096x11008_1_residual"].constexprs["STAGES"] == 2
    attention = extra["bf16_mha_128"].constexprs
    assert (attention["SPLIT"], attention["DOT"], attention["BLOCK_G"]) == (256, False, 1)
    assert extra["fp8_mha_128_tall"].constexprs["BLOCK_N"] == 64
    assert extra["fp32"].constexprs["BLOCK"] == 2048 and extra["fp8_32x128"].num_warps == 2
    assert not {"bf16_gqa_64", "fp8_mha_128", "linear_bf16_int8_12288x4096_1_norm", "fp8_mha_128_low"} & extra.keys()


def test_a_choice_for_an_op_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPIRITRT_KERNEL_SAMPLER", "torch")
    with pytest.raises(registry.KernelError, match="SPIRITRT_KERNEL_SAMPLER is set, and there is no such op"):
        registry.choose("sampling", registry.Case("cpu", torch.float32))
