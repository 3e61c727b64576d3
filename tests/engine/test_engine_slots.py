"""Slots of an engine: how each is sampled, forks, evictions, and what cannot be."""

import pytest
import torch
from engine_models import HOT, VOCABULARY, Pair, drawn, go_on, ids_of, packed, random_llama

from spiritrt.continuation import Continuation, run
from spiritrt.engine.kv_cache import OutOfPages, OutOfSlots
from spiritrt.engine.steps import Row
from spiritrt.sampling import GREEDY, Sampling


class TestSampling:
    def test_a_slot_draws_from_its_mask_and_no_other(self, gqa):
        engine = gqa.engine()
        allowed = torch.zeros(VOCABULARY, dtype=torch.bool)
        allowed[[3, 70, 71, 199]] = True
        slots = [engine.open() for _ in range(2)]
        engine.set_sampling(slots[0], HOT, engine.mask(allowed))
        others = [go_on(engine, slots[0], ids_of(4), 12), go_on(engine, slots[1], ids_of(4), 12)]
        assert {token for token, _ in others[0]} <= {3, 70, 71, 199}
        alone = gqa.engine()
        assert others[1] == go_on(alone, alone.open(), ids_of(4), 12)

    def test_log_probabilities_over_what_is_allowed_or_over_everything(self, gqa):
        engine, prompt = gqa.engine(), ids_of(9)
        allowed = torch.arange(VOCABULARY) >= 150
        expected = gqa.logprobs(list(prompt))
        among = torch.log_softmax(expected.masked_fill(~allowed, -torch.inf), -1)
        for full, of in ((False, among), (True, expected)):
            slot = engine.open()
            engine.set_sampling(slot, GREEDY, engine.mask(allowed), full_logprobs=full)
            ((token, logprob),) = drawn(engine, [Row(slot, prompt)])
            assert token == int(among.argmax()) and logprob == pytest.approx(float(of[token]), abs=1e-4)

    def test_the_penalty_is_of_what_was_drawn_until_it_is_forgotten(self, gqa):
        engine, rule = gqa.engine(), Sampling(temperature=0.0, repetition_penalty=1e6)
        slot = engine.open()
        engine.set_sampling(slot, rule)
        tokens = [token for token, _ in go_on(engine, slot, ids_of(5), 8)]
        assert len(set(tokens)) == 8
        engine.truncate(slot, 0)
        assert drawn(engine, [Row(slot, ids_of(5))])[0][0] not in tokens
        engine.truncate(slot, 0)
        engine.clear_seen(slot)
        assert drawn(engine, [Row(slot, ids_of(5))])[0][0] == tokens[0]

    def test_a_new_slot_begins_as_all_do(self, gqa):
        engine = gqa.engine(slots=1)
        expected = go_on(engine, engine.open(), ids_of(5))
        engine.set_sampling(0, HOT, engine.mask(torch.arange(VOCABULARY) < 9), full_logprobs=True)
        engine.step([Row(0)])
        engine.close(0)
        assert go_on(engine, engine.open(), ids_of(5)) == expected

    def test_masks_that_cannot_be(self, gqa):
        engine = gqa.engine()
        for wrong in (torch.ones(VOCABULARY - 1, dtype=torch.bool), torch.ones(VOCABULARY)):
            with pytest.raises(ValueError, match=rf"a mask must be bool \[{VOCABULARY}\]"):
                engine.mask(wrong)
        with pytest.raises(ValueError, match="must allow at least one id"):
            engine.mask(torch.zeros(VOCABULARY, dtype=torch.bool))
        with pytest.raises(ValueError, match="there is no mask 7"):
            engine.set_sampling(engine.open(), GREEDY, 7)

    def test_masks_are_found_again_and_given_back(self, gqa):
        engine = gqa.engine()
        sets = [torch.arange(VOCABULARY) == i for i in range(127)]
        masks = [engine.mask(allowed) for allowed in sets]
        assert len(set(masks)) == 127 and engine.mask(sets[5]) == masks[5]
        with pytest.raises(ValueError, match="128 masks are in use"):
            engine.mask(torch.arange(VOCABULARY) > 100)
        slot = engine.open()
        engine.set_sampling(slot, GREEDY, masks[5])
        assert drawn(engine, [Row(slot, ids_of(3))])[0][0] == 5
        engine.drop_mask(masks[5])
        engine.drop_mask(masks[5])
        with pytest.raises(ValueError, match=f"mask {masks[5]} is not in use"):
            engine.drop_mask(masks[5])
        # the number now stands for ids in another part of the head
        allowed = torch.arange(VOCABULARY) >= 150
        assert engine.mask(allowed) == masks[5]
        engine.set_sampling(slot, GREEDY, masks[5])
        ((token, logprob),) = drawn(engine, [Row(slot)])
        expected = torch.log_softmax(gqa.logprobs([*ids_of(3), 5]).masked_fill(~allowed, -torch.inf), -1)
        assert token == int(expected.argmax()) and logprob == pytest.approx(float(expected.max()), abs=1e-4)


class TestSlots:
    def test_a_fork_goes_on_as_its_origin_would(self, pair):
        engine = pair.engine()
        slot = engine.open()
        engine.set_sampling(slot, HOT)
        go_on(engine, slot, ids_of(21), 4)
        copy = engine.fork(slot)
        assert [drawn(engine, [Row(slot)]) for _ in range(5)] == [drawn(engine, [Row(copy)]) for _ in range(5)]

    def test_forks_go_their_own_ways(self, pair):
        engine = pair.engine()
        slot = engine.open()
        go_on(engine, slot, ids_of(21), 4)
        copies = [engine.fork(slot) for _ in range(2)]
        held = [drawn(engine, [Row(each, (7 + each,)) for each in (slot, *copies)]) for _ in range(4)]
        for number, each in enumerate((slot, *copies)):
            alone = pair.engine()
            first = alone.open()
            go_on(alone, first, ids_of(21), 4)
            assert [drawn(alone, [Row(first, (7 + each,))])[0] for _ in range(4)] == [row[number] for row in held]

    def test_sharers_of_a_prefix_are_greedy_and_say_what_it_would(self, pair):
        engine = pair.engine()
        prefix = engine.open()
        engine.set_sampling(prefix, HOT)
        engine.step([Row(prefix, ids_of(40), draw=False)])
        free = engine.free_pages
        sharers = [engine.share_prefix(prefix) for _ in range(3)]
        assert engine.free_pages == free
        results = drawn(engine, [Row(each, (9, 8)) for each in sharers])
        expected = pair.logprobs([*ids_of(40), 9, 8])
        assert results == [results[0]] * 3 and results[0][0] == int(expected.argmax())

    def test_what_is_left_of_a_slot_is_read_at_its_new_place(self):
        """In a model of one layer keys and values know of no other token, so the rest must be as if it were all."""
        llama = random_llama(layers=1, context=200)
        pair = Pair(llama, packed(llama))
        engine, ids = pair.engine(), ids_of(180)
        slot = engine.open()
        engine.step([Row(slot, ids)])
        assert engine.evict_middle(slot, 21, 77) == 82 and engine.length(slot) == 98
        (result,) = drawn(engine, [Row(slot, (5, 6))])
        expected = pair.logprobs([*ids[:21], *ids[-77:], 5, 6])
        assert result[0] == int(expected.argmax()) and result[1] == pytest.approx(float(expected.max()), abs=1e-4)
        assert engine.evict_middle(slot, 21, 79) == 0

    def test_no_place_of_a_long_call_has_the_noise_of_another(self):
        """All ids are equally likely, so that what is drawn is the noise of a place: evictions do not take it back."""
        results = []
        for context in (64, 400):
            llama = random_llama(layers=1, context=context)
            llama.lm_head.weight.zero_()
            engine = Pair(llama, packed(llama)).engine()
            slot = engine.open()
            engine.set_sampling(slot, Sampling(temperature=1.0, top_p=1.0, seed=3))
            tokens = go_on(engine, slot, (1,), 40)
            assert context > 64 or engine.evict_middle(slot, 2, 10) == 28
            copy = engine.fork(slot)
            results.append((tokens + [drawn(engine, [Row(slot)])[0] for _ in range(30)], drawn(engine, [Row(copy)])))
        assert results[0] == results[1]

    def test_all_slots_open(self, gqa):
        engine = gqa.engine(slots=2)
        slot, _ = engine.open(), engine.open()
        for more in (engine.open, lambda: engine.fork(slot), lambda: engine.share_prefix(slot)):
            with pytest.raises(OutOfSlots, match="all 2 slots are open"):
                more()

    @pytest.mark.parametrize("use", ["length", "room", "close", "fork", "share_prefix", "clear_seen"])
    def test_a_slot_that_is_not_open(self, gqa, use):
        with pytest.raises(ValueError, match="slot 3 is not open"):
            getattr(gqa.engine(), use)(3)


class TestErrors:
    def test_no_drawn_id_to_go_on_with(self, gqa):
        engine = gqa.engine()
        slot = engine.open()
        message = "slot 0 has no drawn id to continue with; its row must bring ids"
        with pytest.raises(ValueError, match=message):
            engine.step([Row(slot)])
        engine.step([Row(slot, (1, 2), draw=False)])
        with pytest.raises(ValueError, match=message):
            engine.step([Row(slot)])
        engine.step([Row(slot, (3,))])
        engine.truncate(slot, 2)
        with pytest.raises(ValueError, match=message):
            engine.step([Row(slot)])

    def test_rows_that_cannot_be(self, gqa):
        engine = gqa.engine()
        slot = engine.open()
        for rows, message in (
            ([Row(slot, (1, VOCABULARY))], f"token id {VOCABULARY} is outside the model's {VOCABULARY} rows"),
            ([Row(slot, (1,)), Row(slot, (2,))], "a slot is named twice"),
            ([Row(slot, ids_of(401))], r"0 \+ 401 tokens do not fit: the context is 400 tokens"),
            ([Row(slot, (1,)), Row(2, (1,))], "slot 2 is not open"),
        ):
            with pytest.raises(ValueError, match=message):
                engine.step(rows)
            assert engine.length(slot) == 0 and engine.free_pages == engine.cache.config.pages
        with pytest.raises(ValueError, match="a row needs at least one token; slot 0 brings none"):
            Row(slot, ())
        assert engine.step([]).ids == []

    def test_a_continuation_that_cannot_begin_leaves_no_slot_open(self, gqa):
        engine = gqa.engine(slots=1)
        for token in range(127):
            engine.mask(torch.arange(VOCABULARY) == token)
        work = Continuation(ids_of(3), torch.arange(VOCABULARY) > 100, GREEDY, 5, lambda ids: None)
        with pytest.raises(ValueError, match="128 masks are in use"):
            run(engine, [work])
        assert engine.cache.account.free_slots == 1

    def test_out_of_pages_changes_nothing(self, gqa):
        engine = gqa.engine(tokens=64)
        slots = [engine.open() for _ in range(2)]
        before = go_on(engine, slots[0], ids_of(20), 3)
        with pytest.raises(OutOfPages, match="4 pages are needed and 2 of 4 are free"):
            engine.step([Row(slots[0]), Row(slots[1], ids_of(63))])
        assert engine.free_pages == 2 and engine.length(slots[1]) == 0
        fresh = gqa.engine()
        assert [*before, drawn(engine, [Row(slots[0])])[0]] == go_on(fresh, fresh.open(), ids_of(20), 4)

    def test_a_step_that_fails_is_as_if_it_had_not_been(self, gqa, monkeypatch):
        engine = gqa.engine()
        slots = [engine.open() for _ in range(2)]
        first = go_on(engine, slots[0], ids_of(20), 2)

        def fail(*args: object) -> None:
            raise RuntimeError("broken")

        with monkeypatch.context() as patched:
            patched.setattr(engine, "_forward", fail)
            with pytest.raises(RuntimeError, match="broken"):
                engine.step([Row(slots[0]), Row(slots[1], ids_of(7))])
        assert engine.length(slots[0]) == 21 and engine.length(slots[1]) == 0
        fresh = gqa.engine()
        again = [*first, drawn(engine, [Row(slots[0], (first[1][0],))])[0]]
        assert again == go_on(fresh, fresh.open(), ids_of(20), 3)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"cache": "int4"}, "cache must be one of auto, fp32, bf16, fp16, fp8, got 'int4'"),
            ({"kernels": {"attention": "torch"}}, "the engine has no op 'attention': it has embedding, linear"),
            ({"kernels": {"linear": "fast"}}, "linear: there is no variant 'fast'"),
            ({"graphs": True}, "graphs are for CUDA, and the model is on cpu"),
            ({"slots": 0}, "slots"),
        ],
    )
    def test_choices_that_cannot_be(self, gqa, options, message):
        with pytest.raises(ValueError, match=message):
            gqa.engine(**options)
