"""One draw by what a user sets. The rule itself, and its distribution, are tested in `kernels/test_sampling.py`."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spiritrt.kernels import choose
from spiritrt.kernels.registry import Case
from spiritrt.kernels.sampling_state import SamplingState
from spiritrt.sampling import GREEDY, Sampling, sample

LOGITS = torch.tensor([2.0, 1.5, 1.4, 0.9, 0.0, -0.3, -1.0, -2.5, 3.0, 2.9])
BANNED = (8, 9)  # the two most likely
ALLOWED = torch.ones(10, dtype=torch.bool).index_fill(0, torch.tensor(BANNED), False)


class TestDeterminism:
    @given(seed=st.integers(0, 2**64 - 1), position=st.integers(0, 10**6))
    def test_same_seed_and_position_same_token(self, seed, position):
        rule = Sampling(temperature=1.0, top_p=0.9, seed=seed)
        first = sample(LOGITS, ALLOWED, rule, position)
        torch.rand(3)  # no generator is shared
        assert sample(LOGITS.clone(), ALLOWED, rule, position) == first

    def test_seeds_and_positions_matter(self):
        rule = Sampling(temperature=1.0, top_p=1.0)
        by_position = [sample(LOGITS, ALLOWED, rule, position) for position in range(50)]
        by_seed = [sample(LOGITS, ALLOWED, Sampling(1.0, 1.0, seed=seed), 0) for seed in range(50)]
        assert len(set(by_position)) > 3 and len(set(by_seed)) > 3

    def test_an_engine_draws_the_same(self):
        """`sample` and the kernel that runs on this machine follow one rule."""
        rule = Sampling(temperature=1.1, top_p=0.9, top_k=6, min_p=0.02, seed=2**64 - 5)
        state = SamplingState.new(200, 10)
        state.set_mask(0, ALLOWED)
        for slot in range(200):
            state.set_slot(slot, 0, rule.seed, rule.temperature, rule.top_k, rule.top_p, rule.min_p)
        kernel = choose("sampling", Case("cpu", torch.float32)).fn
        drawn, _ = kernel(LOGITS.repeat(200, 1), state, torch.arange(200, dtype=torch.int32), torch.arange(200))
        assert drawn.tolist() == [sample(LOGITS, ALLOWED, rule, position) for position in range(200)]


class TestMask:
    @given(
        logits=st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=30),
        rule=st.builds(
            Sampling,
            temperature=st.one_of(st.just(0.0), st.floats(1e-300, 5)),
            top_p=st.floats(0.01, 1),
            top_k=st.integers(0, 5),
            min_p=st.floats(0, 0.9),
            repetition_penalty=st.floats(0.5, 3),
            seed=st.integers(0, 2**64 - 1),
        ),
        data=st.data(),
    )
    def test_banned_ids_are_never_drawn(self, logits, rule, data):
        allowed = data.draw(st.lists(st.booleans(), min_size=len(logits), max_size=len(logits)).filter(any))
        used = torch.tensor(data.draw(st.lists(st.integers(0, len(logits) - 1), unique=True)), dtype=torch.long)
        position = data.draw(st.integers(0, 10**6))
        assert allowed[sample(torch.tensor(logits), torch.tensor(allowed), rule, position, used)]

    def test_one_allowed_id(self):
        only = torch.zeros(10, dtype=torch.bool).index_fill(0, torch.tensor([7]), True)
        assert {sample(LOGITS, only, Sampling(temperature=2.0), position) for position in range(20)} == {7}
        assert sample(LOGITS, only, GREEDY, 0) == 7


class TestGreedy:
    def test_takes_the_most_likely_allowed_id(self):
        assert sample(LOGITS, ALLOWED, GREEDY, 0) == 0
        assert sample(LOGITS, torch.ones_like(ALLOWED), GREEDY, 5) == 8

    @pytest.mark.parametrize("temperature", [1e-4, 1e-20, 1e-38, 1e-45, 1e-300])
    def test_a_tiny_temperature_is_as_good_as_greedy(self, temperature):
        rule = Sampling(temperature=temperature, top_p=1.0)
        assert {sample(LOGITS, ALLOWED, rule, position) for position in range(20)} == {0}

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_takes_logits_of_any_precision(self, dtype):
        assert sample(LOGITS.to(dtype), ALLOWED, GREEDY, 0) == 0
        assert sample(LOGITS.to(dtype), ALLOWED, Sampling(top_k=1), 0) == 0


class TestRepetitionPenalty:
    def test_divides_positive_and_multiplies_negative_logits(self):
        logits, allowed = torch.tensor([2.0, -1.0, 1.1, -1.9]), torch.ones(4, dtype=torch.bool)
        used = torch.tensor([0, 1])
        rule = Sampling(temperature=1.0, top_p=1.0, repetition_penalty=2.0, seed=3)
        same = Sampling(temperature=1.0, top_p=1.0, seed=3)
        penalised = torch.tensor([1.0, -2.0, 1.1, -1.9])
        for position in range(200):
            assert sample(logits, allowed, rule, position, used) == sample(penalised, allowed, same, position)

    def test_moves_greedy_on(self):
        rule = Sampling(temperature=0.0, repetition_penalty=1.5)
        assert sample(LOGITS, ALLOWED, rule, 0, torch.tensor([0])) == 1
        assert sample(LOGITS, ALLOWED, rule, 0, torch.tensor([], dtype=torch.long)) == 0
        assert sample(LOGITS, ALLOWED, rule, 0) == 0

    def test_leaves_the_logits_as_they_were(self):
        logits = LOGITS.clone()
        sample(logits, ALLOWED, Sampling(repetition_penalty=3.0), 0, torch.tensor([0, 4]))
        assert torch.equal(logits, LOGITS)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -0.1}, r"temperature must be 0 \(greedy\) or more, got -0.1"),
        ({"temperature": float("nan")}, "temperature must be .* got nan"),
        ({"temperature": float("inf")}, "temperature must be .* got inf"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, got 0.0"),
        ({"top_p": 1.1}, "top_p must be above 0 and at most 1, got 1.1"),
        ({"top_k": -1}, r"top_k must be 0 \(off\) or more, got -1"),
        ({"min_p": 1.0}, "min_p must be from 0 to below 1, got 1.0"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be above 0, got 0.0"),
        ({"seed": -1}, r"seed must be from 0 to 2\*\*64 - 1, got -1"),
        ({"seed": 2**64}, "seed must be from 0"),
        ({"seed": "a"}, "seed must be a whole number, got 'a'"),
        ({"top_k": 1.5}, "top_k must be a whole number, got 1.5"),
        ({"temperature": "hot"}, "temperature must be a number, got 'hot'"),
        ({"top_p": None}, "top_p must be a number, got None"),
    ],
)
def test_impossible_values_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**values)
