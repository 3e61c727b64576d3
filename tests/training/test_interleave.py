"""Interleaving and documents as tokens: nothing lost, nothing doubled, markers where the modality changes only."""

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spiritrt.training.interleave import (
    BOS,
    EOS,
    Segment,
    SpanPlan,
    SpokenWord,
    deduplicate,
    draw_spans,
    encode,
    interleave,
    rng_of,
    speech_of,
)


class LetterEncoder:
    """A stand-in tokenizer: one id a character."""

    text_marker, speech_marker, first_unit = 1000, 1001, 2000

    def encode_text(self, text: str) -> list[int]:
        return [10 + ord(letter) for letter in text]

    def decode_text(self, ids: list[int]) -> str:
        return "".join(chr(i - 10) for i in ids)


ENCODER = LetterEncoder()
words_strategy = st.lists(
    st.builds(
        SpokenWord,
        text=st.text("abcdef'", min_size=1, max_size=6),
        units=st.lists(st.integers(0, 30), min_size=1, max_size=6).map(tuple),
    ),
    min_size=1,
    max_size=60,
)
plans = st.builds(
    lambda a, b, c, d: SpanPlan((a, a + b), (c, c + d)),
    st.integers(1, 8), st.integers(0, 8), st.integers(1, 8), st.integers(0, 8),
)  # fmt: skip


@given(words_strategy, plans, st.integers(0, 2**32))
def test_every_word_is_in_one_span_and_in_order(words, plan, seed):
    spans = draw_spans(len(words), plan, random.Random(seed))
    assert [at for span in spans for at in range(span.start, span.end)] == list(range(len(words)))
    assert all(a.modality != b.modality for a, b in pairwise(spans))
    for span in spans[:-1]:
        low, high = plan.text_words if span.modality == "text" else plan.speech_words
        assert low <= span.end - span.start <= high


@given(words_strategy, plans, st.integers(0, 2**32))
def test_no_unit_is_lost_or_doubled_at_a_cut(words, plan, seed):
    spans = draw_spans(len(words), plan, random.Random(seed))
    segments = interleave(words, spans)
    for span, segment in zip(spans, segments, strict=True):
        part = words[span.start : span.end]
        if segment.modality == "speech":
            assert segment.units == deduplicate(u for word in part for u in word.units)
            assert not segment.text
        else:
            assert segment.text.split(" ") == [word.text for word in part]
            assert not segment.units
    everything = interleave(words, [type(span)("speech", span.start, span.end) for span in spans])
    assert deduplicate(u for segment in everything for u in segment.units) == speech_of(words)


@given(words_strategy, plans, st.integers(0, 2**32))
def test_markers_stand_only_where_the_modality_changes(words, plan, seed):
    segments = interleave(words, draw_spans(len(words), plan, random.Random(seed)))
    ids, weights = encode(segments, ENCODER)
    assert len(ids) == len(weights) and ids[0] == BOS and weights[0] == 0
    speech = None
    seen = []
    for token in ids[1:]:
        if token in (ENCODER.text_marker, ENCODER.speech_marker):
            assert speech != (token == ENCODER.speech_marker), "a marker without a switch"
            speech = token == ENCODER.speech_marker
        else:
            assert speech is not None and speech == (token >= ENCODER.first_unit)
            seen.append(token)
    units = [token - ENCODER.first_unit for token in seen if token >= ENCODER.first_unit]
    assert units == [unit for segment in segments for unit in segment.units]
    text = ENCODER.decode_text([token for token in seen if token < ENCODER.first_unit])
    assert text == "".join(segment.text for segment in segments)


def test_a_turn_ends_with_eos_and_the_next_begins_with_a_marker():
    document = [
        Segment("speech", units=(1, 2), weight=0.0, marker_weight=0.0),
        Segment("text", text="hi A: yo"),
        Segment("speech", units=(3,), ends_turn=True),
        Segment("speech", units=(4,)),
        Segment("text", text="a"),
        Segment("text", text="b", ends_turn=True),
    ]
    ids, weights = encode(document, ENCODER)
    e = ENCODER
    letters = e.encode_text("hi A: yo")
    assert ids == [
        BOS, e.speech_marker, 2001, 2002, e.text_marker, *letters, e.speech_marker, 2003, EOS,
        e.speech_marker, 2004, e.text_marker, *e.encode_text("ab"), EOS,
    ]  # fmt: skip
    assert weights[:4] == [0.0] * 4 and set(weights[4:]) == {1.0}


def test_spans_are_redrawn_for_every_epoch_and_equal_for_equal_arguments():
    plan = SpanPlan((3, 10), (3, 8))
    draws = [draw_spans(60, plan, rng_of(1, epoch, 7)) for epoch in range(6)]
    assert draws == [draw_spans(60, plan, rng_of(1, epoch, 7)) for epoch in range(6)]
    assert len({tuple(spans) for spans in draws}) > 1
    assert rng_of(1, 2, 3).random() != rng_of(1, 3, 2).random()


@given(st.lists(st.integers(0, 4)))
@settings(max_examples=60)
def test_deduplicate_keeps_order_and_is_idempotent(units):
    once = deduplicate(units)
    assert deduplicate(once) == once
    assert all(a != b for a, b in pairwise(once))
    assert [u for i, u in enumerate(units) if i == 0 or units[i - 1] != u] == list(once)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="text_words"):
        SpanPlan((0, 3), (1, 2))
    with pytest.raises(ValueError, match="0 words"):
        draw_spans(0, SpanPlan(), random.Random(0))
    with pytest.raises(ValueError, match="empty speech"):
        encode([Segment("speech")], ENCODER)
