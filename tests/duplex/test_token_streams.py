"""Token streams against their offline counterparts."""

import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import spiritrt
from spiritrt import audio
from spiritrt.duplex.talk import shipped_lines
from spiritrt.duplex.token_streams import ReplyStream, UnitStream
from spiritrt.models.vocoder import Vocoder, vocode_units, vocoder_from_official
from spiritrt.tokens.units import TokenMerger, Units, expand, merge
from spiritrt.tokens.vocabulary import SpeechToken, parse_speech

GOLDEN = Path(__file__).parents[1] / "data/golden/checkpoints/speech_tokenizer/hifigan_spiritlm_expressive_w2v2"

TOKENS = st.lists(st.integers(0, 499).map(lambda code: SpeechToken("Hu", code)), min_size=1, max_size=40)


@settings(max_examples=12, deadline=None)
@given(tokens=TOKENS, cuts=st.lists(st.integers(1, 9), max_size=20))
def test_reply_stream_is_the_offline_waveform(
    nano: spiritrt.SpiritLM, tokens: list[SpeechToken], cuts: list[int]
) -> None:
    offline, lengths = nano.family.vocode(tokens)
    stream = ReplyStream(nano.family)
    packets, start = [], 0
    for cut in cuts:
        packets.append(stream.accept(tokens[start : start + cut]))
        start += cut
    packets += [stream.accept(tokens[start:]), stream.flush()]
    streamed = np.concatenate(packets)
    assert len(streamed) == sum(lengths)
    np.testing.assert_allclose(streamed, offline, atol=1e-5)


@dataclass
class Expressive:
    """As much of a family as makes sound, with the golden vocoder that takes pitch and style."""

    vocoder: Vocoder

    def vocode(self, tokens: list[SpeechToken]) -> np.ndarray:
        units = expand(tokens, seed=0)
        codes = [torch.tensor(list(codes or ())) for codes in (units.hubert, units.pitch, units.style)]
        return vocode_units(self.vocoder, codes[0], pitch=codes[1], style=codes[2]).numpy()


@pytest.fixture(scope="module")
def expressive() -> Expressive:
    config = json.loads((GOLDEN / "config.json").read_text())
    weights = torch.load(GOLDEN / "generator.pt", weights_only=True)["generator"]
    return Expressive(vocoder_from_official(config, weights))


@pytest.mark.parametrize(
    "string",
    [
        "[St7][Pi1][Hu5][Hu9][Pi2][Hu4][Pi3][Pi4][Hu6][St8][Hu1]",
        "[Hu5][Hu9][Pi2][Hu4][St3][Hu6][St8][Pi9][Hu1]",  # leading gaps take the first to come
        "[Pi1][Hu5][Hu9][Pi2][Hu4]",  # no style: one is drawn
    ],
)
@pytest.mark.parametrize("cut", [1, 3, 99])
def test_reply_stream_carries_pitch_and_style_as_offline_does(expressive: Expressive, string: str, cut: int) -> None:
    tokens = parse_speech(string)
    stream = ReplyStream(expressive)  # type: ignore[arg-type]
    packets = [stream.accept(tokens[start : start + cut]) for start in range(0, len(tokens), cut)]
    np.testing.assert_allclose(np.concatenate([*packets, stream.flush()]), expressive.vocode(tokens), atol=1e-5)
    units = [count for count, token in enumerate(tokens, start=1) if token.kind == "Hu"]
    assert stream.heard_tokens(1) == units[0]


@pytest.mark.parametrize("string", ["[Hu3][Hu9]", "[St5][Hu3][Hu9]"])
def test_reply_without_pitch_or_style_sounds_as_offline(expressive_lm: spiritrt.SpiritLM, string: str) -> None:
    tokens = parse_speech(string)
    stream = ReplyStream(expressive_lm.family)
    streamed = np.concatenate([stream.accept(tokens), stream.flush()])
    np.testing.assert_allclose(streamed, expressive_lm.family.vocode(tokens)[0], atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    frames=st.integers(0, 120),
    kinds=st.integers(1, 4),
    lags=st.tuples(st.integers(0, 30), st.integers(0, 30)),
    cuts=st.lists(st.integers(1, 20), max_size=30),
    expressive=st.booleans(),
    seed=st.integers(0, 9),
)
def test_token_merger_gives_the_offline_string_for_any_split(
    frames: int, kinds: int, lags: tuple[int, int], cuts: list[int], expressive: bool, seed: int
) -> None:
    """Pitch and style may lag behind the units by any number of frames, and few kinds make many repetitions."""
    draw = random.Random(seed)
    hubert = [draw.randrange(kinds) for _ in range(frames)]
    pitch = [draw.randrange(kinds) for _ in range(frames // 2)] if expressive else None
    style = [draw.randrange(kinds) for _ in range(-(-frames // 25))] if expressive else None
    merger = TokenMerger(("St", "Pi", "Hu") if expressive else ("Hu",))
    tokens, at = [], 0
    given = [0, 0]
    for cut in [*cuts, 999]:
        new = hubert[at : at + cut]
        at += cut
        until = [max(given[0], min(at - lags[0], frames) // 2), max(given[1], -(-min(at - lags[1], frames) // 25))]
        if cut == 999:
            until = [len(pitch or ()), len(style or ())]
        parts = [list((codes or ())[a:b]) for codes, a, b in zip((pitch, style), given, until, strict=True)]
        given = until
        tokens += merger.accept(new, *parts)
    assert tokens + merger.flush() == merge(Units(hubert, pitch, style))


def test_heard_tokens_follow_the_sample_map(nano: spiritrt.SpiritLM) -> None:
    tokens = [SpeechToken("Hu", code) for code in (3, 50, 120, 7, 400, 77)]
    _, lengths = nano.family.vocode(tokens)
    stream = ReplyStream(nano.family)
    stream.accept(tokens)
    stream.flush()
    ends = np.cumsum(lengths)
    assert stream.heard_tokens(0) == 0
    assert stream.heard_tokens(1) == 1
    for count, end in enumerate(ends, start=1):
        assert stream.heard_tokens(int(end)) == count
        assert stream.heard_tokens(int(end) + 1) == min(count + 1, len(tokens))


def test_reply_stream_starts_anew_after_reset(nano: spiritrt.SpiritLM) -> None:
    stream = ReplyStream(nano.family)
    stream.accept([SpeechToken("Hu", 9)] * 3)
    stream.reset()
    tokens = [SpeechToken("Hu", code) for code in (30, 31, 32)]
    np.testing.assert_allclose(
        np.concatenate([stream.accept(tokens), stream.flush()]), nano.family.vocode(tokens)[0], atol=1e-5
    )


def test_unit_stream_agrees_with_offline_on_most_units(nano: spiritrt.SpiritLM) -> None:
    sound = shipped_lines()[0].samples[: 4 * audio.RATE_HZ]
    offline = merge(nano.encode(sound))
    stream = UnitStream(nano.family)
    # windows are an approximation: compare by edit distance, not token by token
    assert _edits(stream.accept(sound) + stream.flush(), offline) <= 0.35 * len(offline)


@settings(max_examples=6, deadline=None)
@given(cuts=st.lists(st.integers(1, 9000), max_size=12), end=st.integers(1280, 24000))
def test_unit_stream_gives_the_same_tokens_however_the_sound_is_split(
    nano: spiritrt.SpiritLM, cuts: list[int], end: int
) -> None:
    sound = shipped_lines()[0].samples[4000 : 4000 + end]
    whole, pieces = UnitStream(nano.family), UnitStream(nano.family)
    expected = whole.accept(sound) + whole.flush()
    tokens, start = [], 0
    for cut in cuts:
        tokens += pieces.accept(sound[start : start + cut])
        start += cut
    assert tokens + pieces.accept(sound[start:]) + pieces.flush() == expected


def test_unit_stream_with_an_expressive_model_orders_its_tokens(expressive_lm: spiritrt.SpiritLM) -> None:
    sound = shipped_lines()[0].samples[: 3 * audio.RATE_HZ]
    stream = UnitStream(expressive_lm.family)
    tokens = [t for start in range(0, len(sound), 5000) for t in stream.accept(sound[start : start + 5000])]
    tokens += stream.flush()
    assert [token.kind for token in tokens[:3]] == ["St", "Pi", "Hu"]
    assert sum(token.kind == "St" for token in tokens) == 3
    assert sum(token.kind == "Pi" for token in tokens) > 10


def test_nothing_comes_of_a_turn_under_80_ms(nano: spiritrt.SpiritLM) -> None:
    stream = UnitStream(nano.family)
    assert stream.accept(np.zeros(1000, np.float32)) + stream.flush() == []


def test_stream_settings_are_checked(nano: spiritrt.SpiritLM) -> None:
    with pytest.raises(ValueError, match="chunk_ms must be a multiple of 40"):
        UnitStream(nano.family, chunk_ms=50)


def _edits(a: list, b: list) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, start=1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]
