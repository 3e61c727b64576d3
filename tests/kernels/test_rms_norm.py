"""RMSNorm: every variant against the reference, with and without a residual."""

from collections.abc import Callable

import pytest
import torch

from spiritrt.kernels import Case, reference, variants

OP = "rms_norm"
NAMES = [variant.name for variant in variants(OP) if variant.name != "reference"]
CLOSE = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def case(device: str, dtype: torch.dtype) -> Case:
    return Case(device, dtype, torch.cuda.get_device_capability() if device == "cuda" else None)


@pytest.mark.parametrize(("rows", "width"), [(1, 1), (3, 17), (2, 256), (17, 96), (0, 8)])
@pytest.mark.parametrize(
    ("name", "dtype"), [(name, dtype) for name in NAMES for dtype in CLOSE if name != "cpu" or dtype == torch.float32]
)
def test_is_the_reference(
    variant_for: Callable, device: str, name: str, rows: int, width: int, dtype: torch.dtype
) -> None:
    fn = variant_for(OP, name, case(device, dtype))
    draws = torch.Generator().manual_seed(rows)
    x, residual = (torch.randn(rows, width, generator=draws).to(device, dtype) for _ in range(2))
    weight = (torch.rand(width, generator=draws) + 0.5).to(device, dtype)
    close = {"atol": CLOSE[dtype], "rtol": CLOSE[dtype]}
    for other in (None, residual):
        made, summed = fn(x, weight, 1e-5, other)
        wanted, wanted_sum = reference.rms_norm(x, weight, 1e-5, other)
        torch.testing.assert_close(made, wanted, **close)
        assert torch.equal(summed, wanted_sum)


@pytest.mark.parametrize("name", NAMES)
def test_a_row_of_zeros_stays_zero(variant_for: Callable, device: str, name: str) -> None:
    fn = variant_for(OP, name, case(device, torch.float32))
    assert not fn(torch.zeros(2, 5, device=device), torch.ones(5, device=device), 1e-5)[0].any()


@pytest.mark.parametrize("name", ["triton", "cpu"])
def test_a_row_has_the_same_bits_alone(variant_for: Callable, device: str, name: str) -> None:
    fn = variant_for(OP, name, case(device, torch.float32))
    x = torch.randn(5, 100, generator=torch.Generator().manual_seed(1)).to(device)
    weight = torch.ones(100, device=device)
    whole = fn(x, weight, 1e-5)[0]
    assert all(torch.equal(fn(x[i : i + 1], weight, 1e-5)[0][0], whole[i]) for i in range(5))


@pytest.mark.parametrize("name", NAMES)
def test_shapes_that_do_not_fit_together(variant_for: Callable, name: str) -> None:
    fn = variant_for(OP, name, case("cpu", torch.float32))
    x, weight = torch.zeros(2, 6), torch.ones(6)
    for wrong in ((x, torch.ones(5), 1e-5), (x, weight, 1e-5, torch.zeros(1, 6)), (x.T, torch.ones(2), 1e-5)):
        with pytest.raises(ValueError, match="must be"):
            fn(*wrong)
