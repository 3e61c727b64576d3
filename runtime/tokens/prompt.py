"""Prompts of text and speech in any order: items to a prompt string, and a model's output back to items."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from spiritrt.tokens.vocabulary import (
    MODALITIES,
    SPEECH_MARKER,
    TEXT_MARKER,
    Modality,
    SpeechToken,
    Vocabulary,
    format_speech,
)

MIN_SPEECH_UNITS = 24  # a shorter speech run within ARBITRARY output is dropped, unless it opens the output


@dataclass(frozen=True, slots=True)
class TextRun:
    """A stretch of text in a prompt or an output."""

    text: str

    @property
    def modality(self) -> Literal["text"]:
        return "text"

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class SpeechRun:
    """A stretch of speech tokens in a prompt or an output."""

    tokens: tuple[SpeechToken, ...]

    @property
    def modality(self) -> Literal["speech"]:
        return "speech"

    @property
    def units(self) -> int:
        """Number of HuBERT tokens."""
        return sum(token.kind == "Hu" for token in self.tokens)

    def __str__(self) -> str:
        return format_speech(self.tokens)


Run = TextRun | SpeechRun
_MARKERS = {"text": TEXT_MARKER, "speech": SPEECH_MARKER}


def build(runs: Iterable[Run], output: Modality = "arbitrary", after: Literal["text", "speech"] | None = None) -> str:
    """The prompt string of `runs` for the wanted output.

    A marker stands before a run only where the modality changes; where the last run is of the other modality than
    the wanted output, that output's marker closes the prompt. `after` is the modality of what the string will be
    appended to. Raises ValueError for an unknown output.
    """
    if output not in MODALITIES:
        raise ValueError(f"output must be one of {', '.join(MODALITIES)}, got {output!r}")
    parts: list[str] = []
    modality: str | None = after
    for run in runs:
        if run.modality != modality:
            parts.append(_MARKERS[run.modality])
        parts.append(str(run))
        modality = run.modality
    if output != "arbitrary" and output != modality:
        parts.append(_MARKERS[output])
    return "".join(parts)


def parse(string: str, vocabulary: Vocabulary) -> list[Run]:
    """Runs of text and speech of a prompt or output string; markers separate runs and vanish.

    Adjacent speech tokens are one run, as is the text between them. Spellings that are not tokens of `vocabulary` are
    text.
    """
    runs: list[Run] = []
    speech: list[SpeechToken] = []

    def close() -> None:
        if speech:
            runs.append(SpeechRun(tuple(speech)))
            speech.clear()

    for piece in vocabulary.split(string):
        if isinstance(piece, str):
            close()
            runs.append(TextRun(piece))
            continue
        token = vocabulary.speech_token(piece)
        if token is None:
            close()
        else:
            speech.append(token)
    close()
    return runs


def parse_output(string: str, vocabulary: Vocabulary, output: Modality) -> list[Run]:
    """Runs of a model's output; in "arbitrary", speech under 24 HuBERT units is dropped unless it comes first."""
    runs = [run for run in parse(string, vocabulary) if isinstance(run, SpeechRun) or run.text.strip()]
    if output != "arbitrary":
        return runs
    return [
        run
        for index, run in enumerate(runs)
        if index == 0 or not isinstance(run, SpeechRun) or run.units >= MIN_SPEECH_UNITS
    ]


def modality_at_end(string: str, vocabulary: Vocabulary) -> Literal["text", "speech"] | None:
    """What a prompt string is in at its end: its last marker counts as what it opens; None for an empty string."""
    pieces = vocabulary.split(string)
    if not pieces:
        return None
    speech = pieces[-1] == vocabulary.speech_marker
    return "speech" if speech or (isinstance(pieces[-1], int) and vocabulary.speech_token(pieces[-1])) else "text"


def ends_in(string: str, vocabulary: Vocabulary) -> Sequence[SpeechToken]:
    """The speech tokens that close a prompt string, empty where it ends in text or in a marker that opens nothing."""
    tokens: list[SpeechToken] = []
    for piece in reversed(vocabulary.split(string)):
        token = vocabulary.speech_token(piece) if isinstance(piece, int) else None
        if token is None:
            if piece == vocabulary.speech_marker and not tokens:
                continue
            break
        tokens.append(token)
    return tokens[::-1]
