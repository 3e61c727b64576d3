"""Attention of rows with several new tokens: every variant against the reference, and against one token at a time."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from spiritrt.kernels import choose, rotary_prefill, variants
from spiritrt.kernels.attention_batch import AttentionBatch

OP = "rotary_prefill"
NAMES = [variant.name for variant in variants(OP) if variant.name != "reference"]
BATCH_INDEPENDENT = [name for name in NAMES if name in ("triton", "cpu")]
F32, F16, BF16, F8 = torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn
SHAPES = [  # tokens held, new tokens, key-value heads, query heads to each, head_dim, activations, cache
    ((0,), (1,), 1, 1, 64, F32, F32),
    ((0,), (17,), 2, 1, 64, F32, F32),
    ((240,), (17,), 1, 4, 64, F16, F16),
    ((15, 16, 0), (1, 16, 3), 1, 4, 96, F32, F32),
    ((1, 99, 0), (70, 2, 17), 1, 1, 128, F16, F16),
    ((5, 64, 20), (3, 1, 2), 2, 1, 64, F32, F32),
    ((30, 0, 100), (20, 15, 1), 2, 2, 64, F32, F8),
    ((30, 3), (1, 33), 1, 3, 80, F16, F8),
    ((3, 250), (17, 7), 1, 1, 96, F32, BF16),
    (tuple(range(17)), (1, 2, 3) * 5 + (1, 20), 1, 1, 64, F32, F32),
]
CUDA_SHAPES = [
    ((1000, 0, 700), (128, 300, 1), 32, 1, 128, BF16, BF16),
    ((1000, 0, 700), (16, 128, 1), 8, 4, 128, BF16, F8),
]
TOLERANCE = {F32: 1e-5, F16: 4e-3, BF16: 3e-2}


@pytest.fixture
def short_splits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Splits of 32 positions, so that a short context has several."""
    monkeypatch.setitem(rotary_prefill.DEFAULTS, "split", 32)
    rotary_prefill.settings.cache_clear()
    yield
    rotary_prefill.settings.cache_clear()


def assert_equal_steps(step, fn: Callable[..., Tensor]) -> None:
    """Output, keys and values of a variant are the reference's."""
    expected, *expected_pages = step.run(choose(OP, step.case(), "reference").fn)
    out, *pages = step.run(fn)
    assert out.dtype == step.qkv.dtype and out.shape == expected.shape
    # a key or value that rounds to the neighbouring fp8 number, 6% away, moves the output by this much at most
    close = max(TOLERANCE[out.dtype], 2e-2 if step.keys.dtype == F8 else 0.0)
    torch.testing.assert_close(out.float(), expected.float(), atol=close, rtol=close)
    stored = {F32: 1e-5, F16: 2e-3, BF16: 1e-2, F8: 0.13}[step.keys.dtype]
    for now, then in zip(pages, expected_pages, strict=True):
        torch.testing.assert_close(now.float(), then.float(), atol=stored * 1e-2, rtol=stored, equal_nan=True)


@pytest.mark.parametrize("shape", [*SHAPES, *(CUDA_SHAPES if torch.cuda.is_available() else ())], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_equals_the_reference(paged_step: Callable, variant_for: Callable, name: str, shape: tuple) -> None:
    step = paged_step(*shape)
    assert_equal_steps(step, variant_for(OP, name, step.case()))


@pytest.mark.parametrize("group", [1, 4])
def test_equals_the_reference_over_several_splits(
    paged_step: Callable, variant_for: Callable, short_splits: None, group: int
) -> None:
    step = paged_step((60, 31, 0), (20, 2, 33), 1, group, 64)
    assert_equal_steps(step, variant_for(OP, "triton", step.case()))


@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize("name", BATCH_INDEPENDENT)
def test_bits_of_a_row_are_the_same_alone_and_among_others(
    paged_step: Callable, variant_for: Callable, short_splits: None, name: str, group: int
) -> None:
    step = paged_step((60, 0, 31, 5, 90, 2, 17, 40), (2, 1, 18, 1, 1, 4, 2, 1), 1, group, 64)
    fn = variant_for(OP, name, step.case())
    together, keys, _ = step.run(fn)
    offsets = step.batch.offsets.tolist()
    for row in (0, 2, 4, 5):
        alone, alone_keys, _ = step.alone(row).run(fn)
        assert torch.equal(alone, together[offsets[row] : offsets[row + 1]])
        page = int(step.batch.page_table[step.batch.slots[row], step.batch.starts[row] // 16])
        assert torch.equal(alone_keys[page].view(torch.uint8), keys[page].view(torch.uint8))


@pytest.mark.parametrize("name", BATCH_INDEPENDENT)
def test_bits_do_not_depend_on_the_bounds(paged_step: Callable, variant_for: Callable, name: str) -> None:
    step = paged_step((20, 3), (5, 2), 1, 1, 64)
    fn = variant_for(OP, name, step.case())
    wide = torch.nn.functional.pad(step.batch.page_table, (0, 40), value=-1)
    bounded = replace(step, batch=replace(step.batch, page_table=wide, longest=40, reach=wide.shape[1] * 16))
    assert torch.equal(bounded.run(fn)[0], step.run(fn)[0])


@pytest.mark.parametrize("cache", [F32, F8])
@pytest.mark.parametrize("name", NAMES)
def test_pieces_give_what_the_whole_gives(
    paged_step: Callable, variant_for: Callable, name: str, cache: torch.dtype
) -> None:
    """21 tokens at once, or 16, then 4, then one by decode: the same outputs over the same pages."""
    step = paged_step((10,), (21,), 1, 2, 64, cache=cache)
    prefill, decode = variant_for(OP, name, step.case()), variant_for("rotary_attention", name, step.case())
    whole, whole_keys, _ = step.run(prefill)
    keys, values, pieces = step.keys.clone(), step.values.clone(), []
    for first, last, fn in ((0, 16, prefill), (16, 20, prefill), (20, 21, decode)):
        ends = step.batch.offsets.clamp(max=last - first)
        piece = replace(step.batch, starts=step.batch.starts + first, offsets=ends)
        pieces.append(fn(step.qkv[first:last], step.cos_sin, keys, values, piece, step.heads, step.scales))
    torch.testing.assert_close(torch.cat(pieces), whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(keys.float(), whole_keys.float(), equal_nan=True)


@pytest.mark.parametrize("cache", [F32, F8])
@pytest.mark.parametrize("name", NAMES)
def test_writes_the_new_tokens_and_nothing_else(
    paged_step: Callable, variant_for: Callable, name: str, cache: torch.dtype
) -> None:
    step = paged_step((5, 16, 30), (3, 1, 20), 2, 1, 64, cache=cache)
    _, *after = step.run(variant_for(OP, name, step.case()))
    batch, written = step.batch, set()
    counts = batch.offsets.diff().tolist()
    for slot, start, count in zip(batch.slots.tolist(), batch.starts.tolist(), counts, strict=True):
        written |= {(int(batch.page_table[slot, at // 16]), at % 16) for at in range(start, start + count)}
    for before, now in zip((step.keys, step.values), after, strict=True):
        changed = (before.view(torch.uint8) != now.view(torch.uint8)).flatten(2).any(-1).nonzero()
        assert {tuple(place) for place in changed.tolist()} == written


@pytest.mark.parametrize("name", ["torch", "sdpa"])
def test_needs_nothing_from_the_device(paged_step: Callable, name: str) -> None:
    """Tensors of the meta device hold no data: whatever asked for some would raise."""
    step = paged_step((20, 3), (2, 5), 1, 4, 64)
    batch = step.batch
    moved = (tensor.to("meta") for tensor in (batch.slots, batch.starts, batch.offsets, batch.page_table))
    on_meta = replace(
        step, qkv=step.qkv.to("meta"), cos_sin=step.cos_sin.to("meta"), keys=step.keys.to("meta"),
        values=step.values.to("meta"), batch=AttentionBatch(*moved, batch.longest, batch.reach),
    )  # fmt: skip
    assert on_meta.run(choose(OP, step.case(), name).fn)[0].shape == (7, 4 * 64)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need CUDA")
@pytest.mark.parametrize("name", ["triton", "torch", "sdpa"])
def test_one_graph_is_right_for_every_context(paged_step: Callable, variant_for: Callable, name: str) -> None:
    step = paged_step((600, 200), (20, 3), 2, 1, 64)
    fn = variant_for(OP, name, step.case())
    arguments = (step.qkv, step.cos_sin, step.keys.clone(), step.values.clone(), step.batch, step.heads, step.scales)
    fn(*arguments)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = fn(*arguments)
    for starts, ends in (((600, 200), (20, 23)), ((5, 130), (20, 23)), ((0, 17), (3, 23))):
        step.batch.starts.copy_(torch.tensor(starts))
        step.batch.offsets[1:].copy_(torch.tensor(ends))
        graph.replay()
        torch.testing.assert_close(out, step.run(choose(OP, step.case(), "reference").fn)[0], atol=1e-5, rtol=1e-5)


def test_flash_attn_is_asked_for_what_the_reference_computes(paged_step: Callable, flash_attn: None) -> None:
    step = paged_step((300, 0, 255), (3, 20, 2), 2, 4, 64, F16, F16, page=256)
    fn = next(variant.fn for variant in variants(OP) if variant.name == "flash_attn")
    assert_equal_steps(step, fn)
    with pytest.raises(ValueError, match="multiple of 256 tokens, got 16"):
        paged_step((3,), (2,), 1, 1, 64, F16, F16).run(fn)


@pytest.mark.parametrize("name", ["triton", "torch", "sdpa"])
def test_arguments_that_do_not_fit(paged_step: Callable, variant_for: Callable, name: str) -> None:
    step = paged_step((20, 3), (2, 5), 2, 1, 64)
    fn = variant_for(OP, name, step.case())
    for change, message in (
        ({"heads": 5}, "heads must be a multiple of the 2 key-value heads, got 5"),
        ({"scales": torch.ones(2, 2)}, "scales go with"),
        ({"batch": replace(step.batch, reach=1000)}, "reach 1000 is beyond"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(step, **change).run(fn)
