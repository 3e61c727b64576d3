"""What a synthesized corpus says, and who says it how: orders for `kokoro.py`, a pure function of the recipe.

Dialogues of the grammar (`text.py`) and single sentences, of the grammar or of a file of prose. A voice is one of
Kokoro's, or a blend of two of them written `af_bella:35+bm_lewis:65` (weights in percent): a speaker of its own.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from spiritrt.training.corpora.pronounce import words_of
from spiritrt.training.corpora.text import exchange, sentence

ASSISTANTS = ("af_heart", "am_michael")
USERS = tuple(
    "af_alloy af_aoede af_bella af_jessica af_kore af_nicole af_nova af_river af_sarah af_sky am_adam am_echo am_eric "  # noqa: SIM905
    "am_fenrir am_liam am_onyx am_puck am_santa bf_alice bf_emma bf_isabella bf_lily bm_daniel bm_fable bm_george "
    "bm_lewis".split()
)
HELD_OUT_VOICE = "bm_daniel"
# what the vocoder learns to speak with
VOCODER_VOICES = ("af_heart", "am_michael", "bf_emma", "bm_george")
# measured on the shipped corpus; plans the number of utterances
MEAN_UTTERANCE_S = 2.7


@dataclass(frozen=True, slots=True)
class Style:
    """A way to speak: factors on pitch, on its range and on the rate, and what is added to the energy."""

    f0_mul: float
    f0_range: float
    speed: float
    n_add: float


STYLES = {
    "neutral": Style(1.0, 1.0, 1.0, 0.0),
    "lively": Style(1.25, 1.6, 1.15, 1.0),
    "subdued": Style(0.85, 0.4, 0.75, -1.5),
    "fast": Style(1.0, 1.0, 1.25, 0.0),
    "slow": Style(1.0, 1.0, 0.75, 0.0),
}
STYLE_SHARES = (70, 9, 7, 8, 6)


@dataclass(frozen=True, slots=True)
class Order:
    """An utterance to be made; the fields are those of the manifest."""

    id: str
    text: str
    speaker: str
    style: str
    role: str
    dialogue: str | None
    kind: str
    split: str


@dataclass(frozen=True, slots=True)
class Recipe:
    """What to order: about `hours` of speech, dialogues and single sentences in the ratio 3 to 2.

    `prefix` goes before every id. `blends` is the share of user and single lines spoken by a blend of two voices,
    `vocoder_voices` that of single lines spoken by a voice of the vocoder, `prose` the sentences that half of the
    single lines are taken from where there are any. `only` are the voices that say all lines, whoever they are of, one
    that is named twice twice as many. `training_only` orders neither the held-out voice nor held-out
    lines: for a corpus beside another that holds some out already.
    """

    hours: float
    seed: int
    prefix: str = ""
    blends: float = 0.0
    vocoder_voices: float = 0.0
    prose: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    training_only: bool = False

    def __post_init__(self) -> None:
        if self.hours <= 0:
            raise ValueError(f"hours must be above 0, got {self.hours}")
        if not 0 <= self.blends <= 1 or not 0 <= self.vocoder_voices <= 1:
            raise ValueError(f"shares must lie in [0, 1], got blends {self.blends}, {self.vocoder_voices=}")


def plain(text: str) -> str:
    """Words in lower case, to compare texts."""
    return " ".join(word.lower() for word in words_of(text))


def orders(recipe: Recipe, excluded: frozenset[str] = frozenset()) -> list[Order]:
    """The orders of a recipe, no text twice and none of `excluded` (`plain` texts)."""
    rng = random.Random(f"kokoro/{recipe.seed}")
    wanted = max(3, round(recipe.hours * 3600 / MEAN_UTTERANCE_S))
    prose = list(recipe.prose)
    made: list[Order] = []
    seen = set(excluded)
    index = 0
    while len(made) < wanted:
        style = rng.choices(list(STYLES), STYLE_SHARES, k=2)
        test = rng.random() < 0.05 and not recipe.training_only
        if index % 7 < 3:
            text, kind = sentence(recipe.seed, index), "grammar"
            if prose and rng.random() < 0.5:
                text, kind = prose[rng.randrange(len(prose))], "prose"
            speaker = rng.choice((*USERS, *ASSISTANTS))
            if recipe.vocoder_voices and not recipe.only and rng.random() < recipe.vocoder_voices:
                speaker = rng.choice(VOCODER_VOICES)
            else:
                speaker = _voice(speaker, recipe, rng)
            split = "test_voice" if speaker == HELD_OUT_VOICE else "test" if test else "train"
            lines = [Order(f"{recipe.prefix}s{index:05d}", text, speaker, style[0], "single", None, kind, split)]
        else:
            pair, user, assistant = exchange(recipe.seed, index), rng.choice(USERS), rng.choice(ASSISTANTS)
            user = _voice(user, recipe, rng)
            assistant = rng.choice(recipe.only) if recipe.only else assistant
            split = "test_voice" if user == HELD_OUT_VOICE else "test" if test else "train"
            name = f"{recipe.prefix}d{index:05d}"
            lines = [
                Order(f"{name}u", pair.user, user, style[0], "user", name, pair.kind, split),
                Order(f"{name}a", pair.assistant, assistant, style[1], "assistant", name, pair.kind, split),
            ]
        if not seen & {plain(line.text) for line in lines}:
            seen |= {plain(line.text) for line in lines}
            made += lines
        index += 1
        if index > 100 * wanted:
            raise ValueError(f"the grammar gives only {len(made)} of {wanted} different lines: ask for fewer hours")
    return made


def _voice(drawn: str, recipe: Recipe, rng: random.Random) -> str:
    """The drawn voice, or a blend of two; the held-out voice is replaced where only training lines are wanted."""
    if recipe.only:
        return rng.choice(recipe.only)
    if recipe.blends and rng.random() < recipe.blends:
        first, second = rng.sample([voice for voice in (*USERS, *ASSISTANTS) if voice != HELD_OUT_VOICE], 2)
        share = rng.randrange(30, 71, 5)
        return f"{first}:{share}+{second}:{100 - share}"
    while recipe.training_only and drawn == HELD_OUT_VOICE:
        drawn = rng.choice(USERS)
    return drawn
