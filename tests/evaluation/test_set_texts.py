"""Texts of the small sets: seeded, different from what was trained on, right where they say so."""

import pytest

from spiritrt.evaluation import set_texts
from spiritrt.training.corpora.pronounce import find_lexicons
from spiritrt.training.corpora.text import CHECKABLE

needs_lexicon = pytest.mark.skipif(
    find_lexicons() is None, reason="no pronouncing lexicon: pip install --no-deps misaki==0.9.4"
)


@needs_lexicon
def test_made_up_words_sound_like_no_known_word():
    made = set_texts.word_pairs(20, seed=1)
    assert made == set_texts.word_pairs(20, seed=1) and len(made) == 20
    sounds = {set_texts.bare(pair.right) for pair in made}
    for pair in made:
        assert set_texts.bare(pair.wrong) not in sounds and len(pair.wrong) == len(pair.right)
        changed = sum(a != b for a, b in zip(pair.right, pair.wrong, strict=True))
        assert changed in (1, 2)


def test_sentence_pairs_differ_in_one_word():
    made = set_texts.sentence_pairs(12, seed=1)
    assert len({right for _, right, _ in made}) == 12
    assert {kind for kind, _, _ in made} == {"agreement", "determiner", "reflexive"}
    for _, right, wrong in made:
        assert sum(a != b for a, b in zip(right.split(), wrong.split(), strict=True)) == 1


def test_commands_and_questions_avoid_what_was_said():
    first = set_texts.commands(2, 0, set())
    assert [label for label, _ in first] == [label for label in set_texts.INTENTS for _ in range(2)]
    said = {text for _, text in first}
    assert not said & {text for _, text in set_texts.commands(2, 0, said)}
    questions = set_texts.fresh_questions(len(CHECKABLE), 0, set())
    assert [kind for kind, _, _ in questions] == list(CHECKABLE)
    for kind, question, answer in questions:
        assert set_texts.right_answer(kind, question, answer, answer)


def test_school_questions_have_one_right_choice():
    for rows in set_texts.school_questions(6, seed=0).values():
        assert len(rows) == 6
        for row in rows:
            assert len(row) == 6 and len(set(row[1:5])) == 4 and row[5] in "ABCD"


@pytest.mark.parametrize(
    ("text", "mood"),
    [("What a wonderful day", "positive"), ("The train leaves", "neutral"), ("sad and happy", "neutral"),
     ("I lost my ticket", "negative")],
)  # fmt: skip
def test_the_mood_of_words(text: str, mood: str):
    assert set_texts.text_mood(text) == mood


def test_the_moods_texts_are_judged_as_they_are_meant():
    for mood, texts in set_texts.MOODS.items():
        assert [set_texts.text_mood(text) for text in texts] == [mood] * len(texts)
