import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from spiritrt.tokens.vocabulary import MODALITIES, SpeechToken, Vocabulary, format_speech, parse_speech

BASE = Vocabulary()
EXPRESSIVE = Vocabulary(pitches=64, styles=100, rows=32768)
SMALL = Vocabulary(text_size=1024, units=501, rows=1536)
TINY = Vocabulary(text_size=3, units=12, pitches=4, styles=2, rows=24)
VOCABULARIES = {"base": BASE, "expressive": EXPRESSIVE, "small": SMALL, "tiny": TINY}

# text that is, or nearly is, made of tokens
FRAGMENTS = st.one_of(
    st.sampled_from(["[", "]", "[[", "]]", "[Hu", "Hu1]", "[Text", "[Speech]", "[Text]", "[1]", "[Hux]", "[hu1]", " "]),
    st.builds("[{}{}]".format, st.sampled_from(["Hu", "Pi", "St", "", "Te"]), st.integers(-2, 700)),
    st.builds("[{}0{}]".format, st.sampled_from(["Hu", "Pi", "St"]), st.integers(0, 9)),
    st.text(max_size=5),
)  # fmt: skip
TOKEN_LIKE = st.lists(FRAGMENTS, max_size=12).map("".join)


@pytest.fixture(params=VOCABULARIES)
def vocabulary(request: pytest.FixtureRequest) -> Vocabulary:
    return VOCABULARIES[request.param]


def spellings_of(vocabulary: Vocabulary) -> dict[str, int]:
    """Every token of the layout in the order of its ids, written down once more."""
    counts = {"Hu": vocabulary.units, "Pi": vocabulary.pitches, "St": vocabulary.styles}
    names = ["[Text]", "[Speech]", *(f"[{kind}{i}]" for kind, count in counts.items() for i in range(count))]
    return {name: vocabulary.text_size + i for i, name in enumerate(names)}


class TestLayout:
    @pytest.mark.parametrize(
        ("vocabulary", "ids"),
        [
            (BASE, {"[Text]": 32000, "[Speech]": 32001, "[Hu0]": 32002, "[Hu500]": 32502, "[Pi0]": None}),
            (EXPRESSIVE, {"[Hu500]": 32502, "[Pi0]": 32503, "[Pi63]": 32566, "[St0]": 32567, "[St99]": 32666}),
            (SMALL, {"[Text]": 1024, "[Speech]": 1025, "[Hu0]": 1026, "[Hu500]": 1526, "[Hu501]": None}),
        ],
    )
    def test_is_that_of_the_published_models(self, vocabulary, ids):
        assert {spelling: vocabulary.lookup(spelling) for spelling in ids} == ids

    def test_spellings_and_ids_are_one_to_one(self, vocabulary):
        spelled = spellings_of(vocabulary)
        assert vocabulary.size == vocabulary.text_size + len(spelled)
        assert {name: vocabulary.lookup(name) for name in spelled} == spelled
        by_id = {i: vocabulary.spelling(i) for i in range(vocabulary.rows)}
        assert {name: i for i, name in by_id.items() if name} == spelled

    def test_speech_tokens_and_ids_are_one_to_one(self, vocabulary):
        for token_id in range(vocabulary.rows):
            token = vocabulary.speech_token(token_id)
            if token is not None:
                assert vocabulary.id_of(token) == token_id and str(token) == vocabulary.spelling(token_id)
        assert vocabulary.expressive == (vocabulary.pitches > 0)

    @pytest.mark.parametrize(
        ("token", "message"),
        [
            (SpeechToken("Hu", 501), r"unknown token \[Hu501\]: this model has Hu0 to Hu500"),
            (SpeechToken("Hu", -1), r"unknown token \[Hu-1\]"),
            (SpeechToken("Pi", 3), r"unknown token \[Pi3\]: this model has no Pi tokens"),
        ],
    )
    def test_unknown_tokens_are_named(self, token, message):
        with pytest.raises(ValueError, match=message):
            BASE.id_of(token)

    @pytest.mark.parametrize(
        ("sizes", "message"),
        [
            ({"rows": 32502}, "an embedding of 32502 rows is too small for 32503 ids"),
            ({"units": 0}, "units must be at least 1, got 0"),
            ({"text_size": -5}, "text_size must be at least 1, got -5"),
            ({"pitches": -1}, "must not be negative, got -1 and 0"),
        ],
    )
    def test_impossible_sizes(self, sizes, message):
        with pytest.raises(ValueError, match=message):
            Vocabulary(**sizes)


class TestMasks:
    @pytest.mark.parametrize("modality", MODALITIES)
    def test_ban_what_the_modality_must_not_hold_and_nothing_else(self, vocabulary, modality):
        spelled = spellings_of(vocabulary)
        markers = {spelled["[Text]"], spelled["[Speech]"]}
        speech = set(spelled.values()) - markers
        banned = {"text": markers | speech, "speech": markers | set(range(vocabulary.text_size)), "arbitrary": set()}
        padding = set(range(vocabulary.text_size + len(spelled), vocabulary.rows))
        allowed = vocabulary.allowed(modality)
        assert allowed.dtype == torch.bool and allowed.shape == (vocabulary.rows,)
        assert set((~allowed).nonzero().flatten().tolist()) == banned[modality] | padding

    def test_unknown_modality(self):
        with pytest.raises(ValueError, match="output must be one of text, speech, arbitrary, got 'video'"):
            BASE.allowed("video")


class TestSplit:
    @pytest.mark.parametrize(
        "text",
        ["[Hu9999]", "[Hu501]", "[Hux]", "[1]", "[Hu007]", "[Hu]", "[Hu-1]", "[Hu 1]", "[hu1]", "[text]", "[Hu1",
         "Hu1]", "[Hu١]", "［Hu1］", "[Pi3]", "[St0]", "[Hu" + "9" * 5000 + "]", "[Hu1\n]", "<s>", "[]"],
    )  # fmt: skip
    def test_what_only_looks_like_a_token_is_text(self, text):
        assert BASE.split(text) == [text] and BASE.lookup(text) is None

    @pytest.mark.parametrize(
        ("string", "pieces"),
        [
            ("", []),
            ("[Hu12]", [32014]),
            ("[[Hu1]]", ["[", 32003, "]"]),
            ("[Text]see [1] and [Hu9999] [Hu12]", [32000, "see [1] and [Hu9999] ", 32014]),
            ("[Hu1][Pi3][Hu1]", [32003, "[Pi3]", 32003]),
            ("[Hu[Hu0]1]", ["[Hu", 32002, "1]"]),
            ("é[Speech]東京", ["é", 32001, "東京"]),
        ],
    )
    def test_examples(self, string, pieces):
        assert BASE.split(string) == pieces

    def test_pitch_is_a_token_in_expressive(self):
        assert EXPRESSIVE.split("[Pi3][St99][Pi64]") == [32506, 32666, "[Pi64]"]

    @pytest.mark.parametrize("vocabulary", [BASE, EXPRESSIVE, TINY], ids=["base", "expressive", "tiny"])
    @given(string=TOKEN_LIKE)
    @example(string="[Hu1[Hu1]][Pi1]")
    def test_finds_every_exact_spelling_and_loses_nothing(self, vocabulary, string):
        spelled = spellings_of(vocabulary)
        pieces: list[str | int] = []
        at = 0
        while at < len(string):
            token_id = spelled.get(string[at : string.find("]", at) + 1])
            if token_id is not None:
                pieces.append(token_id)
                at = string.find("]", at) + 1
                continue
            if not pieces or isinstance(pieces[-1], int):
                pieces.append("")
            pieces[-1] += string[at]
            at += 1
        assert vocabulary.split(string) == pieces


class TestSpeechStrings:
    @given(st.lists(st.builds(SpeechToken, st.sampled_from(["Hu", "Pi", "St"]), st.integers(0, 10**8)), max_size=20))
    def test_round_trip(self, tokens):
        assert parse_speech(format_speech(tokens)) == tokens

    def test_marker_in_front_and_white_space_are_allowed(self):
        tokens = [SpeechToken("St", 7), SpeechToken("Pi", 1), SpeechToken("Hu", 5)]
        assert parse_speech(" [Speech] [St7]\n[Pi1]\t[Hu5] ") == tokens
        assert parse_speech("") == parse_speech(" [Speech] ") == []

    @pytest.mark.parametrize(
        ("string", "message"),
        [
            ("[Hu1]hello", r"not a speech token at character 5: 'hello'"),
            ("[Hu1][Text]", r"not a speech token at character 5: '\[Text\]'"),
            ("[Hu01]", r"not a speech token at character 0: '\[Hu01\]'"),
            ("12 13", "not a speech token at character 0: '12 13'"),
            ("[Hu" + "9" * 5000 + "]", "not a speech token at character 0"),
        ],
    )
    def test_anything_else_is_named(self, string, message):
        with pytest.raises(ValueError, match=message):
            parse_speech(string)
