"""Documents from shards: shares of tokens, spans at word boundaries, Base and Expressive."""

import random
import re
from pathlib import Path

import numpy as np
import pytest

from spiritrt.training.interleave import SpanPlan
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
