"""Both ends of the model as streams of many slots: sound to units as it is heard, units to sound as they are made.

The faces of `csrc/`: the state of every slot and the order of the work are C++, the arithmetic is PyTorch's. A call
releases the GIL. Two streams may be driven by two threads; a second thread inside one stream gets a RuntimeError. A bad
value is a ValueError that names it (a TypeError where its type fits no signature) and leaves all slots as they were.

On a CPU the slots of a step are spread over `torch.get_num_threads()` threads. On a GPU the arithmetic of a step is a
CUDA graph for each shape that comes again, recorded when it first comes (which takes a moment; `record` does it ahead).
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from spiritrt import _C
from spiritrt.audio import Samples
from spiritrt.duplex.step_graphs import StepGraphs
from spiritrt.models.hubert import Hubert, KMeansQuantizer, LinearQuantizer
from spiritrt.models.vocoder import Vocoder

FRAME_MS = 40
# The encoder's windows, measured on 63 s of speech that nano was not trained on (bench/results/cpu/encoder.json).
# 320 ms of look-ahead are the knee: 84% of the units are offline's, where 160 ms give 77% and 640 ms 87%. 4 s of past
# give 4% more than 2 s for hardly more time, and a chunk of 80 ms would take twice as much for as good units.
# What waits in a window costs little at the end of a turn: closing it commits the rest.
LEFT_MS, CHUNK_MS, LOOK_AHEAD_MS = 4000, 160, 320
Norm = Literal["window", "running", "calibrated"]


class HubertStream:
    """Sound to HuBERT units for many turns at once, each in a slot, in C++.

    A step encodes, for every slot that has enough sound, a window of `left_ms` of past, `chunk_ms` of new frames and
    `look_ahead_ms` of future, and commits the units of the new frames. That approximates offline, which sees the whole
    recording; with `look_ahead_ms` None everything waits for `flush`, and the units are offline's exactly.

    Where the encoder emits a blank, the unit before goes on. Blanks at the very start of a turn wait for the first unit
    to come and take that; offline they take the turn's last unit, and so they do here where one window holds the turn.

    The convolutions before the transformer keep the end of their input, so that every sample goes through them once:
    exactly for `extractor_mode` "layer_norm". For "default" its GroupNorm needs statistics over time, taken by `norm`:
    "window" (of the window, with nothing kept), "running" (of the turn so far; they stand still after `freeze_s`), or
    "calibrated" (`calibration`: mean and variance [C] of the first convolution's channels, which `spiritrt calibrate`
    writes and `spiritrt.duplex.calibration.load_statistics` reads).

    Args:
        hubert, quantizer: the weights, on the device where the stream shall run.
        slots: turns at once.
        left_ms: past in a window, in whole frames (rounded up); None: from the beginning of the turn.
        chunk_ms: new frames in a window.
        look_ahead_ms: frames after the new ones; None: the rest of the turn.
        norm, calibration, freeze_s: see above; a HuBERT that normalizes the waveform takes "window" alone.
        provisional: whether packets bring the units of the look-ahead too; later ones may differ.
        revise: whether the last packet of a turn compares it with offline.
        buffer_s: sound that a slot may hold; where it keeps the whole turn (`left_ms` None, `revise`), of a turn.
        dtype: of the computation: float32, or on CUDA bfloat16 or float16.
        graphs: whether full windows go through `StepGraphs`; None: on CUDA.
    """

    def __init__(
        self,
        hubert: Hubert,
        quantizer: LinearQuantizer | KMeansQuantizer,
        slots: int = 1,
        *,
        left_ms: int | None = LEFT_MS,
        chunk_ms: int = CHUNK_MS,
        look_ahead_ms: int | None = LOOK_AHEAD_MS,
        norm: Norm = "window",
        calibration: tuple[Tensor, Tensor] | None = None,
        freeze_s: float = 0.0,
        provisional: bool = False,
        revise: bool = False,
        buffer_s: float = 100.0,
        dtype: torch.dtype = torch.float32,
        graphs: bool | None = None,
    ) -> None:
        config = hubert.config
        shape = _C.HubertShape()
        shape.layer_norm_extractor = config.extractor_mode == "layer_norm"
        shape.relu = config.activation_fn == "relu"
        for name in (name for name in dir(shape) if not name.startswith("_") and hasattr(config, name)):
            setattr(shape, name, getattr(config, name))
        self._native = _C.HubertStream(
            shape,
            hubert.state_dict(),
            quantizer.state_dict(),
            slots=slots,
            dtype=dtype,
            left_frames=None if left_ms is None else -(-left_ms // FRAME_MS),
            chunk_frames=_frames("chunk_ms", chunk_ms) or 0,
            look_ahead_frames=_frames("look_ahead_ms", look_ahead_ms),
            norm=norm,
            calibration=calibration,
            freeze_frames=round(freeze_s * 1000 / FRAME_MS),
            provisional=provisional,
            revise=revise,
            buffer_samples=round(buffer_s * config.sample_rate),
        )
        self._graphs = _graphs(graphs, hubert)

    def open(self) -> int:
        """Takes a free slot into use and returns its number."""
        return self._native.open()

    def close(self, slot: int) -> None:
        """Gives a slot back; what it held is gone."""
        self._native.close(slot)

    def accept(self, slot: int, samples: Samples | Tensor) -> None:
        """Takes the next samples [N] of a slot's turn, float32 at 16 kHz, any number of them.

        Raises ValueError for another dtype or shape, NaN or infinite samples, more than the slot may hold, a slot that
        is not open, or one that was flushed and not reset.
        """
        if isinstance(samples, np.ndarray):  # a received packet is often read-only, which torch warns of
            samples = torch.from_numpy(np.require(samples, requirements=["C", "W"]))
        self._native.accept(slot, samples)

    def accepted(self, slot: int) -> int:
        """Samples of the slot's turn so far."""
        return self._native.accepted(slot)

    def ready(self) -> list[int]:
        """Slots that a step would work on."""
        return self._native.ready()

    def step(self) -> list[_C.HubertPacket]:
        """Encodes one window of every slot that is ready; windows of equal length go through the net together.

        A packet has `slot`, `units` (one each 40 ms), `start` (the index of the first in the turn), `provisional`,
        `final`, and where asked `revision`: `changed` units, the `first` of them, and offline's `tail` from there on.
        """
        return self._native.step() if self._graphs is None else self._native.step_with(self._classify)

    def _classify(self, batch: _C.HubertBatch) -> Tensor:
        if not batch.full:
            return self._native.classify(batch.input, batch.first)
        assert self._graphs is not None
        first, rows = batch.first, len(batch.input)
        shape = (1 << (rows - 1).bit_length(), *batch.input.shape[1:])  # few numbers of rows, so few graphs
        key = (shape, first)
        if key not in self._graphs:
            spare = torch.zeros(shape).to(batch.input)
            self._graphs.record(key, (spare,), lambda inputs: self._native.classify(inputs[0], first))
        return self._graphs(key, (batch.input,))[:rows]

    def flush(self, slot: int, end: int | None = None) -> None:
        """Ends a slot's turn, at sample `end` where given: steps commit the rest, the last packet is `final`.

        A turn under 80 ms has no units, as offline.
        """
        self._native.flush(slot, end)

    def reset(self, slot: int) -> None:
        """Begins a new turn in a slot; what was waiting is dropped."""
        self._native.reset(slot)


class VocoderStream:
    """Units to sound for many turns at once, each in a slot, in C++.

    By default the packets of a turn, joined, are the offline waveform: convolutions keep the end of their input, and
    sound comes `delay_samples` behind the units whose duration is known. Durations are predicted, which takes 2 more
    units, or given with the units. `look_ahead_frames` instead hands sound out with so many frames (40 ms) of future,
    holding the last known unit for what is missing: an approximation, that costs a run over the missing frames.

    Args:
        vocoder: the weights, on the device where the stream shall run.
        slots: turns at once.
        chunk_frames: least frames that a step makes for a slot, and so the packet while units come one by one.
        max_frames: most frames that a step makes for a slot.
        max_units: units that may wait in a slot; more are refused.
        dtype: of the computation; float32, or on CUDA bfloat16 or float16. Sound is float32, and durations are always
            predicted in float32 on the CPU.
        graphs: whether steps go through `StepGraphs`; None: on CUDA.
    """

    def __init__(
        self,
        vocoder: Vocoder,
        slots: int = 1,
        *,
        look_ahead_frames: int | None = None,
        chunk_frames: int = 2,
        max_frames: int = 16,
        max_units: int = 4096,
        dtype: torch.dtype = torch.float32,
        graphs: bool | None = None,
    ) -> None:
        shape = _C.VocoderShape()
        for name in (name for name in dir(shape) if not name.startswith("_")):
            setattr(shape, name, getattr(vocoder.config, name))
        self._native = _C.VocoderStream(
            shape,
            vocoder.state_dict(),
            slots=slots,
            dtype=dtype,
            chunk_frames=chunk_frames,
            max_frames=max_frames,
            max_units=max_units,
            look_ahead_frames=look_ahead_frames,
        )
        self._slots, self._chunk = slots, chunk_frames
        self._graphs = _graphs(graphs, vocoder)

    @property
    def delay_samples(self) -> int:
        """Samples of the future that the last sample handed out depends on."""
        return self._native.delay_samples

    @property
    def delay_units(self) -> int:
        """Units after a unit that its predicted duration depends on; 0 where nothing is predicted."""
        return self._native.delay_units

    def open(self, speaker: int | None = None, named_style: int | None = None) -> int:
        """Takes a free slot into use, with the vocoder's default voice or another, and returns its number."""
        slot = self._native.open()
        try:
            if speaker is not None:
                self.set_speaker(slot, speaker)
            if named_style is not None:
                self.set_named_style(slot, named_style)
        except ValueError:
            self._native.close(slot)
            raise
        return slot

    def close(self, slot: int) -> None:
        """Gives a slot back; what it held is gone."""
        self._native.close(slot)

    def accept(
        self,
        slot: int,
        units: Sequence[int],
        pitch: Sequence[int] | None = None,
        style: Sequence[int] | None = None,
        frames: Sequence[int] | None = None,
    ) -> None:
        """Takes the next units of a slot's turn, any number of them.

        `pitch` and `style` are codes, one a unit, exactly where the vocoder has them. `frames` are durations (40 ms
        each); a turn has them for all of its units or for none.

        Raises ValueError for a code out of range, lists of unequal length, more than `max_units` waiting, a slot that
        is not open, or one that was flushed and not reset.
        """
        self._native.accept(slot, units, pitch, style, frames)

    def ready(self) -> list[int]:
        """Slots that a step would work on."""
        return self._native.ready()

    def step(self) -> list[_C.VocoderPacket]:
        """Works once on every slot that is ready; slots with equally many frames to make go through the net together.

        A packet has `slot`, `samples` (float32 [N], 16 kHz), `start` (its first sample, counted from the turn's
        beginning), `units` (pairs of a unit's index in the turn and its samples in this packet) and `final`.
        """
        return self._native.step() if self._graphs is None else self._native.step_with(self._sound)

    def record(self) -> None:
        """Records the steps of `chunk_frames` for all numbers of slots ahead, where steps are recorded at all."""
        rows = 1
        while self._graphs is not None and rows < 2 * self._slots:
            for inside in (False, True):
                self._record(rows, self._chunk, inside)
            rows *= 2

    def _record(self, rows: int, frames: int, inside: bool) -> None:
        assert self._graphs is not None
        if (rows, frames, inside) in self._graphs:
            return
        batch = self._native.spare_batch(rows, frames, inside)

        def run(inputs: tuple[Tensor, ...]) -> Tensor:
            batch.slots, batch.fed, batch.total, batch.codes = inputs
            return self._native.run(batch)

        self._graphs.record((rows, frames, inside), _tensors(batch), run)

    def _sound(self, batch: _C.VocoderBatch) -> Tensor:
        assert self._graphs is not None
        key = (len(batch.slots), batch.frames, batch.inside)
        self._record(*key)
        return self._graphs(key, _tensors(batch))

    def flush(self, slot: int) -> None:
        """Ends a slot's turn: steps hand out the rest, the last packet is `final`."""
        self._native.flush(slot)

    def reset(self, slot: int) -> None:
        """Begins a new turn in a slot, with the same voice; what was waiting is dropped."""
        self._native.reset(slot)

    def set_speaker(self, slot: int, speaker: int) -> None:
        """The voice of the units that a slot takes from now on."""
        self._native.set_speaker(slot, speaker)

    def set_named_style(self, slot: int, named_style: int) -> None:
        """The named style (Base) of the units that a slot takes from now on."""
        self._native.set_named_style(slot, named_style)


def _tensors(batch: _C.VocoderBatch) -> tuple[Tensor, ...]:
    return batch.slots, batch.fed, batch.total, batch.codes


def _graphs(wanted: bool | None, model: torch.nn.Module) -> StepGraphs | None:
    device = next(model.parameters()).device
    return StepGraphs(device) if wanted or (wanted is None and device.type == "cuda") else None


def _frames(name: str, ms: int | None) -> int | None:
    if ms is None:
        return None
    if ms < 0 or ms % FRAME_MS:
        raise ValueError(f"{name} must be a multiple of {FRAME_MS} (a unit's frame), got {ms}")
    return ms // FRAME_MS
