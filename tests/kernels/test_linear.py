"""Linear layers: every variant against the reference, quantized weights, and bits that depend on no other row."""

from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor

from spiritrt.kernels import Case, KernelError, choose, reference, variants
from spiritrt.kernels.linear import HEAD_BLOCK, LinearWeight, quantize, shape_key, stages

OP = "linear"
NAMES = [variant.name for variant in variants(OP) if variant.name != "reference"]
F32, F16, BF16, F8 = torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn
CLOSE = {F32: 1e-5, F16: 4e-3, BF16: 3e-2}
STORED = {"plain": None, "int8": torch.int8, "fp8": F8}
SHAPES = [(1, 70, 67), (3, 33, 130), (17, 128, 19), (1, 1, 1), (66, 64, 64)]  # rows, inner, columns


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def case(device: str, dtype: torch.dtype, weights: torch.dtype, rows: int = 0) -> Case:
    capability = torch.cuda.get_device_capability() if device == "cuda" else None
    return Case(device, dtype, capability, weights=weights, rows=rows)


def layer(
    device: str, dtype: torch.dtype, storage: str, rows: int, inner: int, columns: int, gated: bool = False
) -> dict:
    """Arguments of a call; the reference gets the very same numbers."""
    draws, outputs = rng(rows + inner), columns * (2 if gated else 1)
    weight, bias = torch.randn(outputs, inner, generator=draws) / inner**0.5, torch.randn(outputs, generator=draws)
    made = LinearWeight(weight.to(dtype), None, bias) if storage == "plain" else quantize(weight, storage, bias)
    return {
        "x": torch.randn(rows, inner, generator=draws).to(device, dtype),
        "weight": moved(made, device),
        "norm": ((torch.rand(inner, generator=draws) + 0.5).to(device, dtype), 1e-5),
        "gated": gated,
        "residual": torch.randn(rows, columns, generator=draws).to(device, dtype),
    }


def moved(weight: LinearWeight, device: str) -> LinearWeight:
    parts = (part if part is None else part.to(device) for part in (weight.data, weight.scales, weight.bias))
    return LinearWeight(*parts)


def supported() -> list[tuple]:
    """(variant, rows, inner, columns, dtype, storage) of all that run here; at least torch and Triton take each."""
    device, made = "cuda" if torch.cuda.is_available() else "cpu", []
    for variant, (rows, inner, columns), dtype, storage in product(variants(OP), SHAPES, CLOSE, STORED):
        if (
            variant.name != "reference"
            and variant.supports(case(device, dtype, STORED[storage] or dtype, rows)) is None
        ):
            made.append((variant.name, rows, inner, columns, dtype, storage))
    return made


def test_the_variants_that_must_run_here_do(device: str) -> None:
    ran = {name for name, *_ in supported()}
    assert ran == set(NAMES) - (set() if device == "cpu" else {"cpu"})


@pytest.mark.parametrize(("name", "rows", "inner", "columns", "dtype", "storage"), supported())
def test_is_the_reference(
    variant_for: Callable, device: str, name: str, rows: int, inner: int, columns: int, dtype: torch.dtype, storage: str
) -> None:
    """Everything fused, and nothing fused."""
    whole = layer(device, dtype, storage, rows, inner, columns, gated=(rows + inner) % 2 == 1)
    fn = variant_for(OP, name, case(device, dtype, whole["weight"].data.dtype, rows))
    close = {"atol": CLOSE[dtype], "rtol": CLOSE[dtype]}
    torch.testing.assert_close(fn(**whole), reference.linear(**whole), **close)
    plain = {"x": whole["x"], "weight": LinearWeight(whole["weight"].data, whole["weight"].scales)}
    torch.testing.assert_close(fn(**plain), reference.linear(**plain), **close)


@pytest.mark.parametrize("storage", ["plain", "int8"])
@pytest.mark.parametrize("name", ["triton", "cpu"])
def test_a_row_has_the_same_bits_among_any_number_of_others(
    variant_for: Callable, device: str, name: str, storage: str
) -> None:
    """From 1 to 70 rows, which is three sizes of block, the norm fused and apart, and two blocks of rows.

    Where Triton is interpreted a product's order is not the kernel's, so numbers are such that every order is exact.
    """
    dtype = F32 if device == "cpu" else BF16
    fn = variant_for(OP, name, case(device, dtype, torch.int8 if storage == "int8" else dtype))
    whole = layer(device, dtype, storage, 70, 128, 70, gated=True)
    if device == "cpu":
        draws = rng(3)
        whole["x"] = torch.randint(-8, 9, (70, 128), generator=draws).float()
        whole["norm"] = (2.0 ** torch.randint(-1, 2, (128,), generator=draws), 1e-5)
        data, scales = torch.randint(-9, 10, (140, 128), generator=draws), torch.rand(140, generator=draws) * 0.01
        bias = whole["weight"].bias
        int8, plain = LinearWeight(data.to(torch.int8), scales, bias), LinearWeight(data / 64, None, bias)
        whole["weight"] = int8 if storage == "int8" else plain
    wanted = fn(**whole)
    for rows in (1, 2, 16, 17, 33, 65):
        places = torch.randperm(70, generator=rng(rows))[:rows].to(device)
        some = whole | {"x": whole["x"][places], "residual": whole["residual"][places]}
        assert torch.equal(fn(**some), wanted[places])


@pytest.mark.parametrize("name", ["triton", "triton_gemv"])
def test_columns_that_no_row_needs_are_neither_read_nor_written(
    variant_for: Callable, device: str, name: str, poisoned_memory: None
) -> None:
    fn = variant_for(OP, name, case(device, F32, F32, 1))
    head = layer(device, F32, "plain", 1, 40, 3 * HEAD_BLOCK + 5)
    head["residual"] = None
    needed = torch.tensor([0, 1, 0, 1], dtype=torch.uint8, device=device)
    wanted = reference.linear(**head)
    head["weight"].data[:HEAD_BLOCK] = torch.nan
    made = fn(**head, needed=needed)
    there = needed.bool().repeat_interleave(HEAD_BLOCK)[: made.shape[1]]
    torch.testing.assert_close(made[:, there], wanted[:, there])
    assert bool(made[:, ~there].isnan().all())


def test_no_rows_give_no_rows(variant_for: Callable, device: str) -> None:
    for name in NAMES:
        fn = variant_for(OP, name, case(device, F32, F32))
        made = fn(torch.zeros(0, 8, device=device), LinearWeight(torch.ones(4, 8, device=device)))
        assert made.shape == (0, 4)


@pytest.mark.parametrize(("kind", "steps"), [("int8", 127), ("fp8", 448)])
def test_quantized_weights_are_as_near_as_their_type_allows(kind: str, steps: int) -> None:
    weight = torch.randn(9, 200, generator=rng(1)) * torch.logspace(-6, 6, 9)[:, None]
    weight[4] = 0
    made = quantize(weight, kind)
    assert made.scales is not None
    back = made.data.float() * made.scales[:, None]
    # int8: half a step; e4m3: half of 1/8 of the number, or of its smallest step 2^-9
    step = made.scales[:, None].expand_as(weight)
    bound = step / 2 if kind == "int8" else torch.maximum(weight.abs() / 16, step * 2.0**-10)
    assert bool(((weight - back).abs() <= bound * (1 + 1e-5)).all())
    torch.testing.assert_close(back.abs().amax(1), weight.abs().amax(1))
    assert made.data.float().abs().amax(1).tolist() == [steps] * 4 + [0] + [steps] * 4
    assert made.bytes == weight.numel() + 4 * 9


def test_quantize_refuses_what_it_cannot_round() -> None:
    with pytest.raises(ValueError, match="int8 or fp8, got 'int4'"):
        quantize(torch.zeros(2, 2), "int4")
    with pytest.raises(ValueError, match="row 1 of the weight is not finite"):
        quantize(torch.tensor([[0.0, 1.0], [0.0, torch.inf]]), "int8")


@pytest.mark.parametrize(
    ("message", "make"),
    [
        ("contiguous", lambda: LinearWeight(torch.zeros(3, 4).T)),
        ("must be one of float32", lambda: LinearWeight(torch.zeros(3, 4, dtype=torch.int32))),
        ("scales go with", lambda: LinearWeight(torch.zeros(3, 4), torch.ones(3))),
        ("scales go with", lambda: LinearWeight(torch.zeros(3, 4, dtype=torch.int8))),
        ("bias must be", lambda: LinearWeight(torch.zeros(3, 4), None, torch.zeros(4))),
    ],
)
def test_a_weight_that_does_not_fit_together(message: str, make: Callable[[], LinearWeight]) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "wrong",
    [
        {"x": torch.zeros(2, 5)},
        {"weight": LinearWeight(torch.zeros(3, 4)), "gated": True},
        {"norm": (torch.ones(5), 1e-5)},
        {"residual": torch.zeros(1, 6)},
        {"needed": torch.ones(2, dtype=torch.uint8)},
    ],
)
def test_a_call_that_does_not_fit_together(variant_for: Callable, name: str, wrong: dict) -> None:
    fn = variant_for(OP, name, Case("cpu", F32, weights=F32))
    call: dict = {"x": torch.zeros(2, 4), "weight": LinearWeight(torch.zeros(6, 4))}
    with pytest.raises(ValueError, match=r"got|wide"):
        fn(**call | wrong)


def test_the_registry_says_why_it_cannot_and_never_picks_gemv_itself() -> None:
    with pytest.raises(KernelError, match=r"compute capability 8.9, got 8.0"):
        choose(OP, Case("cuda", BF16, (8, 0), weights=F8), "triton")
    with pytest.raises(KernelError, match="again for each of 2 rows"):
        choose(OP, Case("cuda", BF16, (9, 0), weights=BF16, rows=2), "triton_gemv")
    assert choose(OP, Case("cpu", BF16, weights=BF16, rows=1)).name == "torch"
    assert [v.name for v in variants(OP)].index("triton_gemv") > [v.name for v in variants(OP)].index("torch")


def test_the_pipeline_fits_shared_memory() -> None:
    small = {"block_n": 32, "block_k": 128, "stages": 0}
    for weight_bytes in (1, 2, 4):
        for block_m in (16, 32, 64):
            for gated in (False, True):
                count = stages(small, block_m, gated, weight_bytes, 2)
                held = small["block_k"] * (small["block_n"] * weight_bytes * (1 + gated) + 2 * block_m) * (count - 1)
                assert count >= 3 and held <= 128 << 10
    assert stages(small | {"stages": 4}, 16, False, 2, 2) == 4
    assert shape_key(4096, 11008, F8) == "4096x11008_float8_e4m3fn"


def test_the_head_of_a_step_gives_the_same_columns_sliced_or_whole(variant_for: Callable, device: str) -> None:
    fn = variant_for(OP, "triton", case(device, F32, F32))
    head = layer(device, F32, "plain", 2, 64, 2 * HEAD_BLOCK)
    both: Tensor = fn(**head)
    for block in (0, 1):
        needed = torch.tensor([block == 0, block == 1], device=device).to(torch.uint8)
        there = slice(block * HEAD_BLOCK, (block + 1) * HEAD_BLOCK)
        assert torch.equal(fn(**head, needed=needed)[:, there], both[:, there])
