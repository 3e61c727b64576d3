"""One reply while it is made: tokens as they are drawn, units for the vocoder, sound as it comes, and where it ends."""

from collections import deque

from spiritrt.audio import RATE_HZ, Samples
from spiritrt.duplex.config import LEAST_AHEAD_MS, SessionConfig, samples_of
from spiritrt.duplex.events import TextOut
from spiritrt.duplex.reply_sound import ReplySound, VocoderUnit
from spiritrt.duplex.reply_tokens import Language, ReplyTokens

UNITS_AHEAD = 16  # units that may wait for the vocoder
MOST_PACKET_SAMPLES = samples_of(LEAST_AHEAD_MS)  # handed out at a time: any client may have so much
MOST_SAMPLES_A_UNIT = samples_of(4000)  # a vocoder may hold a unit long; its predictor seldom says more

Units = tuple[tuple[int, int], ...]  # index of a unit in the reply, samples that it made


class Reply:
    """A reply to a turn that ends at microphone sample `close_at`; a draft until it is adopted.

    Once there is a `reason` it is complete: nothing more is drawn, and what was not made by then never will be. Where
    it ends depends on its tokens and their durations alone, never on how far decoding had gone ahead.
    """

    def __init__(self, close_at: int, config: SessionConfig, language: Language, most: int, wanted_at: float) -> None:
        """`most` ids, and `wanted_at` the time by which it should sound."""
        self.close_at = close_at
        self.wanted_at = wanted_at
        self.tokens = ReplyTokens(language, config, most)
        self.sound = ReplySound(language.kinds, config.seed)
        self.closing = True  # the turn's last tokens are not known yet
        self.adopted = False
        self.start = 0  # context position of its first token
        self.next: tuple[int, bool] | None = None  # id to go on with, and whether it is the one that was drawn
        self.drawn = 0
        self.units: deque[VocoderUnit | None] = deque()  # for the vocoder; None: the end
        self.reason = ""  # why it is complete
        self.texts: list[TextOut] = []  # to be handed out
        self.outbox: deque[tuple[Samples, tuple[int, ...]]] = deque()  # sound to be handed out, with its tokens
        self.offset = 0  # output position of its first sample
        self.sent = 0  # samples that were handed out
        self.heard = 0  # samples that were played
        self._silence = language.silence
        self._longest = round(config.max_reply_s * RATE_HZ)
        self._longest_silence = round(config.silence_s * RATE_HZ)
        self._silent = 0  # samples of silence at its end
        self._sounded = self._voiced = False

    @property
    def text_only(self) -> bool:
        """Whether nothing of it sounds."""
        return self.tokens.text_only

    @property
    def unheard(self) -> int:
        """Samples that are made and were not played yet."""
        return self.sound.samples - self.heard

    @property
    def kept(self) -> int:
        """Speech tokens of a complete reply: those beyond the sample where it was cut are none."""
        if self.reason in ("silence", "length") and not self.text_only:
            return self.sound.tokens_heard(self.sound.samples)
        return len(self.tokens.speech)

    @property
    def whole(self) -> bool:
        """Whether it ended by itself, so that all that its text says was spoken."""
        return self.reason in ("end", "silence") or self.text_only

    def take(self, drawn: int) -> None:
        """Takes the next id of the language model."""
        self.drawn += 1
        going_on, speech, texts = self.tokens.take(drawn)
        self.texts += texts
        self.next = None if going_on is None else (going_on, going_on == drawn)
        if speech is not None:
            self.units += self.sound.accept(speech)
        if not self.tokens.finished:
            return
        if self.text_only:
            self.reason = self.reason or self.tokens.finished
        else:
            self.units += [*self.sound.flush(), None]

    def next_unit(self) -> tuple[bool, VocoderUnit | None] | None:
        """The unit for the vocoder (None there: the end), and whether it is the first; None where there is none."""
        if not self.units or self.reason:
            return None
        begins, self._voiced = not self._voiced, True
        return begins, self.units.popleft()

    def vocoded(self, pcm: Samples, units: Units, final: bool) -> None:
        """Takes sound, and which units made how much of it; what lies beyond the reply's end is dropped."""
        if self.reason:
            return
        keep, reason = self._cut(units)
        if reason:
            pcm, units = pcm[:keep], _split(units, keep)[0]
        for start in range(0, len(pcm), MOST_PACKET_SAMPLES):
            packet = pcm[start : start + MOST_PACKET_SAMPLES]
            first, units = _split(units, len(packet))
            begun = self.sound.made(first)
            self.outbox.append((packet, tuple(self.tokens.speech[token] for token in begun)))
        if reason or final:
            self.reason = reason or self.tokens.finished
            self.units.clear()
            self.next = None

    def take_texts(self) -> list[TextOut]:
        """Text that is to be handed out, a source at a time."""
        joined = [
            TextOut(text, source)
            for source in ("heard", "reply")
            if (text := "".join(each.text for each in self.texts if each.source == source))
        ]
        self.texts.clear()
        return joined

    def _cut(self, units: Units) -> tuple[int, str]:
        """How many of the samples that these units made still belong to the reply, and why it ends there, or ""."""
        longest = self._longest - self.sound.samples
        at = 0
        for unit, samples in units:
            at += samples
            if self.sound.code_of(unit) not in self._silence:
                self._sounded, self._silent = True, 0
            elif self._sounded:
                self._silent += samples
            beyond = self._silent - self._longest_silence
            if beyond >= 0 and at - beyond <= longest:
                return at - beyond, "silence"
            if at >= longest:
                return longest, "length"
        return at, ""


def _split(units: Units, samples: int) -> tuple[Units, Units]:
    """The parts of `units` that lie in the first `samples`, and those that follow."""
    first, rest = [], []
    for unit, count in units:
        taken = min(count, samples)
        if taken:
            first.append((unit, taken))
        if count > taken:
            rest.append((unit, count - taken))
        samples -= taken
    return tuple(first), tuple(rest)
