"""Stand-ins: a scorer whose likelihoods are known, a judge that hears what it is told."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile

from spiritrt import LogProbs, Speech, Text

needs_fcpe = pytest.mark.skipif(
    importlib.util.find_spec("torchfcpe") is None, reason="no torchfcpe: see README, official weights"
)


class ScorerByName:
    """Scores recordings by a table of file names, and texts by a table of texts: (sum, tokens)."""

    def __init__(self, table: Mapping[str, tuple[float, int]]) -> None:
        self.table = table
        self.prompts: list[list[str]] = []

    def speech(self, path: Path) -> Speech:
        return Speech(tokens=path.name)

    def score(self, prompt: Sequence[Text | Speech], hypotheses: Sequence[Text | Speech]) -> list[LogProbs]:
        self.prompts.append([_name(item) for item in prompt])
        scores = []
        for item in hypotheses:
            total, tokens = self.table[_name(item)]
            scores.append(LogProbs(total, total / tokens, [total / tokens] * tokens))
        return scores


def _name(item: Text | Speech) -> str:
    return item.text if isinstance(item, Text) else str(item.tokens)


class Judge:
    """Hears the texts it was given, one after the other."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = list(texts)
        self.heard: list[np.ndarray] = []

    def __call__(self, samples: np.ndarray) -> str:
        self.heard.append(samples)
        return self.texts[(len(self.heard) - 1) % len(self.texts)]


def tone(path: Path, hz: float = 200.0, seconds: float = 0.5) -> Path:
    """A short tone in a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.2 * np.sin(2 * np.pi * hz * np.arange(int(16000 * seconds)) / 16000), 16000)
    return path
