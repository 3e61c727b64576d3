"""The id layout of a Spirit LM vocabulary, and which ids each output modality allows.

Text ids come first, then `[Text]`, `[Speech]`, `[Hu*]` and, in Expressive, `[Pi*]` and `[St*]`. The size of the text
vocabulary is a value, because a small model has a small one.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Modality = Literal["text", "speech", "arbitrary"]
MODALITIES: tuple[Modality, ...] = ("text", "speech", "arbitrary")
TEXT_MARKER, SPEECH_MARKER = "[Text]", "[Speech]"
BOS, EOS = 1, 2
KINDS = ("Hu", "Pi", "St")
_SPELLING = re.compile(r"\[(Text|Speech|(?:Hu|Pi|St)(?:0|[1-9][0-9]{0,8}))\]")
_TOKEN_LIKE = re.compile(r"\[(Hu|Pi|St)-?\d+\]")


class SpeechToken(NamedTuple):
    """One speech token: its `kind` ("Hu", "Pi" or "St") and its code in that codebook."""

    kind: str
    code: int

    def __str__(self) -> str:
        return f"[{self.kind}{self.code}]"


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Where the ids of a Spirit LM lie; `rows` is the padded size of the embedding.

    `pitches` and `styles` are 0 in Base. Ids from `size` up to `rows` are padding, and never sampled.
    """

    text_size: int = 32000
    units: int = 501
    pitches: int = 0
    styles: int = 0
    rows: int = 32512

    def __post_init__(self) -> None:
        for name in ("text_size", "units"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.pitches < 0 or self.styles < 0:
            raise ValueError(f"pitches and styles must not be negative, got {self.pitches} and {self.styles}")
        if self.rows < self.size:
            raise ValueError(f"an embedding of {self.rows} rows is too small for {self.size} ids")

    @property
    def text_marker(self) -> int:
        return self.text_size

    @property
    def speech_marker(self) -> int:
        return self.text_size + 1

    @property
    def first_unit(self) -> int:
        return self.text_size + 2

    @property
    def size(self) -> int:
        """Number of ids in use, padding rows not counted."""
        return self.first_unit + self.units + self.pitches + self.styles

    @property
    def expressive(self) -> bool:
        return self.pitches > 0

    def count(self, kind: str) -> int:
        """Size of the codebook of a kind ("Hu", "Pi", "St")."""
        return {"Hu": self.units, "Pi": self.pitches, "St": self.styles}[kind]

    def first(self, kind: str) -> int:
        """Id of index 0 of a kind."""
        return {
            "Hu": self.first_unit,
            "Pi": self.first_unit + self.units,
            "St": self.first_unit + self.units + self.pitches,
        }[kind]

    def id_of(self, token: SpeechToken) -> int:
        """Id of a speech token. Raises ValueError where this model has no such token."""
        if not 0 <= token.code < self.count(token.kind):
            raise ValueError(f"unknown token {token}: this model has {self._codes(token.kind)}")
        return self.first(token.kind) + token.code

    def check_prompt(self, string: str) -> None:
        """Raises ValueError where a prompt string holds what looks like a speech token and is none of this model.

        That is `[Hu`, `[Pi` or `[St`, a number and `]`: a mistake far more often than text.
        """
        for match in _TOKEN_LIKE.finditer(string):
            if self.lookup(match[0]) is None:
                raise ValueError(
                    f"unknown token {match[0]}: this model has {self._codes(match[1])}; what is meant as text goes "
                    "into a Text item"
                )

    def _codes(self, kind: str) -> str:
        count = self.count(kind)
        return f"{kind}0 to {kind}{count - 1}" if count else f"no {kind} tokens"

    def speech_token(self, token_id: int) -> SpeechToken | None:
        """The speech token of an id, or None where the id is text, a marker or padding."""
        for kind in KINDS:
            index = token_id - self.first(kind)
            if 0 <= index < self.count(kind):
                return SpeechToken(kind, index)
        return None

    def spelling(self, token_id: int) -> str | None:
        """Spelling of a marker or speech token, None for text and padding ids."""
        if token_id == self.text_marker:
            return TEXT_MARKER
        if token_id == self.speech_marker:
            return SPEECH_MARKER
        token = self.speech_token(token_id)
        return str(token) if token else None

    def lookup(self, spelling: str) -> int | None:
        """Id of an exact spelling like `[Hu12]` or `[Text]`, None where it is not a token of this model."""
        match = _SPELLING.fullmatch(spelling)
        if match is None:
            return None
        name = match[1]
        if name == "Text":
            return self.text_marker
        if name == "Speech":
            return self.speech_marker
        token = SpeechToken(name[:2], int(name[2:]))
        return self.id_of(token) if token.code < self.count(token.kind) else None

    def split(self, string: str) -> list[str | int]:
        """Cuts a prompt string at this model's exact spellings: ids where a token stands, text runs between them.

        Spellings that this model does not have (`[Hu9999]`, `[Hux]`, `[1]`; `[Pi3]` in Base) are text.
        """
        pieces: list[str | int] = []
        start = 0
        for match in _SPELLING.finditer(string):
            token_id = self.lookup(match[0])
            if token_id is None:
                continue
            if match.start() > start:
                pieces.append(string[start : match.start()])
            pieces.append(token_id)
            start = match.end()
        if start < len(string):
            pieces.append(string[start:])
        return pieces

    def allowed(self, modality: Modality) -> Tensor:
        """Which ids may be sampled: bool [rows].

        "text" bans both markers and every speech token, "speech" both markers and every text id, EOS among them (so
        speech needs an explicit stop rule), "arbitrary" nothing. Padding rows are always banned.
        """
        if modality not in MODALITIES:
            raise ValueError(f"output must be one of {', '.join(MODALITIES)}, got {modality!r}")
        mask = torch.zeros(self.rows, dtype=torch.bool)
        if modality != "speech":
            mask[: self.text_size] = True
        if modality != "text":
            mask[self.first_unit : self.size] = True
        if modality == "arbitrary":
            mask[[self.text_marker, self.speech_marker]] = True
        return mask


def format_speech(tokens: Sequence[SpeechToken]) -> str:
    """The token string of speech tokens: `[St7][Pi1][Hu5]`."""
    return "".join(map(str, tokens))


def parse_speech(string: str) -> list[SpeechToken]:
    """Speech tokens of a token string; a leading `[Speech]` and white space between tokens are allowed.

    Raises ValueError naming the first thing that is not a speech token.
    """
    tokens = []
    position = 0
    text = string.strip().removeprefix(SPEECH_MARKER)
    while position < len(text):
        if text[position].isspace():
            position += 1
            continue
        match = _SPELLING.match(text, position)
        if match is None or match[1] in ("Text", "Speech"):
            raise ValueError(f"not a speech token at character {position}: {text[position : position + 20]!r}")
        tokens.append(SpeechToken(match[1][:2], int(match[1][2:])))
        position = match.end()
    return tokens
