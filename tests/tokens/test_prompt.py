from itertools import groupby

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from spiritrt.tokens.prompt import SpeechRun, TextRun, build, ends_in, modality_at_end, parse, parse_output
from spiritrt.tokens.vocabulary import MODALITIES, SpeechToken, Vocabulary, format_speech, parse_speech

BASE = Vocabulary()
EXPRESSIVE = Vocabulary(pitches=64, styles=100, rows=32768)
TOKENS = st.one_of(
    st.builds(SpeechToken, st.just("Hu"), st.integers(0, 500)),
    st.builds(SpeechToken, st.just("Pi"), st.integers(0, 63)),
    st.builds(SpeechToken, st.just("St"), st.integers(0, 99)),
)
NEARLY_TOKENS = st.sampled_from(
    ["[", "]", "[Hu9999]", "[Hux]", "[1]", "[Hu", "007]", "1]", "[Pi", "Text]", "é東🙂", " ", "a"]
)
TEXT = st.lists(st.one_of(NEARLY_TOKENS, st.text(max_size=3)), max_size=6).map("".join)
RUNS = st.lists(
    st.one_of(st.builds(TextRun, TEXT), st.builds(SpeechRun, st.lists(TOKENS, max_size=5).map(tuple))), max_size=8
)


def hu(count: int, first: int = 0) -> str:
    return "".join(f"[Hu{first + i}]" for i in range(count))


def speech(string: str) -> SpeechRun:
    return SpeechRun(tuple(parse_speech(string)))


def joined(runs: list[TextRun | SpeechRun]) -> list[TextRun | SpeechRun]:
    """Neighbours of one modality as one run. Text that spells a token cannot be told from one, so it is left out."""
    result: list[TextRun | SpeechRun] = []
    for modality, group in groupby(runs, key=lambda run: run.modality):
        string = "".join(map(str, group))
        assume(modality == "speech" or EXPRESSIVE.split(string) in ([], [string]))
        result.append(speech(string) if modality == "speech" else TextRun(string))
    return result


class TestBuild:
    @pytest.mark.parametrize(
        ("runs", "text", "spoken", "either"),
        [
            ([], "[Text]", "[Speech]", ""),
            ([TextRun("hi")], "[Text]hi", "[Text]hi[Speech]", "[Text]hi"),
            ([speech("[Hu1]")], "[Speech][Hu1][Text]", "[Speech][Hu1]", "[Speech][Hu1]"),
            (
                [speech("[Hu1]"), speech("[Hu2]"), TextRun(" and"), TextRun(" so"), speech("[Hu3]")],
                "[Speech][Hu1][Hu2][Text] and so[Speech][Hu3][Text]",
                "[Speech][Hu1][Hu2][Text] and so[Speech][Hu3]",
                "[Speech][Hu1][Hu2][Text] and so[Speech][Hu3]",
            ),
        ],
    )
    def test_marks_where_the_modality_changes(self, runs, text, spoken, either):
        assert [build(runs, output) for output in MODALITIES] == [text, spoken, either]

    def test_goes_on_from_another_string(self):
        runs = [TextRun("a"), speech("[Hu1]")]
        assert build(runs, after="text") == "a[Speech][Hu1]"
        assert build(runs, after="speech") == "[Text]a[Speech][Hu1]"

    def test_unknown_output(self):
        with pytest.raises(ValueError, match="output must be one of text, speech, arbitrary, got 'video'"):
            build([TextRun("hi")], "video")

    @given(RUNS, st.sampled_from(MODALITIES))
    def test_markers_stand_only_where_needed(self, runs, output):
        modalities = [modality for modality, _ in groupby(run.modality for run in runs)]
        changes, closing = len(modalities), output not in ("arbitrary", *modalities[-1:])
        pieces = EXPRESSIVE.split(build(joined(runs), output))
        assert sum(piece in (EXPRESSIVE.text_marker, EXPRESSIVE.speech_marker) for piece in pieces) == changes + closing

    @given(RUNS, st.sampled_from(MODALITIES))
    def test_parse_gives_the_runs_back(self, runs, output):
        expected = [run for run in joined(runs) if str(run)]
        assert parse(build(runs, output), EXPRESSIVE) == expected


class TestParse:
    @pytest.mark.parametrize(
        ("string", "runs"),
        [
            ("[Text][Speech]", []),
            ("[Text]a[Text]b", [TextRun("a"), TextRun("b")]),
            ("[Hu1][Speech][Hu2]", [speech("[Hu1]"), speech("[Hu2]")]),
            ("[1] [Hu9999][Hu1][Hux]", [TextRun("[1] [Hu9999]"), speech("[Hu1]"), TextRun("[Hux]")]),
            ("[[Hu1]]", [TextRun("["), speech("[Hu1]"), TextRun("]")]),
            ("[Pi3][Hu1]", [TextRun("[Pi3]"), speech("[Hu1]")]),
        ],
    )
    def test_examples(self, string, runs):
        assert parse(string, BASE) == runs

    @given(st.lists(st.one_of(TOKENS.map(str), NEARLY_TOKENS, st.sampled_from(["[Text]", "[Speech]"]))).map("".join))
    def test_nothing_but_markers_is_lost(self, string):
        pieces = EXPRESSIVE.split(string)
        markers = (EXPRESSIVE.text_marker, EXPRESSIVE.speech_marker)
        kept = [
            piece if isinstance(piece, str) else EXPRESSIVE.spelling(piece) for piece in pieces if piece not in markers
        ]
        assert "".join(map(str, parse(string, EXPRESSIVE))) == "".join(kept)

    def test_units_of_a_run_are_its_hubert_tokens(self):
        assert speech("[St7][Pi1][Hu5][Hu9][Pi2][Hu4]").units == 3


class TestOutput:
    @pytest.mark.parametrize(
        ("raw", "kept"),
        [
            (f"{hu(23)} so", [hu(23), " so"]),
            (f"  {hu(2)} so", [hu(2), " so"]),
            (f"[Speech]{hu(1)}", [hu(1)]),
            (f" so{hu(23)}", [" so"]),
            (f" so{hu(24)}", [" so", hu(24)]),
            (f" so{hu(23)}[Speech]{hu(23)} on", [" so", " on"]),
            (f"{hu(3)}[Text] a[Speech]{hu(30, 100)}[Text] b[Speech]{hu(9)}", [hu(3), " a", hu(30, 100), " b"]),
            (f" so[St1][Pi2]{hu(22)}[Pi3]", [" so"]),
        ],
    )
    def test_short_speech_is_dropped_unless_it_opens_arbitrary_output(self, raw, kept):
        assert list(map(str, parse_output(raw, EXPRESSIVE, "arbitrary"))) == kept

    @given(st.lists(st.one_of(st.integers(1, 40), st.just(" word")), max_size=8))
    def test_the_rule(self, parts):
        """A run of n units for a number, text for a string."""
        raw = "".join(part if isinstance(part, str) else f"[Speech]{hu(part)}" for part in parts)
        runs = [p for kind, group in groupby(parts, key=type) for p in (["".join(group)] if kind is str else group)]
        kept = [run for i, run in enumerate(runs) if isinstance(run, str) or run >= 24 or i == 0]
        found = parse_output(raw, BASE, "arbitrary")
        assert [run.text if isinstance(run, TextRun) else run.units for run in found] == kept

    @pytest.mark.parametrize("output", ["text", "speech"])
    def test_forced_output_keeps_short_speech(self, output):
        assert list(map(str, parse_output(f" so{hu(2)} on{hu(1)}", BASE, output))) == [" so", hu(2), " on", hu(1)]


class TestEnds:
    @pytest.mark.parametrize(
        ("string", "tokens", "modality"),
        [
            ("", "", None),
            ("[Text]hi", "", "text"),
            ("[Text]hi[Speech]", "", "speech"),
            ("[Speech][Hu1][Text]", "", "text"),
            ("[Speech][Hu1][Hu2]", "[Hu1][Hu2]", "speech"),
            ("[Text]a[Hu1][Speech]", "[Hu1]", "speech"),
            ("[Text]a[Speech][St1][Pi2][Hu3][Pi4]", "[St1][Pi2][Hu3][Pi4]", "speech"),
            ("[Speech][Hu1][Speech][Hu2]", "[Hu2]", "speech"),
            ("[Hu1][Hu9999]", "", "text"),
        ],
    )
    def test_examples(self, string, tokens, modality):
        assert format_speech(ends_in(string, EXPRESSIVE)) == tokens
        assert modality_at_end(string, EXPRESSIVE) == modality

    @given(RUNS.filter(len))
    def test_a_prompt_ends_in_its_last_run(self, runs):
        last = joined(runs)[-1]
        assert modality_at_end(build(runs), EXPRESSIVE) == last.modality
        assert format_speech(ends_in(build(runs), EXPRESSIVE)) == (str(last) if isinstance(last, SpeechRun) else "")
