"""Likelihood of a hypothesis after a prompt: log-softmax over the full vocabulary, of the hypothesis's own tokens.

A modality marker between prompt and hypothesis belongs to the prompt, as in `SpiritLM.logprobs`: it is the same for
every hypothesis, and would only pull short ones towards each other in a mean a token.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

from spiritrt import LogProbs, Speech, SpiritLM, Text
from spiritrt.evaluation.report import Metric, mean_metric
from spiritrt.tokens.units import merge
from spiritrt.tokens.vocabulary import format_speech

Item = Text | Speech
KINDS = ("mean", "sum")


class Scorer:
    """Scores items with one model; what a recording is encoded to is kept, so that it is encoded once."""

    def __init__(self, lm: SpiritLM) -> None:
        self.lm = lm
        self._tokens: dict[Path, str] = {}

    def speech(self, path: Path) -> Speech:
        """The tokens of a recording as a prompt item. Raises ValueError naming a file that cannot be encoded."""
        if path not in self._tokens:
            try:
                self._tokens[path] = format_speech(merge(self.lm.encode(str(path))))
            except ValueError as error:
                raise ValueError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from error
        return Speech(tokens=self._tokens[path])

    def score(self, prompt: Sequence[Item], hypotheses: Sequence[Item]) -> list[LogProbs]:
        """Likelihood of each hypothesis after the prompt, which may be empty; all are of one modality."""
        if len({isinstance(item, Text) for item in hypotheses}) > 1:
            raise ValueError("hypotheses to compare must all be text or all be speech")
        return [self.lm.logprobs(list(prompt), [item]) for item in hypotheses]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Whether the right one of two hypotheses was likelier: 1 or 0, a tie 0.5; by mean a token and by sum."""

    mean: float
    sum: float

    @classmethod
    def of(cls, right: LogProbs, wrong: LogProbs) -> "Comparison":
        return cls(_wins(right.mean, wrong.mean), _wins(right.sum, wrong.sum))


def _wins(right: float, wrong: float) -> float:
    return 0.5 if right == wrong else float(right > wrong)


def accuracies(comparisons: Sequence[Comparison], groups: Sequence[Hashable] | None = None) -> dict[str, Metric]:
    """Accuracy by mean and by sum; with `groups`, one a comparison, over the means within each group.

    Comparisons of one group are not independent: count and spread are those of the groups.
    """
    groups = range(len(comparisons)) if groups is None else groups
    return {kind: mean_metric("accuracy", grouped(groups, [getattr(c, kind) for c in comparisons])) for kind in KINDS}


def grouped(groups: Sequence[Hashable], values: Sequence[float]) -> list[float]:
    """The mean of `values` within each group, in the order in which the groups come first."""
    members: dict[Hashable, list[float]] = {}
    for group, value in zip(groups, values, strict=True):
        members.setdefault(group, []).append(value)
    return [sum(own) / len(own) for own in members.values()]
