"""Documents from shards: shares of tokens, spans at word boundaries, Base and Expressive."""

import random
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from spiritrt.training.interleave import EOS, SpanPlan
from spiritrt.training.shard_documents import ShardDocuments, TokenMix, read_text
from spiritrt.training.shards import Tokenized

WORDS = tuple(f"word{n}," for n in range(12))


class FakeShard:
    """Utterances of 12 words of 0.4 s; HuBERT code of a frame is the number of its word and its parity."""

    def __init__(self, utterances: int, expressive: bool = False, timed: bool = True) -> None:
        self.utterances, self.expressive, self.timed = utterances, expressive, timed

    def __len__(self) -> int:
        return self.utterances

    def has_words(self, index: int) -> bool:
        return self.timed

    def __getitem__(self, index: int) -> Tokenized:
        times = np.arange(120) / 24.99
        frames = {"Hu": ((times / 0.4).astype(int) * 10 + np.arange(120) % 2).astype(np.uint16)}
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


def test_words_are_said_once_and_in_order(base_lm):
    mix = TokenMix(shares={"interleaved": 1.0}, spans=SpanPlan((1, 4), (1, 4)))
    made = documents(base_lm, mix)
    for seed in range(30):
        segments = made.interleaved(made.shards[0][0], random.Random(seed))
        said: list[int] = []
        for segment in segments:
            if segment.modality == "text":
                said += [int(n) for n in re.findall(r"word(\d+),", segment.text)]
            else:
                said += sorted({unit // 10 for unit in segment.units})
        assert said == list(range(12))


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
    with pytest.raises(ValueError, match="text has a share"):
        documents(base_lm, TokenMix(), texts=())
    with pytest.raises(ValueError, match="interleaved has a share"):
        ShardDocuments([FakeShard(2, timed=False)], base_lm.family.tokenizer, TokenMix(), 1, ("text",))
    with pytest.raises(ValueError, match="unknown kinds"):
        TokenMix(shares={"song": 1.0})
    with pytest.raises(ValueError, match="not all 0"):
        TokenMix(shares={"text": 0.0})


def test_text_is_read_by_paragraphs(tmp_path: Path):
    (tmp_path / "a.txt").write_text("One\ntwo.\n\n\n\nThree.\n")
    assert read_text([tmp_path / "a.txt"]) == ["One two.", "Three."]
    (tmp_path / "b.txt").write_text("\n \n")
    with pytest.raises(ValueError, match="no text"):
        read_text([tmp_path / "b.txt"])
    with pytest.raises(FileNotFoundError, match=r"no text file at .*c\.txt"):
        read_text([tmp_path / "a.txt", tmp_path / "c.txt"])
