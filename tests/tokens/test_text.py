import json
import shutil
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import assume, example, given
from hypothesis import strategies as st

from spiritrt.tokens.text import Tokenizer
from spiritrt.tokens.vocabulary import BOS, EOS, Vocabulary

PIECES = 400  # text ids of the small tokenizer
ROWS = 1088
SENTENCES = ["the cat sat on the mat", "a dog ran after the cat", "he said hello and then he said it again", "see [1]"]
# "▁" is how SentencePiece writes a space, and U+FFFD what it writes for half a character
CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="▁\N{REPLACEMENT CHARACTER}")
STRINGS = st.lists(
    st.one_of(
        st.sampled_from(
            ["[Text]", "[Speech]", "[Hu0]", "[Hu12]", "[Hu500]", "[Hu501]", "[Hux]", "[1]", "[", "]", "[Hu"]
        ),
        st.sampled_from(["the cat", " sat", "  on", "東京", "🙂", "naïve café —", "\n", "<s>", "</s>", "<unk>", " "]),
        st.text(CHARACTERS, max_size=6),
    ),
    max_size=8,
).map("".join)


def write_config(folder: Path, spellings: list[str], first: int = PIECES) -> None:
    decoder = {str(first + i): {"content": spelling, "special": False} for i, spelling in enumerate(spellings)}
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))


@pytest.fixture(scope="module")
def small_folder(tmp_path_factory) -> Path:
    """A SentencePiece model of 400 byte-fallback pieces, Spirit LM's tokens added by `tokenizer_config.json`."""
    folder = tmp_path_factory.mktemp("tokenizer")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 4),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=PIECES,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        bos_id=BOS,
        eos_id=EOS,
        user_defined_symbols=[f"<filler{i}>" for i in range(70)],
        minloglevel=2,
        num_threads=1,
    )
    write_config(folder, ["[Text]", "[Speech]", *(f"[Hu{i}]" for i in range(501))])
    return folder


@pytest.fixture(scope="module")
def small(small_folder) -> Tokenizer:
    return Tokenizer(small_folder, ROWS)


@pytest.fixture(scope="module", params=["embedded", "added"])
def tokenizer(request, golden) -> Tokenizer:
    """Both placements of the extra tokens: pieces of the model, and `added_tokens_decoder`."""
    if request.param == "added":
        return request.getfixturevalue("small")
    return Tokenizer(golden / "checkpoints" / "spiritlm_model" / "spirit-lm-base-7b", 32512)


class TestPlacements:
    def test_vocabulary_is_read_off(self, small, golden):
        models = golden / "checkpoints" / "spiritlm_model"
        assert Tokenizer(models / "spirit-lm-base-7b", 32512).vocabulary == Vocabulary()
        expressive = Tokenizer(models / "spirit-lm-expressive-7b", 32768).vocabulary
        assert expressive == Vocabulary(pitches=64, styles=100, rows=32768)
        assert small.vocabulary == Vocabulary(PIECES, 501, rows=ROWS)

    def test_rows_of_the_model_decide_whether_it_is_expressive(self, golden):
        """The public release has one tokenizer for both; a Base model has no rows for pitch and style."""
        folder = golden / "checkpoints" / "spiritlm_model" / "spirit-lm-expressive-7b"
        assert Tokenizer(folder, 32512).vocabulary == Vocabulary()

    def test_added_expressive_tokens(self, small_folder, tmp_path):
        shutil.copyfile(small_folder / "tokenizer.model", tmp_path / "tokenizer.model")
        kinds = [f"[{kind}{i}]" for kind, count in (("Hu", 9), ("Pi", 3), ("St", 2)) for i in range(count)]
        write_config(tmp_path, ["[Text]", "[Speech]", *kinds])
        tokenizer = Tokenizer(tmp_path, 416)
        assert tokenizer.vocabulary == Vocabulary(PIECES, 9, 3, 2, 416)
        assert tokenizer.encode("[St1][Pi2][Hu8]", bos=False) == [415, 413, 410]

    def test_text_between_added_tokens_is_encoded_by_itself(self, small, small_folder):
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(small_folder / "tokenizer.model"))
        ids = small.encode("[Text] the cat[Hu3] sat[Speech]")
        assert ids == [BOS, PIECES, *pieces.encode(" the cat"), PIECES + 5, *pieces.encode(" sat"), PIECES + 1]


class TestEncode:
    @given(string=STRINGS)
    def test_round_trip(self, tokenizer, string):
        assert tokenizer.decode(tokenizer.encode(string)) == string

    @given(string=STRINGS)
    def test_tokens_are_those_of_the_vocabulary(self, tokenizer, string):
        ids = tokenizer.encode(string)
        vocabulary = tokenizer.vocabulary
        assert ids[0] == BOS and BOS not in ids[1:] and EOS not in ids
        assert [i for i in ids if i >= vocabulary.text_size] == [
            piece for piece in vocabulary.split(string) if isinstance(piece, int)
        ]
        assert tokenizer.encode(string, bos=False) == ids[1:]

    def test_what_is_no_piece_falls_back_to_bytes(self, tokenizer):
        assert len(tokenizer.encode("𓀀", bos=False)) >= 4
        assert tokenizer.decode(tokenizer.encode("𓀀 \x00 \U0010fffe")) == "𓀀 \x00 \U0010fffe"

    @pytest.mark.parametrize("spelling", ["[Pi0]", "[Pi63]", "[St0]", "[St99]"])
    def test_pitch_and_style_in_a_prompt_for_base_are_a_mistake(self, tokenizer, spelling):
        message = f"unknown token \\{spelling[:-1]}\\]: this is a Base model, it has no pitch and style tokens"
        with pytest.raises(ValueError, match=message):
            tokenizer.encode(f"[Speech][Hu1]{spelling}")

    @pytest.mark.parametrize("text", ["[Pi64]", "[Pi07]", "[St100]", "[Pi]", "[pi3]"])
    def test_what_is_no_token_of_any_model_is_text(self, tokenizer, text):
        assert max(tokenizer.encode(text)) < tokenizer.vocabulary.text_size

    def test_half_a_surrogate_pair(self, tokenizer):
        with pytest.raises(ValueError, match="surrogates not allowed"):
            tokenizer.encode("a\ud83d")


class TestDecode:
    def test_control_tokens_are_left_out(self, tokenizer):
        ids = tokenizer.encode("the cat", bos=False)
        assert tokenizer.decode([BOS, *ids, EOS]) == "the cat"
        assert tokenizer.decode([]) == tokenizer.decode([BOS]) == tokenizer.decode([EOS]) == ""

    def test_ids_that_are_none(self, tokenizer):
        size = tokenizer.vocabulary.size
        for bad in (size, tokenizer.vocabulary.rows, -1):
            with pytest.raises(ValueError, match=f"id {bad} is outside this vocabulary of {size} ids"):
                tokenizer.decode([BOS, bad])

    @given(string=STRINGS, share=st.floats(0, 1))
    @example(string="a 🙂", share=0.6)
    def test_a_continuation_is_what_it_adds(self, tokenizer, string, share):
        ids = tokenizer.encode(string)
        at = 1 + round(share * (len(ids) - 1))
        before, whole = tokenizer.decode(ids[:at]), tokenizer.decode(ids)
        # a prompt cut within a character decodes to signs of its bytes; they go when the character is complete
        before = before if whole.startswith(before) else before.rstrip("\N{REPLACEMENT CHARACTER}")
        assume(whole.startswith(before))
        assert before + tokenizer.decode_continuation(ids[:at], ids[at:]) == whole

    def test_a_continuation_keeps_its_first_space(self, tokenizer):
        prompt = tokenizer.encode("[Text]the cat")
        new = tokenizer.encode("[Text]the cat sat")[len(prompt) :]
        assert tokenizer.decode_continuation(prompt, new) == " sat"
        assert tokenizer.decode_continuation(prompt, []) == ""

    def test_a_continuation_completes_a_character(self, tokenizer):
        ids = tokenizer.encode("[Text]a 𓀀")
        assert [tokenizer.decode_continuation(ids[:-n], ids[-n:]) for n in (1, 2, 3)] == ["𓀀"] * 3


class TestErrors:
    def test_no_model(self, tmp_path):
        with pytest.raises(ValueError, match=r"tokenizer\.model: not a SentencePiece model"):
            Tokenizer(tmp_path, ROWS)

    @pytest.mark.parametrize("share", [0, 0.5])
    def test_truncated_model(self, small_folder, tmp_path, share):
        whole = (small_folder / "tokenizer.model").read_bytes()
        (tmp_path / "tokenizer.model").write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ValueError, match=r"tokenizer\.model: not a SentencePiece model"):
            Tokenizer(tmp_path, ROWS)

    @pytest.mark.parametrize(
        ("spellings", "message"),
        [
            ([], r"has no \[Text\] token; is this a Spirit LM tokenizer\?"),
            (["[Text]", "[Hu0]", "[Speech]"], r"\[Speech\] has id 402, expected 401 after 400 text ids"),
            (["[Text]", "[Speech]", "[Hu1]", "[Hu0]"], r"\[Hu0\] has id 403, expected 402"),
            (["[Text]", "[Speech]", "[Hu0]", "[St0]", "[Pi0]"], r"\[Pi0\] has id 404, expected 403"),
        ],
    )
    def test_tokens_in_another_order(self, small_folder, tmp_path, spellings, message):
        shutil.copyfile(small_folder / "tokenizer.model", tmp_path / "tokenizer.model")
        write_config(tmp_path, spellings)
        with pytest.raises(ValueError, match=message):
            Tokenizer(tmp_path, 405)

    @pytest.mark.parametrize("config", ["{", "[]", '{"added_tokens_decoder": {"x": {"content": "[Text]"}}}'])
    def test_broken_config(self, small_folder, tmp_path, config):
        shutil.copyfile(small_folder / "tokenizer.model", tmp_path / "tokenizer.model")
        (tmp_path / "tokenizer_config.json").write_text(config)
        with pytest.raises(ValueError, match=r"tokenizer_config\.json: its added_tokens_decoder cannot be read"):
            Tokenizer(tmp_path, ROWS)
