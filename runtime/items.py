"""What goes into a Spirit LM and comes out: text, speech, scores."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np

from spiritrt.audio import RATE_HZ, Samples, Source


@dataclass(frozen=True, slots=True)
class Text:
    """Text in a prompt or an output, taken literally: exact token spellings in it are an error."""

    text: str


@dataclass(frozen=True, slots=True, eq=False)
class Speech:
    """Speech in a prompt or an output.

    `samples` is sound: a file (its own rate counts), or an array [N] or [N, channels] at `rate` Hz; of several channels
    the mean or `channel` is taken. `tokens` is a token string like `[Hu99][Hu49]`, and goes before samples. A prompt
    needs one of the two; an output has both, its samples mono float32 at 16 kHz.
    """

    samples: Source | None = None
    rate: int = RATE_HZ
    tokens: str | None = None
    channel: int | None = None

    def __post_init__(self) -> None:
        if self.samples is None and self.tokens is None:
            raise ValueError("Speech needs samples (a file or an array) or tokens")

    @property
    def array(self) -> Samples:
        """Samples of an output: mono float32 [N] at `rate`. Raises ValueError where they are anything else."""
        if not isinstance(self.samples, np.ndarray) or self.samples.dtype != np.float32 or self.samples.ndim != 1:
            raise ValueError("this Speech holds no mono float32 array; audio.load makes one of any sound")
        return self.samples

    @property
    def seconds(self) -> float:
        """Length in seconds; raises ValueError as `array` does."""
        return len(self.array) / self.rate


Prompt: TypeAlias = str | Sequence[Text | Speech]


class Output(list[Text | Speech]):
    """A list of Text and Speech, with what made it.

    `ids` are the generated tokens, `logprobs` their log-probabilities over the full vocabulary, `prompt_ids` the
    prompt's tokens, and `finish` why it ended: "end" (an end token), "string", "length" (max_new_tokens), "context",
    "silence" or "repetition".
    """

    def __init__(
        self,
        items: Sequence[Text | Speech],
        ids: list[int],
        logprobs: list[float],
        prompt_ids: list[int],
        raw: str,
        finish: str,
    ) -> None:
        super().__init__(items)
        self.ids = ids
        self.logprobs = logprobs
        self.prompt_ids = prompt_ids
        self.raw = raw
        self.finish = finish

    @property
    def text(self) -> str:
        """All text of the output."""
        return "".join(item.text for item in self if isinstance(item, Text))

    @property
    def samples(self) -> Samples:
        """All speech of the output in one array [N], 16 kHz; empty where there is none."""
        return np.concatenate(
            [np.zeros(0, np.float32), *(item.array for item in self if isinstance(item, Speech))], dtype=np.float32
        )


class LogProbs(NamedTuple):
    """Likelihood of a continuation: natural log-probabilities over the full vocabulary."""

    sum: float
    mean: float
    tokens: list[float]


class Classification(NamedTuple):
    """The most likely label, and the log-probability (sum) of each."""

    label: str
    scores: dict[str, float]
