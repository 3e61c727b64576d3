"""What the corpus maker plans and how it reads times; the synthesizer itself is not run here."""

import json
from collections import Counter

import numpy as np
import pytest
import soundfile

from spiritrt.training.corpora.kokoro import Kokoro, pack, word_times
from spiritrt.training.corpora.manifest import cut_utterances, read_manifest
from spiritrt.training.corpora.orders import HELD_OUT_VOICE, STYLES, VOCODER_VOICES, Order, Recipe, orders, plain
from spiritrt.training.corpora.pronounce import find_lexicons

needs_lexicon = pytest.mark.skipif(
    find_lexicons() is None, reason="no pronouncing lexicon: pip install --no-deps misaki==0.9.4"
)


def test_orders_are_reproducible_and_hold_out_what_they_should():
    planned = orders(Recipe(0.6, seed=4))
    assert planned == orders(Recipe(0.6, seed=4)) != orders(Recipe(0.6, seed=5))
    assert len({order.id for order in planned}) == len({order.text for order in planned}) == len(planned)
    by_dialogue: dict[str, list[Order]] = {}
    for order in planned:
        assert order.style in STYLES
        if order.dialogue:
            by_dialogue.setdefault(order.dialogue, []).append(order)
        if order.speaker == HELD_OUT_VOICE:
            assert order.split == "test_voice"
    for pair in by_dialogue.values():
        assert [order.role for order in pair] == ["user", "assistant"]
        assert pair[0].split == pair[1].split
    assert {order.split for order in planned} == {"train", "test", "test_voice"}
    with pytest.raises(ValueError, match="hours"):
        Recipe(0, seed=1)


def test_a_second_corpus_says_nothing_of_the_first_and_keeps_the_held_out_voice_silent():
    first = orders(Recipe(0.2, seed=4))
    said = frozenset(plain(order.text) for order in first)
    prose = ("Never eat the yellow snow.", "All is well that ends well.")
    recipe = Recipe(0.4, 4, "b-", blends=0.5, vocoder_voices=0.4, prose=prose, training_only=True)
    second = orders(recipe, excluded=said)
    assert all(order.id.startswith("b-") for order in second)
    assert not said & {plain(order.text) for order in second}
    assert {order.split for order in second} == {"train"}
    assert not any(HELD_OUT_VOICE in order.speaker for order in second)
    blends = [order for order in second if "+" in order.speaker]
    assert 0.2 < len(blends) / len(second) < 0.5
    singles = [order for order in second if order.role == "single"]
    assert sum(order.speaker in VOCODER_VOICES for order in singles) > 0.35 * len(singles)
    assert {order.text for order in second if order.kind == "prose"} == set(prose)


def test_all_lines_are_said_by_the_voices_that_are_named():
    made = orders(
        Recipe(0.4, 5, blends=0.5, vocoder_voices=1.0, only=("af_heart", "af_heart", "bf_emma"), training_only=True)
    )
    voices = Counter(order.speaker for order in made)
    assert voices.keys() == {"af_heart", "bf_emma"} and 0.55 < voices["af_heart"] / len(made) < 0.78
    assert {order.role for order in made} == {"user", "assistant", "single"}


def test_a_blend_is_the_weighted_mean_of_its_voices(tmp_path):
    voices = {name: np.random.default_rng(at).random((510, 256), np.float32) for at, name in enumerate(("a", "b"))}
    for name, vectors in voices.items():
        vectors.tofile(tmp_path / f"{name}.bin")
    kokoro = object.__new__(Kokoro)
    kokoro.voices, kokoro._loaded, kokoro._middle_hz = tmp_path, {}, {"a": 100.0, "b": 200.0}
    np.testing.assert_allclose(kokoro.voice("a:30+b:70"), 0.3 * voices["a"] + 0.7 * voices["b"], rtol=1e-5)
    assert kokoro.middle_hz("a:50+b:50") == pytest.approx(2**0.5 * 100)
    with pytest.raises(ValueError, match="sum to 100"):
        kokoro.voice("a:30+b:30")


@needs_lexicon
def test_words_take_half_of_each_space_and_the_last_ends_with_the_sound():
    # "Go, I do." with phones ɡˈO , space ˌI space dˈu .
    timed = [
        ("ɡ", 0.1, 0.2), ("ˈO", 0.2, 0.4), (",", 0.4, 0.45), (" ", 0.45, 0.55), ("ˌI", 0.55, 0.7), (" ", 0.7, 0.8),
        ("d", 0.8, 0.9), ("ˈu", 0.9, 1.3), (".", 1.3, 1.4),
    ]  # fmt: skip
    words = word_times("Go, I do.", timed, sound_end_s=1.25)
    assert [word["word"] for word in words] == ["Go", "I", "do"]
    times = [(word["start_s"], word["end_s"]) for word in words]
    assert times == [(0.1, 0.4), (0.5, 0.75), (0.75, 1.25)]


def test_packed_utterances_are_read_back(tmp_path):
    parts = tmp_path / "parts"
    parts.mkdir()
    planned = [
        Order("d1u", "Go on.", "bm_lewis", "neutral", "user", "d1", "days", "train"),
        Order("d1a", "I do.", "af_heart", "slow", "assistant", "d1", "days", "train"),
        Order("s2", "We go.", "af_heart", "fast", "single", None, "grammar", "test"),
    ]
    rng = np.random.default_rng(0)
    sound = {
        order.id: (0.1 * rng.standard_normal(1600 * (at + 3))).astype(np.float32) for at, order in enumerate(planned)
    }
    for order in planned:
        soundfile.write(parts / f"{order.id}.wav", sound[order.id], 16000, subtype="PCM_16")
        line = {
            "id": order.id, "text": order.text, "speaker": order.speaker, "style": order.style, "role": order.role,
            "dialogue": order.dialogue, "kind": order.kind, "split": order.split,
            "duration_s": len(sound[order.id]) / 16000, "words": [], "phones": [],
        }  # fmt: skip
        (parts / f"{order.id}.json").write_text(json.dumps(line))
    pack(parts, tmp_path, planned)
    read = {item.id: samples for item, samples in cut_utterances(tmp_path, read_manifest(tmp_path))}
    assert set(read) == {"d1u", "d1a", "s2"}
    for name in ("d1a", "s2"):
        np.testing.assert_allclose(read[name], sound[name], atol=2e-4)
    assert len(read["d1u"]) == len(sound["d1u"])


def test_a_missing_voice_is_named(tmp_path):
    kokoro = object.__new__(Kokoro)
    kokoro.voices, kokoro._loaded = tmp_path, {}
    with pytest.raises(ValueError, match=r"af_heart\.bin"):
        kokoro.voice("af_heart")
