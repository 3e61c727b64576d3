"""When generation ends: speech has no end token of its own in Spirit LM, so its stop rules are explicit."""

from collections.abc import Sequence
from dataclasses import dataclass

from spiritrt.tokens.vocabulary import EOS

LONGEST_NGRAM = 8


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop rules, on top of the token limit and the model's context. The first that holds ends the output.

    `ids`: end tokens (never part of the output). `strings`: text at which the output is cut. `silence_s`: so many
    seconds of silence, by the vocoder's durations, after some sound. `repeats` and `repeated_tokens`: the same group of
    1 to 8 tokens over and over, at least so many times and so many tokens in all. 0 switches a rule off.

    `ids_in_speech` lets the end tokens pass where the output is speech alone; by default they do for a model that is
    trained to end its speech with one (nano).
    """

    ids: tuple[int, ...] = (EOS,)
    strings: tuple[str, ...] = ()
    silence_s: float = 0.0
    repeats: int = 4
    repeated_tokens: int = 32
    ids_in_speech: bool | None = None

    def __post_init__(self) -> None:
        for name in ("silence_s", "repeats", "repeated_tokens"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be 0 (off) or more, got {getattr(self, name)}")
        if isinstance(self.strings, str):
            raise ValueError(f"strings must be a tuple of strings, got {self.strings!r}")
        if "" in self.strings:
            raise ValueError("a stop string must not be empty")

    @property
    def window(self) -> int:
        """Tokens before the last that `reason` looks at, at most."""
        return max(LONGEST_NGRAM * self.repeats, self.repeated_tokens + LONGEST_NGRAM)

    def cut(self, text: str) -> int | None:
        """Where the first stop string begins in `text`, None where there is none."""
        found = [position for string in self.strings if (position := text.find(string)) >= 0]
        return min(found, default=None)

    def reason(self, ids: Sequence[int]) -> str | None:
        """Why the output `ids` ends with its last token: "end", "repetition", or None to go on.

        The rules on text and on silence need more than ids: see `cut` and `Family.trailing_silence_s`.
        """
        if ids and ids[-1] in self.ids:
            return "end"
        if self.repeats and self.repeated_tokens:
            for length in range(1, LONGEST_NGRAM + 1):
                times = max(self.repeats, -(-self.repeated_tokens // length))
                tail = ids[-times * length :]
                if len(tail) == times * length and list(tail) == list(tail[:length]) * times:
                    return "repetition"
        return None
