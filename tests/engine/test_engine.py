"""Steps of many rows against the plain model, and against themselves: alone, in company, in other pieces."""

from collections.abc import Callable

import pytest
import torch
from engine_models import HOT, SHAPES, VOCABULARY, Pair, drawn, go_on, ids_of, packed, random_llama
from hypothesis import given, settings
from hypothesis import strategies as st

from spiritrt.engine.engine import Engine
from spiritrt.engine.forward import OPS
from spiritrt.engine.graphs import BUCKETS, Drawn, buckets_for
from spiritrt.engine.kv_cache import OutOfPages
from spiritrt.engine.steps import NOT_DRAWN, PREFILL_TOKENS, Row, Step, plan
from spiritrt.kernels import Case, Variant, choose
from spiritrt.sampling import GREEDY, Sampling

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class TestAgainstThePlainModel:
    @pytest.mark.parametrize("length", [1, 2, 17, PREFILL_TOKENS, PREFILL_TOKENS + 1, 2 * PREFILL_TOKENS + 30])
    @pytest.mark.parametrize("buckets", [(), (4,)])
    def test_greedy(self, pair, length, buckets):
        engine = pair.engine(buckets=buckets)
        slot, held = engine.open(), list(ids_of(length))
        for token, logprob in go_on(engine, slot, tuple(held)):
            expected = pair.logprobs(held)
            assert token == int(expected.argmax()) and logprob == pytest.approx(float(expected.max()), abs=1e-4)
            held.append(token)
        assert engine.length(slot) == len(held) - 1

    def test_score(self, pair):
        engine, prompt, continuation = pair.engine(), ids_of(150), list(ids_of(140, seed=1))
        slot = engine.open()
        engine.step([Row(slot, prompt[:-1], draw=False)])
        free = engine.free_pages
        scores = engine.score(slot, [prompt[-1], *continuation])
        with torch.inference_mode():
            logits = pair.llama(torch.tensor([[*prompt, *continuation[:-1]]]))[0, len(prompt) - 1 :]
        expected = torch.log_softmax(logits, -1)[torch.arange(len(continuation)), continuation]
        assert scores == pytest.approx(expected.tolist(), abs=1e-4)
        assert engine.length(slot) == len(prompt) - 1 and engine.free_pages == free

    def test_score_up_to_the_context(self, gqa):
        engine = gqa.engine()
        slot = engine.open()
        engine.step([Row(slot, ids_of(398), draw=False)])
        assert len(engine.score(slot, [5, 6, 7])) == 2  # the last one needs no room: nothing comes after it
        with pytest.raises(ValueError, match=r"398 \+ 3 tokens do not fit: the context is 400 tokens"):
            engine.score(slot, [5, 6, 7, 8])
        assert engine.length(slot) == 398 and engine.score(slot, [5]) == []

    @settings(max_examples=12)
    @given(data=st.data())
    def test_any_order_of_operations(self, gqa, data):
        """Slots as lists of ids: rows of any length together, truncation, forks, closing."""
        engine = gqa.engine(slots=5, tokens=700, buckets=data.draw(st.sampled_from([(), (1, 2, 4, 8)])))
        held: dict[int, list[int]] = {engine.open(): []}
        last: dict[int, int] = {}
        for number in range(8):
            kind = data.draw(st.sampled_from(["step", "step", "step", "open", "fork", "truncate", "close"]))
            slot = data.draw(st.sampled_from(sorted(held))) if held else -1
            if kind == "open" and len(held) < 5:
                held[engine.open()] = []
            elif kind == "fork" and held and len(held) < 5:
                copy = engine.fork(slot)
                held[copy] = list(held[slot])
                last |= {copy: last[slot]} if slot in last else {}
            elif kind == "truncate" and held:
                length = data.draw(st.integers(0, len(held[slot])))
                engine.truncate(slot, length)
                if length < len(held[slot]):
                    last.pop(slot, None)
                del held[slot][length:]
            elif kind == "close" and len(held) > 1:
                engine.close(slot)
                del held[slot]
                last.pop(slot, None)
            elif kind == "step":
                rows = []
                for each in data.draw(st.lists(st.sampled_from(sorted(held)), unique=True, min_size=1)):
                    fed_back = each in last and data.draw(st.booleans())
                    ids = None if fed_back else ids_of(data.draw(st.sampled_from([1, 1, 3, 20, 140])), seed=number)
                    rows.append(Row(each, ids, draw=data.draw(st.booleans())))
                if any(engine.room(row.slot) < row.tokens for row in rows):
                    continue
                try:
                    results = drawn(engine, rows)
                except OutOfPages:
                    continue
                for row, (token, logprob) in zip(rows, results, strict=True):
                    held[row.slot] += [last[row.slot]] if row.ids is None else row.ids
                    if row.draw:
                        expected = gqa.logprobs(held[row.slot])
                        assert float(expected[token]) == pytest.approx(float(expected.max()), abs=1e-4)
                        assert logprob == pytest.approx(float(expected[token]), abs=1e-4)
                        last[row.slot] = token
                    else:
                        assert (token, logprob) == (NOT_DRAWN, 0.0)
                        last.pop(row.slot, None)
            assert all(engine.length(each) == len(ids) for each, ids in held.items())
        for each in held:
            engine.close(each)
        assert engine.free_pages == engine.cache.config.pages


class TestCompany:
    """What a row gives is bit for bit what it gives alone."""

    PROMPTS = (3, 1, 140, 16, 129, 60, 2, 128)

    def settings_of(self, engine: Engine, slot: int, number: int) -> None:
        mask = engine.mask(torch.arange(VOCABULARY) % (number + 1) == 0)
        rule = GREEDY if number % 4 == 3 else Sampling(1.1, 0.95, repetition_penalty=1.3, seed=number)
        engine.set_sampling(slot, rule, mask, full_logprobs=number % 2 == 0)

    @pytest.mark.parametrize("buckets", [(), (1, 2, 4, 8)])
    def test_alone_and_in_a_batch_of_eight(self, pair, buckets):
        engine = pair.engine(slots=8, buckets=buckets)
        slots = [engine.open() for _ in self.PROMPTS]
        for number, slot in enumerate(slots):
            self.settings_of(engine, slot, number)
        # they join one by one, so that every step mixes prefill and decode rows
        begun = 0
        results: dict[int, list[tuple[int, float]]] = {slot: [] for slot in slots}
        for _ in range(16):
            rows = [Row(slot) for slot in slots[:begun]]
            if begun < len(slots):
                rows.insert(begun // 2, Row(slots[begun], ids_of(self.PROMPTS[begun], seed=begun)))
                begun += 1
            for row, result in zip(rows, drawn(engine, rows), strict=True):
                results[row.slot].append(result)
        together = [results[slot][:8] for slot in slots]
        for number, count in enumerate(self.PROMPTS):
            alone = pair.engine(slots=1)
            slot = alone.open()
            self.settings_of(alone, slot, number)
            assert go_on(alone, slot, ids_of(count, seed=number), 8) == together[number]

    def test_more_rows_than_the_largest_bucket(self, gqa):
        prompts = [ids_of(1 + i % 3, seed=i) for i in range(11)]
        results = []
        for buckets in ((), (4,), (2, 16)):
            engine = gqa.engine(slots=11, buckets=buckets)
            slots = [engine.open() for _ in prompts]
            first = drawn(engine, [Row(slot, ids) for slot, ids in zip(slots, prompts, strict=True)])
            results.append((first, drawn(engine, [Row(slot) for slot in slots[::-1]])))
        assert results[0] == results[1] == results[2]

    def test_where_a_row_is_cut_depends_on_the_row_alone(self):
        rows = [Row(slot, ids_of(300)) for slot in range(30)]
        passes = plan(rows, [7] * 30, 4)
        pieces = [(p.start, p.tokens, p.draw) for work in passes for p in work.pieces if p.row == 29]
        assert pieces == [(7, 128, False), (135, 128, False), (263, 44, True)]
        assert all(sum(piece.tokens for piece in work.pieces) <= 2048 for work in passes)


class Recorded:
    """What a graph does, without one: it runs again on the same inputs, and writes to the same results."""

    def __init__(self, run: Callable[[int], Drawn], bucket: int) -> None:
        self.drawn = tuple(result.clone() for result in run(bucket))
        self._run, self._bucket = run, bucket

    def replay(self) -> Drawn:
        for kept, result in zip(self.drawn, self._run(self._bucket), strict=True):
            kept.copy_(result)
        return self.drawn


class TestGraphs:
    def test_steps_are_right_for_any_length_and_any_rows(self, pair, monkeypatch):
        """All but the recording itself: static inputs and results, filled-up rows, bounds that hold for any length."""
        monkeypatch.setattr(
            "spiritrt.engine.engine.capture", lambda run, buckets, progress: {b: Recorded(run, b) for b in buckets}
        )
        eager, replayed = pair.engine(slots=7), pair.engine(slots=7, buckets=(1, 2, 4))
        with torch.inference_mode():
            replayed._captured = replayed._capture(progress=False)
        results = []
        for engine in (eager, replayed):
            slots = [engine.open() for _ in range(7)]
            for number, slot in enumerate(slots):
                rule = Sampling(temperature=1.5, top_p=1.0, repetition_penalty=3.0, seed=number)
                engine.set_sampling(slot, rule, engine.mask(torch.arange(VOCABULARY) > 20 * number))
            found = drawn(engine, [Row(slot, ids_of(1 + 40 * slot, slot)) for slot in slots])
            for number in range(12):
                rows = [Row(slot) for slot in slots if (slot + number) % 5]
                found += drawn(engine, [*rows, Row(slots[(5 - number) % 5], (number,), draw=number % 3 == 0)])
                for slot in slots:
                    if slot not in engine._drawn:
                        found += drawn(engine, [Row(slot, (3,))])
            results.append(found)
        assert results[0] == results[1]
        assert eager.free_pages == replayed.free_pages

    @pytest.mark.parametrize(("slots", "buckets"), [(1, (1,)), (4, (1, 2, 4)), (5, (1, 2, 4, 8)), (200, BUCKETS)])
    def test_buckets_reach_as_far_as_there_are_slots(self, slots, buckets):
        assert buckets_for(slots) == buckets

    def test_results_are_waited_for_once_and_only_when_they_are_read(self):
        class Event:
            waits = 0

            def query(self) -> bool:
                return self.waits > 0

            def synchronize(self) -> None:
                self.waits += 1

        event = Event()
        found = [(torch.tensor([5, 7]), torch.tensor([-0.5, -1.0])), (torch.tensor([9]), torch.tensor([-2.0]))]
        step = Step([2, NOT_DRAWN, 0], found, event)
        assert not step.ready and event.waits == 0
        assert step.ids == [9, NOT_DRAWN, 5] and step.logprobs == [-2.0, 0.0, -0.5]
        assert step.ready and event.waits == 1

    @pytest.mark.skipif(DEVICE != "cuda", reason="only a CUDA device can be waited for")
    def test_nothing_waits_for_the_device_but_reading(self):
        """Slots open, change their masks and close while steps run; a graph replays, and prompts join."""
        llama = random_llama()
        engine = Pair(llama, packed(llama, device=DEVICE)).engine(slots=4, buckets=(1, 4))
        masks = [engine.mask(torch.arange(VOCABULARY) > 70 * n) for n in range(3)]
        slot = engine.open()
        engine.step([Row(slot, ids_of(20))]).ids  # noqa: B018 (compiles)
        torch.cuda.set_sync_debug_mode("error")
        try:
            steps = []
            for mask in masks:
                new = engine.open()
                engine.set_sampling(new, HOT, mask)
                steps.append(engine.step([Row(slot), Row(new, ids_of(9))]))
                copy = engine.fork(new)
                steps.append(engine.step([Row(slot), Row(new), Row(copy)]))
                engine.evict_middle(slot, 3, 5)
                engine.close(copy)
                engine.close(new)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert all(0 <= token < VOCABULARY for step in steps for token in step.ids)


class TestFormats:
    def test_variants_are_told_the_size_of_a_page(self, gqa, monkeypatch):
        """flash-attn reads pages of a multiple of 256 tokens, and no others."""
        cases = []

        def noted(op: str, case: Case, choice: str) -> Variant:
            cases.append(case)
            return choose(op, case, choice)

        monkeypatch.setattr("spiritrt.engine.forward.choose", noted)
        engine = gqa.engine(page_size=256)
        assert {case.page_size for case in cases} == {256} == {engine.cache.config.page_size}

    @pytest.mark.parametrize(("cache", "error"), [("bf16", 0.02), ("fp16", 0.005), ("fp8", 0.2)])
    def test_of_keys_and_values(self, pair, cache, error):
        """Mean differences of log-probabilities from those with float32 pages."""
        engine, exact = pair.engine(cache=cache), pair.engine()
        scores = [torch.tensor(each.score(each.open(), ids_of(200))) for each in (engine, exact)]
        assert 0 < float((scores[0] - scores[1]).abs().mean()) < error
        assert engine.cache.keys.dtype.itemsize < 4

    def test_scales_of_an_fp8_cache_can_be_given(self, gqa):
        """Those that it takes by itself spare half, so that its own are better than much larger ones."""
        exact = gqa.engine()
        expected = torch.tensor(exact.score(exact.open(), ids_of(100)))
        errors = []
        for scales in (None, torch.full((3, 2, 2), 1.0), torch.full((3, 2, 2), 1e-4)):
            engine = gqa.engine(cache="fp8", scales=scales)
            scores = torch.tensor(engine.score(engine.open(), ids_of(100)))
            assert torch.isfinite(scores).all()
            errors.append(float((scores - expected).abs().mean()))
        assert errors[0] < errors[1] and 3 * errors[0] < errors[2]

    @pytest.mark.parametrize("ops", [("linear", "rotary_attention", "rotary_prefill"), ("sampling", "embedding")])
    @pytest.mark.parametrize("variant", ["torch", "reference"])
    def test_other_variants_say_the_same(self, gqa, ops, variant):
        engine, auto = gqa.engine(kernels=dict.fromkeys(ops, variant)), gqa.engine()
        assert all(engine.kernels.names[op] == variant for op in ops)
        results = []
        for each in (engine, auto):
            slot = each.open()
            each.set_sampling(slot, HOT)
            results.append(go_on(each, slot, ids_of(30), 10))
        assert [token for token, _ in results[0]] == [token for token, _ in results[1]]
        assert [p for _, p in results[0]] == pytest.approx([p for _, p in results[1]], abs=1e-4)

    @pytest.mark.parametrize("weights", ["fp32", "int8"])
    def test_triton_says_the_same(self, weights):
        """All ops of a step, in graphs, or interpreted where there is no CUDA device; some rows only fill up."""
        llama = random_llama(layers=1, context=64, **SHAPES["gqa"])
        allowed = torch.arange(VOCABULARY) >= 130
        results = []
        for device, options in (("cpu", {}), (DEVICE, {"kernels": dict.fromkeys(OPS, "triton"), "buckets": (4,)})):
            engine = Pair(llama, packed(llama, weights, device)).engine(slots=3, tokens=100, **options)
            slots = [engine.open() for _ in range(2)]
            for slot in slots:
                engine.set_sampling(slot, Sampling(temperature=0.9, seed=slot), engine.mask(allowed))
            steps = [engine.step([Row(slot, ids_of(5 + 13 * slot)) for slot in slots])]
            steps.append(engine.step([Row(slots[0]), Row(slots[1], (3, 4))]))
            engine.evict_middle(slots[1], 2, 9)
            steps.append(engine.step([Row(slot) for slot in slots]))
            results.append([each for step in steps for each in zip(step.ids, step.logprobs, strict=True)])
        assert [token for token, _ in results[0]] == [token for token, _ in results[1]]
        assert [p for _, p in results[0]] == pytest.approx([p for _, p in results[1]], abs=1e-4)
