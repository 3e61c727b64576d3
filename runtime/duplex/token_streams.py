"""Speech tokens as streams, for one conversation: of a turn while it is heard, and to sound while a reply is made."""

import random
from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

from spiritrt.audio import RATE_HZ, Samples
from spiritrt.duplex.prosody import PitchStream, StyleStream
from spiritrt.duplex.streams import HubertStream, Norm, VocoderStream
from spiritrt.models.family import PITCH_WHERE_NONE, STYLE_WHERE_NONE, Family
from spiritrt.tokens.units import STYLES_WHERE_NONE, TokenMerger
from spiritrt.tokens.vocabulary import SpeechToken

# The encoder's windows. On nano (bench/results/cpu/encoder.json) 320 ms of look-ahead are the knee: 86% of the units
# are offline's, where 160 ms give 82% and 640 ms 87%. 4 s of past add 1% for half as much work again, and a chunk of
# 80 ms takes twice the work. What waits in a window costs little at the end of a turn: the flush commits it.
LEFT_MS, CHUNK_MS, LOOK_AHEAD_MS = 2000, 160, 320


class UnitStream:
    """Speech tokens of one turn, as it is heard: a `HubertStream` of one slot, with pitch and style for Expressive.

    `left_ms`, `chunk_ms`, `look_ahead_ms` and `norm` are the `HubertStream`'s.
    """

    def __init__(
        self,
        family: Family,
        chunk_ms: int = CHUNK_MS,
        look_ahead_ms: int | None = LOOK_AHEAD_MS,
        left_ms: int | None = LEFT_MS,
        norm: Norm = "window",
    ) -> None:
        self._hubert = HubertStream(
            family.hubert,
            family.quantizer,
            left_ms=left_ms,
            chunk_ms=chunk_ms,
            look_ahead_ms=look_ahead_ms,
            norm=norm,
        )
        self._slot = self._hubert.open()
        self._chunk = chunk_ms * RATE_HZ // 1000
        self._pitch: PitchStream | None = None
        self._style: StyleStream | None = None
        if family.expressive:
            self._pitch = PitchStream(family.pitch_tracker, family.pitch_quantizer)
            self._style = StyleStream(family.style_classifier)
        self._merger = TokenMerger(("St", "Pi", "Hu") if family.expressive else ("Hu",))

    def reset(self) -> None:
        """Begins a new turn."""
        self._hubert.reset(self._slot)
        for stream in (self._pitch, self._style, self._merger):
            if stream is not None:
                stream.reset()

    @property
    def heard(self) -> int:
        """Samples of this turn so far."""
        return self._hubert.accepted(self._slot)

    @property
    def wanted(self) -> int:
        """Samples that complete the next chunk: fed so, what comes back at a time depends on nothing but the sound."""
        return self._chunk - self.heard % self._chunk

    def accept(self, samples: Samples) -> list[SpeechToken]:
        """Takes the next samples [N] of the turn, any number, and returns the tokens that are now committed.

        Raises what `HubertStream.accept` raises.
        """
        self._hubert.accept(self._slot, samples)
        pitch = self._pitch.accept(samples) if self._pitch else ()
        style = self._style.accept(samples) if self._style else ()
        return self._merger.accept(self._run(), pitch, style)

    def flush(self, end: int | None = None) -> list[SpeechToken]:
        """Commits what is left of the turn, up to sample `end` (default: all). `reset` before the next turn."""
        self._hubert.flush(self._slot, end)
        pitch = self._pitch.flush(end) if self._pitch else ()
        style = self._style.flush(end) if self._style else ()
        return self._merger.accept(self._run(), pitch, style) + self._merger.flush()

    def _run(self) -> list[int]:
        units = []
        while self._hubert.ready():
            for packet in self._hubert.step():
                units += packet.units
        return units


class ReplyStream:
    """Sound of one reply, as its speech tokens come: a `VocoderStream` of one slot that takes tokens.

    A reply of tokens without a style, to a vocoder that has styles, gets one of three by `seed`, and then sounds only
    when it is flushed.
    """

    def __init__(
        self,
        family: Family,
        speaker: int | None = None,
        style: int | None = None,
        seed: int = 0,
        look_ahead_frames: int | None = None,
    ) -> None:
        config = family.vocoder.config
        self._stream = VocoderStream(family.vocoder, look_ahead_frames=look_ahead_frames)
        self._slot = self._stream.open(speaker, style)
        self._kinds = ("Pi",) * (config.num_f0_tokens > 0) + ("St",) * (config.num_style_tokens > 0)
        self._seed = seed
        self.reset()

    def reset(self) -> None:
        """Begins a new reply."""
        self._stream.reset(self._slot)
        self._tokens = 0
        self._token_of_unit: list[int] = []  # tokens up to and with each unit
        self._ends: list[int] = []  # sample at which each unit ends, as far as it was handed out
        self._codes: dict[str, int] = {}  # of pitch and style now
        self._waiting: list[tuple[int, dict[str, int]]] = []  # units before the first pitch or style

    def accept(self, tokens: Sequence[SpeechToken]) -> Samples:
        """Takes the next tokens and returns the sound [N] that is certain now; often none."""
        for kind, code in tokens:
            self._tokens += 1
            if kind == "Hu":
                self._token_of_unit.append(self._tokens)
                self._waiting.append((code, dict(self._codes)))
            elif kind in self._kinds:
                self._codes[kind] = code
                for _, codes in self._waiting:
                    codes.setdefault(kind, code)
        if len(self._codes) == len(self._kinds):
            self._pass_on()
        return self._run()

    def flush(self) -> Samples:
        """Returns the rest of the reply's sound [N]. `reset` before the next.

        What no token held is as in `Family.vocode`: pitch code 0, and a style drawn by the seed or, without pitch, 71.
        """
        styles = STYLES_WHERE_NONE if "Pi" in self._codes else (STYLE_WHERE_NONE,)
        absent = {"Pi": PITCH_WHERE_NONE, "St": random.Random(self._seed).choice(styles)}
        for kind in self._kinds:
            for _, codes in self._waiting:
                codes.setdefault(kind, absent[kind])
        self._pass_on()
        self._stream.flush(self._slot)
        return self._run()

    def heard_tokens(self, played: int) -> int:
        """Tokens of the reply that have sounded, at least in part, once `played` samples of it are played."""
        if played <= 0:
            return 0
        unit = bisect_left(self._ends, played)
        return self._token_of_unit[unit] if unit < len(self._ends) else self._tokens

    def _pass_on(self) -> None:
        units, self._waiting = self._waiting, []
        if not units:
            return
        lists = {kind: [codes[kind] for _, codes in units if kind in codes] for kind in self._kinds}
        self._stream.accept(self._slot, [unit for unit, _ in units], lists.get("Pi"), lists.get("St"))

    def _run(self) -> Samples:
        packets = []
        while self._stream.ready():
            for packet in self._stream.step():
                packets.append(packet.samples.numpy())
                for unit, samples in packet.units:
                    if unit == len(self._ends):
                        self._ends.append(self._ends[-1] if self._ends else 0)
                    self._ends[unit] += samples
        return np.concatenate(packets) if packets else np.zeros(0, np.float32)
