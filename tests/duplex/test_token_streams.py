"""Turns to tokens and replies to sound, for many sessions: against offline, and against being alone."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import spiritrt
from spiritrt import audio
from spiritrt.bench.encoder import edit_distance
from spiritrt.duplex.reply_sound import ReplySound
from spiritrt.duplex.script import shipped_lines
from spiritrt.duplex.token_streams import ReplyVoices, TurnEncoder
from spiritrt.duplex.work import PIECE_SAMPLES
from spiritrt.models.vocoder import Vocoder, vocode_units, vocoder_from_official
from spiritrt.tokens.units import expand, merge
from spiritrt.tokens.vocabulary import SpeechToken, parse_speech

GOLDEN = Path(__file__).parents[1] / "data/golden/checkpoints/speech_tokenizer/hifigan_spiritlm_expressive_w2v2"
TOKENS = st.lists(st.integers(0, 499).map(lambda code: SpeechToken("Hu", code)), min_size=1, max_size=40)
KINDS = ("Pi", "St")


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    """A human reader."""
    return shipped_lines()[2].samples


@pytest.fixture(scope="module")
def encoder(nano: spiritrt.SpiritLM) -> TurnEncoder:
    return TurnEncoder(nano.family, 3)


def heard(encoder: TurnEncoder, slot: int, sound: np.ndarray) -> tuple[list[SpeechToken], np.ndarray]:
    """The tokens that are committed after listening to the whole pieces of `sound`, and the rest of it."""
    tokens = []
    whole = len(sound) // PIECE_SAMPLES * PIECE_SAMPLES
    for start in range(0, whole, PIECE_SAMPLES):
        tokens += encoder.listen([(slot, sound[start : start + PIECE_SAMPLES])])[0]
    return tokens, sound[whole:]


def spoken(voices: ReplyVoices, slot: int, tokens: list[SpeechToken], kinds: tuple[str, ...] = ()) -> np.ndarray:
    """The sound of a whole reply, token by token."""
    sound = ReplySound(kinds)
    voices.begin(slot)
    packets = []
    for units in [*map(sound.accept, tokens), [*sound.flush(), None]]:
        packets += [packet for unit in units for packet in voices.speak([(slot, unit)])]
    assert packets[-1].final
    for packet in packets:
        sound.made(packet.units)
    assert sound.samples == sum(len(packet.pcm) for packet in packets)
    return np.concatenate([packet.pcm for packet in packets])


@settings(max_examples=10)
@given(tokens=TOKENS)
def test_a_reply_is_the_offline_waveform(nano: spiritrt.SpiritLM, tokens: list[SpeechToken]) -> None:
    offline, lengths = nano.family.vocode(tokens)
    voices = ReplyVoices(nano.family, 1)
    streamed = spoken(voices, voices.open(), tokens)
    assert len(streamed) == sum(lengths)
    np.testing.assert_allclose(streamed, offline, atol=1e-5)


def test_replies_are_the_same_bits_alone_and_beside_others(nano: spiritrt.SpiritLM) -> None:
    draw = np.random.default_rng(0)
    replies = [[SpeechToken("Hu", int(code)) for code in draw.integers(0, 499, 30)] for _ in range(3)]
    voices = ReplyVoices(nano.family, 3)
    slots = [voices.open() for _ in replies]
    alone = [spoken(voices, slot, tokens) for slot, tokens in zip(slots, replies, strict=True)]
    sounds = [ReplySound() for _ in replies]
    for slot in slots:
        voices.begin(slot)
    parts: dict[int, list[np.ndarray]] = {slot: [] for slot in slots}
    units = [[*map(sound.accept, tokens), [None]] for sound, tokens in zip(sounds, replies, strict=True)]
    for row in zip(*units, strict=True):
        batch = [(slot, unit) for slot, each in zip(slots, row, strict=True) for unit in each]
        for packet in voices.speak(batch):
            parts[packet.slot].append(packet.pcm)
    for slot, expected in zip(slots, alone, strict=True):
        np.testing.assert_array_equal(np.concatenate(parts[slot]), expected)


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
def test_pitch_and_style_are_carried_as_offline(expressive: Expressive, string: str) -> None:
    tokens = parse_speech(string)
    voices = ReplyVoices(expressive, 1)  # type: ignore[arg-type]
    np.testing.assert_allclose(spoken(voices, voices.open(), tokens, KINDS), expressive.vocode(tokens), atol=1e-5)


@pytest.mark.parametrize("string", ["[Hu3][Hu9]", "[St5][Hu3][Hu9]"])
def test_a_reply_without_pitch_or_style_sounds_as_offline(expressive_lm: spiritrt.SpiritLM, string: str) -> None:
    tokens = parse_speech(string)
    voices = ReplyVoices(expressive_lm.family, 1)
    streamed = spoken(voices, voices.open(), tokens, KINDS)
    np.testing.assert_allclose(streamed, expressive_lm.family.vocode(tokens)[0], atol=1e-5)


def test_tokens_heard_follow_the_sample_map() -> None:
    sound = ReplySound(KINDS)
    for token in parse_speech("[St7][Pi1][Hu5][Hu9][Pi2][Hu4]"):
        sound.accept(token)
    assert sound.made([(0, 640), (1, 100)]) == [0, 1, 2, 3]
    assert sound.made([(1, 540), (2, 1280)]) == [4, 5]
    assert [sound.tokens_heard(n) for n in (0, 1, 640, 641, 1280, 1281, 2560)] == [0, 3, 3, 4, 4, 6, 6]


def test_a_turn_agrees_with_offline_on_most_units(
    nano: spiritrt.SpiritLM, encoder: TurnEncoder, speech: np.ndarray
) -> None:
    slot, sound = encoder.open(), speech[: 4 * audio.RATE_HZ]
    tokens, rest = heard(encoder, slot, sound)
    tokens += encoder.close(slot, rest)
    offline = merge(nano.encode(sound))
    # windows are an approximation: compare by edit distance, not token by token
    assert edit_distance(tokens, offline) <= 0.35 * len(offline)
    encoder.free(slot)


def test_closing_a_turn_changes_nothing_of_it(encoder: TurnEncoder, speech: np.ndarray) -> None:
    quiet, closed = encoder.open(), encoder.open()
    sound = speech[: 12 * PIECE_SAMPLES]
    ends = []
    tokens: dict[int, list[SpeechToken]] = {quiet: [], closed: []}
    for start in range(0, len(sound), PIECE_SAMPLES):
        piece = sound[start : start + PIECE_SAMPLES]
        ends.append(encoder.close(closed, piece[:1000]))
        for slot in (quiet, closed):
            tokens[slot] += encoder.listen([(slot, piece)])[0]
    assert tokens[quiet] == tokens[closed] and any(ends)
    for slot in (quiet, closed):
        encoder.free(slot)


@settings(max_examples=5)
@given(samples=st.integers(0, 3 * 16000))
def test_a_short_turn_is_offlines_in_full(
    nano: spiritrt.SpiritLM, encoder: TurnEncoder, speech: np.ndarray, samples: int
) -> None:
    """Where nothing has been committed yet, the end of a turn is the whole of it."""
    slot, sound = encoder.open(), speech[4000 : 4000 + min(samples, 7000)]
    tokens, rest = heard(encoder, slot, sound)
    ending = encoder.close(slot, rest)
    if len(sound) < 1280:
        assert tokens + ending == []
    elif not tokens:
        assert ending == merge(nano.encode(sound))
    encoder.free(slot)


def test_turns_are_the_same_beside_others_and_after_others(encoder: TurnEncoder, speech: np.ndarray) -> None:
    slots = [encoder.open(), encoder.open()]
    sounds = [speech[:40000], speech[50000:90000]]
    alone = []
    for slot, sound in zip(slots, sounds, strict=True):
        tokens, rest = heard(encoder, slot, sound)
        alone.append(tokens + encoder.close(slot, rest))
        encoder.begin(slot)
    together: list[list[SpeechToken]] = [[], []]
    for start in range(0, 40000 // PIECE_SAMPLES * PIECE_SAMPLES, PIECE_SAMPLES):
        batch = [(slot, sound[start : start + PIECE_SAMPLES]) for slot, sound in zip(slots, sounds, strict=True)]
        for number, tokens in enumerate(encoder.listen(batch)):
            together[number] += tokens
    rest = 40000 // PIECE_SAMPLES * PIECE_SAMPLES
    for number, (slot, sound) in enumerate(zip(slots, sounds, strict=True)):
        together[number] += encoder.close(slot, sound[rest:])
        encoder.free(slot)
    assert together == alone


@pytest.mark.parametrize("which", ["nano", "expressive_lm"])
def test_a_turn_that_is_encoded_again_at_its_end_is_offlines(
    which: str, speech: np.ndarray, request: pytest.FixtureRequest
) -> None:
    lm = request.getfixturevalue(which)
    encoder = TurnEncoder(lm.family, 1)
    slot, sound = encoder.open(), speech[: 3 * audio.RATE_HZ + 777]
    encoder.begin(slot, whole=True)
    committed, rest = heard(encoder, slot, sound)
    closed = encoder.close(slot, rest)
    kinds = [[token for token in tokens if token.kind == "Hu"] for tokens in (closed, merge(lm.encode(sound)))]
    assert committed and kinds[0] == kinds[1]


def test_an_expressive_turn_orders_its_tokens_and_can_be_closed(
    expressive_lm: spiritrt.SpiritLM, speech: np.ndarray
) -> None:
    encoder = TurnEncoder(expressive_lm.family, 1)
    slot, sound = encoder.open(), speech[: 3 * audio.RATE_HZ]
    tokens, rest = heard(encoder, slot, sound)
    first, second = (encoder.close(slot, rest) for _ in range(2))
    assert first == second
    tokens += first
    assert [token.kind for token in tokens[:3]] == ["St", "Pi", "Hu"]
    assert sum(token.kind == "St" for token in tokens) == 3
    assert sum(token.kind == "Pi" for token in tokens) > 10
