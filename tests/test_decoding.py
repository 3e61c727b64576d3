import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spiritrt.decoding import PREFILL_TOKENS, Decoder
from spiritrt.models.family import Family
from spiritrt.sampling import GREEDY, Sampling

RULE = Sampling(temperature=1.0, top_p=0.9, seed=11)
IDS = [1, *range(32000, 32040)]


@pytest.fixture(scope="module")
def family(base_lm) -> Family:
    return base_lm.family


@pytest.fixture(scope="module")
def allowed(family):
    return family.vocabulary.allowed("speech")


def decoder_of(family: Family, ids: list[int], capacity: int = 100) -> Decoder:
    decoder = Decoder(family, capacity)
    decoder.append(ids)
    return decoder


def continuation(decoder: Decoder, allowed, count: int = 8) -> tuple[list[int], list[float]]:
    ids, logprobs = [], []
    for _ in range(count):
        token, logprob = decoder.draw(allowed, RULE)
        decoder.append([token])
        ids.append(token)
        logprobs.append(logprob)
    return ids, logprobs


class TestAppend:
    @settings(max_examples=8)
    @given(cuts=st.lists(st.integers(1, len(IDS) - 1), max_size=5, unique=True).map(sorted))
    def test_in_any_pieces(self, family, allowed, cuts):
        decoder = Decoder(family, 100)
        for start, end in zip([0, *cuts], [*cuts, len(IDS)], strict=True):
            decoder.append(IDS[start:end])
        ids, logprobs = continuation(decoder, allowed)
        expected_ids, expected_logprobs = continuation(decoder_of(family, IDS), allowed)
        assert ids == expected_ids and decoder.ids == IDS + ids
        assert logprobs == pytest.approx(expected_logprobs, rel=1e-4)

    def test_of_more_than_one_prefill_pass(self, family, allowed):
        long = [1, *(32002 + i % 500 for i in range(PREFILL_TOKENS + 200))]
        token, logprob = decoder_of(family, long, 1000).draw(allowed, GREEDY)
        with torch.inference_mode():
            logits = family.llama(torch.tensor([long]))[0, -1]
        assert token == int(logits.masked_fill(~allowed, -torch.inf).argmax())
        assert logprob == pytest.approx(float(torch.log_softmax(logits, 0)[token]), rel=1e-4)

    def test_of_nothing_changes_nothing(self, family, allowed):
        decoder = decoder_of(family, IDS)
        first = decoder.draw(allowed, RULE)
        decoder.append([])
        assert decoder.draw(allowed, RULE) == first and decoder.ids == IDS

    def test_what_does_not_fit(self, family):
        decoder = decoder_of(family, IDS, len(IDS) + 2)
        assert decoder.room == 2
        with pytest.raises(ValueError, match=r"41 \+ 3 tokens do not fit: the context is 43 tokens"):
            decoder.append([5, 5, 5])
        assert decoder.ids == IDS
        decoder.append([5, 5])
        assert decoder.room == 0

    def test_capacity_is_at_most_the_context(self, family):
        assert Decoder(family).room == Decoder(family, 10**9).room == Decoder(family).context == 2048

    @pytest.mark.parametrize("bad", [-1, 32512])
    def test_ids_that_are_none(self, family, bad):
        decoder = decoder_of(family, IDS)
        with pytest.raises(ValueError, match=f"token id {bad} is outside the model's 32512 rows"):
            decoder.append([5, bad])
        assert decoder.ids == IDS


class TestDraw:
    def test_log_probability_is_over_the_full_vocabulary(self, family, allowed):
        token, logprob = decoder_of(family, IDS).draw(allowed, RULE)
        with torch.inference_mode():
            logits = family.llama(torch.tensor([IDS]))[0, -1]
        assert allowed[token] and logprob == pytest.approx(float(torch.log_softmax(logits, 0)[token]), rel=1e-4)

    def test_appends_nothing_and_is_repeatable(self, family, allowed):
        decoder = decoder_of(family, IDS)
        assert decoder.draw(allowed, RULE) == decoder.draw(allowed, RULE)
        assert decoder.ids == IDS

    def test_depends_on_the_position(self, family, allowed):
        """The same sequence drawn from at two places of the cache has other random numbers."""
        hot = Sampling(temperature=5.0, top_p=1.0)
        decoder = decoder_of(family, IDS)
        tokens = set()
        for _ in range(5):
            tokens.add(decoder.draw(allowed, hot)[0])
            decoder.append([32001])
        assert len(tokens) == 5

    def test_repetition_penalty_is_of_the_ids_given(self, family, allowed):
        decoder = decoder_of(family, IDS)
        rule = Sampling(temperature=0.0, repetition_penalty=1e6)
        best, _ = decoder.draw(allowed, rule)
        second, _ = decoder.draw(allowed, rule, [best, best])
        assert best == decoder.draw(allowed, GREEDY)[0] and second != best

    def test_from_nothing(self, family, allowed):
        for decoder in (Decoder(family, 10), decoder_of(family, IDS)):
            decoder.truncate(0)
            with pytest.raises(ValueError, match=r"nothing to continue: append at least one token \(BOS\) first"):
                decoder.draw(allowed, RULE)
            with pytest.raises(ValueError, match="nothing to continue"):
                decoder.score([5])


class TestTruncate:
    @pytest.mark.parametrize("kept", [0, 1, 20, 41])
    def test_and_append_equals_fresh(self, family, allowed, kept):
        decoder = decoder_of(family, IDS)
        continuation(decoder, allowed, 3)
        decoder.truncate(kept)
        assert decoder.ids == IDS[:kept] and decoder.room == 100 - kept
        decoder.append([1, 7, 32001])
        fresh = decoder_of(family, [*IDS[:kept], 1, 7, 32001])
        ids, logprobs = continuation(decoder, allowed)
        expected_ids, expected_logprobs = continuation(fresh, allowed)
        assert ids == expected_ids and logprobs == pytest.approx(expected_logprobs, rel=1e-4)

    def test_beyond_what_is_held(self, family):
        with pytest.raises(ValueError, match="cannot truncate to 42 tokens: the cache holds 41"):
            decoder_of(family, IDS).truncate(42)


class TestScore:
    def test_is_what_drawing_says_token_by_token(self, family, allowed):
        ids, logprobs = continuation(decoder_of(family, IDS), allowed)
        decoder = decoder_of(family, IDS)
        assert decoder.score(ids) == pytest.approx(logprobs, rel=1e-4)
        assert decoder.score(ids[:1]) == pytest.approx(logprobs[:1], rel=1e-4)
        assert decoder.score([]) == []

    def test_keeps_nothing(self, family, allowed):
        decoder = decoder_of(family, IDS)
        first = decoder.score([5, 6, 7])
        assert decoder.ids == IDS and decoder.score([5, 6, 7]) == first
        assert continuation(decoder, allowed) == continuation(decoder_of(family, IDS), allowed)

    def test_up_to_the_context(self, family):
        decoder = decoder_of(family, IDS, len(IDS) + 3)
        assert len(decoder.score([5] * 4)) == 4  # the last one needs no room: nothing comes after it
        with pytest.raises(ValueError, match=r"41 \+ 5 tokens exceed the context of 44"):
            decoder.score([5] * 5)
