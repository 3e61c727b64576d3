"""Documents from shards: shares of tokens, spans at word boundaries, Base and Expressive."""

import random
import re
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spiritrt.training.finetune import FinetunePlan, TaskDocuments
from spiritrt.training.interleave import EOS, Segment, SpanPlan
from spiritrt.training.shard_documents import ALIGNED, ShardDocuments, Texts, TokenMix, read_text
from spiritrt.training.shards import Tokenized

WORDS = tuple(f"word{n}," for n in range(12))


class FakeShard:
    """Utterances of 12 words of 0.4 s; HuBERT code of a frame is the number of its word and its parity.

    With `frames` below 120 the last words have none.
    """

    def __init__(self, utterances: int, expressive: bool = False, timed: bool = True, frames: int = 120) -> None:
        self.utterances, self.expressive, self.timed, self.frames = utterances, expressive, timed, frames

    def __len__(self) -> int:
        return self.utterances

    def has_words(self, index: int) -> bool:
        return self.timed

    def with_words(self) -> np.ndarray:
        return np.arange(self.utterances if self.timed else 0)

    def __getitem__(self, index: int) -> Tokenized:
        times = np.arange(self.frames) / 24.99
        frames = {"Hu": ((times / 0.4).astype(int) * 10 + np.arange(self.frames) % 2).astype(np.uint16)}
        if self.expressive:
            frames |= {"Pi": np.arange(60, dtype=np.uint16), "St": np.arange(5, dtype=np.uint16)}
        starts = np.arange(12, dtype=np.float32) * 0.4 if self.timed else np.zeros(0, np.float32)
        return Tokenized(f"u{index}", "", "x", "train", frames, WORDS if self.timed else (), starts)


def documents(lm, mix: TokenMix, expressive: bool = False, texts: tuple[str, ...] = ("once upon a time " * 20,)):
    return ShardDocuments([FakeShard(3), FakeShard(2, expressive)], lm.family.tokenizer, mix, 1, texts)


def whole_of(made: ShardDocuments, kind: str) -> list[int]:
    """Ids of a document of a kind in a context that holds all of it."""
    endless = replace(made.mix, shares={kind: 1.0}, context=10_000)
    return ShardDocuments(made.shards, made.tokenizer, endless, 1, made.texts).document(0, 0)[0]


def test_shares_are_of_tokens(base_lm):
    mix = TokenMix(shares={"speech": 0.5, "interleaved": 0.2, "text": 0.3}, spans=SpanPlan((2, 4), (2, 4)))
    made = documents(base_lm, mix)
    tokens = {"speech": 0, "interleaved": 0, "text": 0}
    vocabulary = base_lm.family.vocabulary
    for index in range(600):
        ids, weights = made.document(0, index)
        assert made.document(0, index) == (ids, weights)
        markers = {i for i in ids if i in (vocabulary.text_marker, vocabulary.speech_marker)}
        kind = "interleaved" if len(markers) == 2 else "text" if vocabulary.text_marker in markers else "speech"
        tokens[kind] += len(ids)
    shares = {kind: count / sum(tokens.values()) for kind, count in tokens.items()}
    assert shares == pytest.approx(mix.shares, abs=0.05)


def said_by(segment: Segment) -> list[int]:
    """Numbers of the words of a segment."""
    if segment.modality == "text":
        return [int(n) for n in re.findall(r"word(\d+),", segment.text)]
    return sorted({unit // 10 for unit in segment.units})


def test_words_are_said_once_and_in_order(base_lm):
    mix = TokenMix(shares={"interleaved": 1.0}, spans=SpanPlan((1, 4), (1, 4)))
    made = documents(base_lm, mix)
    for seed in range(30):
        segments = made.interleaved(made.shards[0][0], random.Random(seed), 0, 12)
        assert [n for segment in segments for n in said_by(segment)] == list(range(12))


def words_of(made: ShardDocuments | TaskDocuments, index: int) -> list[tuple[str, int]]:
    """Modality and number of the words of a document, in order."""
    string = made.tokenizer.decode(made.document(0, index)[0])
    found = re.findall(r"word(\d+),|\[Hu(\d+)\]", string)
    words = [("text", int(word)) if word else ("speech", int(code) // 10) for word, code in found]
    # the units of a word are one
    return [word for at, word in enumerate(words) if word[0] == "text" or at == 0 or words[at - 1] != word]


@pytest.mark.parametrize("maker", ["shards", "task"])
def test_words_behind_the_last_frame_stand_as_text(base_lm, maker: str):
    """The last two of twelve words begin behind it."""
    shard, tokenizer, spans = FakeShard(1, frames=100), base_lm.family.tokenizer, SpanPlan((1, 3), (1, 3))
    assert not shard[0].tokens(10, 12)
    made: ShardDocuments | TaskDocuments
    if maker == "shards":
        made = ShardDocuments([shard], tokenizer, TokenMix(shares={"interleaved": 1.0}, spans=spans), 1)
    else:
        made = TaskDocuments([shard], tokenizer, FinetunePlan("interleaved", spans=spans))
    drawn = [words_of(made, index) for index in range(40)]
    assert all([number for _, number in words] == list(range(12)) for words in drawn)
    assert {(modality, 9) for modality in ("text", "speech")} <= {word for words in drawn for word in words}
    assert all(words[10:] == [("text", 10), ("text", 11)] for words in drawn)


def test_pairs_are_both_sides_in_either_order(base_lm):
    made = documents(base_lm, TokenMix(shares={"pairs": 1.0}))
    sides = [[(modality, number) for number in range(12)] for modality in ("text", "speech")]
    drawn = [words_of(made, index) for index in range(40)]
    assert all(words in (sides[0] + sides[1], sides[1] + sides[0]) for words in drawn)
    assert {words[0][0] for words in drawn} == {"text", "speech"}


def test_both_sides_of_long_pairs_fit_into_the_context(base_lm):
    made = documents(base_lm, TokenMix(shares={"pairs": 1.0}, context=60))
    seen = set()
    for index in range(200):
        ids, weights = made.document(0, index)
        assert len(ids) == len(weights) <= 60
        words = words_of(made, index)
        text, speech = ([n for modality, n in words if modality == side] for side in ("text", "speech"))
        assert text and text == speech == list(range(text[0], text[-1] + 1))
        seen |= set(text)
    assert seen == set(range(12))


def test_transcribed_words_are_speech_and_then_text(base_lm):
    made = documents(base_lm, TokenMix(shares={"transcribed": 1.0}))
    both = [(modality, number) for number in range(12) for modality in ("speech", "text")]
    assert words_of(made, 0) == both
    vocabulary = base_lm.family.vocabulary
    ids, _ = made.document(0, 0)
    assert sum(i in (vocabulary.text_marker, vocabulary.speech_marker) for i in ids) == 24
    cut = documents(base_lm, TokenMix(shares={"transcribed": 1.0}, context=30))
    first = words_of(cut, 0)[0][1]
    assert words_of(cut, 0) == both[2 * first :][: len(words_of(cut, 0))]


@pytest.mark.parametrize("kind", ["pairs", "transcribed"])
def test_words_without_a_frame_are_text_alone(base_lm, kind: str):
    mix = TokenMix(shares={kind: 1.0})
    made = ShardDocuments([FakeShard(1, frames=100)], base_lm.family.tokenizer, mix, 1)
    words = words_of(made, 0)
    assert {n for m, n in words if m == "text"} == set(range(12))
    assert {n for m, n in words if m == "speech"} == set(range(10))
    segments = ALIGNED[kind](made, made.shards[0][0], random.Random(0), 10, 12)
    assert " ".join(segment.text for segment in segments) == "word10, word11,"


def test_places_of_utterances_take_no_memory(base_lm):
    tracemalloc.start()
    made = ShardDocuments(
        [FakeShard(3), FakeShard(10**6)], base_lm.family.tokenizer, TokenMix(shares={"speech": 1.0}), 1
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20
    assert len(made._all) == 10**6 + 3
    assert [made._all[at] for at in (0, 2, 3, 10**6 + 2)] == [(0, 0), (0, 2), (1, 0), (1, 10**6 - 1)]


def test_expressive_has_all_three_kinds(expressive_lm):
    made = documents(expressive_lm, TokenMix(shares={"speech": 1.0}), expressive=True)
    vocabulary = expressive_lm.family.vocabulary
    (segment,) = made.speech(made.shards[1][0])
    tokens = [vocabulary.speech_token(vocabulary.first_unit + unit) for unit in segment.units]
    assert [token.code for token in tokens if token.kind == "St"] == [0, 1, 2, 3, 4]
    assert [token.code for token in tokens if token.kind == "Pi"] == list(range(60))
    assert [token.kind for token in tokens[:3]] == ["St", "Pi", "Hu"]


def test_the_context_bounds_a_document(base_lm):
    made = documents(base_lm, TokenMix(shares={"speech": 1.0}, context=20))
    assert {len(made.document(0, index)[0]) for index in range(5)} == {20}


@pytest.mark.parametrize("kind", ["speech", "text"])
def test_every_part_of_what_is_longer_than_the_context_occurs(base_lm, kind: str):
    texts = (" ".join(f"{chr(97 + n // 26)}{chr(97 + n % 26)}" for n in range(90)),)
    made = documents(base_lm, TokenMix(shares={kind: 1.0}, context=40), texts=texts)
    whole = whole_of(made, kind)
    starts = set()
    for index in range(1500):
        ids, weights = made.document(0, index)
        assert made.document(0, index) == (ids, weights) and len(ids) == len(weights) == 40
        assert ids[:2] == whole[:2] and weights == [0.0] + [1.0] * 39
        starts |= {at for at in range(2, len(whole) - 37) if whole[at : at + 38] == ids[2:]}
    assert starts == set(range(2, len(whole) - 37))
    assert (whole[-1] == EOS) == (kind == "text")


def test_every_word_of_what_is_longer_than_the_context_occurs(base_lm):
    made = documents(base_lm, TokenMix(shares={"interleaved": 1.0}, spans=SpanPlan((1, 2), (1, 2)), context=24))
    vocabulary, first_unit = made.tokenizer.vocabulary, made.encoder.first_unit
    codes = {n: [vocabulary.speech_token(first_unit + unit).code for unit in (n * 10, n * 10 + 1)] for n in range(12)}
    said: dict[str, set[int]] = {"text": set(), "speech": set()}
    for index in range(600):
        ids, weights = made.document(0, index)
        assert made.document(0, index) == (ids, weights) and len(ids) == len(weights) <= 24
        string = made.tokenizer.decode(ids)
        said["text"] |= {int(n) for n in re.findall(r"word(\d+),", string)}
        said["speech"] |= {n for n in codes if any(f"[Hu{code}]" in string for code in codes[n])}
    assert said == {"text": set(range(12)), "speech": set(range(12))}


@pytest.mark.parametrize("kind", ["speech", "text"])
def test_what_is_as_long_as_the_context_stays_whole(base_lm, kind: str):
    made = documents(base_lm, TokenMix())
    whole = whole_of(made, kind)
    fitting = documents(base_lm, TokenMix(shares={kind: 1.0}, context=len(whole)))
    assert all(fitting.document(0, index)[0] == whole for index in range(5))


def test_a_kind_without_a_source_is_an_error(base_lm):
    with pytest.raises(ValueError, match=r"^text: there is a share and nothing to make it of"):
        documents(base_lm, TokenMix(), texts=())
    with pytest.raises(ValueError, match=r"^interleaved: there is a share"):
        ShardDocuments([FakeShard(2, timed=False)], base_lm.family.tokenizer, TokenMix(), 1, ("text",))
    mix = TokenMix(shares={"speech": 0.5, "text": 0.1, "pairs": 0.2, "transcribed": 0.2})
    with pytest.raises(ValueError, match=r"^text, pairs, transcribed: there is a share"):
        ShardDocuments([FakeShard(2, timed=False)], base_lm.family.tokenizer, mix, 1)
    with pytest.raises(ValueError, match="unknown kinds"):
        TokenMix(shares={"song": 1.0})
    with pytest.raises(ValueError, match="not all 0"):
        TokenMix(shares={"text": 0.0})
    with pytest.raises(ValueError, match="finite"):
        TokenMix(shares={"text": float("nan")})


def test_text_is_read_by_paragraphs(tmp_path: Path):
    (tmp_path / "a.txt").write_text("One\ntwo.\n\n\n\nThree.\n")
    assert list(read_text([tmp_path / "a.txt"])) == ["One two.", "Three."]
    (tmp_path / "b.txt").write_text("\n \n")
    with pytest.raises(ValueError, match="no text"):
        read_text([tmp_path / "b.txt"])
    with pytest.raises(FileNotFoundError, match=r"no text file at .*c\.txt"):
        read_text([tmp_path / "a.txt", tmp_path / "c.txt"])
    (tmp_path / "c.txt").write_bytes(b"One.\n\nM\xfchle")
    with pytest.raises(ValueError, match=r"c\.txt is not UTF-8 at byte 7"):
        read_text([tmp_path / "c.txt"])


written = st.lists(st.sampled_from(["a", "ß.", "\n", "\r", "\r\n", "\n\n", " ", "\u2028", "\ufeff"]), max_size=20)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(written.map("".join), min_size=1, max_size=3))
def test_paragraphs_are_those_of_the_decoded_text(tmp_path: Path, contents: list[str]):
    paths = [tmp_path / f"{number}.txt" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content.encode())
    # text mode reads every line break as one "\n"
    blocks = [block for path in paths for block in path.read_text(encoding="utf-8").split("\n\n")]
    assert list(Texts(paths)) == [" ".join(block.split()) for block in blocks if block.strip()]


def test_text_stays_on_disk(tmp_path: Path):
    (tmp_path / "a.txt").write_text("A paragraph of some words, again and again.\n\n" * 1000 + "x" * 4_000_000)
    tracemalloc.start()
    texts = read_text([tmp_path / "a.txt"] * 3)
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(texts) == 3003 and texts[3001].startswith("A paragraph") and texts[3002] == "x" * 4_000_000
    assert kept < 200_000
