"""Texts of the small sets made here: minimal pairs of words and sentences, commands by label, moods, school questions.

Everything is a function of a seed; the words are those of nano's world.
"""

from __future__ import annotations

# ruff: noqa: SIM905 (word lists)
import random
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

from spiritrt.training.corpora import facts
from spiritrt.training.corpora.pronounce import STRESS, VOWELS, pronounce, split_phones
from spiritrt.training.corpora.text import CHECKABLE, answer_key, exchange

WORDS = (
    "garden kitchen window rabbit river monkey yellow orange purple doctor teacher morning evening winter summer "
    "bottle candle basket pillow hammer ladder mirror ticket wallet wagon kitten puppy turtle hospital library "
    "museum market bridge castle station butter coffee chocolate holiday umbrella telephone elephant"
).split()
CONSONANTS = "p t k b d ɡ f v s z ʃ m n l ɹ w h ʧ ʤ θ".split()
PLAIN_VOWELS = "A I O æ ɛ ɪ i ʌ u ɑ".split()
NOUNS = "dog horse teacher doctor robot sailor princess rabbit farmer monkey bird sister baker king".split()
VERB_PAIRS = ("runs run", "sings sing", "sleeps sleep", "laughs laugh", "waits wait", "jumps jump", "dances dance")
PLACES = ("in the garden", "near the river", "at the station", "every morning", "after dinner", "behind the house")
HIMSELF = {
    "king": "himself herself", "queen": "herself himself", "boy": "himself herself", "girl": "herself himself",
    "princess": "herself himself", "grandfather": "himself herself", "mother": "herself himself",
}  # fmt: skip
# what a recogniser may write for the words of right answers that sound the same
SAME_SOUND = {"nays": "neighs", "cause": "caws", "braise": "brays", "grey": "gray", "blew": "blue"}
INTENTS = ("lights", "timers", "music", "weather", "shopping")
MOODS = {
    "positive": (
        "What a wonderful surprise, thank you so much!", "I love this garden, it is so beautiful today.",
        "We won the game and everybody is happy!", "This is the best cake I have ever had.",
        "The sun is shining and I feel great.", "I am so glad that you came to see us!",
    ),
    "neutral": (
        "The train to the city leaves at nine.", "There are four chairs in the kitchen.",
        "The library is next to the station.", "Please put the book on the table.",
        "The box holds paper and two pens.", "He walks to work on most days.",
    ),
    "negative": (
        "I lost my ticket and now I am sad.", "The old dog is sick and nobody can help.",
        "This soup is cold and it tastes terrible.", "I am so tired and everything went wrong.",
        "We missed the train and it is raining.", "That was the worst day of the whole year.",
    ),
}  # fmt: skip
POSITIVE = frozenset(
    "love loved loves loving like good great best better happy glad wonderful beautiful nice fun funny enjoy enjoyed "
    "thank thanks win won winning sunny shining warm sweet kind friend friends favorite perfect excellent amazing "
    "laugh laughed smile smiled hope lucky surprise party gift delicious proud safe welcome pleased fantastic bright "
    "joy".split()
)
NEGATIVE = frozenset(
    "sad bad worse worst terrible awful sick ill lost lose losing wrong cold tired angry hate hated afraid fear cry "
    "cried crying hurt pain broken broke missed miss alone lonely poor dark rain raining storm trouble problem sorry "
    "never nobody nothing died dead dying fail failed unhappy horrible dirty annoying upset worried".split()
)


@dataclass(frozen=True, slots=True)
class WordPair:
    """A word and a made-up one, both as phones with stress marks."""

    word: str
    right: str
    wrong: str


def word_pairs(count: int, seed: int, known: Collection[str] = ()) -> list[WordPair]:
    """Words with made-up partners that differ in one or two phones and are none of the words `known` by sound."""
    rng = random.Random(f"wuggy/{seed}")
    sounds = {bare(p) for word in (*WORDS, *known) if (p := pronounce(word))}
    made = []
    for word in rng.sample(WORDS, len(WORDS))[:count]:
        phones = split_phones(pronounce(word) or "")
        vowel = [phone[-1] in VOWELS for phone in phones]
        # consonants of a cluster stay: changed ones would often be unpronounceable
        places = [
            i for i in range(len(phones))
            if vowel[i] or (all(vowel[max(0, i - 1) : i]) and all(vowel[i + 1 : i + 2]) and 0 < i < len(phones) - 1)
        ]  # fmt: skip
        for _ in range(100):
            changed = list(phones)
            for place in rng.sample(places, min(2, len(places))):
                stress = phones[place][:-1] if len(phones[place]) > 1 else ""
                kinds = PLAIN_VOWELS if phones[place][-1] in VOWELS else CONSONANTS
                changed[place] = stress + rng.choice([kind for kind in kinds if kind != phones[place][-1]])
            wrong = "".join(changed)
            if bare(wrong) not in sounds:
                made.append(WordPair(word, "".join(phones), wrong))
                break
    return made


def bare(phones: str) -> str:
    """Phones without stress marks."""
    return "".join(symbol for symbol in phones if symbol not in STRESS)


def sentence_pairs(count: int, seed: int) -> list[tuple[str, str, str]]:
    """(kind, grammatical, ungrammatical) sentences: agreement, determiner and noun, reflexive pronoun, in turns."""
    rng = random.Random(f"blimp/{seed}")
    made: dict[str, tuple[str, str, str]] = {}
    makers: tuple[Callable[[random.Random], tuple[str, str, str]], ...] = (_agreement, _determiner, _reflexive)
    while len(made) < count:
        kind, right, wrong = makers[len(made) % len(makers)](rng)
        made.setdefault(right, (kind, right, wrong))
    return list(made.values())


def _agreement(rng: random.Random) -> tuple[str, str, str]:
    noun, verbs, place = rng.choice(NOUNS), rng.choice(VERB_PAIRS).split(), rng.choice(PLACES)
    subject, (right, wrong) = (f"The {noun}", verbs) if rng.random() < 0.5 else (f"The {noun}s", verbs[::-1])
    return "agreement", f"{subject} {right} {place}.", f"{subject} {wrong} {place}."


def _determiner(rng: random.Random) -> tuple[str, str, str]:
    noun, place = rng.choice(NOUNS), rng.choice(PLACES)
    one, many = rng.choice((("this", "these"), ("that", "those")))
    if rng.random() < 0.5:
        return "determiner", f"We saw {one} {noun} {place}.", f"We saw {many} {noun} {place}."
    return "determiner", f"We saw {many} {noun}s {place}.", f"We saw {one} {noun}s {place}."


def _reflexive(rng: random.Random) -> tuple[str, str, str]:
    who = rng.choice(list(HIMSELF))
    right, wrong = HIMSELF[who].split()
    did, place = rng.choice(("saw", "hurt", "washed", "helped")), rng.choice(PLACES)
    return "reflexive", f"The {who} {did} {right} {place}.", f"The {who} {did} {wrong} {place}."


def commands(each: int, seed: int, excluded: Collection[str]) -> list[tuple[str, str]]:
    """(label, command) pairs, `each` of every label of INTENTS, none of the texts `excluded`."""
    made: list[tuple[str, str]] = []
    for label in INTENTS:
        own: dict[str, None] = {}
        index = 0
        while len(own) < each:
            user = exchange(seed, index, (label,)).user
            index += 1
            if user not in excluded:
                own.setdefault(user)
            if index > 50 * each:
                raise ValueError(f"the grammar has only {len(own)} different commands of {label}, {each} were wanted")
        made += [(label, user) for user in own]
    return made


def fresh_questions(count: int, seed: int, excluded: Collection[str]) -> list[tuple[str, str, str]]:
    """(kind, question, answer) of checkable kinds in turns, none of the questions `excluded`."""
    made: dict[str, tuple[str, str, str]] = {}
    index = 0
    while len(made) < count:
        item = exchange(seed, index, (CHECKABLE[len(made) % len(CHECKABLE)],))
        index += 1
        if item.user not in excluded:
            made.setdefault(item.user, (item.kind, item.user, item.assistant))
    return list(made.values())


def school_questions(count: int, seed: int) -> dict[str, list[list[str]]]:
    """Rows in MMLU's form (question, four choices, letter) by subject: what nano should know, in writing."""
    rng = random.Random(f"mmlu/{seed}")
    tables = {
        "colours": ("What color is {}?", {facts.article(k): v for k, v in facts.COLOURS.items()}),
        "capitals": ("What is the capital of {}?", facts.CAPITALS),
        "animal_sounds": ("What sound does {} make?", {facts.article(k): v for k, v in facts.ANIMAL_SOUNDS.items()}),
        "plurals": ("What is the plural of {}?", facts.PLURALS),
    }
    made: dict[str, list[list[str]]] = {}
    for subject, (form, table) in tables.items():
        rows = []
        for asked in rng.sample(sorted(table), min(count, len(table))):
            others = sorted(set(table.values()) - {table[asked]})
            choices = rng.sample(others, 3)
            place = rng.randrange(4)
            choices.insert(place, table[asked])
            rows.append([form.format(asked), *choices, "ABCD"[place]])
        made[subject] = rows
    return made


def right_answer(kind: str, question: str, truth: str, reply: str) -> bool:
    """Whether a reply in words answers a question as the true one does.

    Checkable kinds go by `answer_key`; for other kinds the reply must have the words of the true answer, whole and in
    a row. Of words that sound the same a recogniser may have written either.
    """
    said = [SAME_SOUND.get(word, word) for word in spoken_words(reply)]
    key = answer_key(kind, question, truth)
    if key is not None:
        return key == answer_key(kind, question, " ".join(said))
    wanted = [SAME_SOUND.get(word, word) for word in spoken_words(truth)]
    return bool(wanted) and f" {' '.join(wanted)} " in f" {' '.join(said)} "


def spoken_words(text: str) -> list[str]:
    """Words in lower case as they are said, marks left out: 28 becomes twenty eight, "C-A-T" and "CAT" become c a t.

    A recogniser writes numbers in digits, counted ones in a row ("49.50.51") or as one ("495051"), and spelled words in
    capitals; only numbers up to 199 are known.
    """
    words: list[str] = []
    for word in re.findall(r"[^\W_]+(?:'[^\W_]+)*", text.replace("’", "'")):
        if word.isdecimal():
            apart = len(word) > 3 and len(word) % 2 == 0
            numbers = [word[i : i + 2] for i in range(0, len(word), 2)] if apart else [word]
            for number in map(int, numbers):
                words += facts.number(number).split() if number < 200 else [str(number)]
        elif len(word) > 1 and word.isupper() and word.isalpha():
            words += list(word.lower())
        else:
            words.append(word.lower())
    return words


def text_mood(text: str) -> str:
    """`positive`, `negative` or `neutral` by counting words of the two lists."""
    words = spoken_words(text)
    balance = sum(word in POSITIVE for word in words) - sum(word in NEGATIVE for word in words)
    return "positive" if balance > 0 else "negative" if balance < 0 else "neutral"
