"""Exchanges of a home assistant without one right answer: commands, greetings, feelings, small talk, stories, jokes.

Each function draws one (user, assistant) pair from a seeded generator; a command's reply repeats what was asked for.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from spiritrt.training.corpora import facts
from spiritrt.training.corpora.facts import DAYS, MONTHS, NAMES, ROOMS, article, number, pairs

Lines = tuple[str, str]
Rng = random.Random

PREFERENCE_PAIRS = pairs(facts.PREFERENCES)
HOURS = facts.ONES[1:13]
QUARTERS = ("fifteen", "thirty", "forty five")


def _of(rng: Rng, *lines: str) -> str:
    return rng.choice(lines)


def _lights(rng: Rng) -> Lines:
    room = rng.choice(ROOMS)
    form = rng.randrange(4)
    if form == 0:
        colour = rng.choice(facts.LIGHT_COLOURS)
        return f"Make the {room} lights {colour}.", f"The {room} lights are {colour} now."
    if form == 1:
        asked = _of(rng, f"Can you dim the lights in the {room}?", f"Dim the {room} lights, please.")
        return asked, _of(rng, f"Sure, I made the {room} a little darker.",
                          f"The {room} lights are dimmed to {number(10 * rng.randint(1, 5))} percent.")  # fmt: skip
    if form == 2:
        asked = _of(rng, f"Turn on the lights in the {room}.", f"Please switch on the {room} light.",
                    f"Turn on the {room} lights, please.")  # fmt: skip
        return asked, _of(rng, f"Okay, the {room} lights are on now.", f"Sure, I turned on the light in the {room}.")
    asked = _of(rng, f"Turn off the {room} lights, please.", f"Switch off the light in the {room}.",
                f"Turn off the lights in the {room}.")  # fmt: skip
    return asked, _of(rng, f"All right, the {room} lights are off.", f"Done, the {room} is dark now.")


def _doors(rng: Rng) -> Lines:
    door, room, name = rng.choice(facts.DOORS), rng.choice(ROOMS), rng.choice(NAMES)
    form = rng.randrange(4)
    if form == 0:
        return f"Please open the {door} for {name}.", f"Okay, I am opening the {door} now."
    if form == 1:
        return f"Could you lock the {door}?", _of(rng, f"The {door} is locked.",
                                                 f"Done, nobody can come in through the {door}.")  # fmt: skip
    if form == 2:
        return f"Did I close the {door}?", f"Yes, the {door} is closed and locked."
    return f"Close the {rng.choice(facts.OPENINGS)} in the {room}.", f"All right, it is closed in the {room} now."


def _timers(rng: Rng) -> Lines:
    form = rng.randrange(3)
    if form == 0:
        hour, past = rng.choice(HOURS), rng.choice(QUARTERS)
        return (f"Wake me up at {hour} {past} tomorrow morning.",
                f"Good night, your alarm is set for {hour} {past} in the morning.")  # fmt: skip
    minutes = rng.choice((*range(1, 21), 25, 30, 40, 45, 50, 60, 90))
    said = number(minutes)
    if form == 1:
        food = rng.choice(facts.FOODS_ON_TIMER)
        left = f"{said} minute{'s' if minutes > 1 else ''}"
        done = "are" if food in ("eggs", "cookies") else "is"
        return f"Start a {said} minute timer for the {food}.", _of(
            rng, f"The {food} timer is running, {left} to go.", f"Sure, I will tell you when the {food} {done} done."
        )
    span = f"{said} minute{'s' if minutes > 1 else ''}"
    return f"Set a timer for {span}.", _of(rng, f"Okay, your timer is set for {span}.", f"{span}, starting now.")


def _temperature(rng: Rng) -> Lines:
    room, degrees = rng.choice(ROOMS), number(rng.randint(60, 78))
    form = rng.randrange(4)
    if form == 0:
        return f"How warm is it in the {room}?", f"Right now the {room} is {degrees} degrees."
    if form == 1:
        return f"Set the {room} to {degrees} degrees.", f"I set the {room} thermostat to {degrees} degrees."
    if form == 2:
        return f"Make it {degrees} degrees in the {room}.", f"Okay, the {room} will be {degrees} degrees soon."
    return _of(rng, f"It is too cold in the {room}.", f"I feel cold in the {room}."), _of(
        rng, f"I will turn up the heat in the {room}.", f"Let me make the {room} a little warmer for you."
    )


def _music(rng: Rng) -> Lines:
    room, style = rng.choice(ROOMS), rng.choice(facts.MUSIC)
    form = rng.randrange(4)
    if form == 0:
        asked = _of(rng, f"Make the music louder in the {room}.", f"Turn up the music in the {room}.")
        return asked, f"Sure, the music in the {room} is louder now."
    if form == 1:
        count = number(rng.randint(2, 40))
        return (f"Do you have any {style} songs about {rng.choice(facts.SONG_TOPICS)}?",
                f"Yes, I found {count} {style} songs for you.")  # fmt: skip
    if form == 2:
        return f"Stop the {style} music in the {room}.", f"I stopped the {style} music, enjoy the silence."
    return f"Play some {style} music in the {room}.", _of(
        rng, f"Okay, here is some {style} music for the {room}.", f"Playing {style} music in the {room}."
    )


def _shopping(rng: Rng) -> Lines:
    a, b, c = rng.sample(facts.GROCERIES, 3)
    form = rng.randrange(4)
    if form == 0:
        return f"Add {a} and {b} to my shopping list.", f"Okay, I added {a} and {b} to your list."
    if form == 1:
        still = "are" if b.endswith("s") else "is"
        return f"Please take {a} off the shopping list.", f"Done, I removed {a}, but {b} {still} still there."
    if form == 2:
        return f"Besides {a}, what is on my shopping list?", f"You also need {b} and {c}."
    return f"Did I already write down {a}?", f"Yes, {a} and {b} are both on the list."


def _reminders(rng: Rng) -> Lines:
    chore = rng.choice(facts.CHORES).format(name=rng.choice(NAMES))
    when = rng.choice(
        (f"at {rng.choice(HOURS)}", f"on {rng.choice(DAYS)}", "tomorrow", "tonight", "next week", "at noon")
    )
    asked = _of(rng, f"Please remind me {when} to {chore}.", f"Remind me to {chore} {when}.")
    kept = chore.replace(" my ", " your ")
    return asked, _of(rng, f"Sure, I will remind you to {kept} {when}.", f"I made a note, {kept} {when}.",
                      f"Okay, {when} I will tell you to {kept}.")  # fmt: skip


def _time(rng: Rng) -> Lines:
    hour = rng.randrange(1, 13)
    this, after = number(hour), number(hour % 12 + 1)
    clock = _of(rng, f"{this} o'clock", f"half past {this}", f"a quarter past {this}", f"a quarter to {after}",
                *(f"{m} past {this}" for m in ("five", "ten", "twenty", "twenty five")),
                *(f"{m} to {after}" for m in ("five", "ten", "twenty", "twenty five")))  # fmt: skip
    form = rng.randrange(5)
    if form == 0:
        return f"What time is it in {rng.choice(facts.CITIES)}?", f"It is {clock} there."
    if form == 1:
        past = f"{_of(rng, 'five', 'ten', 'a quarter', 'twenty', 'twenty five', 'half')} past {this}"
        return f"Is it past {this} o'clock yet?", f"Yes, it is {past}."
    if form == 2:
        return f"Is it {this} o'clock yet?", f"Yes, it is {this} o'clock."
    if form == 3:
        verb = rng.choice(("open", "close"))
        return f"What time does the {rng.choice(facts.OPENING_PLACES)} {verb}?", f"It {verb}s at {clock}."
    thing, verb = (rng.choice(facts.DEPARTURES), "leave") if rng.random() < 0.6 else ("school", "begin")
    return f"What time does the {thing} {verb}?", f"It {verb}s at {clock}."


def _weather(rng: Rng) -> Lines:
    city = rng.choice(facts.CITIES)
    when = rng.choice(("today", "tonight", "tomorrow", "this weekend", f"on {rng.choice(DAYS)}"))
    form = rng.randrange(3)
    if form == 0:
        return f"Do I need an umbrella in {city} {when}?", _of(
            rng, f"Yes, it will probably rain in {city} {when}.", f"No, it should stay dry in {city} {when}."
        )
    if form == 1:
        degrees = number(rng.randint(15, 60))
        return f"How cold will it be in {city} {when}?", _of(
            rng,
            f"About {degrees} degrees in {city}, so wear a coat.",
            f"Around {degrees} degrees in {city}, so wear a coat.",
        )
    return f"What will the weather be like in {city} {when}?", _of(
        rng, f"It looks mostly clear in {city} {when}.", f"It looks mild and cloudy in {city} {when}.",
        f"In {city} it will be cloudy with a little rain {when}.", f"It will be warm and sunny in {city} {when}.",
    )  # fmt: skip


def _directions(rng: Rng) -> Lines:
    goal, other = rng.sample(facts.PLACES, 2)
    side = rng.choice(("left", "right"))
    if rng.random() < 0.2:
        return f"Which way is the {goal} from the {other}?", _of(
            rng, f"Turn {side} at the {other}, then walk straight ahead.",
            f"Walk {number(rng.randint(2, 9))} blocks and turn {side} at the {other}.",
        )  # fmt: skip
    asked = _of(rng, f"Is there {article(goal)} near here?", f"Excuse me, where is the {goal}?",
                f"How do I get to the {goal}?")  # fmt: skip
    return asked, _of(
        rng, f"Walk {number(rng.randint(2, 9))} blocks and turn {side} at the {other}.",
        f"Take the first street on the {side}, next to the {other}.", f"The {goal} is right across from the {other}.",
        f"Go past the {other} and the {goal} is on your {side}.",
        f"Turn {side} at the {other}, then walk straight ahead.",
    )  # fmt: skip


def _greetings(rng: Rng) -> Lines:
    hello = _of(rng, "Hello", "Hi", "Good morning", "Good evening", "Good afternoon", "Hello there", "Hi there", "Hey")
    name = rng.choice(NAMES) if rng.random() < 0.5 else None
    back = _of(rng, "Hi", "Hello", "Hey", "Good morning", "Good evening", "Good afternoon", "Hi there")
    if name and rng.random() < 0.5:
        back += f", {name}"
    question, answers = rng.choice((
        ("how are you today", ("I am doing well, thank you.", "I feel great today, how about you?",
                               "Pretty good, and you?")),
        ("how are you doing", ("I am doing fine, thanks for asking.", "Pretty good, and you?",
                               "I am doing well, thank you.")),
        ("how is it going", ("It is going very well, thank you.", "Pretty good, and you?")),
        ("can you hear me", ("Yes, I can hear you very well.", "Loud and clear, what can I do for you?")),
        ("are you awake", ("Yes, I am always awake.", "Of course, what can I do for you?")),
        ("nice to meet you", ("The pleasure is all mine.", "It is nice to meet you too.")),
        ("it is good to see you again", ("It is good to hear from you again.",)),
    ))  # fmt: skip
    mark = "." if question.startswith(("nice", "it is good")) else "?"
    middle = f", my name is {name}" if name else ""
    return f"{hello}{middle}, {question}{mark}", f"{back}. {rng.choice(answers)}"


def _goodbye(rng: Rng) -> Lines:
    when, until = rng.choice([(f"on {d}", d) for d in DAYS] + [(f"in {m}", m) for m in MONTHS]
                             + [(w, w) for w in ("tomorrow", "next week", "tonight")] * 3)  # fmt: skip
    leave = _of(rng, "Bye", "Bye for now", "See you later", "I have to go now", "Goodbye")
    return f"{leave}, {_of(rng, 'see you', 'I will talk to you')} {when}.", _of(
        rng, f"Take care, I look forward to talking {when}.", f"Goodbye, I will be here {when}.",
        f"See you {when}, take care.", f"Bye, have a nice time until {until}.",
    )  # fmt: skip


def _thanks(rng: Rng) -> Lines:
    mine = _of(rng, "my homework", "my birthday", "the garden", "the timer", "the directions", "the concert",
               "the shopping list", "the weather")  # fmt: skip
    yours = mine.replace("my ", "your ")
    help_ = _of(rng, "reminding me about", "explaining", "telling me about", "helping me with")
    was = "were" if mine == "the directions" else "was"
    return f"{_of(rng, 'Thank you for', 'Thanks a lot for', 'I really appreciate you')} {help_} {mine}.", _of(
        rng, f"My pleasure, good luck with {yours}.", f"You are welcome, I am glad I could help with {yours}.",
        f"Any time, just ask me about {yours} again.", f"No problem, {yours} {was} easy.",
    )  # fmt: skip


def _feelings(rng: Rng) -> Lines:
    sure = _of(rng, "I am sure", "I believe", "I think", "I hope")
    form = rng.randrange(5)
    if form == 0:
        thing = _of(rng, "book", "project", "homework", "first song", "painting")
        return (
            f"{_of(rng, 'I feel proud', 'I am so happy')} because I finished my {thing}.",
            f"{_of(rng, 'Congratulations', 'You should be proud')}, and {sure} your {thing} is excellent.",
        )
    if form == 1:
        thing = _of(rng, "interview", "speech", "exam", "concert")
        return (
            f"I am {_of(rng, 'nervous', 'worried')} about my {thing} tomorrow.",
            f"{_of(rng, 'Take a deep breath', 'Try not to worry too much')}, and {sure} your {thing} will go well.",
        )
    if form == 2:
        thing = _of(rng, "phone", "bicycle", "computer", "car")
        return (
            f"I am {_of(rng, 'upset', 'angry', 'sad')} because my {thing} is broken.",
            f"I understand, that is frustrating, and {sure} your {thing} can be fixed.",
        )
    if form == 3:
        thing = _of(rng, "wedding", "birthday", "concert", "holiday")
        return (
            f"I am so {_of(rng, 'happy', 'excited')} about my {thing} tomorrow.",
            f"That is wonderful news, and {sure} your {thing} will be great.",
        )
    who = _of(rng, "cousin", "daughter", "brother", "sister", "friend", "mother")
    return (
        f"{_of(rng, 'I feel lonely', 'I am a little lonely')} because my {who} is far away.",
        f"I am sorry to hear that, and {sure} your {who} is thinking of you.",
    )


def _small_talk(rng: Rng) -> Lines:
    if rng.random() < 0.35:
        when = _of(rng, "tonight", "this weekend", "after lunch", "tomorrow", f"on {rng.choice(DAYS)}")
        return f"What are you doing {when}?", _of(
            rng, "Not much, just waiting for your next question.", "I would love to hear about your plans instead.",
            "Nothing special, maybe I will tell some jokes.", "I plan to learn some new words.",
        )  # fmt: skip
    did = _of(rng, "went to the zoo", "watched a movie", "painted the fence", "visited my grandmother",
              "met an old friend", "planted some roses", "went hiking", "baked a cake", "played the piano",
              "read a good book", "went swimming")  # fmt: skip
    when = _of(rng, "last weekend", "this morning", "last night", "yesterday")
    return f"I {did} {when}.", _of(
        rng, f"Really, you {did.replace(' my ', ' your ')}, how was it?",
        f"That sounds like {_of(rng, 'fun', 'a full day')}, tell me more about {when}.",
        f"That sounds wonderful, tell me more about {when}.",
    )  # fmt: skip


def _preferences(rng: Rng) -> Lines:
    a, b = rng.sample(rng.choice(PREFERENCE_PAIRS), 2)
    best = rng.choice((a, b))
    asked = _of(
        rng, f"Do you prefer {a} or {b}?", f"Which do you like better, {a} or {b}?", f"Would you choose {a} or {b}?"
    )
    return asked, _of(rng, f"I like {best} a little better.", f"I would choose {best}, and what about you?",
                      f"That is hard, but I think {best}.", f"{best}, because everyone likes it.")  # fmt: skip


def _repeat(rng: Rng) -> Lines:
    hour, guess = rng.sample(HOURS, 2)
    event = rng.choice(facts.EVENTS)
    ask = _of(rng, "Sorry, I did not hear that", "Pardon me, please say that again", "I did not catch that",
              "Excuse me, could you repeat that")  # fmt: skip
    what = _of(rng, "what time", "when was it", f"was it {guess}", "what did you say")
    return f"{ask}, {what}?", _of(
        rng, f"Sure, {event} at {hour}, as I told you.", f"No problem, I said {event} at {hour}.",
        f"I said that {event} at {hour}.", f"Of course, {event} at {hour}.",
    )  # fmt: skip


def _stories(rng: Rng) -> Lines:
    hero, friend = rng.sample(facts.HEROES, 2)
    trait, place, one = rng.choice(facts.HERO_TRAITS), rng.choice(facts.STORY_PLACES), article(friend)
    trouble, endings = rng.choice((
        ("It dreamed of flying", (f"So it asked {one} for feathers and jumped from a rock.",
                                  f"One windy day {one} built a kite big enough for two.")),
        ("It could not sleep", (f"So {one} sang a gentle song, and soon everyone was dreaming.",
                                f"It counted one hundred sheep and {one}, and then it slept.")),
        ("It lost a golden key", (f"It searched everywhere until {one} found the key in the grass.",)),
        ("It found a mysterious box", (f"The box was full of letters from {one}.",)),
        ("It baked a giant cake", (f"The {friend} brought candles, and they all sang together.",)),
        ("It wanted a friend", (f"Then it met {one}, and they played together every day.",)),
    ))  # fmt: skip
    return f"Once there was {article(f'{trait} {hero}')} {place}. {trouble}.", rng.choice(endings)


def _jokes(rng: Rng) -> Lines:
    riddle, answer = rng.choice(list(facts.JOKES.items()))
    return _of(rng, "", "Here is a riddle, ", "Do you know this joke, ") + f"{riddle}?", answer


def _yes_no_facts(rng: Rng) -> Lines:
    question, answer = rng.choice(list(facts.FACTS.items()))
    return _of(rng, "", "Tell me, ", "I have a question, ") + f"{question}?", answer


def _identity(rng: Rng) -> Lines:
    return rng.choice((
        ("What is your name?", "I am nano, a very small voice assistant."),
        ("Who are you?", "I am nano, a very small voice assistant."),
        ("What can you do?", "I can count, spell, answer questions and help at home."),
        ("Can you help me?", "Of course, what can I do for you?"),
        ("Are you a robot?", "I am a little computer program that likes to talk."),
        ("Are you human?", "No, I am a little computer program that likes to talk."),
        ("How old are you?", "I am very young, and I learn new words every day."),
        ("Where do you live?", "I live inside this computer."),
    ))  # fmt: skip


HOUSEHOLD: dict[str, Callable[[Rng], Lines]] = {
    "lights": _lights,
    "doors": _doors,
    "timers": _timers,
    "temperature": _temperature,
    "music": _music,
    "shopping": _shopping,
    "reminders": _reminders,
    "time": _time,
    "weather": _weather,
    "directions": _directions,
    "greetings": _greetings,
    "goodbye": _goodbye,
    "thanks": _thanks,
    "feelings": _feelings,
    "small_talk": _small_talk,
    "preferences": _preferences,
    "repeat": _repeat,
    "stories": _stories,
    "jokes": _jokes,
    "yes_no_facts": _yes_no_facts,
    "identity": _identity,
}
