"""Speech tokens as streams, for many sessions: of turns while they are heard, and to sound while replies are made.

What a slot gives depends on what it was given, never on the other slots or on when it was stepped: so each takes its
sound in pieces and its units one by one. With `alone` (the default on a CPU, where a batch gains little) slots are
also stepped one after the other, so that not even the last bit of a sum depends on the batch.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spiritrt.audio import RATE_HZ, Samples
from spiritrt.duplex.prosody import PitchStream, StyleStream
from spiritrt.duplex.reply_sound import VocoderUnit
from spiritrt.duplex.streams import FRAME_MS, LEFT_MS, HubertStream, Norm, VocoderStream
from spiritrt.duplex.work import PIECE_SAMPLES
from spiritrt.models.family import Family
from spiritrt.tokens.units import TokenMerger
from spiritrt.tokens.vocabulary import SpeechToken

FRAME_SAMPLES = FRAME_MS * RATE_HZ // 1000
FRAMES_A_STEP = 2  # 80 ms: a vocoder step of one length gives the same bits whatever waits


class TurnEncoder:
    """Speech tokens of turns as they are heard, each in a slot: HuBERT units, with pitch and style for Expressive.

    A turn is listened to in pieces of `PIECE_SAMPLES`. `close` says how it would end here, and leaves it open: the turn
    may go on, or be begun anew.
    """

    def __init__(self, family: Family, slots: int, alone: bool = True, norm: Norm = "window") -> None:
        models = family.hubert, family.quantizer
        self._live = HubertStream(*models, slots, norm=norm)
        # a window that ends a turn, by itself: one that is closed while it goes on elsewhere
        self._ending = HubertStream(*models, 1, left_ms=None, look_ahead_ms=None, buffer_s=_ENDING_S)
        self._ending_slot = self._ending.open()
        self._family, self._alone = family, alone
        self._turns: dict[int, _Turn] = {}

    def open(self) -> int:
        """Takes a free slot into use. Raises ValueError where there is none."""
        slot = self._live.open()
        self._turns[slot] = _Turn(self._family)
        return slot

    def free(self, slot: int) -> None:
        """Gives a slot back."""
        self._live.close(slot)
        del self._turns[slot]

    def begin(self, slot: int, whole: bool = False) -> None:
        """Begins a new turn in a slot; `whole`: closing it encodes all of it again, as offline does."""
        self._live.reset(slot)
        self._turns[slot] = _Turn(self._family, whole)

    def listen(self, pieces: Sequence[tuple[int, Samples]]) -> list[list[SpeechToken]]:
        """Takes the next piece [PIECE_SAMPLES] of some slots' turns; the tokens of each that are now committed."""
        for _, piece in pieces:
            assert len(piece) == PIECE_SAMPLES, f"a piece has {len(piece)} samples"
        batches = [[each] for each in pieces] if self._alone else [list(pieces)]
        return [tokens for batch in batches for tokens in self._listen(batch)]

    def close(self, slot: int, rest: Samples) -> list[SpeechToken]:
        """The tokens that a slot's turn still has if it ends with the samples `rest`; nothing changes.

        Of a turn that was begun as `whole`, all tokens: those that were committed may differ.
        """
        turn = self._turns[slot]
        sound = np.concatenate([turn.sound, rest])
        self._ending.reset(self._ending_slot)
        self._ending.accept(self._ending_slot, sound)
        self._ending.flush(self._ending_slot)
        (packet,) = self._ending.step()
        pitch, style = turn.closing_codes(rest)
        if turn.whole:
            merger = TokenMerger(turn.merger.kinds)
            return merger.accept(packet.units, turn.pitch + pitch, turn.style + style) + merger.flush()
        merger = copy.deepcopy(turn.merger)
        return merger.accept(packet.units[turn.units - turn.start // FRAME_SAMPLES :], pitch, style) + merger.flush()

    def _listen(self, pieces: Sequence[tuple[int, Samples]]) -> list[list[SpeechToken]]:
        for slot, piece in pieces:
            self._live.accept(slot, piece)
        units: dict[int, list[int]] = {slot: [] for slot, _ in pieces}
        while self._live.ready():
            for packet in self._live.step():
                units[packet.slot] += packet.units
        return [self._turns[slot].hear(piece, units[slot]) for slot, piece in pieces]


class _Turn:
    """One slot's turn: what closing it needs of its sound, its prosody, and the merger of its tokens."""

    def __init__(self, family: Family, whole: bool = False) -> None:
        self.whole = whole
        self.sound = np.zeros(0, np.float32)  # from sample `start` of the turn
        self.start = 0
        self.units = 0  # handed out
        self.pitch: list[int] = []  # codes, where the turn is encoded again
        self.style: list[int] = []
        self._pitch: PitchStream | None = None
        self._style: StyleStream | None = None
        if family.expressive:
            self._pitch = PitchStream(family.pitch_tracker, family.pitch_quantizer)
            self._style = StyleStream(family.style_classifier)
        self.merger = TokenMerger(("St", "Pi", "Hu") if family.expressive else ("Hu",))

    def hear(self, piece: Samples, units: list[int]) -> list[SpeechToken]:
        self.units += len(units)
        self.sound = np.concatenate([self.sound, piece])
        pitch = self._pitch.accept(piece) if self._pitch else []
        style = self._style.accept(piece) if self._style else []
        if self.whole:
            self.pitch += pitch
            self.style += style
        else:
            needed = max(0, self.units - LEFT_MS // FRAME_MS) * FRAME_SAMPLES
            self.sound = self.sound[needed - self.start :]
            self.start = needed
        return self.merger.accept(units, pitch, style)

    def closing_codes(self, rest: Samples) -> tuple[list[int], list[int]]:
        """Pitch and style codes that come if the turn ends with `rest`."""
        pitch = self._pitch.fork() if self._pitch else None
        style = self._style.fork() if self._style else None
        return (
            [*pitch.accept(rest), *pitch.flush()] if pitch else [],
            [*style.accept(rest), *style.flush()] if style else [],
        )


# a window that ends a turn: a whole turn at most, where it is encoded again or all its units are held back
_ENDING_S = 105.0


@dataclass(frozen=True, slots=True, eq=False)
class Spoken:
    """Sound that a slot's units came to: `pcm` [N], `units` (index of a unit in the reply, its samples here)."""

    slot: int
    pcm: Samples
    units: tuple[tuple[int, int], ...]
    final: bool


class ReplyVoices:
    """Sound of replies as their units come, each in a slot of a `VocoderStream`. See `ReplySound` for the units."""

    def __init__(
        self,
        family: Family,
        slots: int,
        alone: bool = True,
        look_ahead_frames: int | None = None,
        most_frames: int = 16,
    ) -> None:
        self._stream = VocoderStream(
            family.vocoder,
            slots,
            look_ahead_frames=look_ahead_frames,
            chunk_frames=FRAMES_A_STEP,
            max_frames=FRAMES_A_STEP if alone else most_frames,
        )
        self._alone = alone

    @property
    def delay_ms(self) -> float:
        """Sound that must follow a sample before it is certain."""
        return 1000 * self._stream.delay_samples / RATE_HZ

    def open(self, speaker: int | None = None, style: int | None = None) -> int:
        """Takes a free slot into use. Raises ValueError where there is none, or for a voice that there is not."""
        return self._stream.open(speaker, style)

    def free(self, slot: int) -> None:
        """Gives a slot back."""
        self._stream.close(slot)

    def begin(self, slot: int) -> None:
        """Begins a new reply in a slot."""
        self._stream.reset(slot)

    def speak(self, units: Sequence[tuple[int, VocoderUnit | None]]) -> list[Spoken]:
        """Takes the next unit of some slots' replies, None for the end; the sound that is now certain, in order."""
        spoken: list[Spoken] = []
        if not self._alone:
            for each in units:
                self._give(*each)
            self._run(spoken)
            return spoken
        for each in units:
            self._give(*each)
            self._run(spoken)
        return spoken

    def _give(self, slot: int, unit: VocoderUnit | None) -> None:
        if unit is None:
            self._stream.flush(slot)
            return
        pitch = None if unit.pitch is None else [unit.pitch]
        style = None if unit.style is None else [unit.style]
        self._stream.accept(slot, [unit.code], pitch, style)

    def _run(self, spoken: list[Spoken]) -> None:
        while self._stream.ready():
            for packet in self._stream.step():
                spoken.append(Spoken(packet.slot, packet.samples.numpy(), tuple(packet.units), packet.final))
