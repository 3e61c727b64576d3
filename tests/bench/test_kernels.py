"""The bench of kernels: what is wrong gets no time, what got slower is found, and files hold what they say."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from spiritrt.bench.environment import Ceilings
from spiritrt.bench.kernels import command, tune
from spiritrt.bench.kernels import run as running
from spiritrt.bench.kernels.cases import setting
from spiritrt.bench.kernels.run import Selection, distance, select
from spiritrt.bench.kernels.timing import Stopwatch
from spiritrt.bench.shapes import PRESETS
from spiritrt.cli import app
from spiritrt.kernels.registry import GpuConfig, Variant, anywhere

CPU = torch.device("cpu")
LIMITS = Ceilings(copy=5e9, read=5e9, flops=5e10)
QUICK = ["bench", "kernels", "--preset", "tiny", "--device", "cpu", "--repeats", "3"]
FEW = ["--op", "rms_norm", "--shape", "rows=1"]


@pytest.fixture(autouse=True)
def known_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "ceilings", lambda device, dtype: LIMITS)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, [*QUICK, *arguments], catch_exceptions=False)


def test_results_are_right_timed_and_written(tmp_path: Path) -> None:
    file, picture = tmp_path / "deep" / "kernels.jsonl", tmp_path / "roofline.png"
    shown = invoke(*FEW, "--op", "linear", "--type", "fp32", "--json", str(file), "--plot", str(picture))
    assert shown.exit_code == 0, shown.stdout
    head, *results = map(json.loads, file.read_text().splitlines())
    assert head["environment"]["clock"] == "wall" and head["environment"]["commit"]
    assert head["ceilings"]["copy"] == LIMITS.copy and head["not_measured"] == []
    assert {line["op"] for line in results} == {"linear", "rms_norm"}
    assert {line["variant"] for line in results} == {"cpu", "torch"}  # and not Triton's interpreter
    for line in results:
        assert line["wrong"] is None and line["error"] < 1e-4
        assert 0 < line["eager"]["p20"] <= line["eager"]["p50"] <= line["eager"]["p80"]
        assert line["floor_us"] == pytest.approx(1e6 * max(line["bytes"] / 5e9, line["flops"] / 5e10), abs=1e-3)
        assert line["share"] == pytest.approx(line["floor_us"] / line["eager"]["p50"], abs=1e-3)
    assert picture.read_bytes().startswith(b"\x89PNG")


def broken(monkeypatch: pytest.MonkeyPatch, fn: Callable) -> Result:
    """The bench with one more variant of rms_norm, among the true ones."""
    true = running.variants
    variant = Variant("rms_norm", "broken", fn, anywhere, 99)
    monkeypatch.setattr(running, "variants", lambda op: [variant, *true(op)])
    return invoke(*FEW)


def test_a_wrong_variant_gets_fail_and_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = broken(monkeypatch, lambda x, weight, eps, residual: (x, x + residual))
    assert shown.exit_code == 1
    line = next(line for line in shown.stdout.splitlines() if "broken" in line)
    assert "FAIL" in line and not any(character.isdigit() for character in line.split("FAIL")[1])
    assert "FAIL rms_norm rows=1 width=64 fp32 broken: result 0 is off by" in shown.stdout
    assert sum("│ rms_norm" in line and "FAIL" not in line for line in shown.stdout.splitlines()) == 2


def test_a_variant_that_raises_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(*arguments: object) -> None:
        raise RuntimeError("out of registers")

    shown = broken(monkeypatch, raises)
    assert shown.exit_code == 1 and "broken: RuntimeError: out of registers" in shown.stdout


def test_every_op_has_cases_whose_torch_variant_is_right() -> None:
    here = setting(PRESETS["tiny"], CPU)
    cases = select(here, running.Selection())
    by_op = {case.op: case for case in cases if "rows=4" in case.shape or case.op in ("shift_rotary", "rotary_prefill")}
    assert set(by_op) == {case.op for case in cases} >= {"linear", "rotary_attention", "sampling", "embed_frames"}
    stopwatch = Stopwatch(CPU, cold=False, most=1)
    for case in by_op.values():
        for result in running.run(here, [case], running.Selection(), stopwatch, LIMITS):
            assert result.wrong is None, (case.name, result)
    assert cases[0].importance == 0 and [case.importance for case in cases] == sorted(c.importance for c in cases)


@pytest.mark.parametrize(
    ("found", "expected", "wrong"),
    [
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.001]), None),
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0]), "off by"),
        (torch.tensor([1.0, torch.nan]), torch.tensor([1.0, 2.0]), "off by nan"),
        (torch.tensor([1, 2]), torch.tensor([1, 3]), "1 of 2 integers differ"),
        (torch.tensor([1.0]), torch.tensor([1.0, 2.0]), "shapes"),
    ],
)
def test_distance(found: torch.Tensor, expected: torch.Tensor, wrong: str | None) -> None:
    said = distance([found], [expected], 1e-3)[1]
    assert (said is None) if wrong is None else (said is not None and wrong in said)


def test_compare_fails_on_what_got_slower_or_wrong(tmp_path: Path) -> None:
    before, after = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    invoke(*FEW, "--json", str(before))
    head, *lines = before.read_text().splitlines()

    def compared(change: Callable[[dict], object]) -> Result:
        changed = [json.loads(line) for line in lines]
        change(changed[0])
        after.write_text("\n".join([head, *map(json.dumps, changed)]))
        return invoke("--compare", str(before), str(after), "--fail", "5%")

    assert compared(lambda line: line["eager"].update(p50=1.04 * line["eager"]["p50"])).exit_code == 0
    slower = compared(lambda line: line["eager"].update(p50=1.5 * line["eager"]["p50"]))
    assert slower.exit_code == 1 and "+50.0%" in slower.stdout and "1 of 2 medians" in slower.stdout
    wrong = compared(lambda line: line.update(wrong="result 0 is off", eager=None))
    assert wrong.exit_code == 1 and "result 0 is off" in wrong.stdout
    with pytest.raises(ValueError, match="holds no results"):
        invoke("--compare", str(before), __file__)


@pytest.mark.parametrize(("text", "value"), [("5%", 0.05), ("0.2", 0.2), ("0", 0.0)])
def test_share(text: str, value: float) -> None:
    assert command.share(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["five", "-1%"])
def test_share_of_nonsense(text: str) -> None:
    with pytest.raises(ValueError, match="expected a share"):
        command.share(text)


def test_a_selection_of_nothing_names_what_there_is() -> None:
    with pytest.raises(ValueError, match=r"there are ops .*rotary_attention"):
        invoke("--op", "softmax")
    with pytest.raises(ValueError, match=r"no case has type int3: .*; types .*\bfp32\b.*; and shapes such as"):
        invoke("--type", "int3")


def test_profile_writes_a_trace_and_names_the_counters_command(tmp_path: Path) -> None:
    file = tmp_path / "trace.json"
    shown = invoke(*FEW, "--profile", str(file))
    assert shown.exit_code == 0
    names = {event.get("name") for event in json.loads(file.read_text())["traceEvents"]}
    assert {"rms_norm rows=1 width=64 fp32 cpu", "rms_norm rows=1 width=64 fp32 torch"} <= names
    assert "ncu --set full" in shown.stdout and "--op rms_norm --shape rows=1" in shown.stdout


def test_the_same_cases_are_collected_by_pytest_benchmark(tmp_path: Path) -> None:
    file = Path(running.__file__).with_name("bench_variants.py")
    output = tmp_path / "benchmark.json"
    command = [sys.executable, "-m", "pytest", str(file), "-o", "python_functions=bench_*", "-p", "no:cacheprovider",
               "-k", "rms_norm and 512 and cpu", "--benchmark-json", str(output)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    (measured,) = json.loads(output.read_text())["benchmarks"]
    assert measured["group"] == "rms_norm rows=512 width=256 fp32" and measured["extra_info"]["bytes"] == 512 * 256 * 16


def test_descend_finds_the_best_sizes_one_at_a_time() -> None:
    asked: list[dict[str, int]] = []

    def cost(sizes: dict[str, int]) -> float:
        asked.append(sizes)
        return 10 + abs(sizes.get("block", 32) - 128) / 32 + abs(sizes.get("warps", 4) - 8)

    found, gain = tune.descend({}, {"block": (32, 64, 128), "warps": (2, 4, 8)}, cost)
    assert found == {"block": 128, "warps": 8} and gain == pytest.approx(1 - 10 / 17)
    assert len(asked) == len({tuple(sorted(sizes.items())) for sizes in asked})  # nothing is measured twice
    assert tune.descend({}, {"block": (64,)}, lambda sizes: 1 - len(sizes) / 100) == ({}, 0.0)  # noise is no gain


def test_tuned_sizes_are_kept_beside_others_and_left_out_where_none_helped() -> None:
    config = GpuConfig({"linear": "triton"}, {"linear": {"a": {"warps": 2}}})
    more = tune.with_sizes(config, "linear", "b", {"warps": 8})
    assert more == GpuConfig({"linear": "triton"}, {"linear": {"a": {"warps": 2}, "b": {"warps": 8}}})
    assert tune.with_sizes(more, "linear", "b", {}) == config


def test_tuning_needs_a_gpu() -> None:
    with pytest.raises(ValueError, match="tuning is for CUDA"):
        invoke(*FEW, "--tune")


def test_what_can_be_tuned_has_cases_and_a_variant() -> None:
    here = setting(PRESETS["tiny"], CPU)
    for tunable in tune.tunables():
        assert tunable.variant in {variant.name for variant in running.variants(tunable.op)}
        for target in tunable.targets(here):
            assert tune.representative(here, tunable.op, target)


def test_a_variant_for_one_row_is_not_chosen_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    here = setting(PRESETS["tiny"], torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    fast = ("triton_gemv", "triton_fused")
    monkeypatch.setattr(tune, "cost", lambda here, variant, cases, stopwatch, limits: variant.name not in fast)
    selection = Selection(ops=("linear", "rotary_attention"))
    winners = tune.steady_winners(here, selection, Stopwatch(CPU, cold=False), LIMITS)
    assert winners == {"rotary_attention": "triton_fused"}
