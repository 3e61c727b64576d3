"""The CPU's own variants: right on every instruction set, and bits that depend on no neighbour."""

from collections.abc import Callable, Iterator
from dataclasses import fields

import pytest
import torch
from torch import Tensor

from spiritrt import _C
from spiritrt.kernels import Case, KernelError, choose, cpu, reference
from spiritrt.kernels.attention_batch import AttentionBatch
from spiritrt.kernels.linear_weight import LinearWeight, quantize
from spiritrt.kernels.sampling_state import SamplingState

TARGETS = _C.cpu_targets()
SHAPES = [(1, 37, 19), (3, 16, 16), (7, 33, 65), (17, 256, 130), (41, 20, 64)]  # rows, inner, columns
STORAGES = ["float32", "bfloat16", "int8"]
CACHES = [torch.float32, torch.bfloat16]


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> Iterator[str]:
    _C.set_cpu_target(request.param)
    yield request.param
    _C.set_cpu_target(TARGETS[-1])


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def stored(weight: Tensor, storage: str, bias: Tensor | None = None) -> LinearWeight:
    return (
        quantize(weight, storage, bias)
        if storage == "int8"
        else LinearWeight(weight.to(getattr(torch, storage)), None, bias)
    )


def layer(rows: int, inner: int, columns: int, storage: str, gated: bool) -> dict:
    """Arguments of a call with everything fused."""
    draws, outputs = rng(rows + inner), columns * (2 if gated else 1)
    weight = torch.randn(outputs, inner, generator=draws) / inner**0.5
    return {
        "x": torch.randn(rows, inner, generator=draws),
        "weight": stored(weight, storage, torch.randn(outputs, generator=draws)),
        "norm": (torch.rand(inner, generator=draws) + 0.5, 1e-5),
        "gated": gated,
        "residual": torch.randn(rows, columns, generator=draws),
    }


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize(("rows", "inner", "columns"), SHAPES)
def test_linear_is_the_reference(target: str, rows: int, inner: int, columns: int, storage: str, gated: bool) -> None:
    call = layer(rows, inner, columns, storage, gated)
    torch.testing.assert_close(cpu.linear(**call), reference.linear(**call), atol=2e-5, rtol=2e-5)
    plain = {"x": call["x"], "weight": LinearWeight(call["weight"].data, call["weight"].scales), "gated": gated}
    torch.testing.assert_close(cpu.linear(**plain), reference.linear(**plain), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("storage", STORAGES)
def test_a_row_of_a_linear_layer_has_the_same_bits_in_any_company(target: str, storage: str) -> None:
    """Any split of 41 rows: other row counts, other places, other blocks of registers."""
    call = layer(41, 53, 70, storage, gated=True)
    whole = cpu.linear(**call)
    draws = rng(0)
    for _ in range(8):
        order = torch.randperm(41, generator=draws)
        begin = 0
        while begin < 41:
            size = int(torch.randint(1, 14, (), generator=draws))
            some = order[begin : begin + size]
            part = cpu.linear(**call | {"x": call["x"][some], "residual": call["residual"][some]})
            assert torch.equal(part, whole[some])
            begin += size


@pytest.mark.parametrize("storage", STORAGES)
def test_avx2_and_avx512_give_the_same_bits(storage: str) -> None:
    wide = TARGETS[1:]
    results = []
    for name in wide:
        _C.set_cpu_target(name)
        results.append(cpu.linear(**layer(7, 53, 70, storage, gated=True)))
    assert all(torch.equal(result, results[0]) for result in results)


def test_threads_do_not_change_a_bit(target: str) -> None:
    call = layer(64, 300, 900, "bfloat16", gated=False)
    whole = cpu.linear(**call)
    torch.set_num_threads(2)
    try:
        assert torch.equal(cpu.linear(**call), whole)
    finally:
        torch.set_num_threads(1)


def test_columns_that_no_row_needs_are_not_computed(target: str) -> None:
    call = layer(3, 32, 200, "float32", gated=False)
    needed = torch.tensor([0, 1, 0, 1], dtype=torch.uint8)
    # what is not needed is not even read
    call["weight"].data[:64] = torch.nan
    some = cpu.linear(**call, needed=needed)
    torch.testing.assert_close(some[:, 64:128], reference.linear(**call)[:, 64:128])
    torch.testing.assert_close(some[:, 192:], reference.linear(**call)[:, 192:])


@pytest.mark.parametrize("width", [1, 16, 37, 256])
def test_rms_norm_is_the_reference(target: str, width: int) -> None:
    x, residual = torch.randn(5, width, generator=rng(1)), torch.randn(5, width, generator=rng(2))
    weight = torch.rand(width, generator=rng(3))
    for other in (None, residual):
        for made, wanted in zip(
            cpu.rms_norm(x, weight, 1e-5, other), reference.rms_norm(x, weight, 1e-5, other), strict=True
        ):
            torch.testing.assert_close(made, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_embedding_takes_ids_or_the_last_drawn(dtype: torch.dtype) -> None:
    table, weight = torch.randn(11, 20, generator=rng(1)).to(dtype), torch.rand(20, generator=rng(2))
    ids, slots = torch.tensor([3, -1, 10]), torch.tensor([0, 2, 1], dtype=torch.int32)
    last_ids = torch.tensor([0, 0, 7])
    x, normed = cpu.embed_norm(ids, table, weight, 1e-5, slots, last_ids)
    assert torch.equal(x, table[[3, 7, 10]].float())
    assert torch.equal(cpu.embed(ids, table, slots, last_ids), x)
    torch.testing.assert_close(normed, reference.rms_norm(x, weight, 1e-5)[0])


def pages(cache: torch.dtype, heads: int, dim: int, page: int, lengths: list[int], seed: int = 0) -> dict:
    """Keys and values of slots with `lengths` tokens, with NaN wherever no token lies; room for 60 in each."""
    per_slot = -(-60 // page)
    table = torch.randperm(len(lengths) * per_slot, generator=rng(seed)).int().view(len(lengths), per_slot)
    made = {"page_table": table}
    for name in ("keys", "values"):
        content = torch.full((table.numel(), page, heads, dim), torch.nan).to(cache)
        for slot, length in enumerate(lengths):
            for t in range(length):
                drawn = torch.randn(heads, dim, generator=rng(seed + 1000 * slot + 2 * t + (name == "keys")))
                content[int(table[slot, t // page]), t % page] = drawn.to(cache)
        made[name] = content
    return made


def batch(table: Tensor, slots: list[int], starts: list[int], counts: list[int]) -> AttentionBatch:
    offsets = torch.tensor([0, *counts]).cumsum(0).int()
    reach = max(s + n for s, n in zip(starts, counts, strict=True))
    return AttentionBatch(
        torch.tensor(slots, dtype=torch.int32),
        torch.tensor(starts, dtype=torch.int32),
        offsets,
        table,
        max(counts),
        reach,
    )


def attend(
    fn: Callable, qkv: Tensor, cos_sin: Tensor, held: dict, rows: AttentionBatch, heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, and pages afterwards."""
    keys, values = held["keys"].clone(), held["values"].clone()
    return fn(qkv, cos_sin, keys, values, rows, heads), keys, values


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "page"), [(4, 4, 64, 16), (6, 2, 10, 3), (3, 1, 96, 16), (8, 1, 34, 32)]
)
def test_attention_is_the_reference(
    target: str, heads: int, kv_heads: int, dim: int, page: int, cache: torch.dtype
) -> None:
    lengths = [0, 33, 7]
    held = pages(cache, kv_heads, dim, page, lengths)
    rows = batch(held["page_table"], [2, 0, 1], [7, 0, 33], [1, 19, 6])
    cos_sin = torch.randn(60, dim, generator=rng(5))
    qkv = torch.randn(26, (heads + 2 * kv_heads) * dim, generator=rng(6))
    made = attend(cpu.rotary_attention, qkv, cos_sin, held, rows, heads)
    wanted = attend(reference.rotary_prefill, qkv, cos_sin, held, rows, heads)
    torch.testing.assert_close(made[0], wanted[0], atol=1e-5, rtol=1e-5)
    for own, other in zip(made[1:], wanted[1:], strict=True):
        close = {"atol": 0.02, "rtol": 0.01} if cache == torch.bfloat16 else {}
        torch.testing.assert_close(own, other, equal_nan=True, **close)


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize(("heads", "kv_heads", "dim", "page"), [(4, 4, 64, 16), (6, 2, 10, 3)])
def test_a_token_attends_with_the_same_bits_alone_in_a_prefill_and_beside_others(
    target: str, heads: int, kv_heads: int, dim: int, page: int, cache: torch.dtype
) -> None:
    held = pages(cache, kv_heads, dim, page, [5, 5])
    cos_sin = torch.randn(60, dim, generator=rng(5))
    qkv = torch.randn(45, (heads + 2 * kv_heads) * dim, generator=rng(6))
    whole = attend(cpu.rotary_attention, qkv, cos_sin, held, batch(held["page_table"], [0], [5], [45]), heads)[0]
    # the same tokens in pieces, each beside a row of the other slot
    keys, values, begin = held["keys"].clone(), held["values"].clone(), 0
    for size in (1, 1, 2, 7, 1, 16, 3, 1, 12, 1):
        other = torch.randn(2, qkv.shape[1], generator=rng(begin))
        rows = batch(held["page_table"], [1, 0], [5, 5 + begin], [2, size])
        out = cpu.rotary_attention(torch.cat((other, qkv[begin : begin + size])), cos_sin, keys, values, rows, heads)
        assert torch.equal(out[2:], whole[begin : begin + size])
        begin += size
    assert begin == 45


@pytest.mark.parametrize("cache", CACHES)
def test_shift_rotary_is_the_reference(target: str, cache: torch.dtype) -> None:
    keys, values = (torch.randn(2, 5, 3, 2, 10, generator=rng(s)).to(cache) for s in (1, 2))
    own = [keys.clone(), values.clone()]
    source, target_places = torch.tensor([7, 6, 8, 0]), torch.tensor([13, 9, 14, 10])
    inv_freq = torch.rand(5, generator=rng(3))
    reference.shift_rotary(keys, values, source, target_places, -11, inv_freq)
    cpu.shift_rotary(*own, source, target_places, -11, inv_freq)
    torch.testing.assert_close(own[0], keys, **({"atol": 0.02, "rtol": 0.01} if cache == torch.bfloat16 else {}))
    assert torch.equal(own[1], values)


def test_sampling_draws_what_the_reference_draws(target: str) -> None:
    """Every filter, at 40 positions; half of the slots may draw some ids alone, whose other logits are NaN."""
    vocab = 333
    rules: list[dict] = [
        {},
        {"temperature": 1.0},
        {"temperature": 0.8, "top_p": 0.9},
        {"temperature": 1.5, "top_k": 9},
        {"temperature": 1.0, "min_p": 0.05, "penalty": 1.4, "full": True},
        {"temperature": 0.7, "top_k": 50, "top_p": 0.5},
    ]
    logits = torch.randn(len(rules), vocab, generator=rng(1)) * 3
    states = [SamplingState.new(len(rules), vocab, masks=2) for _ in range(2)]
    allowed = torch.rand(vocab, generator=rng(2)) < 0.5
    for slot, rule in enumerate(rules):
        for state in states:
            state.set_mask(1, allowed)
            state.set_slot(slot, mask=slot % 2, seed=2**63 + slot, **rule)
        if slot % 2 and not rule.get("full"):
            logits[slot, ~allowed] = torch.nan
    slots = torch.tensor([5, 4, -1, 3, 2, 1, 0], dtype=torch.int32)
    raw = logits[slots.long().clamp(min=0)].contiguous()
    for position in range(40):
        positions = torch.full((len(slots),), 2**33 + position)
        ids, logprobs = cpu.sampling(raw, states[0], slots, positions)
        wanted, wanted_logprobs = reference.sampling(raw, states[1], slots, positions)
        assert torch.equal(ids, wanted)
        torch.testing.assert_close(logprobs, wanted_logprobs)
    assert all(torch.equal(getattr(states[0], f.name), getattr(states[1], f.name)) for f in fields(SamplingState))


ONE, ROW = torch.zeros(1, 4), LinearWeight(torch.zeros(2, 4))


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("x must be contiguous Float with 2 dim", lambda: cpu.linear(ONE.bfloat16(), ROW)),
        ("x is 3 wide", lambda: cpu.linear(torch.zeros(1, 3), ROW)),
        ("weights on the CPU must be", lambda: cpu.linear(ONE, LinearWeight(torch.zeros(2, 4).half()))),
        ("as many rows each, got 3", lambda: cpu.linear(ONE, LinearWeight(torch.zeros(3, 4)), gated=True)),
        ("residual must be", lambda: cpu.linear(ONE, ROW, residual=ONE)),
        ("needed must be", lambda: cpu.linear(ONE, ROW, needed=torch.zeros(2, dtype=torch.uint8))),
        ("ids must be from 0 to 4, got 5", lambda: cpu.embed(torch.tensor([5]), torch.zeros(5, 2))),
        ("ids must be from 0 to 4, got -1", lambda: cpu.embed(torch.tensor([-1]), torch.zeros(5, 2))),
        ("this machine runs", lambda: _C.set_cpu_target("sse9")),
    ],
)
def test_errors_say_what_was_wrong(message: str, call: Callable[[], Tensor]) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("start", "page", "message"), [(59, 0, "beyond"), (0, 999, "page 1 must be from 0 to"), (-1, 0, "from position -1")]
)
def test_a_row_that_does_not_fit_writes_nothing(start: int, page: int, message: str) -> None:
    held = pages(torch.float32, 1, 16, 16, [0, 0])
    held["page_table"][1, 1] = page
    rows = AttentionBatch(torch.tensor([0, 1], dtype=torch.int32), torch.tensor([0, start], dtype=torch.int32),
                          torch.tensor([0, 2, 22], dtype=torch.int32), held["page_table"], 20, 20)  # fmt: skip
    with pytest.raises(ValueError, match=message):
        cpu.rotary_attention(torch.zeros(22, 48), torch.zeros(64, 16), held["keys"], held["values"], rows, 1)
    assert bool(held["keys"].isnan().all()) and bool(held["values"].isnan().all())


def test_the_registry_says_why_it_cannot() -> None:
    for op, case, reason in (
        ("linear", Case("cuda", torch.bfloat16), "runs on the CPU only"),
        ("rms_norm", Case("cpu", torch.bfloat16), "activations on the CPU are float32"),
        ("linear", Case("cpu", torch.float32, weights=torch.float8_e4m3fn), "weights must be"),
        ("rotary_attention", Case("cpu", torch.float32, cache=torch.float16), "keys and values must be"),
        ("rotary_prefill", Case("cpu", torch.float32, head_dim=63), "odd"),
    ):
        with pytest.raises(KernelError, match=reason):
            choose(op, case, "cpu")
    assert choose("linear", Case("cpu", torch.float32, weights=torch.int8)).name == "cpu"
