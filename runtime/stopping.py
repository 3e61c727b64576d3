"""When generation ends: speech has no end token of its own in Spirit LM, so its stop rules are explicit."""

from collections.abc import Sequence
from dataclasses import dataclass

from spiritrt.tokens.vocabulary import EOS

LONGEST_NGRAM = 8


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop rules, on top of the token limit and the model's context. The first that holds ends the output.

    `ids`: end tokens (never part of the output). `strings`: text at which the output is cut. `silence_units`: so many
    silent units in a row, of those `silence` names. `repeats` and `repeated_units`: the same group of 1 to 8 tokens
    over and over, at least so many times and so many tokens in all (0: rule off). `ids_in_speech` lets the end tokens
    pass where the output is speech alone, for a model that is trained to end its speech with one, as nano is.
    """

    ids: tuple[int, ...] = (EOS,)
    strings: tuple[str, ...] = ()
    silence_units: int = 0
    silence: frozenset[int] = frozenset()
    repeats: int = 4
    repeated_units: int = 32
    ids_in_speech: bool = False

    def __post_init__(self) -> None:
        for name in ("silence_units", "repeats", "repeated_units"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 (off) or more, got {getattr(self, name)}")
        if "" in self.strings:
            raise ValueError("a stop string must not be empty")
        if self.silence_units and not self.silence:
            raise ValueError("silence_units needs silence: the ids of the units that are silence")

    @property
    def window(self) -> int:
        """Tokens before the last that `reason` looks at, at most."""
        return max(self.silence_units, LONGEST_NGRAM * self.repeats, self.repeated_units + LONGEST_NGRAM)

    def cut(self, text: str) -> int | None:
        """Where the first stop string begins in `text`, None where there is none."""
        found = [position for string in self.strings if (position := text.find(string)) >= 0]
        return min(found, default=None)

    def reason(self, ids: Sequence[int]) -> str | None:
        """Why the output `ids` ends with its last token: "end", "silence", "repetition", or None to go on.

        Stop strings are not looked at: they need the text of the ids.
        """
        if ids and ids[-1] in self.ids:
            return "end"
        silent = self.silence_units and len(ids) >= self.silence_units
        if silent and all(i in self.silence for i in ids[-self.silence_units :]):
            return "silence"
        if self.repeats and self.repeated_units:
            for length in range(1, LONGEST_NGRAM + 1):
                times = max(self.repeats, -(-self.repeated_units // length))
                tail = ids[-times * length :]
                if len(tail) == times * length and list(tail) == list(tail[:length]) * times:
                    return "repetition"
        return None
