"""Decode attention: every variant against the reference, and what a row may and may not depend on."""

import importlib.util
import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch

from spiritrt.kernels import Case, choose, rotary_attention, variants
from spiritrt.kernels.attention_batch import AttentionBatch
from spiritrt.kernels.language import INSTALLED

OP = "rotary_attention"
NAMES = [variant.name for variant in variants(OP) if variant.name != "reference"]
BATCH_INDEPENDENT = [name for name in NAMES if name in ("triton", "triton_fused", "cpu")]
F32, F16, BF16, F8 = torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn
CONTEXTS = (1, 15, 16, 17, 100, 257)
SHAPES = [  # contexts with the new token, key-value heads, query heads to each, head_dim, activations, cache
    ((257,), 2, 1, 64, F32, F32),
    ((1,), 1, 4, 128, F16, F16),
    ((15, 16, 17), 1, 4, 96, F32, F32),
    ((1, 129, 128), 3, 1, 96, F16, F16),
    ((100, 1, 257), 2, 4, 64, F32, F8),
    ((17, 257, 16), 1, 1, 128, F32, F8),
    ((100, 15, 33), 1, 3, 80, F16, F8),
    ((64, 65, 2), 2, 1, 64, F32, BF16),
    ((CONTEXTS * 3)[:17], 1, 1, 128, F32, F32),
]
CUDA_SHAPES = [
    ((100, 257, 1024), 32, 1, 128, BF16, BF16),
    ((CONTEXTS * 3)[:17], 8, 4, 128, BF16, F8),
]
TOLERANCE = {F32: 1e-5, F16: 4e-3, BF16: 3e-2}


@pytest.fixture
def set_to(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Sets block sizes for the test: short splits give a short context many."""

    def change(**sizes: int) -> None:
        for name, size in sizes.items():
            for defaults in (rotary_attention.DEFAULTS, rotary_attention.DEFAULTS_NO_DOT):
                monkeypatch.setitem(defaults, name, size)
        rotary_attention.settings.cache_clear()

    yield change
    rotary_attention.settings.cache_clear()


def decode_step(paged_step: Callable, contexts: tuple[int, ...], *shape, **options):
    return paged_step([context - 1 for context in contexts], [1] * len(contexts), *shape, **options)


@pytest.mark.parametrize("shape", [*SHAPES, *(CUDA_SHAPES if torch.cuda.is_available() else ())], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_equals_the_reference(paged_step: Callable, variant_for: Callable, name: str, shape: tuple) -> None:
    step = decode_step(paged_step, *shape)
    fn = variant_for(OP, name, step.case())
    expected, expected_keys, expected_values = step.run(choose(OP, step.case(), "reference").fn)
    out, keys, values = step.run(fn)
    assert out.dtype == step.qkv.dtype and out.shape == expected.shape
    # a key or value that rounds to the neighbouring fp8 number, 6% away, moves the output by this much at most
    close = max(TOLERANCE[out.dtype], 2e-2 if step.keys.dtype == F8 else 0.0)
    torch.testing.assert_close(out.float(), expected.float(), atol=close, rtol=close)
    stored = {F32: 1e-5, F16: 2e-3, BF16: 1e-2, F8: 0.13}[keys.dtype]
    for now, then in ((keys, expected_keys), (values, expected_values)):
        torch.testing.assert_close(now.float(), then.float(), atol=stored * 1e-2, rtol=stored, equal_nan=True)


@pytest.mark.parametrize("cache", [F32, F8])
@pytest.mark.parametrize("name", NAMES)
def test_writes_the_new_token_and_nothing_else(
    paged_step: Callable, variant_for: Callable, name: str, cache: torch.dtype
) -> None:
    step = decode_step(paged_step, (5, 16, 33), 2, 1, 64, cache=cache)
    _, *after = step.run(variant_for(OP, name, step.case()))
    written = {
        (int(step.batch.page_table[slot, start // 16]), start % 16)
        for slot, start in zip(step.batch.slots.tolist(), step.batch.starts.tolist(), strict=True)
    }
    for before, now in zip((step.keys, step.values), after, strict=True):
        changed = (before.view(torch.uint8) != now.view(torch.uint8)).flatten(2).any(-1).nonzero()
        assert {tuple(place) for place in changed.tolist()} == written


@pytest.mark.parametrize("shape", [(1, 1, 64), (1, 4, 64)], ids=str)
@pytest.mark.parametrize("name", BATCH_INDEPENDENT)
def test_bits_of_a_row_are_the_same_alone_and_among_others(
    paged_step: Callable, variant_for: Callable, name: str, shape: tuple
) -> None:
    step = decode_step(paged_step, (150, 1, 300, 17, 129, 2, 64, 100), *shape)
    fn = variant_for(OP, name, step.case())
    together, keys, _ = step.run(fn)
    for row in (0, 2, 4, 7):
        alone, alone_keys, _ = step.alone(row).run(fn)
        assert torch.equal(alone[0], together[row])
        page = int(step.batch.page_table[step.batch.slots[row], step.batch.starts[row] // 16])
        assert torch.equal(alone_keys[page].view(torch.uint8), keys[page].view(torch.uint8))


@pytest.mark.parametrize("name", ["triton", "triton_fused"])
def test_bits_do_not_depend_on_how_many_programs_share_a_row(
    paged_step: Callable, variant_for: Callable, set_to: Callable[..., None], name: str
) -> None:
    step = decode_step(paged_step, (130, 30), 1, 1, 64)  # 9 and 2 splits
    fn = variant_for(OP, name, step.case())
    set_to(split=16, block_n=16, programs=2)  # one for each row
    serial, _, _ = step.run(fn)
    expected, _, _ = step.run(choose(OP, step.case(), "reference").fn)
    torch.testing.assert_close(serial, expected, atol=1e-5, rtol=1e-5)
    for programs in (4, 100):
        set_to(programs=programs)
        assert torch.equal(step.run(fn)[0], serial)


@pytest.mark.skipif(not INSTALLED, reason="triton is not installed")
def test_combines_splits_by_their_weights(device: str) -> None:
    """Of 40 splits, more than are read at a time, the token at position 39 has all and the one at 20 the first 21."""
    random = torch.Generator().manual_seed(0)
    partial, weights = torch.randn(2, 3, 40, 24, generator=random), torch.randn(2, 3, 40, generator=random) * 3
    out = torch.empty(2, 3 * 24, device=device)
    rotary_attention.combine_kernel[(3, 2)](
        partial.to(device), weights.to(device), torch.tensor([39, 20], dtype=torch.int32, device=device), out, 40,
        3, 24, 32, 1, rotary_attention.CHUNK,
    )  # fmt: skip
    weights[1, :, 21:] = -torch.inf
    shares = (weights * math.log(2)).softmax(-1)  # weights are logarithms to base 2
    expected = (shares[..., None] * partial).sum(2).flatten(1)
    torch.testing.assert_close(out.cpu(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", BATCH_INDEPENDENT)
def test_bits_do_not_depend_on_the_bound_of_the_context(paged_step: Callable, variant_for: Callable, name: str) -> None:
    step = decode_step(paged_step, (100, 30), 1, 1, 64)
    fn = variant_for(OP, name, step.case())
    wide = torch.nn.functional.pad(step.batch.page_table, (0, 40), value=-1)
    bounded = replace(step, batch=replace(step.batch, page_table=wide, reach=wide.shape[1] * 16))
    assert torch.equal(bounded.run(fn)[0], step.run(fn)[0])


@pytest.mark.parametrize("name", NAMES)
def test_rows_that_fill_a_bucket_may_share_a_spare_slot(
    paged_step: Callable, variant_for: Callable, name: str, device: str
) -> None:
    step = decode_step(paged_step, (40, 7), 1, 1, 64)
    fn = variant_for(OP, name, step.case())
    spare = next(slot for slot in range(4) if slot not in step.batch.slots.tolist())
    filler = torch.tensor([spare, spare], dtype=torch.int32, device=device)
    batch = replace(
        step.batch, slots=torch.cat((step.batch.slots, filler)), starts=torch.cat((step.batch.starts, filler * 0)),
        offsets=torch.arange(5, dtype=torch.int32, device=device),
    )  # fmt: skip
    filled = replace(step, qkv=torch.cat((step.qkv, step.qkv)), batch=batch)
    out, _, _ = filled.run(fn)
    torch.testing.assert_close(out[:2], step.run(fn)[0])
    assert out.isfinite().all()


@pytest.mark.parametrize("name", ["torch", "sdpa"])
def test_needs_nothing_from_the_device(paged_step: Callable, name: str) -> None:
    """Tensors of the meta device hold no data: whatever asked for some would raise."""
    step = decode_step(paged_step, (20, 3), 1, 4, 64)
    batch = step.batch
    moved = (tensor.to("meta") for tensor in (batch.slots, batch.starts, batch.offsets, batch.page_table))
    on_meta = replace(
        step, qkv=step.qkv.to("meta"), cos_sin=step.cos_sin.to("meta"), keys=step.keys.to("meta"),
        values=step.values.to("meta"), batch=AttentionBatch(*moved, batch.longest, batch.reach),
    )  # fmt: skip
    assert on_meta.run(choose(OP, step.case(), name).fn)[0].shape == (2, 4 * 64)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need CUDA")
@pytest.mark.parametrize("name", ["triton", "triton_fused", "torch", "sdpa"])
def test_one_graph_is_right_for_every_context(paged_step: Callable, variant_for: Callable, name: str) -> None:
    step = decode_step(paged_step, (300, 200), 2, 1, 64)
    fn = variant_for(OP, name, step.case())
    keys, values, out = step.keys.clone(), step.values.clone(), None
    arguments = (step.qkv, step.cos_sin, keys, values, step.batch, step.heads, step.scales)
    fn(*arguments)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = fn(*arguments)
    for starts in ((299, 199), (5, 130), (0, 17)):
        step.batch.starts.copy_(torch.tensor(starts))
        graph.replay()
        torch.testing.assert_close(out, step.run(choose(OP, step.case(), "reference").fn)[0], atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="2 x 2.2 GB of pages, which the interpreter would copy")
def test_pages_beyond_two_to_the_31_elements(paged_step: Callable, variant_for: Callable) -> None:
    step = decode_step(paged_step, (17,), 64, 1, 128, F16, F16)
    pages = 2**31 // step.keys[0].numel() + 3
    keys = torch.zeros((pages, *step.keys.shape[1:]), dtype=F16, device="cuda")
    far = replace(step, keys=keys, values=torch.zeros_like(keys))
    far.batch.page_table[far.batch.slots[0], :2] = torch.tensor([pages - 1, pages - 2], dtype=torch.int32)
    expected, *_ = far.run(choose(OP, far.case(), "reference").fn)
    torch.testing.assert_close(far.run(variant_for(OP, "triton", far.case()))[0], expected, atol=4e-3, rtol=4e-3)


def test_flash_attn_is_asked_for_what_the_reference_computes(paged_step: Callable, flash_attn: None) -> None:
    step = decode_step(paged_step, (300, 256, 257), 2, 4, 64, F16, F16, page=256)
    fn = next(variant.fn for variant in variants(OP) if variant.name == "flash_attn")
    expected, expected_keys, _ = step.run(choose(OP, step.case(), "reference").fn)
    out, keys, _ = step.run(fn)
    torch.testing.assert_close(out, expected, atol=4e-3, rtol=4e-3)
    torch.testing.assert_close(keys, expected_keys, atol=2e-3, rtol=2e-3, equal_nan=True)
    with pytest.raises(ValueError, match="multiple of 256 tokens, got 16"):
        decode_step(paged_step, (3,), 1, 1, 64, F16, F16).run(fn)


@pytest.mark.parametrize(
    ("name", "case", "reason"),
    [
        ("triton", Case("cuda", BF16, (8, 0), cache=F8, head_dim=128), "8.9, got 8.0"),
        ("triton", Case("cuda", BF16, (9, 0), cache=F16, head_dim=128), "float16 with activations of torch.bfloat16"),
        ("triton", Case("cuda", BF16, (9, 0), cache=F8, head_dim=63), "head_dim 63"),
        ("triton", Case("cuda", BF16, (9, 0), cache=F8, head_dim=128), None),
        ("triton", Case("cuda", BF16, (8, 0), cache=BF16, head_dim=96), None),
        ("torch", Case("cpu", F32, cache=BF16, head_dim=64), None),
        ("sdpa", Case("cpu", F16, cache=BF16, head_dim=64), "bfloat16 with activations of torch.float16"),
        ("flash_attn", Case("cuda", BF16, (9, 0), cache=BF16, page_size=16), "multiple of 256 tokens, got 16"),
        ("flash_attn", Case("cuda", BF16, (9, 0), cache=F8, page_size=256), "no fp8"),
        ("flash_attn", Case("cuda", F32, (9, 0), cache=F32, page_size=256), "float16 and bfloat16"),
        ("flash_attn", Case("cuda", BF16, (7, 5), cache=BF16, page_size=256), "8.0, got 7.5"),
        ("flash_attn", Case("cuda", BF16, (9, 0), cache=BF16, page_size=512), None),
    ],
)
def test_says_what_it_does_not_support(flash_attn: None, name: str, case: Case, reason: str | None) -> None:
    found = next(variant for variant in variants(OP) if variant.name == name).supports(case)
    assert found is None if reason is None else reason in (found or "")


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is not None, reason="flash-attn is installed")
def test_flash_attn_says_where_it_is_not_installed() -> None:
    found = next(variant for variant in variants(OP) if variant.name == "flash_attn")
    assert "not installed" in (found.supports(Case("cuda", BF16, (9, 0), cache=BF16, page_size=256)) or "")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda step: {"heads": 3}, "heads must be a multiple of the 2"),
        (lambda step: {"qkv": step.qkv[:, :-1].contiguous()}, "qkv must be"),
        (lambda step: {"cos_sin": step.cos_sin[:, :-2].contiguous()}, "cos_sin must be"),
        (lambda step: {"scales": torch.ones(2, 2)}, "scales go with"),
        (lambda step: {"values": step.values[:, :4]}, "alike"),
        (lambda step: {"keys": step.keys.transpose(0, 1), "values": step.values.transpose(0, 1)}, "contiguous"),
        (lambda step: {"batch": replace(step.batch, reach=1000)}, "reach 1000 is beyond"),
    ],
)
@pytest.mark.parametrize("name", ["triton", "torch", "sdpa"])
def test_arguments_that_do_not_fit(
    paged_step: Callable, variant_for: Callable, name: str, change: Callable, message: str
) -> None:
    step = decode_step(paged_step, (20, 3), 2, 1, 64)
    fn = variant_for(OP, name, step.case())
    with pytest.raises(ValueError, match=message):
        replace(step, **change(step)).run(fn)


def test_decode_takes_one_token_a_row(paged_step: Callable, variant_for: Callable) -> None:
    step = paged_step([4, 9], [2, 1], 1, 1, 64)
    with pytest.raises(ValueError, match="got 3 tokens for 2 rows"):
        step.run(variant_for(OP, "triton", step.case()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slots": torch.zeros(2, dtype=torch.int64)}, "slots must be contiguous int32"),
        ({"starts": torch.zeros(3, dtype=torch.int32)}, "starts must be contiguous int32 of shape"),
        ({"offsets": torch.zeros(2, dtype=torch.int32)}, "offsets must be"),
        ({"page_table": torch.zeros(2, dtype=torch.int32)}, "page_table"),
        ({"longest": 0}, "longest 0"),
        ({"longest": 9}, "longest 9, reach 8"),
    ],
)
def test_a_batch_that_does_not_fit_together(change: dict, message: str) -> None:
    whole = {
        "slots": torch.zeros(2, dtype=torch.int32), "starts": torch.zeros(2, dtype=torch.int32),
        "offsets": torch.arange(3, dtype=torch.int32), "page_table": torch.zeros(2, 4, dtype=torch.int32),
        "longest": 1, "reach": 8,
    }  # fmt: skip
    assert AttentionBatch(**whole).rows == 2
    with pytest.raises(ValueError, match=message):
        AttentionBatch(**whole | change)
