"""Questions with an answer that can be checked: arithmetic, counting, calendar, words, animals, places.

Each function draws one (question, answer) from a seeded generator; answers are computed or looked up in `facts`.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from spiritrt.training.corpora import facts
from spiritrt.training.corpora.facts import DAYS, MONTHS, NAMES, article, number, pairs

Lines = tuple[str, str]
Rng = random.Random


def _of(rng: Rng, *lines: str) -> str:
    return rng.choice(lines)


OPPOSITE_PAIRS = pairs(facts.OPPOSITES)
RHYME_PAIRS = pairs(facts.RHYMES)
PREFERENCE_PAIRS = pairs(facts.PREFERENCES)


def _addition(rng: Rng) -> Lines:
    a, b = (rng.randint(1, 12), rng.randint(1, 12)) if rng.random() < 0.4 else (rng.randint(2, 60), rng.randint(2, 30))
    x, y, z = number(a), number(b), number(a + b)
    asked = _of(rng, f"What is {x} plus {y}?", f"How much is {x} plus {y}?", f"Can you add {x} and {y} for me?")
    return asked, _of(rng, f"The answer is {z}.", f"{x} plus {y} is {z}.", f"That makes {z} altogether.",
                      f"Sure, {x} and {y} make {z}.")  # fmt: skip


def _subtraction(rng: Rng) -> Lines:
    a = rng.randint(3, 20) if rng.random() < 0.4 else rng.randint(10, 80)
    b = rng.randint(1, a - 1)
    x, y, z = number(a), number(b), number(a - b)
    asked = _of(rng, f"What is {x} minus {y}?", f"How much is {x} minus {y}?",
                f"If I take {y} from {x}, what is left?")  # fmt: skip
    return asked, _of(rng, f"{x} minus {y} is {z}.", f"The answer is {z}, I think.", f"You have {z} left over.")


def _multiplication(rng: Rng) -> Lines:
    a, b = rng.randint(2, 12), rng.randint(2, 12)
    x, y, z = number(a), number(b), number(a * b)
    asked = _of(rng, f"What is {x} times {y}?", f"How much is {x} times {y}?", f"Please multiply {x} by {y}.")
    return asked, _of(rng, f"{x} times {y} is {z}.", f"Let me see, that is {z}.", f"It comes to {z}.")


def _halves_doubles(rng: Rng) -> Lines:
    a = rng.randint(1, 45)
    x, z = number(a), number(2 * a)
    if rng.random() < 0.5:
        return f"What is twice {x}?", _of(rng, f"Twice {x} is {z}.", f"If you double {x}, you get {z}.")
    return f"What is half of {z}?", _of(rng, f"Half of {z} is {x}.", f"That would be {x}, exactly half.")


def _count_up(rng: Rng) -> Lines:
    by = rng.choice((1, 1, 1, 5, 10))
    start = by * rng.randint(1, {1: 60, 5: 14, 10: 6}[by])
    end = start + by * rng.randint(3, 5 if by == 1 else 4)
    listed = ", ".join(number(value) for value in range(start, end + 1, by))
    step = {1: "", 5: " by fives", 10: " by tens"}[by]
    asked = _of(rng, f"Count{step} from {number(start)} to {number(end)}.",
                f"Can you count{step} up from {number(start)} to {number(end)}?")  # fmt: skip
    return asked, _of(rng, f"{listed}.", f"Here we go, {listed}.", f"Sure, {listed}.")


def _count_down(rng: Rng) -> Lines:
    start = rng.randint(5, 60)
    if rng.random() < 0.4:
        end = start - rng.randint(3, 4)
        asked = f"Count down from {number(start)} to {number(end)}."
    else:
        end = max(1, start - (5 if start < 21 else 3))
        asked = _of(rng, f"Please count backwards from {number(start)}.",
                    f"Can you count backwards starting at {number(start)}?")  # fmt: skip
    listed = ", ".join(number(value) for value in range(start, end - 1, -1))
    return asked, _of(rng, f"{listed}.", f"Okay, {listed}.", f"All right, {listed}.")


def _days(rng: Rng) -> Lines:
    position = rng.randrange(7)
    day = DAYS[position]
    if rng.random() < 0.5:
        other = DAYS[(position - 1) % 7]
        asked = _of(rng, f"Which day comes before {day}?", f"Tell me the day before {day}.",
                    f"What day is right before {day}?")  # fmt: skip
        return asked, _of(
            rng, f"That would be {other}.", f"{other} comes before {day}.", f"The day before {day} is {other}."
        )
    other = DAYS[(position + 1) % 7]
    if rng.random() < 0.25:
        return f"Today is {day}, so what day is tomorrow?", f"If today is {day}, tomorrow is {other}."
    asked = _of(
        rng, f"Which day comes after {day}?", f"Tell me the day after {day}.", f"What day is right after {day}?"
    )
    return asked, _of(
        rng, f"That would be {other}.", f"Right after {day} comes {other}.", f"The day after {day} is {other}."
    )


def _months(rng: Rng) -> Lines:
    position, where = rng.randrange(12), rng.choice(("before", "after"))
    month = MONTHS[position]
    other = MONTHS[(position + (1 if where == "after" else -1)) % 12]
    asked = _of(rng, f"What is the month {where} {month}?", f"Which month comes {where} {month}?",
                f"Do you know the month right {where} {month}?")  # fmt: skip
    return asked, _of(rng, f"It is {other}, of course.", f"{other} comes right {where} {month}.",
                      f"The month {where} {month} is {other}.", f"That month is called {other}.")  # fmt: skip


def _next_in_list(rng: Rng) -> Lines:
    if rng.random() < 0.5:
        by = rng.choice((1, 2, 5, 10))
        start = by * rng.randint(1, 50 // by)
        items = [number(start + by * step) for step in range(4)]
    else:
        listed = rng.choice(facts.SEQUENCES).split()
        at = rng.randint(0, len(listed) - 3)
        items = [*listed[at : at + 3], listed[at + 3]] if at + 3 < len(listed) else listed[-3:]
    *shown, after = items
    series = ", ".join(shown)
    asked = _of(
        rng, f"{series}, what comes next?", f"What comes next, {series}?", f"Can you continue the list, {series}?"
    )
    return asked, _of(rng, f"After {shown[-1]} comes {after}.", f"The next one is {after}.",
                      f"{after} comes next in the list.", f"Next comes {after}.")  # fmt: skip


def _opposites(rng: Rng) -> Lines:
    word, other = rng.sample(rng.choice(OPPOSITE_PAIRS), 2)
    asked = _of(rng, f"What is the opposite of {word}?", f"Can you give me the opposite of {word}?",
                f"Which word means the opposite of {word}?")  # fmt: skip
    return asked, _of(rng, f"The opposite of {word} is {other}.", f"{other} is the opposite of {word}.",
                      f"If it is not {word}, it is {other}.")  # fmt: skip


def _rhymes(rng: Rng) -> Lines:
    word, other = rng.sample(rng.choice(RHYME_PAIRS), 2)
    asked = _of(rng, f"What rhymes with {word}?", f"Give me a rhyme for {word}.",
                f"Can you find a word that rhymes with {word}?")  # fmt: skip
    return asked, _of(rng, f"I can think of {other}.", f"A good rhyme for {word} is {other}.",
                      f"How about {other}, that rhymes with {word}.")  # fmt: skip


def _colours(rng: Rng) -> Lines:
    mass = rng.random() < 0.33
    thing, colour = rng.choice(list((facts.MASS_COLOURS if mass else facts.COLOURS).items()))
    thing = thing if mass else article(thing)
    asked = _of(rng, f"What color is {thing}?", f"Tell me the color of {thing}.", f"Do you know what color {thing} is?")
    return asked, _of(rng, f"{thing} is usually {colour}.", f"I would say {thing} is {colour}.",
                      f"{colour} is the color of {thing}.", f"Most people would call {thing} {colour}.")  # fmt: skip


def _plurals(rng: Rng) -> Lines:
    one, many = rng.choice(list(facts.PLURALS.items()))
    asked = _of(rng, f"What is the plural of {one}?", f"How do you say more than one {one}?", f"One {one}, two what?")
    return asked, _of(rng, f"The plural of {one} is {many}.", f"More than one {one} would be {many}.",
                      f"You say one {one}, but two {many}.")  # fmt: skip


def _spelling(rng: Rng) -> Lines:
    word = rng.choice(facts.SPELLED)
    letters = ", ".join(word.upper())
    asked = _of(rng, f"How do you spell {word}?", f"Can you spell the word {word}?", f"Please spell {word} for me.")
    return asked, _of(rng, f"Sure, it is {letters}.", f"The letters are {letters}.", f"{word} is spelled {letters}.",
                      f"You spell it like this, {letters}.")  # fmt: skip


def _animal_sounds(rng: Rng) -> Lines:
    animal, sound = rng.choice(list(facts.ANIMAL_SOUNDS.items()))
    an = article(animal)
    asked = _of(rng, f"What sound does {an} make?", f"What noise does the {animal} make?",
                f"Which sound do you hear from {an}?")  # fmt: skip
    return asked, _of(rng, f"When it is excited, {an} {sound}.", f"Listen carefully, the {animal} {sound} at night.",
                      f"{an} {sound}, and you can hear it from far away.")  # fmt: skip


def _animal_homes(rng: Rng) -> Lines:
    animal, home = rng.choice(list(facts.ANIMAL_HOMES.items()))
    an = article(animal)
    asked = _of(rng, f"Where does {an} live?", f"Do you know where {an} sleeps?", f"What is the home of {an}?")
    return asked, _of(rng, f"{an} lives in {home}.", f"You can find {an} in {home}.",
                      f"Usually {an} makes its home in {home}.")  # fmt: skip


def _food_origin(rng: Rng) -> Lines:
    food, origin = rng.choice(list(facts.FOOD_ORIGINS.items()))
    many = food in ("eggs", "raisins", "french fries")
    comes, do = ("come", "do") if many else ("comes", "does")
    asked = _of(rng, f"Where {do} {food} come from?", f"I wonder where {food} {comes} from.",
                f"Can you tell me where {food} {comes} from?")  # fmt: skip
    return asked, _of(rng, f"{food} {comes} from {origin}.", f"As far as I know, {food} {comes} from {origin}.",
                      f"We get {food} from {origin.replace(' or from ', ' or ')}.")  # fmt: skip


def _capitals(rng: Rng) -> Lines:
    country, city = rng.choice(list(facts.CAPITALS.items()))
    form = rng.random()
    if form < 0.2:
        return f"In which country is {city}?", _of(
            rng, f"{city} is in {country}.", f"You can find {city} in {country}."
        )
    if form < 0.4:
        other = rng.choice([name for name in facts.CAPITALS.values() if name != city])
        if rng.random() < 0.3:
            return f"Is {city} the capital of {country}?", f"Yes, {city} is the capital of {country}."
        return f"Is {other} the capital of {country}?", f"No, the capital of {country} is {city}, not {other}."
    asked = _of(rng, f"What is the capital of {country}?", f"Which city is the capital of {country}?",
                f"Do you know the capital city of {country}?")  # fmt: skip
    return asked, _of(rng, f"{city} is the capital of {country}.", f"I believe it is {city}, the capital of {country}.",
                      f"The capital of {country} is {city}.")  # fmt: skip


def _sizes(rng: Rng) -> Lines:
    table = rng.choice(facts.SIZES)
    small, big = sorted(rng.sample(range(len(table)), 2))
    a, b = table[small], table[big]
    if rng.random() < 0.5:
        first, second = rng.sample((a, b), 2)
        asked = f"Which is bigger, {article(first)} or {article(second)}?"
        return asked, _of(rng, f"{article(b)} is bigger than {article(a)}.", f"{article(b)} is much bigger, I think.",
                          f"The {b} is bigger, and the {a} is smaller.")  # fmt: skip
    if rng.random() < 0.4:
        return f"Is {article(a)} smaller than {article(b)}?", f"Yes, {article(a)} is smaller than {article(b)}."
    return f"Is {article(b)} smaller than {article(a)}?", f"No, {article(b)} is not smaller than {article(a)}."


def _ages(rng: Rng) -> Lines:
    first, second = rng.sample(NAMES, 2)
    a, b = rng.sample(range(5, 80), 2)
    sort = rng.choice(("older", "younger"))
    asked = f"{first} is {number(a)} and {second} is {number(b)}, so who is {sort}?"
    wins, age, other = (first, a, second) if (a > b) == (sort == "older") else (second, b, first)
    only = "only" if sort == "younger" else "already"
    return asked, _of(rng, f"{wins} is {sort} than {other}.", f"That would be {wins}, who is {only} {number(age)}.")


def _definitions(rng: Rng) -> Lines:
    word, meaning = rng.choice(list(facts.DEFINITIONS.items()))
    asked = _of(rng, f"What is {article(word)}?", f"What does the word {word} mean?",
                f"Can you explain what {article(word)} is?")  # fmt: skip
    return asked, _of(rng, f"It is {meaning}.", f"{article(word)} is {meaning}.", f"We call {meaning} {article(word)}.")


QUESTIONS: dict[str, Callable[[Rng], Lines]] = {
    "addition": _addition,
    "subtraction": _subtraction,
    "multiplication": _multiplication,
    "halves_doubles": _halves_doubles,
    "count_up": _count_up,
    "count_down": _count_down,
    "days": _days,
    "months": _months,
    "next_in_list": _next_in_list,
    "opposites": _opposites,
    "rhymes": _rhymes,
    "colours": _colours,
    "plurals": _plurals,
    "spelling": _spelling,
    "animal_sounds": _animal_sounds,
    "animal_homes": _animal_homes,
    "food_origin": _food_origin,
    "capitals": _capitals,
    "sizes": _sizes,
    "ages": _ages,
    "definitions": _definitions,
}
