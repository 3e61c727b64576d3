"""The dialogue grammar: reproducible, right in what it claims, and made of words that can be pronounced."""

import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spiritrt.training.corpora import facts
from spiritrt.training.corpora.facts import DAYS, MONTHS, article, number
from spiritrt.training.corpora.pronounce import find_lexicons, phonemise, pronounce, split_phones, words_of
from spiritrt.training.corpora.text import ANSWER_WORDS, CHECKABLE, KINDS, answer_key, exchange, sentence

SAID = {number(value): value for value in range(200)}
needs_lexicon = pytest.mark.skipif(
    find_lexicons() is None, reason="no pronouncing lexicon: pip install --no-deps misaki==0.9.4"
)


def numbers_in(text: str) -> list[int]:
    """Values of the numbers said in a text, longest readings first."""
    found = []
    for part in text.split(","):
        found += _numbers_in_part([word.lower() for word in words_of(part)])
    return found


def _numbers_in_part(words: list[str]) -> list[int]:
    found = []
    while words:
        for size in (4, 3, 2, 1):
            if len(words) >= size and (value := SAID.get(" ".join(words[:size]))) is not None:
                found.append(value)
                words = words[size:]
                break
        else:
            words = words[1:]
    return found


def lines_of(kind: str, count: int = 120) -> list[tuple[str, str]]:
    return [(pair.user, pair.assistant) for pair in (exchange(3, index, (kind,)) for index in range(count))]


def test_equal_seed_and_index_give_equal_text():
    first = [exchange(5, index) for index in range(200)]
    assert first == [exchange(5, index) for index in range(200)]
    assert first != [exchange(6, index) for index in range(200)]
    assert [sentence(5, index) for index in range(50)] == [sentence(5, index) for index in range(50)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_makes_written_lines(kind):
    for user, assistant in lines_of(kind, 60):
        for line in (user, assistant):
            assert re.fullmatch(r"[A-Z][A-Za-z' ,.?]*[.?]", line), line
            assert "  " not in line and " ," not in line


@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        ("addition", lambda a, b: a + b),
        ("multiplication", lambda a, b: a * b),
    ],
)
def test_arithmetic_is_right(kind, answer):
    for user, reply in lines_of(kind):
        assert numbers_in(reply)[-1] == answer(*numbers_in(user)), (user, reply)


def test_subtraction_is_right():
    for user, reply in lines_of("subtraction"):
        a, b = numbers_in(user)
        assert numbers_in(reply)[-1] == abs(a - b), (user, reply)


def test_halves_and_doubles_are_right():
    for user, reply in lines_of("halves_doubles"):
        (value,) = numbers_in(user)
        assert numbers_in(reply)[-1] == (value * 2 if "twice" in user else value / 2), (user, reply)


@pytest.mark.parametrize(("kind", "names"), [("days", DAYS), ("months", MONTHS)])
def test_calendar_is_right(kind, names):
    for user, reply in lines_of(kind):
        (asked,) = [word for word in words_of(user) if word in names]
        (said,) = {word for word in words_of(reply) if word in names} - {asked}
        step = -1 if "before" in user else 1
        assert said == names[(names.index(asked) + step) % len(names)], (user, reply)


@pytest.mark.parametrize("kind", ["count_up", "count_down"])
def test_counting_is_an_even_series_from_the_asked_start(kind):
    for user, reply in lines_of(kind):
        asked, said = numbers_in(user), numbers_in(reply)
        assert said[0] == asked[0] and len(said) >= 3, (user, reply)
        assert len({b - a for a, b in pairwise(said)}) == 1, (user, reply)
        if len(asked) == 2:
            assert said[-1] == asked[1], (user, reply)


def test_spelling_spells():
    for user, reply in lines_of("spelling"):
        word = "".join(answer_key("spelling", user, reply))
        assert word in (w.lower() for w in words_of(user)), (user, reply)


def test_ages_and_sizes_are_right():
    for user, reply in lines_of("ages"):
        names = [word for word in words_of(user) if word in facts.NAMES]
        older = names[0] if numbers_in(user)[0] > numbers_in(user)[1] else names[1]
        younger = names[1] if older == names[0] else names[0]
        assert answer_key("ages", user, reply) == ((older if "older" in user else younger).lower(),)
    order = {thing: place for table in facts.SIZES for place, thing in enumerate(table)}
    for user, reply in lines_of("sizes"):
        first, second = [word.lower() for word in words_of(user) if word.lower() in order]
        bigger = first if order[first] > order[second] else second
        right = ("yes" if bigger == second else "no") if user.startswith("Is") else bigger
        assert answer_key("sizes", user, reply) == (right,), (user, reply)


@pytest.mark.parametrize("kind", [kind for kind in ANSWER_WORDS if kind not in ("capitals",)])
def test_answer_key_depends_on_the_content_not_the_wording(kind):
    keys: dict[str, set[tuple[str, ...]]] = {}
    for user, reply in lines_of(kind, 400):
        key = answer_key(kind, user, reply)
        assert key, (user, reply)
        keys.setdefault(user, set()).add(key)
    assert all(len(found) == 1 for found in keys.values())


def test_answer_key_tells_right_from_wrong():
    asked = "What is three plus four?"
    right = answer_key("addition", asked, "Three plus four is seven.")
    assert right == answer_key("addition", asked, "The answer is seven.") == ("seven",)
    assert answer_key("addition", asked, "The answer is eight.") != right
    assert answer_key("stories", "Once there was a fox.", "It slept.") is None
    assert set(CHECKABLE) <= set(KINDS)


def test_unknown_kinds_and_numbers_are_refused():
    with pytest.raises(ValueError, match="poems"):
        exchange(0, 0, ("poems",))
    with pytest.raises(ValueError, match="200"):
        number(200)


def test_articles():
    assert (article("owl"), article("fox"), article("orange cup")) == ("an owl", "a fox", "an orange cup")


@needs_lexicon
def test_every_word_of_the_grammar_can_be_pronounced():
    texts = [line for kind in KINDS for pair in lines_of(kind) for line in pair]
    texts += [sentence(1, index) for index in range(1500)]
    unknown = {word for text in texts for word in words_of(text) if pronounce(word) is None}
    assert not unknown


@needs_lexicon
def test_context_decides_the_and_letters():
    said = dict(phonemise("The apple."))
    assert said["The"] == "ði" and dict(phonemise("The dog."))["The"] == "ðə"
    assert [phones for _, phones in phonemise("It is A, I.") if phones][-2:] == ["ˈA", "ˈI"]
    assert phonemise("A dog, I think.")[0][1] == "ɐ"
    with pytest.raises(ValueError, match="qxzzt"):
        phonemise("The qxzzt.")


@needs_lexicon
@given(st.integers(0, 10**9))
@settings(max_examples=40, deadline=None)
def test_phones_split_and_join(index):
    for _, phones in phonemise(exchange(9, index).user):
        assert "".join(split_phones(phones)) == phones
