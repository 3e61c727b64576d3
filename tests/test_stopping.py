import pytest
from hypothesis import given
from hypothesis import strategies as st

from spiritrt import Stop
from spiritrt.stopping import LONGEST_NGRAM

IDS = st.builds(
    lambda head, group, times: head + group * times,
    st.lists(st.integers(0, 3), max_size=12),
    st.lists(st.integers(0, 3), max_size=9),
    st.integers(1, 9),
)


class TestEnd:
    def test_end_tokens(self):
        assert Stop().reason([5, 6, 2]) == "end"
        assert Stop(ids=(9, 7)).reason([5, 7]) == "end"
        assert Stop(ids=(9, 7)).reason([7, 5, 2]) is None
        assert Stop(ids=()).reason([2]) is None
        assert Stop().reason([]) is None


class TestRepetition:
    @pytest.mark.parametrize("length", range(1, LONGEST_NGRAM + 1))
    def test_a_group_over_and_over(self, length):
        """At least 4 times and at least 32 tokens in all, and not a token sooner."""
        group = list(range(10, 10 + length))
        times = max(4, -(-32 // length))
        ids = [7] + group * times
        assert Stop().reason(ids) == "repetition"
        assert Stop().reason(ids[:-1]) is None
        assert Stop().reason([*ids[:-1], 8]) is None

    def test_longer_groups_are_not_looked_for(self):
        assert Stop().reason(list(range(9)) * 20) is None

    def test_limits_are_the_users(self):
        stop = Stop(repeats=2, repeated_tokens=6)
        assert stop.reason([1, 2, 3, 1, 2, 3]) == "repetition" and stop.reason([1, 1, 1, 1, 1]) is None
        for off in (Stop(repeats=0), Stop(repeated_tokens=0)):
            assert off.reason([5] * 500) is None

    @given(ids=IDS, repeats=st.integers(1, 5), repeated=st.integers(1, 20))
    def test_is_found_exactly_where_there_is_one(self, ids, repeats, repeated):
        found = any(
            times >= repeats and times * length >= repeated and ids[-times * length :] == ids[-length:] * times
            for length in range(1, LONGEST_NGRAM + 1)
            for times in range(1, len(ids) // length + 1)
        )
        assert (Stop(ids=(), repeats=repeats, repeated_tokens=repeated).reason(ids) == "repetition") == found


@given(
    ids=IDS,
    stop=st.builds(Stop, ids=st.just((3,)), repeats=st.integers(0, 5), repeated_tokens=st.integers(0, 12)),
)
def test_the_window_is_all_that_matters(ids, stop):
    window = ids[-stop.window - 1 :]
    assert stop.reason(window) == stop.reason(ids)


class TestStrings:
    def test_the_first_place_of_any_of_them(self):
        stop = Stop(strings=("<END>", "\n"))
        assert stop.cut("one two<END> three\n") == 7
        assert stop.cut("one\ntwo<END>") == 3
        assert stop.cut("<END>") == 0
        assert stop.cut("one two <EN") is None and Stop().cut("anything") is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"silence_s": -0.1}, r"silence_s must be 0 \(off\) or more, got -0.1"),
        ({"silence_s": float("nan")}, "silence_s must be 0"),
        ({"repeats": -2}, "repeats must be 0"),
        ({"repeated_tokens": -3}, "repeated_tokens must be 0"),
        ({"strings": ("x", "")}, "a stop string must not be empty"),
        ({"strings": "<END>"}, "strings must be a tuple of strings, got '<END>'"),
    ],
)
def test_impossible_values_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        Stop(**values)
