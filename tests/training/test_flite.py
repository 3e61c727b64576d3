"""flite's corpus: segments become words and phones; and where flite is installed, what it says is a valid corpus."""

from pathlib import Path

import numpy as np
import pytest

from spiritrt.training.corpora.flite import PHONES, Flite, Segment, label, lines, make, plain
from spiritrt.training.corpora.manifest import Word, cut_utterances, read_manifest
from spiritrt.training.corpora.pronounce import VOWELS
from spiritrt.training.corpora.validation import Limits, validate


def segments(*words: str) -> list[Segment]:
    """Of words written as `It's: ih t s`, `-` for a pause; every phone lasts 100 ms."""
    made, at, number = [], 0, 0
    for word in words:
        written, _, phones = word.partition(": ")
        for phone in phones.split() or ["pau"]:
            owner = number if phones else -1
            made.append(Segment(phone, at / 10, (at + 1) / 10, owner, written if phones else ""))
            at += 1
        number += bool(phones)
    return made


def test_segments_become_words_and_phones():
    said = segments("-", "It's: ih t s", "the: dh ax", "the: dh iy", "-", "bird: b er d", "-")
    words, phones = label("It's the the, bird!", said)
    assert words == (Word("It's", 0.1, 0.4), Word("the", 0.4, 0.6), Word("the", 0.6, 0.8), Word("bird", 0.9, 1.2))
    assert "".join(symbol for symbol, _, _ in phones) == "ɪts ðə ði bɜd"
    assert [(start, end) for symbol, start, end in phones if symbol == " "] == [(0.4, 0.4), (0.6, 0.6), (0.8, 0.9)]
    with pytest.raises(ValueError, match=r"has the words \['twenty'\], flite read \['20'\]"):
        label("twenty", segments("20: t w eh n t iy"))
    with pytest.raises(ValueError, match="no symbol for flite's phone 'xx'"):
        label("odd", segments("odd: xx"))


def test_phones_are_those_of_the_lexicon():
    consonants = frozenset("ptkbdɡfvθðszʃʒhʧʤmnŋlɹwj")
    assert set(PHONES.values()) <= VOWELS | consonants and len(set(PHONES.values())) == len(PHONES) == 40


def test_lines_differ_and_leave_out_what_is_held_out():
    first = lines(1, 40, set())
    assert len({plain(text) for text in first}) == 40 and lines(1, 40, set()) == first
    held_out = {plain(text) for text in first[:10]}
    assert not held_out & {plain(text) for text in lines(1, 40, held_out)}


def test_missing_libraries_are_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"flite is not installed .*apt-get install flite"):
        Flite(tmp_path)


@pytest.fixture(scope="module")
def flite() -> Flite:
    try:
        return Flite()
    except ValueError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("voice", ["slt", "rms", "awb"])
def test_words_lie_where_they_sound(flite: Flite, voice: str):
    text = "What's the time, Bob? The old dog can't see the the moon."
    samples, said = flite.speak(text, voice)
    words, phones = label(text, said)
    assert [word.word for word in words] == "What's the time Bob The old dog can't see the the moon".split()  # noqa: SIM905
    assert words[-1].end_s < len(samples) / 16000 and said[-1].end_s == pytest.approx(len(samples) / 16000, abs=0.02)
    assert len([symbol for symbol, _, _ in phones if symbol == " "]) == len(words) - 1

    def level(start_s: float, end_s: float) -> float:
        return float(np.sqrt(np.square(samples[round(16000 * start_s) : round(16000 * end_s)]).mean()))

    pauses = [s for s in said if s.word < 0]
    assert max(level(s.start_s, s.end_s) for s in (pauses[0], pauses[-1])) < 0.1 * min(
        level(word.start_s, word.end_s) for word in words
    )
    # all times are stretched with the sound
    slow, said_slowly = flite.speak(text, voice, stretch=1.5)
    assert len(slow) > 1.3 * len(samples)
    ratio = np.array([b.start_s / a.start_s for a, b in zip(words, label(text, said_slowly)[0], strict=True)])
    assert np.abs(ratio - 1.5).max() < 0.1


def test_a_corpus_of_flite_is_valid(flite: Flite, tmp_path: Path):
    made = make(flite, tmp_path, minutes=0.4, seed=3, excluded=set())
    assert read_manifest(tmp_path) == made and sum(u.duration_s for u in made) > 20
    assert len({u.speaker for u in made}) > 1
    _, problems = validate(tmp_path, Limits())
    assert not problems
    assert all(len(samples) for _, samples in cut_utterances(tmp_path, made))
    with pytest.raises(ValueError, match="voice must be one of slt, rms, awb, got 'bob'"):
        flite.speak("So.", "bob")
