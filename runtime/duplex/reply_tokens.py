"""The tokens of one reply, one after the other: which may come next, what they mean, when it is over.

Pure: ids in, ids and text out. The three policies are forms of one sequence, `[Text] words A: answer [Speech] units`:
"chain" has all of it, "text" the first half, "continuation" the units alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from spiritrt.duplex.config import SessionConfig
from spiritrt.duplex.events import TextOut
from spiritrt.stopping import Stop
from spiritrt.tokens.vocabulary import EOS, SpeechToken, Vocabulary

ANSWER_FLAG = " A:"
UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what a decoder gives for half a character
Mask = Literal["speech", "speech_end", "text", "text_end"]
MASKS: tuple[Mask, ...] = ("speech", "speech_end", "text", "text_end")  # with `end`: or what ends it


@dataclass(frozen=True, slots=True)
class Language:
    """What a session has to know of a model.

    `decode` gives the string of text ids. `chain` says that the model is trained to converse in that form, in which an
    end token closes every reply. `window` is how many tokens its context may hold, `prefix` those that open every
    context. `silence` are the units of silence, `kinds` what the vocoder takes beside units ("Pi", "St").
    """

    vocabulary: Vocabulary
    decode: Callable[[Sequence[int]], str]
    chain: bool
    window: int
    prefix: tuple[int, ...]
    silence: frozenset[int] = frozenset()
    kinds: tuple[str, ...] = ()


class ReplyTokens:
    """See the module. `finished` says why there are no more: "end", "repetition", "length" or ""."""

    def __init__(self, language: Language, config: SessionConfig, most: int) -> None:
        """`most` ids in all."""
        self._language = language
        self._most_speech = most - (config.max_text_tokens + 2 if config.reply != "continuation" else 0)
        self._policy = config.reply
        self._longest_text = config.max_text_tokens
        self._stop = Stop(ids=(EOS,), repeats=config.repeats, repeated_tokens=config.repeated_tokens)
        self._in_text = config.reply != "continuation"
        self._flagged = config.reply == "chain" or language.chain  # the text is `words A: answer`
        self._text: list[int] = []
        self._transcript = 0  # text ids before the answer's flag
        self._answer = ""  # handed out so far
        self.speech: list[int] = []
        self.finished = ""

    @property
    def text_only(self) -> bool:
        """Whether the reply has no speech."""
        return self._policy == "text"

    @property
    def opening(self) -> tuple[int, ...]:
        """Ids that open the reply, after the person's speech."""
        return (self._language.vocabulary.text_marker,) if self._in_text else ()

    @property
    def mask(self) -> Mask:
        """What may come next."""
        if not self._in_text:
            return "speech_end" if self._policy == "chain" else "speech"
        return "text" if self._flagged and not self._answer.strip() else "text_end"

    @property
    def ids(self) -> list[int]:
        """All ids of the reply so far, its opening included."""
        if self._policy == "continuation":
            return list(self.speech)
        vocabulary = self._language.vocabulary
        marker = [vocabulary.speech_marker] if not self._in_text else []
        return [vocabulary.text_marker, *self._text, *marker, *self.speech]

    @property
    def transcript(self) -> int:
        """How many of `ids` hold what was heard and not the answer: the opening and the words."""
        return 0 if self._policy == "continuation" else 1 + self._transcript

    @property
    def speech_opening(self) -> tuple[int, ...]:
        """The marker before the reply's speech, where text comes before it."""
        return () if self._policy == "continuation" else (self._language.vocabulary.speech_marker,)

    def take(self, drawn: int) -> tuple[int | None, SpeechToken | None, list[TextOut]]:
        """Takes the id that was drawn: (id to go on with, or None; the speech token that it is; text to hand out)."""
        if self._in_text:
            return self._take_text(drawn)
        token = drawn
        self.finished = self._stop.reason([*self.speech[-self._stop.window :], token]) or ""
        if self.finished == "end":
            return None, None, []
        self.speech.append(token)
        if not self.finished and len(self.speech) >= self._most_speech:
            self.finished = "length"
        speech = self._language.vocabulary.speech_token(token)
        assert speech is not None, f"the speech mask let {token} through"
        return (None if self.finished else token), speech, []

    def _take_text(self, drawn: int) -> tuple[int | None, SpeechToken | None, list[TextOut]]:
        marker = self._language.vocabulary.speech_marker
        reason = "end" if drawn in (EOS, marker) else "length" if len(self._text) >= self._longest_text else None
        if reason is None:
            self._text.append(drawn)
            reason = self._stop.reason(self._text[-self._stop.window - 1 :])
        out = self._hand_out(reason is not None)
        if reason is None:
            return drawn, None, out
        if self._policy == "chain":
            self._in_text = False
            return marker, None, out
        self.finished = reason
        return None, None, out

    def _hand_out(self, final: bool) -> list[TextOut]:
        """Text that is new: the words heard once they are whole, the answer as it grows."""
        text = self._language.decode(self._text)
        out = []
        heard, flag, answer = text.partition(ANSWER_FLAG)
        if not self._flagged:
            answer = text
        elif not self._transcript and (flag or final):
            self._transcript = self._ids_within(heard) if flag else len(self._text)
            if heard.strip():
                out.append(TextOut(heard.strip(), "heard"))
        if not final:
            answer = answer.rstrip(UNFINISHED)
        answer = answer.lstrip()
        if len(answer) > len(self._answer):
            out.append(TextOut(answer[len(self._answer) :], "reply"))
            self._answer = answer
        return out

    def _ids_within(self, heard: str) -> int:
        """How many of the text ids hold nothing but what was heard."""
        count = len(self._text)
        while count and not heard.startswith(self._language.decode(self._text[:count])):
            count -= 1
        return count
