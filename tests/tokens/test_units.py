from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spiritrt.tokens.units import STYLES_WHERE_NONE, TokenMerger, Units, expand, merge
from spiritrt.tokens.vocabulary import SpeechToken, format_speech, parse_speech

# few codes, so that equal neighbours are common; up to three seconds
HUBERT = st.lists(st.integers(0, 3), max_size=75)
PITCH = st.lists(st.integers(0, 2), max_size=38)
STYLE = st.lists(st.integers(0, 1), max_size=4)
UNITS = st.one_of(
    st.builds(Units, HUBERT), st.builds(Units, HUBERT, PITCH, STYLE), st.builds(Units, HUBERT, PITCH),
    st.builds(Units, HUBERT, st.none(), STYLE),
)  # fmt: skip
KINDS = ("St", "Pi", "Hu")


def deduplicated(codes: tuple[int, ...]) -> list[int]:
    return [code for code, _ in groupby(codes)]


def merged_by_sorting(units: Units) -> list[SpeechToken]:
    """The definition: kept frames of style, pitch, HuBERT, sorted stably by their times."""
    timed = []
    for kind, codes, rate in (("St", units.style, 1.0), ("Pi", units.pitch, 12.5), ("Hu", units.hubert, 24.99)):
        codes = codes or ()
        for i, code in enumerate(codes):
            if kind == "St" or i == 0 or code != codes[i - 1]:
                timed.append((i / rate, SpeechToken(kind, code)))
    return [token for _, token in sorted(timed, key=lambda pair: pair[0])]


class TestMerge:
    def test_the_example(self):
        units = Units((5, 5, 9, 9, 9, 4), (1, 1, 2), (7,))
        assert format_speech(merge(units)) == "[St7][Pi1][Hu5][Hu9][Pi2][Hu4]"
        assert expand(merge(units)) == Units((5, 9, 4), (1, 1, 2), (7, 7, 7))

    @given(UNITS)
    def test_is_a_stable_sort_by_time(self, units):
        assert merge(units) == merged_by_sorting(units)

    @given(UNITS)
    def test_no_stream_loses_or_repeats_a_code(self, units):
        tokens = merge(units)
        streams = {kind: [token.code for token in tokens if token.kind == kind] for kind in KINDS}
        assert streams["Hu"] == deduplicated(units.hubert)
        assert streams["Pi"] == deduplicated(units.pitch or ())
        assert streams["St"] == list(units.style or ())

    def test_ties_go_style_pitch_hubert(self):
        # every 2 s a pitch frame and a style frame begin at once; HuBERT's clock runs at 24.99 Hz, a little late
        tokens = merge(Units(tuple(range(51)), tuple(range(26)), (0, 0, 1)))
        assert tokens[:3] == [("St", 0), ("Pi", 0), ("Hu", 0)]
        after = tokens[tokens.index(SpeechToken("Hu", 49)) + 1 :]
        assert after == [("St", 1), ("Pi", 25), ("Hu", 50)]

    def test_clocks_drift_apart(self):
        """From 100 s on, a HuBERT frame (24.99 Hz) no longer begins before the pitch frame half of it further on."""
        tokens = merge(Units(tuple(range(2600)), tuple(range(1300))))
        order = {token: place for place, token in enumerate(tokens)}
        assert order["Hu", 2497] < order["Pi", 1249] and order["Pi", 1250] < order["Hu", 2499]
        assert tokens == merged_by_sorting(Units(tuple(range(2600)), tuple(range(1300))))

    def test_style_is_never_deduplicated(self):
        assert format_speech(merge(Units((3,) * 75, (6,) * 38, (7, 7, 7)))) == "[St7][Pi6][Hu3][St7][St7]"

    def test_nothing_is_no_tokens(self):
        assert merge(Units(())) == merge(Units((), (), ())) == []


class TestStreaming:
    @given(UNITS, st.data())
    def test_any_chunking_and_interleaving_equals_offline(self, units, data):
        left = {"hubert": units.hubert, "pitch": units.pitch or (), "style": units.style or ()}
        has = {"Hu": True, "Pi": units.pitch is not None, "St": units.style is not None}
        merger = TokenMerger([kind for kind in KINDS if has[kind]])
        for _ in range(2):  # the second time after a flush
            tokens: list[SpeechToken] = []
            rest = dict(left)
            while any(rest.values()):
                counts = {name: data.draw(st.integers(0, len(codes)), label=name) for name, codes in rest.items()}
                tokens += merger.accept(**{name: rest[name][:count] for name, count in counts.items()})
                rest = {name: rest[name][count:] for name, count in counts.items()}
                if not any(counts.values()):
                    tokens += merger.accept(**rest)
                    break
            assert tokens + merger.flush() == merge(units)

    def test_base_holds_nothing_back(self):
        merger = TokenMerger()
        assert [merger.accept([unit]) for unit in (5, 5, 9)] == [[("Hu", 5)], [], [("Hu", 9)]]
        assert merger.flush() == []

    def test_a_token_waits_only_for_streams_that_lag(self):
        merger = TokenMerger(("Hu", "Pi", "St"))
        assert merger.accept(hubert=[4, 5, 6]) == []
        assert merger.accept(style=[7]) == [("St", 7)]
        assert merger.accept(pitch=[1]) == [("Pi", 1), ("Hu", 4), ("Hu", 5)]  # the next pitch comes before unit 6
        assert merger.accept(pitch=[1]) == [("Hu", 6)]
        assert merger.flush() == []

    def test_reset_forgets(self):
        merger = TokenMerger(("Hu", "St"))
        merger.accept(hubert=[1, 2])
        merger.reset()
        assert merger.accept(hubert=[2], style=[0]) == [("St", 0), ("Hu", 2)]

    def test_wrong_streams_are_named(self):
        with pytest.raises(ValueError, match="this merger has no Pi stream, got 2 codes"):
            TokenMerger().accept([1], pitch=[1, 2])
        for kinds in (("Hu", "Xy"), ("Pi",), ()):
            with pytest.raises(ValueError, match="kinds must be Hu and any of Pi, St"):
                TokenMerger(kinds)


class TestExpand:
    @given(st.builds(Units, HUBERT, PITCH.filter(len), STYLE.filter(len)))
    def test_gives_each_unit_what_sounded_with_it(self, units):
        kept = [i for i in range(len(units.hubert)) if i == 0 or units.hubert[i] != units.hubert[i - 1]]
        expected = [
            [codes[max(k for k in range(len(codes)) if k / rate <= i / 24.99)] for i in kept]
            for codes, rate in ((units.pitch, 12.5), (units.style, 1.0))
        ]
        assert expand(merge(units)) == Units(deduplicated(units.hubert), *expected)

    @given(UNITS)
    def test_units_survive_a_token_string(self, units):
        tokens = parse_speech(format_speech(merge(units)))
        assert list(expand(tokens).hubert) == deduplicated(units.hubert)

    @pytest.mark.parametrize(
        ("string", "hubert", "pitch", "style"),
        [
            ("[Hu1][Hu2][Pi5][Hu3][St9]", (1, 2, 3), (5, 5, 5), (9, 9, 9)),
            ("[St1][Pi2][Hu3][St4][Hu5][Pi6][Hu7]", (3, 5, 7), (2, 2, 6), (1, 4, 4)),
            ("[Hu1][Hu1][Hu2]", (1, 1, 2), None, None),
            ("[St4][Hu1]", (1,), None, (4,)),
            ("[Pi1]", (), (), ()),
            ("", (), None, None),
        ],
    )
    def test_carries_forward_and_fills_what_leads(self, string, hubert, pitch, style):
        assert expand(parse_speech(string)) == Units(hubert, pitch, style)

    def test_style_where_there_is_none_is_drawn_by_the_seed(self):
        tokens = parse_speech("[Pi1][Hu2][Hu3]")
        drawn = [expand(tokens, seed=seed).style for seed in range(50)]
        assert {style for style, _ in drawn} == set(STYLES_WHERE_NONE) == {71, 68, 98}
        assert all(first == second for first, second in drawn)
        assert drawn == [expand(tokens, seed=seed).style for seed in range(50)]

    def test_a_pitch_after_a_pitch_repeats_the_unit_only_where_asked(self):
        tokens = parse_speech("[Pi0][Pi1][Hu5][Pi2][Pi3][Hu6][Pi4][St1][Pi5][Hu7]")
        assert expand(tokens) == Units((5, 6, 7), (1, 3, 5), (1, 1, 1))
        assert expand(tokens, repeat_for_pitch=True) == Units((5, 5, 6, 7), (1, 2, 3, 5), (1, 1, 1, 1))


class TestUnits:
    @pytest.mark.parametrize("code", [-1, 1.0, True, "5", None])
    @pytest.mark.parametrize("name", ["hubert", "pitch", "style"])
    def test_codes_that_are_none_are_named(self, name, code):
        with pytest.raises(ValueError, match=f"{name} codes must be whole numbers from 0, got {code!r}"):
            Units(**{"hubert": [1]} | {name: [3, code]})

    def test_lists_are_taken(self):
        assert Units([1, 2], [3], [4]) == Units((1, 2), (3,), (4,))

    def test_repeat(self):
        units = Units((1, 2, 3), (4, 5, 6), None)
        assert units.repeat([2, 1, 3]) == Units((1, 1, 2, 3, 3, 3), (4, 4, 5, 6, 6, 6), None)
        assert units.repeat([2, 1]) == Units((1, 1, 2), (4, 4, 5), None)
        assert units.repeat([2, 1, 3], start=2) == Units((2, 3, 3, 3), (5, 6, 6, 6), None)
