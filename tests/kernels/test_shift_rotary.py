"""Moving kept tokens to new positions: every variant against the reference and against a cache made there."""

from collections.abc import Callable

import pytest
import torch

from spiritrt.kernels import Case, choose, reference, variants
from spiritrt.kernels.attention_batch import AttentionBatch

OP = "shift_rotary"
NAMES = [variant.name for variant in variants(OP) if variant.name != "reference"]
F32, F16, BF16, F8 = torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn
CLOSE = {F32: 1e-5, F16: 2e-3, BF16: 1e-2, F8: 0.13}  # relative: two roundings


def inv_freq(head_dim: int, device: str) -> torch.Tensor:
    return (1e4 ** (-torch.arange(head_dim // 2) / (head_dim / 2))).to(device)


def pool(device: str, cache: torch.dtype, layers: int, pages: int, kv_heads: int, head_dim: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(layers, pages, 16, kv_heads, head_dim, generator=random)
    return (x * 100 if cache == F8 else x).clamp(-448, 448).to(cache).to(device)


@pytest.mark.parametrize("delta", [-1000, 7])
@pytest.mark.parametrize(
    ("moved", "layers", "kv_heads", "head_dim", "cache"),
    [(1, 2, 1, 64, F32), (3, 1, 3, 96, F16), (17, 2, 2, 64, F8), (5, 1, 1, 128, BF16), (0, 2, 1, 64, F32)],
)
@pytest.mark.parametrize("name", NAMES)
def test_equals_the_reference_and_leaves_the_rest(
    variant_for: Callable,
    device: str,
    name: str,
    moved: int,
    layers: int,
    kv_heads: int,
    head_dim: int,
    cache: torch.dtype,
    delta: int,
) -> None:
    case = Case(device, F32, torch.cuda.get_device_capability() if device == "cuda" else None, cache=cache,
                head_dim=head_dim)  # fmt: skip
    fn = variant_for(OP, name, case)
    keys, values = (pool(device, cache, layers, 6, kv_heads, head_dim) for _ in range(2))
    source, target = (torch.arange(20, 20 + moved, device=device), torch.arange(moved, device=device) + 64)
    want_keys, want_values, made_keys, made_values = keys.clone(), values.clone(), keys.clone(), values.clone()
    reference.shift_rotary(want_keys, want_values, source, target, delta, inv_freq(head_dim, device))
    fn(made_keys, made_values, source, target, delta, inv_freq(head_dim, device))
    assert torch.equal(made_values.view(torch.uint8), want_values.view(torch.uint8))
    error, size = CLOSE[cache], 100 if cache == F8 else 1
    torch.testing.assert_close(made_keys.float(), want_keys.float(), rtol=error, atol=error * size)
    untouched = torch.ones(6 * 16, dtype=torch.bool)
    untouched[target.cpu()] = False
    before, after = (tensor.view(torch.uint8).flatten(1, 2).cpu()[:, untouched] for tensor in (keys, made_keys))
    assert torch.equal(before, after)


@pytest.mark.parametrize("cache", [F32, F16, F8])
@pytest.mark.parametrize("name", NAMES)
def test_a_shifted_cache_is_one_made_at_the_new_positions(
    paged_step: Callable, variant_for: Callable, device: str, name: str, cache: torch.dtype
) -> None:
    """37 tokens at 51..87 go to 4..40 of other pages, and attention over them is that of tokens that came at 4..40."""
    count, held, old, head_dim, scale = 37, 4, 51, 64, 0.02
    case = Case(device, F32, torch.cuda.get_device_capability() if device == "cuda" else None, cache=cache,
                head_dim=head_dim)  # fmt: skip
    fn = variant_for(OP, name, case)
    step = paged_step((held,), (count,), 2, 1, head_dim, F32, cache)
    attend = choose("rotary_prefill", step.case(), "reference").fn
    scales = None if cache != F8 else torch.full((2, 2), scale, device=device)
    angles = torch.arange(old + count, device=device)[:, None] * inv_freq(head_dim, device)
    cos_sin = torch.cat((angles.cos(), angles.sin()), dim=1)
    table = torch.arange(9, dtype=torch.int32, device=device)[None]

    def row(start: int, tokens: int, first_page: int) -> AttentionBatch:
        numbers = torch.tensor([0, start, 0, tokens], dtype=torch.int32, device=device)
        return AttentionBatch(numbers[:1], numbers[1:2], numbers[2:], table + first_page, tokens, start + tokens)

    # the same tokens once at the old positions in pages 0-8, shifted into 9-17, and once at the new in 18-26
    keys, values = (torch.zeros(27, 16, 2, head_dim, dtype=cache, device=device) for _ in range(2))
    attend(step.qkv, cos_sin, keys, values, row(old, count, 0), step.heads, scales)
    expected = attend(step.qkv, cos_sin, keys, values, row(held, count, 18), step.heads, scales)
    tokens = torch.arange(count, device=device)
    fn(keys[None], values[None], old + tokens, 9 * 16 + held + tokens, held - old, inv_freq(head_dim, device))
    places = torch.arange(held, held + count, device=device)
    shifted, made = (keys[first : first + 9].flatten(0, 1)[places].float() for first in (9, 18))
    error = CLOSE[cache]
    torch.testing.assert_close(shifted, made, rtol=error, atol=error * (made.abs().max().item() if cache == F8 else 1))
    assert torch.equal(*(values[first : first + 9].flatten(0, 1)[places].float() for first in (9, 18)))
    out = attend(step.qkv[-1:], cos_sin, keys, values, row(held + count - 1, 1, 9), step.heads, scales)
    torch.testing.assert_close(out, expected[-1:], atol={F32: 1e-5, F16: 2e-3, F8: 5e-2}[cache], rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": torch.zeros(1, 2, 16, 1, 32)}, "alike"),
        ({"source": torch.zeros(3, dtype=torch.int32)}, "source and target must be int64"),
        ({"target": torch.zeros(2, dtype=torch.int64)}, "source and target must be int64"),
        ({"inv_freq": torch.zeros(16)}, r"inv_freq must be \[32\]"),
    ],
)
@pytest.mark.parametrize("name", ["triton", "torch"])
def test_arguments_that_do_not_fit(name: str, change: dict[str, torch.Tensor], message: str) -> None:
    whole = {
        "keys": torch.zeros(1, 2, 16, 1, 64), "values": torch.zeros(1, 2, 16, 1, 64),
        "source": torch.zeros(3, dtype=torch.int64), "target": torch.zeros(3, dtype=torch.int64), "delta": 1,
        "inv_freq": torch.zeros(32),
    }  # fmt: skip
    fn = next(variant.fn for variant in variants(OP) if variant.name == name)
    with pytest.raises(ValueError, match=message):
        fn(*(whole | change).values())


def test_fp8_needs_a_chip_that_has_it() -> None:
    triton = next(variant for variant in variants(OP) if variant.name == "triton")
    assert "8.9, got 8.0" in (triton.supports(Case("cuda", BF16, (8, 0), cache=F8, head_dim=64)) or "")
    assert triton.supports(Case("cuda", BF16, (8, 0), cache=BF16, head_dim=64)) is None
