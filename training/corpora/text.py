"""Seeded text: everyday exchanges (a user's line, the assistant's answer) and single sentences, without end.

The kinds are those of the Kokoro corpus (`shared/corpus`), so that spoken lines of one are in the domain of the other.
Answers that can be checked are computed; times, weather, shopping lists and the state of the home are invented.
Everything is a pure function of (seed, index). `answer_key` says what a reply must contain to be right.
"""

from __future__ import annotations

# ruff: noqa: SIM905 (word lists)
import random
from dataclasses import dataclass

from spiritrt.training.corpora import facts
from spiritrt.training.corpora.facts import CAPITALS, DAYS, MONTHS, NAMES, article, number
from spiritrt.training.corpora.household import HOUSEHOLD
from spiritrt.training.corpora.pronounce import words_of
from spiritrt.training.corpora.questions import OPPOSITE_PAIRS, QUESTIONS

KINDS = {**QUESTIONS, **HOUSEHOLD}
# larger than 1 where there is more to learn, smaller where the kind has few lines
WEIGHTS = {
    "addition": 3.0, "subtraction": 3.0, "multiplication": 2.5, "halves_doubles": 2.0, "count_up": 2.0,
    "count_down": 2.0, "days": 1.5, "months": 1.5, "opposites": 1.5, "spelling": 1.5,
    "identity": 0.5, "jokes": 0.5, "repeat": 0.5,
}  # fmt: skip

COLOUR_WORDS = frozenset((*facts.COLOURS.values(), *facts.MASS_COLOURS.values()))
OPPOSITE_WORDS = frozenset(word for pair in OPPOSITE_PAIRS for word in pair)
NUMBER_WORDS = frozenset((*facts.ONES, *facts.TENS, "hundred"))
PLACE_WORDS = frozenset((*CAPITALS, *CAPITALS.values()))
# kinds whose reply has one right content, and the words that carry it; None: the last number said
ANSWER_WORDS: dict[str, frozenset[str] | None] = {
    "addition": None, "subtraction": None, "multiplication": None, "halves_doubles": None,
    "days": frozenset(DAYS), "months": frozenset(MONTHS), "opposites": OPPOSITE_WORDS, "colours": COLOUR_WORDS,
    "plurals": frozenset(facts.PLURALS.values()), "animal_sounds": frozenset(facts.ANIMAL_SOUNDS.values()),
    "capitals": PLACE_WORDS,
}  # fmt: skip
SEQUENCE_KINDS = ("count_up", "count_down", "spelling")
CHECKABLE = (*ANSWER_WORDS, *SEQUENCE_KINDS, "sizes", "ages")


@dataclass(frozen=True, slots=True)
class Exchange:
    """One user line and the assistant's answer to it; `kind` is a key of `KINDS`."""

    kind: str
    user: str
    assistant: str


def exchange(seed: int, index: int, kinds: tuple[str, ...] | None = None) -> Exchange:
    """Exchange number `index` of the endless corpus `seed`, of one of `kinds` (all, drawn by weight, where None).

    Raises ValueError for a kind that is not in `KINDS`.
    """
    if unknown := set(kinds or ()) - set(KINDS):
        raise ValueError(f"unknown kinds {sorted(unknown)}: choose from {', '.join(sorted(KINDS))}")
    rng = random.Random(f"exchange/{seed}/{index}")
    names = kinds or tuple(KINDS)
    kind = rng.choices(names, [WEIGHTS.get(name, 1.0) for name in names])[0]
    user, assistant = KINDS[kind](rng)
    return Exchange(kind, _capital(user), _capital(assistant))


def _capital(line: str) -> str:
    return line[:1].upper() + line[1:]


def answer_key(kind: str, user: str, reply: str) -> tuple[str, ...] | None:
    """What makes `reply` right for a checkable kind, in lower case: two right replies to a line have equal keys.

    Sums and the like: the last number said. Counting and spelling: the whole series. Ages: the first name said.
    Sizes: yes or no, else the first thing named. The others: the words of the kind (a day, a colour, ...) that the
    user did not say. None for kinds without a right answer.
    """
    said = [word.lower() for word in words_of(reply)]
    asked = {word.lower() for word in words_of(user)}
    if kind in SEQUENCE_KINDS:
        wanted = (lambda word: len(word) == 1) if kind == "spelling" else NUMBER_WORDS.__contains__
        return tuple(word for word in said if wanted(word))
    if kind == "ages":
        names = {name.lower() for name in NAMES}
        return tuple(word for word in said if word in names)[:1]
    if kind == "sizes":
        things = {thing for table in facts.SIZES for thing in table}
        return tuple(word for word in said if word in things or word in ("yes", "no"))[:1]
    if kind not in ANSWER_WORDS:
        return None
    carriers = ANSWER_WORDS[kind]
    if carriers is None:
        return _last_number(said)
    lowered = {word.lower() for word in carriers}
    if kind == "plurals":
        return tuple(sorted(lowered & set(said)))
    return tuple(sorted((lowered & set(said)) - asked))


def _last_number(said: list[str]) -> tuple[str, ...]:
    end = max((at + 1 for at, word in enumerate(said) if word in NUMBER_WORDS), default=0)
    start = end
    while start and said[start - 1] in NUMBER_WORDS:
        start -= 1
    return tuple(said[start:end])


ADJECTIVES = (
    "rough smooth tiny big heavy young old clever foolish bright curious gentle rusty noisy lazy modern cheap precious "
    "yellow green red blue orange purple crooked frozen sharp fresh golden silver wooden striped strange secret brave"
).split()
THINGS = (
    "glove bucket ladder umbrella mirror violin guitar kettle vase ribbon lantern telephone notebook sandwich blanket "
    "suitcase candle trumpet hammer basket bottle map ticket jacket wagon wallet pillow telescope spoon clock book cup"
).split()
PEOPLE = (
    "doctor lawyer painter captain gardener neighbor pilot baker singer soldier teacher cousin farmer chef judge "
    "dentist waiter musician coach princess sailor nurse student mechanic"
).split()
ANIMALS = (
    "mouse turtle zebra frog wolf goose rabbit camel otter pony eagle monkey tiger hedgehog kitten puppy bear horse "
    "giraffe squirrel pigeon badger"
).split()
SPOTS = (
    "garden river forest bakery hospital museum market island meadow bridge castle station theater library beach "
    "playground hallway kitchen attic valley school park"
).split()
PREPOSITIONS = "near behind inside above under beside across outside around".split()
WHEN = (
    "this morning,last night,on {day},in {month},next week,after the storm,before breakfast,every weekend,once a month,"
    "during the holidays,late at night,yesterday"
).split(",")
DID = (
    "carried borrowed found lost washed repaired bought sold dropped opened noticed polished stole broke caught".split()
)
ACTED = "laughed whistled yawned paused argued shouted jumped waited danced sneezed giggled hesitated".split()
HOBBIES = "reading jogging swimming sewing skating camping fishing cooking singing dancing gardening drawing".split()
FOODS = "bread coffee honey rice butter cheese soup garlic noodles chocolate tea lemonade beans pasta".split()
SENTENCES = (
    "The {adj} {person} {did} {a_thing} {when}.", "{name} {did} {a_adj_thing} {prep} the {spot}.",
    "{name} {acted} because the {thing} was {adj}.", "Where did {name} put the {adj} {thing}?",
    "Have you ever seen {a_adj_animal} {prep} the {spot}?", "The {animal} and the {animal2} shared a bowl of {food}.",
    "Please do not touch the {adj} {thing}, it belongs to {name}.",
    "The {person} likes {hobby}, but {name} prefers {hobby2}.", "Thank you for the {adj} {thing}, {name} will love it.",
    "Please buy some {food}, {food2} and a little {food3}.",
    "Tell {name} to meet us in the {spot} at half past {hour}.",
    "You should always keep {food} away from {an_animal}.",
    "There were {count} {adj} {things} in the {spot}.", "The {person} and the {person2} {acted} {prep} the {spot}.",
    "When {name} arrived, the {animal} was sleeping {prep} the {spot}.",
    "I saw {name} and {name2} at the {spot} {when}.",
    "My {person} keeps {a_adj_thing} in the {spot}.", "We will go to the {spot} with {name} {when}.",
    "Could you please bring me the {adj} {thing} now?", "Once there was {a_adj_animal} {prep} the {spot}.",
)  # fmt: skip


def sentence(seed: int, index: int) -> str:
    """Single sentence number `index` of the endless corpus `seed`; grammatical, often odd in sense."""
    rng = random.Random(f"sentence/{seed}/{index}")
    animals, foods, names = rng.sample(ANIMALS, 2), rng.sample(FOODS, 3), rng.sample(NAMES, 2)
    hobbies, people = rng.sample(HOBBIES, 2), rng.sample(PEOPLE, 2)
    thing, adj = rng.choice(THINGS), rng.choice(ADJECTIVES)
    when = rng.choice(WHEN).format(day=rng.choice(DAYS), month=rng.choice(MONTHS))
    return _capital(rng.choice(SENTENCES).format(
        adj=adj, thing=thing, a_thing=article(thing), a_adj_thing=article(f"{adj} {thing}"), person=people[0],
        person2=people[1], animal=animals[0], animal2=animals[1], an_animal=article(animals[0]),
        a_adj_animal=article(f"{adj} {animals[0]}"), food=foods[0], food2=foods[1], food3=foods[2], name=names[0],
        name2=names[1], hobby=hobbies[0], hobby2=hobbies[1], spot=rng.choice(SPOTS), prep=rng.choice(PREPOSITIONS),
        did=rng.choice(DID), acted=rng.choice(ACTED), hour=number(rng.randint(1, 12)), count=number(rng.randint(2, 20)),
        when=when, things=thing + ("es" if thing.endswith("ch") else "s"),
    ))  # fmt: skip
