"""Every variant of sampling: the reference's ids, exact distributions, and bits that depend on nothing else."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from spiritrt.kernels import Case, variants
from spiritrt.kernels import sampling as sampling_file
from spiritrt.kernels.language import tl, triton
from spiritrt.kernels.noise import gumbel, philox
from spiritrt.kernels.sampling_state import SamplingState, pack, signed, unpack

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CASE = Case(DEVICE, torch.float32, torch.cuda.get_device_capability() if DEVICE == "cuda" else None)
VARIANTS = {v.name: v.fn for v in variants("sampling") if v.supports(CASE) is None}
FAST = [name for name in VARIANTS if name != "reference" and (name != "triton" or DEVICE == "cuda")]
OTHERS = [name for name in VARIANTS if name != "reference"]
RULES = {
    "greedy": {},
    "plain": {"temperature": 1.0},
    "tiny temperature": {"temperature": 1e-38},
    "top-p": {"temperature": 0.8, "top_p": 0.7},
    "little top-p": {"temperature": 2.0, "top_p": 0.05},
    "top-k": {"temperature": 0.9, "top_k": 3},
    "top-k of more than there are": {"temperature": 0.9, "top_k": 40_000, "top_p": 0.9},
    "top-k, top-p": {"temperature": 1.2, "top_k": 7, "top_p": 0.6},
    "min-p": {"temperature": 0.9, "min_p": 0.1},
    "all": {"temperature": 1.0, "top_p": 0.9, "min_p": 0.02, "top_k": 20, "penalty": 1.7},
    "greedy, penalty": {"penalty": 3.0, "full": True},
}
CHI_SQUARED_999 = (0, 10.828, 13.816, 16.266, 18.467, 20.515, 22.458, 24.322)  # 99.9% quantiles by degrees of freedom


def test_the_variants_that_must_run_here_do():
    assert set(VARIANTS) >= {"reference", "torch", "triton"} | ({"cpu"} if DEVICE == "cpu" else set())


def make(vocab: int, rules: list[dict], seed: int = 0, steps: float = 0.0) -> tuple[Tensor, SamplingState]:
    """Random logits [R, V] and a state of R slots; masks 0 (all) and 1 (some).

    Columns that need not be read hold NaN. Logits are multiples of `steps` if that is not 0, so that many are equal.
    """
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(rules), vocab, generator=rng) * 3
    logits = (logits / steps).round() * steps if steps else logits
    state = SamplingState.new(len(rules), vocab, masks=2)
    allowed = torch.rand(vocab, generator=rng) < 0.6
    allowed[vocab // 2] = True
    state.set_mask(1, allowed)
    state.seen.copy_(pack(torch.rand(len(rules), vocab, generator=rng) < 0.3))
    for slot, rule in enumerate(rules):
        state.set_slot(slot, **{"mask": slot % 2, "seed": 2**64 - 1 - 977 * slot} | rule)
        if slot % 2 and not rule.get("full"):
            logits[slot, ~allowed] = torch.nan
    return logits, state


def run(name: str, logits: Tensor, state: SamplingState, slots: Tensor, positions: Tensor) -> dict[str, Tensor]:
    """A variant's results, and what it leaves in a state of its own."""
    own = SamplingState(**{f.name: getattr(state, f.name).clone().to(DEVICE) for f in fields(state)})
    ids, logprobs = VARIANTS[name](
        logits.to(DEVICE).contiguous(), own, slots.to(DEVICE, torch.int32), positions.to(DEVICE, torch.int64)
    )
    made = {"ids": ids, "logprobs": logprobs, "seen": own.seen, "last_ids": own.last_ids}
    return {key: value.cpu() for key, value in made.items()}


def assert_as_the_reference(name: str, logits: Tensor, state: SamplingState, slots: Tensor, positions: Tensor) -> None:
    expected, given = (run(variant, logits, state, slots, positions) for variant in ("reference", name))
    for key in ("ids", "seen", "last_ids"):
        assert torch.equal(given[key], expected[key]), key
    torch.testing.assert_close(given["logprobs"], expected["logprobs"], atol=5e-6, rtol=1e-5)


@pytest.fixture(scope="module")
def near_ties() -> tuple[Tensor, Tensor]:
    """Four positions at which, of four ids under seed 5, the two best noises nearly tie; and the ids that win."""
    noise = gumbel(torch.tensor(5), torch.arange(200_000)[:, None], torch.arange(4))
    first, second = noise.topk(2).values.unbind(1)
    nearest = (first - second).argsort()[:4]
    assert (first - second)[nearest].max() < 2.0**-15
    return nearest, noise[nearest].argmax(1)


@pytest.mark.parametrize("name", OTHERS)
class TestAgreement:
    @pytest.mark.parametrize("vocab", [1, 3, 33, 257])
    def test_ids_are_the_references(self, name, vocab, monkeypatch):
        """Also over several blocks, with equal logits at a filter's edge, at positions beyond 32 bits."""
        monkeypatch.setitem(sampling_file.DEFAULTS, "BLOCK", 128)
        logits, state = make(vocab, list(RULES.values()), seed=vocab, steps=0.5 if vocab == 257 else 0.0)
        slots = torch.randperm(len(RULES), generator=torch.Generator().manual_seed(1))
        assert_as_the_reference(name, logits[slots], state, slots, 2**32 * (slots % 3) + 7 * slots)

    @pytest.mark.parametrize("scale", [0.01, 4.0])
    def test_at_the_size_of_a_real_vocabulary(self, name, scale):
        """Flat, where most first draws fail a filter, and peaked."""
        rules = [RULES["little top-p"], {"temperature": 1.1, "top_p": 0.9, "min_p": 1e-3, "full": True}]
        logits, state = make(32_512 - 1, rules)
        assert_as_the_reference(name, logits * scale, state, torch.arange(2), torch.tensor([141, 2**40]))

    def test_winners_by_the_last_bits(self, name, near_ties):
        """Where the noise of two ids is nearly equal only exact noise says which one wins."""
        positions, winners = near_ties
        state = SamplingState.new(4, 4)
        for slot in range(4):
            state.set_slot(slot, seed=5, temperature=1.0)
        given = run(name, torch.zeros(4, 4), state, torch.arange(4), positions)
        assert torch.equal(given["ids"], winners)

    def test_padding_rows_write_nothing(self, name):
        logits, state = make(33, [RULES["plain"], RULES["all"], {}])
        given = run(name, logits, state, torch.tensor([-1, 1, -1]), torch.tensor([4, 5, 6]))
        assert given["ids"][[0, 2]].tolist() == [0, 0] and given["logprobs"][[0, 2]].tolist() == [0, 0]
        assert given["last_ids"].tolist() == [0, int(given["ids"][1]), 0]
        assert torch.equal(given["seen"][[0, 2]], state.seen[[0, 2]])
        assert not torch.equal(given["seen"][1], state.seen[1]) or bool(unpack(state.seen[1], 33)[given["ids"][1]])

    def test_no_rows(self, name):
        _, state = make(5, [{}])
        given = run(name, torch.zeros(0, 5), state, torch.zeros(0), torch.zeros(0))
        assert given["ids"].shape == given["logprobs"].shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", [name for name in OTHERS if name != "cpu"])  # whose activations are float32
def test_logits_of_any_precision(name, dtype):
    logits, state = make(65, [RULES["plain"], RULES["all"]])
    assert_as_the_reference(name, logits.to(dtype), state, torch.arange(2), torch.arange(2))


@pytest.mark.parametrize("name", list(VARIANTS))
class TestRule:
    def test_a_row_has_the_same_bits_alone_and_among_others(self, name):
        rules = [RULES[key] for key in ("plain", "top-p", "top-k, top-p", "all", "greedy, penalty", "min-p")] * 2
        logits, state = make(77, rules[:8])
        slots, positions = torch.arange(8), torch.arange(8) + 90
        together = run(name, logits, state, slots, positions)
        for row in (0, 3, 7):
            alone = run(name, logits[row : row + 1], state, slots[row : row + 1], positions[row : row + 1])
            assert alone["ids"][0] == together["ids"][row]
            assert alone["logprobs"].numpy().tobytes() == together["logprobs"][row : row + 1].numpy().tobytes()

    def test_equal_scores_stay_together_and_greedy_takes_the_lowest(self, name):
        """top-k 1 of two equals keeps both; a top-p that one of them would fill, too."""
        logits = torch.tensor([0.0, 2.0, -1.0, 2.0, 1.0]).repeat(16, 1)
        state = SamplingState.new(16, 5)
        for slot in range(16):
            state.set_slot(slot, seed=slot, temperature=1.0, **({"top_k": 1} if slot < 8 else {"top_p": 0.3}))
        given = run(name, logits, state, torch.arange(16), torch.zeros(16))
        assert set(given["ids"][:8].tolist()) == set(given["ids"][8:].tolist()) == {1, 3}
        assert run(name, logits[:1], SamplingState.new(1, 5), torch.arange(1), torch.zeros(1))["ids"].tolist() == [1]

    def test_penalty_divides_positive_and_multiplies_negative_logits_of_what_was_drawn(self, name):
        logits = torch.tensor([[3.0, 2.0, -1.0, -1.5]])
        state = SamplingState.new(1, 4)
        state.set_slot(0, penalty=2.0)
        drawn = []
        for position in range(3):
            given = run(name, logits, state, torch.arange(1), torch.tensor([position]))
            state = replace(state, seen=given["seen"], last_ids=given["last_ids"])
            drawn.append(int(given["ids"]))
            assert unpack(state.seen[0], 4).nonzero()[:, 0].tolist() == sorted(set(drawn))
            assert state.last_ids.tolist() == drawn[-1:]
        assert drawn == [0, 1, 0]  # 3 halves to 1.5, below 2, which halves to 1
        state.set_mask(0, torch.tensor([False, False, True, True]))
        state.seen.copy_(pack(torch.tensor([[False, False, True, False]])))
        assert run(name, logits, state, torch.arange(1), torch.tensor([9]))["ids"].tolist() == [3]  # -2 is below -1.5

    def test_logprobs_are_of_the_raw_logits(self, name):
        logits, state = make(50, [RULES["all"] | {"mask": 1}, RULES["all"] | {"mask": 1, "full": True}])
        logits = logits.nan_to_num(0.3)
        given = run(name, logits, state, torch.arange(2), torch.arange(2))
        allowed = unpack(state.masks[1], 50)
        for row, counted in enumerate((logits[0].masked_fill(~allowed, -torch.inf), logits[1])):
            expected = counted.log_softmax(0)[given["ids"][row]]
            torch.testing.assert_close(given["logprobs"][row], expected, atol=5e-6, rtol=1e-5)


LOGITS = torch.tensor([2.0, 1.5, 1.4, 0.9, 0.0, -0.3, -1.0, -2.5, 3.0, 2.9])
ALLOWED = torch.ones(10, dtype=torch.bool).index_fill(0, torch.tensor([8, 9]), False)  # without the most likely two


def exact(
    temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0, penalty: float = 1.0
) -> np.ndarray:
    """Probability of each allowed id, by the definitions, in float64; ids 0 and 5 were seen."""
    scores = LOGITS.double().numpy().copy()
    scores[[0, 5]] = np.where(scores[[0, 5]] > 0, scores[[0, 5]] / penalty, scores[[0, 5]] * penalty)
    scores = np.where(ALLOWED.numpy(), scores / temperature, -np.inf)
    mass = np.exp(scores - scores.max())
    likeliest = mass.max()
    order = np.argsort(-mass, kind="stable")
    if top_k:
        mass[order[top_k:]] = 0
    before = np.concatenate(([0.0], np.cumsum(mass[order])[:-1]))
    mass[order[before >= top_p * mass.sum()]] = 0
    mass[mass < min_p * likeliest] = 0
    return mass / mass.sum()


@pytest.mark.parametrize("name", FAST)
class TestDistribution:
    """The interpreter would take hours for as many draws; it is held to the reference's ids above."""

    DRAWS = 100_000

    @pytest.mark.parametrize(
        ("rule", "kept"),
        [
            pytest.param({"temperature": 1.0}, 8, id="plain"),
            pytest.param({"temperature": 0.6}, 8, id="cold"),
            pytest.param({"temperature": 1.7}, 8, id="hot"),
            pytest.param({"temperature": 1.0, "top_k": 3}, 3, id="top-k"),
            pytest.param({"temperature": 1.0, "top_p": 0.8}, 4, id="top-p"),
            pytest.param({"temperature": 1.0, "min_p": 0.2}, 4, id="min-p"),
            pytest.param({"temperature": 1.0, "penalty": 1.8}, 8, id="penalty"),
            pytest.param({"temperature": 1.3, "top_k": 6, "top_p": 0.9, "min_p": 0.05, "penalty": 1.2}, 5, id="all"),
        ],
    )
    def test_draws_follow_the_exact_probabilities(self, name, rule, kept):
        """Chi-squared over draws at as many positions; and what the rule leaves out never comes."""
        expected = exact(**rule)
        assert np.count_nonzero(expected) == kept
        counts = np.bincount(self.draw(name, rule | {"seed": 3}), minlength=10)
        assert set(np.flatnonzero(counts)) == set(np.flatnonzero(expected))
        rest = expected > 0
        statistic = ((counts[rest] - self.DRAWS * expected[rest]) ** 2 / (self.DRAWS * expected[rest])).sum()
        assert statistic < CHI_SQUARED_999[kept - 1]

    def test_neighbours_are_independent(self, name):
        """Pairs of positions, and the same positions under two seeds, as often as their product says."""
        one, other = (self.draw(name, {"temperature": 1.0, "top_k": 2, "seed": seed}) == 0 for seed in (9, 10))
        share = exact(1.0, top_k=2)[0]
        for first, second in ((one[:-1], one[1:]), (one, other), (one[:-1], other[1:])):
            assert (first & second).mean() == pytest.approx(share**2, abs=0.006)

    def draw(self, name: str, rule: dict) -> np.ndarray:
        """10,000 slots of the same rule draw ten times each, each at a position of its own."""
        rows = 10_000
        state = SamplingState.new(rows, 10)
        state.set_mask(0, ALLOWED)
        state.set_slot(0, **rule)
        state.seen[0] = pack(torch.zeros(10, dtype=torch.bool).index_fill(0, torch.tensor([0, 5]), True))
        for field in fields(state):
            if field.name != "masks":
                getattr(state, field.name)[:] = getattr(state, field.name)[:1].clone()
        slots, logits = torch.arange(rows), LOGITS.repeat(rows, 1)
        drawn = [run(name, logits, state, slots, start + slots)["ids"] for start in range(0, self.DRAWS, rows)]
        return torch.cat(drawn).numpy()


@triton.jit
def noise_kernel(p_bits, p_rough, p_exact, size, BLOCK: tl.constexpr):
    o = tl.arange(0, BLOCK)
    b_bits = tl.load(p_bits + o, mask=o < size, other=0)
    tl.store(p_rough + o, sampling_file.rough_gumbel(b_bits), mask=o < size)
    tl.store(p_exact + o, sampling_file.exact_gumbel(b_bits), mask=o < size)


class TestNoise:
    def test_known_answer(self):
        """Philox 4x32-10 of zeros, from Random123's known answers."""
        words = philox(torch.tensor(0), torch.tensor(0), torch.arange(4)).tolist()
        assert words == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]

    def test_words_by_the_definition(self):
        """Every bit of seed, position and id matters, and where."""
        rng = np.random.default_rng(0)
        for _ in range(50):
            seed, position, token = (
                int(rng.integers(2**64, dtype=np.uint64)),
                int(rng.integers(2**62)),
                int(rng.integers(2**20)),
            )
            counter, key = [position % 2**32, position >> 32, token // 4, 0], [seed % 2**32, seed >> 32]
            for _ in range(10):
                a, b = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
                counter = [(b >> 32) ^ counter[1] ^ key[0], b % 2**32, (a >> 32) ^ counter[3] ^ key[1], a % 2**32]
                key = [(key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32]
            word = philox(torch.tensor(signed(seed)), torch.tensor(position), torch.tensor(token))
            assert int(word) == counter[token % 4]

    def test_no_noise_is_near_a_boundary_of_its_rounding(self):
        """So that every logarithm in float64 gives the same float32, whatever its last bits are."""
        for start in range(0, 2**24, 2**20):
            u = (torch.arange(start, start + 2**20, dtype=torch.float64) + 0.5) * 2.0**-24
            noise = -torch.log(-torch.log(u))
            to_boundary = ((noise * 2**18).frac().abs() - 0.5).abs() * 2.0**-18
            assert (to_boundary / noise.abs().clamp(min=1)).min() > 4000 * 2.0**-53

    def test_rough_noise_is_near_and_exact_noise_exact(self, device):
        edges = torch.tensor(
            [0, 1, 2, 2**23 - 1, 2**23, 2**23 + 1, 2**24 - 3, 2**24 - 2, 2**24 - 1, 15938355, 15938356]
        )
        bits = torch.cat((edges, torch.randint(2**24, (2037,), generator=torch.Generator().manual_seed(0))))
        bits = bits.to(device, torch.int32)
        rough, exact = torch.empty(2, len(bits), device=device)
        noise_kernel[(1,)](bits, rough, exact, len(bits), BLOCK=2048)
        noise = -torch.log(-torch.log((bits.double() + 0.5) * 2.0**-24))
        assert torch.equal(exact.double(), (noise * 2**18).round() / 2**18)
        assert (rough.double() - noise).abs().max() < 2.0**-12 / 4

    def test_is_gumbel(self):
        """Mean, variance and the distribution function, at ids and at positions."""
        for seed, positions, ids in (
            (1, torch.zeros(1), torch.arange(200_000)),
            (2, torch.arange(200_000), torch.zeros(1)),
        ):
            noise = gumbel(torch.tensor(seed), positions.long(), ids.long()).double()
            assert float(noise.mean()) == pytest.approx(0.5772, abs=0.01)
            assert float(noise.var()) == pytest.approx(np.pi**2 / 6, abs=0.03)
            for at in (-1.0, 0.0, 1.0, 3.0):
                assert float((noise < at).double().mean()) == pytest.approx(np.exp(-np.exp(-at)), abs=0.005)


class TestState:
    @pytest.mark.parametrize("vocab", [1, 31, 32, 33, 665])
    def test_bit_sets(self, vocab):
        marked = torch.rand(3, vocab, generator=torch.Generator().manual_seed(vocab)) < 0.5
        assert pack(marked).shape == (3, -(-vocab // 32))
        assert torch.equal(unpack(pack(marked), vocab), marked)

    def test_what_cannot_be_is_named(self):
        state = SamplingState.new(2, 40, masks=3)
        with pytest.raises(ValueError, match="a mask must allow at least one id"):
            state.set_mask(0, torch.zeros(40, dtype=torch.bool))
        with pytest.raises(ValueError, match="a mask of 70 ids does not fit 2 words"):
            state.set_mask(0, torch.ones(70, dtype=torch.bool))
        with pytest.raises(ValueError, match="there is no mask 3: there are 3"):
            state.set_slot(0, mask=3)
        with pytest.raises(ValueError, match=r"seed must be from 0 to 2\*\*64 - 1, got -1"):
            state.set_slot(0, seed=-1)
        with pytest.raises(ValueError, match="slots, vocab and masks must be at least 1, got 0, 40 and 8"):
            SamplingState.new(0, 40)
        with pytest.raises(
            ValueError, match=r"top_k must be contiguous torch.int32 of shape \[2\], got torch.int64 \[2\]"
        ):
            replace(state, top_k=state.top_k.long())
