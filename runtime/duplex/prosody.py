"""Pitch and style of Expressive, as they are heard: windows of the offline models, a code committed once."""

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from spiritrt.audio import RATE_HZ, Samples
from spiritrt.models.pitch import F0_HOP_SAMPLES, PitchQuantizer, PitchTracker
from spiritrt.models.style import StyleClassifier

PITCH_SAMPLES = 1280  # of one pitch code, 80 ms
STYLE_SAMPLES = 16000  # of one style code, 1 s


class PitchStream:
    """Pitch codes (12.5 Hz) of one turn.

    Every `chunk_ms` the F0 of a window is found, from `left_ms` before the new 80 ms blocks to `look_ahead_ms` after
    them, and the blocks' codes are committed. Where offline subtracts the mean F0 over all voiced frames, this uses
    the mean of those heard so far. The lag is `chunk_ms` and `look_ahead_ms`; all three are multiples of 80.
    """

    def __init__(
        self,
        tracker: PitchTracker,
        quantizer: PitchQuantizer,
        left_ms: int = 1600,
        chunk_ms: int = 320,
        look_ahead_ms: int = 160,
    ) -> None:
        for name, value, least in (
            ("left_ms", left_ms, 0),
            ("chunk_ms", chunk_ms, 80),
            ("look_ahead_ms", look_ahead_ms, 0),
        ):
            if value < least or value % 80:
                raise ValueError(f"{name} must be a multiple of 80 from {least} on, got {value}")
        self._tracker, self._quantizer = tracker, quantizer
        self._left, self._chunk, self._look_ahead = (ms // 80 for ms in (left_ms, chunk_ms, look_ahead_ms))
        self.reset()

    def reset(self) -> None:
        """Begins a new turn."""
        self._sound = _Tail()
        self._codes = 0
        self._counted = 0  # values of F0 that are in the mean
        self._voiced_sum = 0.0
        self._voiced = 0

    def accept(self, samples: Samples) -> list[int]:
        """Takes the next samples [N], float32 at 16 kHz, and returns the codes that are now committed."""
        self._sound.append(samples)
        codes: list[int] = []
        while self._sound.end >= (self._codes + self._chunk + self._look_ahead) * PITCH_SAMPLES:
            last = self._codes + self._chunk
            codes += self._encode(last, (last + self._look_ahead) * PITCH_SAMPLES)
        return codes

    def fork(self) -> "PitchStream":
        """A second stream that goes on from here, apart from this one."""
        twin = copy.copy(self)
        twin._sound = self._sound.fork()
        return twin

    def flush(self, end: int | None = None) -> list[int]:
        """Commits what is left, up to sample `end`; a turn under 80 ms has no codes. `reset` before the next."""
        end = self._sound.end if end is None else min(end, self._sound.end)
        last = (end // F0_HOP_SAMPLES + 1) // self._quantizer.config.frames_per_code
        if end < PITCH_SAMPLES or last <= self._codes:
            return []
        return self._encode(last, end)

    @torch.no_grad()
    def _encode(self, last: int, end: int) -> list[int]:
        """Codes up to number `last`, from sound up to sample `end`."""
        # 80 ms at least, so that a last part of a block has something before it
        first = max(0, min(self._codes - self._left, end // PITCH_SAMPLES - 1))
        track = self._tracker(self._sound.window(first * PITCH_SAMPLES, end))
        fresh = max(0, self._counted - first * PITCH_SAMPLES // F0_HOP_SAMPLES)
        voiced = track.f0_hz[fresh:][track.voiced[fresh:] > 0]
        self._counted = max(self._counted, first * PITCH_SAMPLES // F0_HOP_SAMPLES + len(track.f0_hz))
        self._voiced_sum += float(voiced.double().sum())
        self._voiced += len(voiced)
        mean = torch.tensor(self._voiced_sum / max(self._voiced, 1), dtype=track.f0_hz.dtype)
        codes = self._quantizer(self._quantizer.features(track, mean)[None])[0].argmax(-1)
        new = codes[self._codes - first : last - first].tolist()
        self._codes = last
        self._sound.forget((last - self._left) * PITCH_SAMPLES)
        return new


class StyleStream:
    """Style codes (1 Hz) of one turn.

    The style of a second is decided `lag_ms` into it, from the `left_s` seconds before it and that much of it: so the
    tokens of a second need not wait for its end. Offline sees the whole recording, and normalises by it.
    """

    def __init__(self, classifier: StyleClassifier, left_s: int = 3, lag_ms: int = 240) -> None:
        if left_s < 0 or not 40 <= lag_ms <= 1000:
            raise ValueError(f"left_s must not be negative and lag_ms from 40 to 1000, got {left_s} and {lag_ms}")
        self._classifier = classifier
        self._left, self._lag = left_s, lag_ms * RATE_HZ // 1000
        self.reset()

    def reset(self) -> None:
        """Begins a new turn."""
        self._sound = _Tail()
        self._codes = 0

    def accept(self, samples: Samples) -> list[int]:
        """Takes the next samples [N], float32 at 16 kHz, and returns the codes that are now committed."""
        self._sound.append(samples)
        codes = []
        while self._sound.end >= self._codes * STYLE_SAMPLES + self._lag:
            codes.append(self._classify(self._codes * STYLE_SAMPLES + self._lag))
        return codes

    def fork(self) -> "StyleStream":
        """A second stream that goes on from here, apart from this one."""
        twin = copy.copy(self)
        twin._sound = self._sound.fork()
        return twin

    def flush(self, end: int | None = None) -> list[int]:
        """Commits what is left, up to sample `end`: as many codes as offline. `reset` before the next."""
        end = self._sound.end if end is None else min(end, self._sound.end)
        codes = []
        while end >= self._codes * STYLE_SAMPLES + self._classifier.config.receptive_samples:
            codes.append(self._classify(end))
        return codes

    @torch.no_grad()
    def _classify(self, end: int) -> int:
        first = max(0, self._codes - self._left)
        logits = self._classifier(self._sound.window(first * STYLE_SAMPLES, end)[None])[0]
        code = int(logits[self._codes - first].argmax())
        self._codes += 1
        self._sound.forget((self._codes - self._left) * STYLE_SAMPLES)
        return code


class _Tail:
    """The end of a sound, from sample `start` on."""

    def __init__(self) -> None:
        self._parts: list[Samples] = []
        self.start = self.end = 0

    def append(self, samples: Samples) -> None:
        if samples.ndim != 1 or samples.dtype != np.float32:
            raise ValueError(f"samples must be float32 [N], got {samples.dtype} {samples.shape}")
        finite = np.isfinite(samples)
        if not finite.all():
            raise ValueError(f"samples hold {samples[~finite][0]} at position {int(np.argmin(finite))}")
        self._parts.append(samples.copy())  # the caller may use its buffer again
        self.end += len(samples)

    def fork(self) -> "_Tail":
        twin = _Tail()
        twin._parts, twin.start, twin.end = list(self._parts), self.start, self.end
        return twin

    def window(self, start: int, end: int) -> Tensor:
        joined = _join(self._parts)
        self._parts = [joined]
        return torch.from_numpy(joined[start - self.start : end - self.start])

    def forget(self, before: int) -> None:
        if before > self.start:
            joined = _join(self._parts)
            self._parts = [joined[before - self.start :].copy()]
            self.start = min(before, self.end)


def _join(parts: Sequence[Samples]) -> Samples:
    return parts[0] if len(parts) == 1 else np.concatenate([np.zeros(0, np.float32), *parts])
