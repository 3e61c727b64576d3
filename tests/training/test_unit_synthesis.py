"""Units of a corpus as words and snippets: texts with hyphens and dashes, and phones that nobody said."""

import random
import warnings

import pytest

from spiritrt.training.corpora.pronounce import _lexicons, find_lexicons, phonemise, split_phones
from spiritrt.training.unit_synthesis import CONFUSABLE, NEAREST, UnitBank, align, bare, spoken_line

pytestmark = pytest.mark.skipif(
    find_lexicons() is None, reason="no pronouncing lexicon: pip install --no-deps misaki==0.9.4"
)
INVENTORY = ["SIL", *"".join(CONFUSABLE)]
# every phone but the glottal stop
LINES = (
    "No,-ice is - like Joyce", "Twenty-one cows - go -", "The vague voices thought through one garage, how cool.",
    "Put your foot on the yellow book and measure it.", "Her castle sings, she chose the hot jar, otter and captain.",
    "A black and white zebra.", "What day is it, dog?",
)  # fmt: skip


def entry(text: str) -> dict:
    """A line of a units file: every phone lasts two frames and has one unit."""
    units, phones, words = [0, 0], [], []
    for token, said in phonemise(text):
        if not said:
            continue
        at = 0.04 * len(units)
        phones += [[" ", at, at]] if words else []
        for phone in split_phones(said):
            phones.append([phone, 0.04 * len(units), 0.04 * len(units) + 0.08])
            units += [INVENTORY.index(bare(phone))] * 2
        words.append({"word": token, "start_s": at, "end_s": 0.04 * len(units)})
    return {
        "id": text, "text": text, "speaker": "ann", "split": "train", "role": "single", "dialogue": None,
        "units": [*units, 0], "words": words, "phones": phones,
    }  # fmt: skip


def said_in(bank: UnitBank, units: tuple[int, ...]) -> str:
    return "".join(bank.inventory[unit] for unit in units if unit)


def without(*phones: str) -> list[dict]:
    entries = [entry(text) for text in LINES]
    for line in entries:
        line["units"] = [0 if INVENTORY[unit] in phones else unit for unit in line["units"]]
        line["phones"] = [["ˈɑ" if bare(p[0]) in phones else p[0], *p[1:]] for p in line["phones"]]
    return entries


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("No,-ice is - like Joyce", ["No,-ice", "is -", "like", "Joyce"]),
        ("Twenty-one cows - go -", ["Twenty-one", "cows -", "go -"]),
    ],
)
def test_a_line_with_hyphens_has_the_units_of_its_words(text: str, written: list[str]):
    line = entry(text)
    words = spoken_line(line, align(line["units"], line["phones"], INVENTORY)).words
    assert [word.text for word in words] == written
    wanted = iter(phones for _, phones in phonemise(text) if phones)
    for word in words:
        said = "".join(bare(p) for _ in word.text.strip(" -").split("-") for p in split_phones(next(wanted)))
        assert "".join(INVENTORY[unit] for unit in word.units if unit)[::2] == said


@pytest.mark.parametrize("assistant", [True, False])
def test_hyphens_and_dashes_are_spoken(assistant: bool):
    with pytest.warns(UserWarning, match="t for ʔ"):
        bank = UnitBank([entry(text) for text in LINES], INVENTORY)
    words = bank.speak("- Twenty-one ice-cold cows - go", random.Random(0), assistant)
    assert [word.text for word in words] == ["- Twenty-one", "ice-cold", "cows -", "go"]
    assert said_in(bank, words[1].units) == "IskOld"
    with pytest.raises(ValueError, match="written word '21', timed word 'cows'"):
        bank.speak("21 cows", random.Random(0), assistant)


def test_texts_that_were_not_timed_so_are_refused_when_loaded():
    line = entry("We met in May")
    with pytest.raises(ValueError, match="x: written word '5', timed word 'in'"):
        UnitBank([line | {"id": "x", "text": "We met 5 May"}], INVENTORY)
    with pytest.raises(ValueError, match="x: 3 timed words, phones of 4"):
        UnitBank([line | {"id": "x", "words": line["words"][1:]}], INVENTORY)


def test_the_user_is_made_of_what_was_heard_and_the_assistant_of_exact_units():
    entries = [entry(text) for text in LINES]
    away = len(INVENTORY)
    heard = {e["id"]: [unit + away for unit in e["units"]] for e in entries}
    entries[0]["speaker"] = "af_heart"
    bank = UnitBank(entries, INVENTORY * 2, heard)
    for text in ("Like Joyce, the zebra", "Jazz garage"):  # said by both, and joined of phones
        for assistant in (False, True):
            words = bank.speak(text, random.Random(1), assistant)
            assert all((unit >= away) != assistant for word in words for unit in word.units)
    assert all(unit >= away for line in bank.lines for word in line.words for unit in word.units)
    assert all(unit < away for line in bank.assistant_lines for word in line.words for unit in word.units)


@pytest.mark.parametrize(
    ("missing", "text", "said"), [("", "button", "bˈʌtn"), ("t", "button", "bˈʌkn"), ("ʒ", "measure", "mˈɛʃəɹ")]
)
def test_a_phone_that_nobody_said_is_said_as_its_nearest(missing: str, text: str, said: str):
    with pytest.warns(UserWarning, match="the corpus lacks phones"):
        bank = UnitBank(without(*missing), INVENTORY)
    bank.words.clear()
    for assistant in (True, False):
        (word,) = bank.speak(text, random.Random(0), assistant)
        assert said_in(bank, word.units) == "".join(map(bare, split_phones(said)))


def test_a_group_of_phones_that_nobody_said_is_an_error_when_loaded():
    with pytest.raises(ValueError, match=r"phone 'm', nor of any near it .*add lines"):
        UnitBank(without(*"mnŋlɹwj"), INVENTORY)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not UnitBank([*(entry(text) for text in LINES), entry("A button")], INVENTORY).substitutes


def test_every_phone_of_the_lexicons_has_near_ones():
    known = {phone for group in CONFUSABLE for phone in group}
    said = {
        e for lexicon in _lexicons() for v in lexicon.values() for e in (v.values() if isinstance(v, dict) else [v])
    }
    assert {bare(phone) for phones in said if phones for phone in split_phones(phones)} <= known == set(NEAREST)
    for phone, near in NEAREST.items():
        assert phone not in near and set(near) <= known
