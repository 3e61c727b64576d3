"""The page pool against a plain dictionary of lists: contents, lengths, books; any order of operations."""

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule
from torch import Tensor

from spiritrt.engine.kv_cache import KVCache, KVCacheConfig, OutOfPages, OutOfSlots

LAYERS, HEADS, DIM = 2, 2, 6
INV_FREQ = torch.tensor([1.0, 0.3, 0.01])


def turn(x: Tensor, angles: Tensor) -> Tensor:
    """x [..., DIM] turned by angles [DIM / 2]; the halves pair up."""
    first, second = x.double().chunk(2, -1)
    cos, sin = angles.double().cos(), angles.double().sin()
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


def shift_rotary(keys: Tensor, values: Tensor, source: Tensor, target: Tensor, delta: int, inv_freq: Tensor) -> None:
    flat_keys, flat_values = keys.flatten(1, 2), values.flatten(1, 2)
    flat_keys[:, target] = turn(flat_keys[:, source], delta * inv_freq).float()
    flat_values[:, target] = flat_values[:, source]


def cache_of(slots: int = 4, pages: int = 12, context: int = 40, page_size: int = 4) -> KVCache:
    config = KVCacheConfig(LAYERS, HEADS, DIM, slots, pages, context, torch.float32, page_size)
    return KVCache(config, torch.device("cpu"), shift_rotary, INV_FREQ)


def marks(token: int, position: int) -> tuple[Tensor, Tensor]:
    """Key [layers, heads, dim], turned to its position, and value of a token: no two tokens have the same."""
    base = torch.arange(LAYERS * HEADS * DIM).view(LAYERS, HEADS, DIM).float() + token
    return turn(base.cos(), position * INV_FREQ).float(), base


def write(cache: KVCache, slot: int, tokens: list[int]) -> None:
    """Appends tokens as a step does: reserve, flush, then write through the page table on the device."""
    start, size = cache.length(slot), cache.config.page_size
    cache.reserve([(slot, len(tokens))])
    cache.flush()
    for position, token in enumerate(tokens, start):
        page = int(cache.page_table[slot, position // size])
        cache.keys[:, page, position % size], cache.values[:, page, position % size] = marks(token, position)


def assert_holds(cache: KVCache, slot: int, tokens: list[int]) -> None:
    assert cache.length(slot) == len(tokens)
    cache.flush()
    size = cache.config.page_size
    for position, token in enumerate(tokens):
        page = int(cache.page_table[slot, position // size])
        key, value = marks(token, position)
        assert torch.equal(cache.values[:, page, position % size], value)
        torch.testing.assert_close(cache.keys[:, page, position % size], key, atol=2e-5, rtol=0)


class Pool(RuleBasedStateMachine):
    """Slots as lists of tokens; every token is written once, with a number of its own."""

    slots = Bundle("slots")

    def __init__(self) -> None:
        super().__init__()
        self.cache = cache_of()
        self.held: dict[int, list[int]] = {}
        self.next_token = 0

    def tokens(self, count: int) -> list[int]:
        self.next_token += count
        return list(range(self.next_token - count, self.next_token))

    @initialize(target=slots)
    def first(self):
        return self.open()

    @rule(target=slots)
    def open(self):
        if len(self.held) == 4:
            with pytest.raises(OutOfSlots):
                self.cache.open()
            return multiple()
        slot = self.cache.open()
        assert slot not in self.held
        self.held[slot] = []
        return slot

    @rule(slot=consumes(slots))
    def close(self, slot):
        self.cache.close(slot)
        del self.held[slot]
        for use in (self.cache.length, self.cache.close, self.cache.fork):
            with pytest.raises(ValueError, match=f"slot {slot} is not open"):
                use(slot)

    @rule(target=slots, slot=slots, share=st.booleans())
    def fork(self, slot, share):
        if len(self.held) == 4:
            return multiple()
        copy = self.cache.share_prefix(slot) if share else self.cache.fork(slot)
        assert copy not in self.held
        self.held[copy] = list(self.held[slot])
        return copy

    @rule(slot=slots, count=st.integers(0, 14))
    def append(self, slot, count):
        tokens = self.tokens(count)
        before = self.books()
        try:
            write(self.cache, slot, tokens)
        except OutOfPages:
            # this slot's share of the pages in use tells how many would have been needed
            last_shared = self.held[slot] and self.cache.account.references(self.cache.account.pages_of(slot)[-1]) > 1
            needed = -(-(len(self.held[slot]) + count) // 4) - len(self.cache.account.pages_of(slot))
            needed += bool(last_shared and count and len(self.held[slot]) % 4)
            assert needed > self.cache.free_pages and self.books() == before
        except ValueError:
            assert len(self.held[slot]) + count > 40 and self.books() == before
        else:
            self.held[slot] += tokens

    @rule(counts=st.dictionaries(slots, st.integers(1, 6), min_size=2))
    def append_to_several(self, counts):
        """All or none; holders of one shared page may all append in the same step."""
        before = self.books()
        try:
            self.cache.reserve(list(counts.items()))
        except ValueError:
            assert self.books() == before
            return
        for slot, count in counts.items():  # the tokens are there: take them back, so as to write them
            self.cache.truncate(slot, len(self.held[slot]))
            tokens = self.tokens(count)
            write(self.cache, slot, tokens)
            self.held[slot] += tokens

    @rule(slot=slots, share=st.floats(0, 1))
    def truncate(self, slot, share):
        length = int(share * len(self.held[slot]))
        self.cache.truncate(slot, length)
        del self.held[slot][length:]

    @rule(slot=slots, prefix=st.integers(0, 12), recent=st.integers(0, 20))
    def evict_middle(self, slot, prefix, recent):
        held, before = self.held[slot], self.books()
        try:
            dropped = self.cache.evict_middle(slot, prefix, recent)
        except OutOfPages:
            assert self.books() == before and self.cache.free_pages < -(-(prefix + recent) // 4)
            return
        assert dropped == max(0, len(held) - prefix - recent)
        if dropped:
            self.held[slot] = held[:prefix] + (held[-recent:] if recent else [])

    def books(self) -> tuple:
        account = self.cache.account
        return account.free_pages, [(slot, account.length(slot), account.pages_of(slot)) for slot in self.held]

    @invariant()
    def contents_are_the_model_s(self):
        for slot, tokens in self.held.items():
            assert_holds(self.cache, slot, tokens)

    @invariant()
    def every_page_is_accounted_for(self):
        account = self.cache.account
        holders: dict[int, int] = {}
        for slot, tokens in self.held.items():
            pages = account.pages_of(slot)
            assert len(pages) == -(-len(tokens) // 4)
            for page in pages:
                holders[page] = holders.get(page, 0) + 1
        assert 0 not in holders and account.free_pages == 12 - len(holders)
        assert all(account.references(page) == holders.get(page, 0) for page in range(1, 13))

    def teardown(self):
        for slot in list(self.held):
            self.cache.close(slot)
        assert self.cache.free_pages == 12


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


class TestSharing:
    def test_a_fork_takes_no_page_until_it_is_written(self):
        cache = cache_of()
        slot = cache.open()
        write(cache, slot, list(range(6)))
        copies = [cache.fork(slot) for _ in range(3)]
        assert cache.free_pages == 10
        write(cache, copies[0], [10])
        assert cache.free_pages == 9  # a copy of the last page alone
        write(cache, slot, [11])
        write(cache, copies[1], [12])
        assert cache.free_pages == 7
        write(cache, copies[2], [13])  # the last holder writes the page itself
        assert cache.free_pages == 7
        for number, holder in enumerate([copies[0], slot, copies[1], copies[2]]):
            assert_holds(cache, holder, [*range(6), 10 + number])

    def test_a_full_last_page_needs_no_copy(self):
        cache = cache_of()
        slot = cache.open()
        write(cache, slot, list(range(8)))
        copy = cache.share_prefix(slot)
        write(cache, copy, [20])
        assert cache.free_pages == 9 and cache.account.pages_of(copy)[:2] == cache.account.pages_of(slot)

    def test_the_prefix_may_be_closed_before_those_that_share_it(self):
        cache = cache_of()
        prefix = cache.open()
        write(cache, prefix, list(range(7)))
        copies = [cache.share_prefix(prefix) for _ in range(2)]
        cache.close(prefix)
        assert cache.free_pages == 10
        for number, copy in enumerate(copies):
            write(cache, copy, [30 + number])
            assert_holds(cache, copy, [*range(7), 30 + number])


class TestEviction:
    def test_of_a_full_pool_lives_on_the_pages_it_frees(self):
        cache = cache_of(pages=10)
        slot = cache.open()
        write(cache, slot, list(range(40)))
        assert cache.free_pages == 0
        assert cache.evict_middle(slot, 5, 12) == 23
        assert cache.free_pages == 10 - 5
        assert_holds(cache, slot, [*range(5), *range(28, 40)])

    def test_that_finds_too_few_pages_changes_nothing(self):
        cache = cache_of(pages=10)
        slot = cache.open()
        write(cache, slot, list(range(40)))
        with pytest.raises(OutOfPages, match="evicting needs 8 pages and 0 of 10 are or become free"):
            cache.evict_middle(slot, 5, 29)
        assert_holds(cache, slot, list(range(40)))

    def test_leaves_shared_pages_to_their_other_holders(self):
        cache = cache_of(pages=20)
        slot = cache.open()
        write(cache, slot, list(range(30)))
        copy = cache.fork(slot)
        cache.evict_middle(copy, 6, 9)
        assert_holds(cache, slot, list(range(30)))
        assert_holds(cache, copy, [*range(6), *range(21, 30)])
        assert cache.account.pages_of(copy)[0] == cache.account.pages_of(slot)[0]

    def test_again_and_again(self):
        """A long call: turned many times over, keys stay what they were."""
        cache, tokens = cache_of(pages=16), list(range(40))
        slot = cache.open()
        write(cache, slot, tokens)
        for number in range(30):
            assert cache.evict_middle(slot, 3, 20 + number % 5) == len(tokens) - 23 - number % 5
            tokens = tokens[:3] + tokens[-20 - number % 5 :]
            new = list(range(1000 * number, 1000 * number + 40 - len(tokens)))
            write(cache, slot, new)
            tokens += new
        assert_holds(cache, slot, tokens)

    @pytest.mark.parametrize(("prefix", "recent"), [(-1, 3), (3, -1)])
    def test_of_less_than_nothing(self, prefix, recent):
        cache = cache_of()
        with pytest.raises(ValueError, match="keep_prefix and keep_recent must not be negative"):
            cache.evict_middle(cache.open(), prefix, recent)


class TestErrors:
    def test_out_of_pages_says_how_many(self):
        cache = cache_of(pages=2)
        slot, other = cache.open(), cache.open()
        with pytest.raises(OutOfPages, match="3 pages are needed and 2 of 2 are free"):
            cache.reserve([(slot, 8), (other, 1)])
        assert cache.free_pages == 2 and cache.length(slot) == cache.length(other) == 0

    def test_a_slot_named_twice(self):
        cache = cache_of()
        slot = cache.open()
        with pytest.raises(ValueError, match=r"a slot is named twice in \[0, 0\]"):
            cache.reserve([(slot, 1), (slot, 1)])

    def test_truncation_beyond_what_is_held(self):
        cache = cache_of()
        slot = cache.open()
        write(cache, slot, [1, 2, 3])
        with pytest.raises(ValueError, match="cannot truncate to 4 tokens: slot 0 holds 3"):
            cache.truncate(slot, 4)

    @pytest.mark.parametrize("name", ["layers", "slots", "pages", "context", "page_size"])
    def test_empty_shapes(self, name):
        sizes = {"layers": 1, "kv_heads": 1, "head_dim": 2, "slots": 1, "pages": 1, "context": 1} | {name: 0}
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            KVCacheConfig(**sizes)
