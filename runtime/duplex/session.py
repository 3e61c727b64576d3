"""One conversation, on one thread: microphone samples in, events and sound out, no clock of its own.

The caller brings what was heard (`accept`), lets the session work in small steps (`step`), plays what it hands out and
says how much of that has sounded (`played`). What was not heard is taken out of the model's context again.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from torch import Tensor

from spiritrt.audio import RATE_HZ, Samples
from spiritrt.decoding import Decoder
from spiritrt.duplex.token_streams import ReplyStream, UnitStream
from spiritrt.duplex.turns import FRAME_SAMPLES, TurnConfig, VoiceActivity
from spiritrt.models.family import Family
from spiritrt.sampling import Sampling
from spiritrt.stopping import Stop
from spiritrt.tokens.vocabulary import BOS, EOS, SpeechToken

ANSWER_FLAG = " A:"
PRE_ROLL_MS = 120  # sound before the onset that belongs to the turn
TAIL_MS = 120  # silence after the last speech that stays in the turn
TOKENS_A_STEP = 4
TOKENS_A_SECOND = 60  # more than any speech has
SPEECH_ROOM = 128  # tokens of the context that are kept for the speech of a reply
SILENCE_S = 1.0  # so much silence at its end ends a reply

Reply = Literal["chain", "continuation"]
Kind = Literal["speech_started", "speech_stopped", "heard", "reply_text", "interrupted", "reply_done", "context_reset"]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened at microphone sample `at`; `text` and `value` depend on `kind`.

    "speech_started" and "speech_stopped" (the endpoint): value is the sample where speech began or ended. "heard": text
    is the transcript. "reply_text": text. "interrupted": value is the reply's samples that were heard. "reply_done":
    value is its samples in all, text why it ended. "context_reset": value is the tokens that were dropped.
    """

    kind: Kind
    at: int
    text: str = ""
    value: int = 0


@dataclass(frozen=True, slots=True)
class SessionConfig:
    """How a session talks.

    `reply` "chain" writes down what was heard and the answer, then speaks it (for a model trained on that form, as
    nano is); "continuation" goes on in speech, as any Spirit LM does.
    """

    reply: Reply = "chain"
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.6, top_p=0.9))
    turns: TurnConfig = field(default_factory=TurnConfig)
    speaker: int | None = None
    lead_ms: int = 1500  # decoding pauses when so much sound is waiting to be played
    max_reply_s: float = 12.0
    max_text_tokens: int = 80

    def __post_init__(self) -> None:
        if self.reply not in ("chain", "continuation"):
            raise ValueError(f"reply must be 'chain' or 'continuation', got {self.reply!r}")
        if self.lead_ms < 100 or self.max_reply_s <= 0 or self.max_text_tokens < 1:
            raise ValueError(
                "lead_ms must be at least 100, max_reply_s and max_text_tokens positive, got "
                f"{self.lead_ms}, {self.max_reply_s} and {self.max_text_tokens}"
            )


class Session:
    """One full-duplex conversation with a Spirit LM; see the module. Not for two threads at once."""

    def __init__(self, family: Family, config: SessionConfig, on_event: Callable[[Event], None]) -> None:
        self._family = family
        self._config = config
        self._emit = on_event
        self._decoder = Decoder(family)
        self._decoder.append([BOS])
        self._reply_room = min(config.max_text_tokens + SPEECH_ROOM, self._decoder.context // 4)
        self._activity = VoiceActivity(config.turns)
        self._units = UnitStream(family)
        vocabulary = family.vocabulary
        speech = vocabulary.allowed("speech").to(family.device)
        speech[EOS] = config.reply == "chain"
        text = vocabulary.allowed("text").to(family.device)
        text[EOS] = False
        # nano also writes <START Transcript> after speech: here it must answer
        text[family.tokenizer.ids_with("<")] = False
        self._masks = {"text": text, "speech": speech}
        self._history = np.zeros(0, np.float32)  # microphone since `_history_start`
        self._history_start = 0
        self._turn: _Turn | None = None
        self._reply: _Reply | None = None

    @property
    def speaking(self) -> bool:
        """Whether a reply is due, being made or played."""
        return self._reply is not None or (self._turn is not None and self._turn.ended is not None)

    @property
    def complete(self) -> bool:
        """Whether all sound of the running reply has been handed out."""
        return self._reply is not None and bool(self._reply.finished)

    @property
    def clock(self) -> int:
        """Microphone samples judged so far."""
        return self._activity.frames * FRAME_SAMPLES

    def accept(self, samples: Samples) -> None:
        """Takes microphone samples [N], float32 at 16 kHz, any number.

        Raises ValueError for another dtype or shape, NaN or infinite samples; nothing of them is kept then.
        """
        if samples.ndim != 1 or samples.dtype != np.float32:
            raise ValueError(f"samples must be float32 [N], got {samples.dtype} {samples.shape}")
        if not np.isfinite(samples).all():
            raise ValueError(f"samples hold NaN or infinity, the first at {int(np.argmin(np.isfinite(samples)))}")
        self._history = np.concatenate([self._history, samples])
        for start in range(0, len(samples), FRAME_SAMPLES):
            for active in self._activity.accept(samples[start : start + FRAME_SAMPLES]):
                self._advance(active)

    def step(self) -> Samples | None:
        """Does one bounded piece of work; returns sound to play [N] (may be empty), or None where nothing is to do."""
        if self._turn is not None and self._listen(self._turn):
            return np.zeros(0, np.float32)
        if self._reply is None:
            return None
        return self._reply.step()

    def played(self, samples: int) -> None:
        """Says that so many samples of the running reply have sounded by now. The reply ends when all of them have."""
        reply = self._reply
        if reply is None:
            return
        reply.heard = min(max(samples, reply.heard), reply.made)
        if reply.finished and reply.heard >= reply.made:
            self._close_reply()
            self._emit(Event("reply_done", self.clock, reply.finished, reply.made))

    def _advance(self, active: bool) -> None:
        """One 20 ms frame of the microphone."""
        turns, activity = self._config.turns, self._activity
        turn = self._turn
        if turn is not None and turn.ended is None:
            new = self._microphone(turn.start + turn.received, self.clock)
            turn.pending = np.concatenate([turn.pending, new])
            turn.received += len(new)
            self._forget(self.clock)
            too_long = self.clock - turn.start > turns.max_turn_s * RATE_HZ
            if activity.silence_ms >= turns.endpoint_ms or too_long or turn.full:
                turn.ended = self.clock - activity.silence_ms * RATE_HZ // 1000
                activity.end_run()
                self._emit(Event("speech_stopped", self.clock, value=turn.ended))
            return
        self._forget(self.clock - RATE_HZ)
        needed = turns.barge_in_ms if self.speaking else turns.onset_ms
        if active and activity.speech_ms >= needed and activity.steady:
            while self._turn is not None:
                self._listen(self._turn)
            if self._reply is not None:
                self._interrupt(self._reply)
            self._begin_turn()

    def _begin_turn(self) -> None:
        began = self._activity.run_start * FRAME_SAMPLES
        start = max(began - PRE_ROLL_MS * RATE_HZ // 1000, self._history_start, 0)
        self._units.reset()
        self._make_room()
        self._turn = _Turn(start, len(self._decoder.ids), self._microphone(start, self.clock))
        self._decoder.append([self._family.vocabulary.speech_marker])
        self._emit(Event("speech_started", self.clock, value=began))

    def _listen(self, turn: "_Turn") -> bool:
        """Encodes and prefills the next chunk of the turn, or closes it; False where it must wait for more sound."""
        # silence beyond the tail waits: it is left out where the turn ends here
        silence = self._activity.silence_ms * RATE_HZ // 1000 if turn.ended is None else self.clock - turn.ended
        keep = self.clock - max(0, silence - TAIL_MS * RATE_HZ // 1000)
        ready = keep - turn.start - self._units.heard
        if ready >= self._units.wanted:
            piece, turn.pending = np.split(turn.pending, [self._units.wanted])
            self._append_speech(turn, self._units.accept(piece))
            return True
        if turn.ended is None:
            return False
        self._units.accept(turn.pending[: max(0, ready)])
        self._append_speech(turn, self._units.flush())
        self._turn = None
        if len(self._decoder.ids) > turn.context + 1:
            self._reply = _Reply(self._family, self._config, self._decoder, self._masks, self._report)
        else:  # too short to be anything
            self._decoder.append([EOS])
            self._emit(Event("reply_done", self.clock, "nothing said"))
        return True

    def _report(self, kind: Kind, text: str) -> None:
        self._emit(Event(kind, self.clock, text))

    def _interrupt(self, reply: "_Reply") -> None:
        """Takes what was not heard out of the context and drops the reply."""
        self._decoder.truncate(reply.context_heard())
        self._close_reply()
        self._emit(Event("interrupted", self.clock, value=reply.heard))

    def _close_reply(self) -> None:
        self._decoder.append([EOS] if self._decoder.room else [])
        self._reply = None

    def _append_speech(self, turn: "_Turn", tokens: list[SpeechToken]) -> None:
        """Prefills what was heard, as far as a reply still fits after it."""
        ids = [self._family.vocabulary.id_of(token) for token in tokens]
        free = max(0, self._decoder.room - self._reply_room)
        turn.full = turn.full or len(ids) > free
        self._decoder.append(ids[:free])

    def _make_room(self) -> None:
        """Starts the context anew where a turn and its reply might not fit any more."""
        if len(self._decoder.ids) > self._decoder.context // 2:
            dropped = len(self._decoder.ids) - 1
            self._decoder.truncate(0)
            self._decoder.append([BOS])
            self._emit(Event("context_reset", self.clock, value=dropped))

    def _microphone(self, start: int, end: int) -> Samples:
        return self._history[start - self._history_start : end - self._history_start]

    def _forget(self, before: int) -> None:
        dropped = max(0, before - self._history_start)
        self._history = self._history[dropped:]
        self._history_start += dropped


@dataclass(slots=True)
class _Turn:
    """A turn of the person: from sample `start`, after `context` tokens; `pending` is not encoded yet."""

    start: int
    context: int
    pending: Samples
    ended: int | None = None  # sample at which speech ended, once the endpoint is decided
    full: bool = False  # the context holds no more
    received: int = 0  # samples of the turn so far, encoded or not

    def __post_init__(self) -> None:
        self.received = len(self.pending)


class _Reply:
    """A reply while it is made: text first where the policy is "chain", then speech."""

    def __init__(
        self,
        family: Family,
        config: SessionConfig,
        decoder: Decoder,
        masks: dict[str, Tensor],
        report: Callable[[Kind, str], None],
    ) -> None:
        self._family = family
        self._config = config
        self._decoder = decoder
        self._text_mask, self._speech_mask = masks["text"].clone(), masks["speech"]
        self._report = report
        self._sound = ReplyStream(family, config.speaker, seed=config.sampling.seed)
        self._stop = Stop(ids=(EOS,))
        self._phase: Literal["text", "speech"] = "text" if config.reply == "chain" else "speech"
        self._ids: list[int] = []  # of the phase
        self._speech: list[SpeechToken] = []
        self._transcribed = False
        self._context = len(decoder.ids)  # before the reply
        self.made = 0  # samples handed out
        self.heard = 0  # samples played
        self.finished = ""  # why no more is made
        if self._phase == "text":
            decoder.append([family.vocabulary.text_marker])
        self._speech_start = len(decoder.ids)

    def step(self) -> Samples | None:
        if self.finished or self.made - self.heard >= self._config.lead_ms * RATE_HZ // 1000:
            return None
        tokens: list[SpeechToken] = []
        for _ in range(TOKENS_A_STEP):
            if self.finished:
                break
            if self._phase == "text":
                self._decode_text()
            else:
                tokens += self._decode_speech()
        samples = self._sound.accept(tokens) if tokens else np.zeros(0, np.float32)
        longest_s = max((self.made + len(samples)) / RATE_HZ, len(self._speech) / TOKENS_A_SECOND)
        if longest_s >= self._config.max_reply_s:
            self.finished = self.finished or "length"
        if self.finished:
            samples = np.concatenate([samples, self._sound.flush()])
        self.made += len(samples)
        return samples

    def context_heard(self) -> int:
        """Context length up to the token that sounded last; a reply of which nothing sounded is dropped whole.

        The text of a reply is not cut, since nothing says which of its words have sounded.
        """
        if not self.heard:
            return self._context
        return self._speech_start + self._sound.heard_tokens(self.heard)

    def _decode_text(self) -> None:
        marker = self._family.vocabulary.speech_marker
        token, _ = self._decoder.draw(self._text_mask, self._config.sampling, self._ids)
        if len(self._ids) >= self._config.max_text_tokens or self._decoder.room < SPEECH_ROOM // 2:
            token = marker
        self._decoder.append([token])
        if token != marker:
            self._ids.append(token)
        heard, flag, answer = self._family.tokenizer.decode(self._ids).partition(ANSWER_FLAG)
        self._text_mask[marker] = bool(answer.strip())  # speech begins once there is something to say
        if not self._transcribed and (flag or token == marker):
            self._transcribed = True
            self._report("heard", heard.strip())
        if token == marker:
            self._report("reply_text", answer.strip())
            self._phase, self._ids, self._speech_start = "speech", [], len(self._decoder.ids)

    def _decode_speech(self) -> list[SpeechToken]:
        token, _ = self._decoder.draw(self._speech_mask, self._config.sampling, self._ids)
        self.finished = self._stop.reason([*self._ids[-self._stop.window :], token]) or ""
        if self.finished == "end":
            return []
        self._ids.append(token)
        self._decoder.append([token])
        speech = self._family.vocabulary.speech_token(token)
        assert speech is not None, f"the speech mask let {token} through"
        self._speech.append(speech)
        if not self.finished and self._family.trailing_silence_s(self._speech) >= SILENCE_S:
            self.finished = "silence"
        if self._decoder.room <= 1:
            self.finished = self.finished or "context"
        return [speech]
