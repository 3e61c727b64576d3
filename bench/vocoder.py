"""VocoderStream: exactness, time of a step by slots, time from unit to sound, and what a shorter look-ahead costs."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from spiritrt.bench.measure import Timed, load_clips, machine, quantiles_ms, slots_over_one, threads, time_steps
from spiritrt.duplex.streams import VocoderStream
from spiritrt.models.family import Family
from spiritrt.models.vocoder import Vocoder, VocoderConfig, vocode_expanded
from spiritrt.tokens.units import PITCH_FRAMES, STYLE_FRAMES, Units

FRAMES_80_MS = 2
WARM_STEPS = 12  # until all stages are at work
SLOTS: tuple[int, ...] = (1, 4, 8, 16)
SLOTS_ON_GPU = (1, 8, 32, 128)
LOOK_AHEADS = (0, 1, 2, 4, 8, 16)
# fits the published size of the Base vocoder; random weights
OFFICIAL_SHAPE = VocoderConfig(
    upsample_rates=(5, 4, 4, 4, 2),
    upsample_kernel_sizes=(11, 8, 8, 8, 4),
    upsample_initial_channel=512,
    resblock_kernel_sizes=(3, 7, 11),
    resblock_dilation_sizes=((1, 3, 5),) * 3,
    num_embeddings=501,
    embedding_dim=128,
    num_speakers=4,
    num_styles=10,
    var_pred_hidden_dim=128,
)


PRECISIONS = (torch.bfloat16, torch.float16)  # measured beside float32 on a GPU


@dataclass(frozen=True, slots=True)
class Turn:
    """Codes of one turn, one each frame; pitch and style for Expressive."""

    units: list[int]
    pitch: list[int] | None = None
    style: list[int] | None = None

    @classmethod
    def from_units(cls, units: Units) -> "Turn":
        """Raw frames of an encoder: pitch and style repeated to the unit rate."""
        frames = range(len(units.hubert))

        def spread(codes: Sequence[int] | None, width: int) -> list[int] | None:
            return None if codes is None else [codes[min(i // width, len(codes) - 1)] for i in frames]

        return cls(list(units.hubert), spread(units.pitch, PITCH_FRAMES), spread(units.style, STYLE_FRAMES))

    def at(self, indices: Sequence[int]) -> tuple[list[int], list[int] | None, list[int] | None]:
        """Codes of some frames, as `VocoderStream.accept` takes them; beyond the end they begin anew."""
        units, pitch, style = (
            None if codes is None else [codes[i % len(codes)] for i in indices]
            for codes in (self.units, self.pitch, self.style)
        )
        return units or [], pitch, style

    def offline(self, vocoder: Vocoder) -> Tensor:
        """The whole sound, on the CPU."""
        device = next(vocoder.parameters()).device
        units, pitch, style = (
            None if codes is None else torch.tensor(codes, device=device)
            for codes in (self.units, self.pitch, self.style)
        )
        assert units is not None
        return vocode_expanded(vocoder, units, pitch=pitch, style=style).cpu()


def bench_vocoder(
    model: str, folder: Path | None, clips: int, seconds: float, official_shape: bool, device: str = "cpu"
) -> dict:
    """All of it, as JSON. `official_shape` takes random weights of the published size instead of the model's."""
    family = Family.load(model, device, progress=False)
    torch.manual_seed(0)
    vocoder = Vocoder(OFFICIAL_SHAPE).eval().to(family.device) if official_shape else family.vocoder
    encoded = [family.encode(clip) for group in load_clips(folder, clips, seconds).values() for clip in group]
    turns = [Turn.from_units(units) for units in encoded]
    if not vocoder.config.num_f0_tokens:
        turns = [Turn(turn.units) for turn in turns]
    # a GPU's convolutions are rounded to 10 bits by default, which is no fault of the stream's
    torch.backends.cudnn.allow_tf32, tf32 = False, torch.backends.cudnn.allow_tf32
    error = max(exact_error(vocoder, turn) for turn in turns)
    torch.backends.cudnn.allow_tf32 = tf32
    slots = SLOTS_ON_GPU if family.device.type == "cuda" else SLOTS
    step = slots_over_one(lambda count: step_time(vocoder, turns[0], count), slots, family.device)
    one = step["by_slots"]["1"]
    with threads(1):
        latency = [{"look_ahead_frames": n, **low_latency(vocoder, turns, n)} for n in LOOK_AHEADS]
        if official_shape:  # random weights make next to no sound: only the time means something
            latency = [{key: row[key] for key in ("look_ahead_frames", "step_ms_p50")} for row in latency]
        unit_to_sound_ms = unit_to_sound(vocoder, turns[0])
    result = {
        "summary": {
            "max_abs_error": error,
            "step_ms_p50": one["p50"],
            "rtf": one["rtf"],
            "unit_to_sound_ms_p50": unit_to_sound_ms,
            "python_share": one["python_share"],
            "eight_slots_over_one": step["eight_slots_over_one"],
            "delay_ms": round(VocoderStream(vocoder).delay_samples / vocoder.config.sampling_rate * 1e3, 1),
        },
        "model": "official shape, random weights" if official_shape else model,
        "codes": "unit, pitch, style" if vocoder.config.num_f0_tokens else "unit",
        "parameters": sum(parameter.numel() for parameter in vocoder.parameters()),
        "machine": machine(family.device),
        "step": {"sound_ms": 80, **step},
        "low_latency": latency,
    }
    if family.device.type == "cuda":
        result["without_graphs"] = {str(n): step_time(vocoder, turns[0], n, graphs=False) for n in slots}
        result["precisions"] = {
            str(dtype).removeprefix("torch."): {
                "snr_db": precision_snr(vocoder, turns, dtype),
                "by_slots": {str(n): step_time(vocoder, turns[0], n, dtype=dtype) for n in slots},
            }
            for dtype in PRECISIONS
        }
    return result


def exact_error(vocoder: Vocoder, turn: Turn) -> float:
    """Largest difference of a sample between exact mode, fed frame by frame, and offline."""
    return float((torch.cat(_run(VocoderStream(vocoder), turn)) - turn.offline(vocoder)).abs().max())


def precision_snr(vocoder: Vocoder, turns: Sequence[Turn], dtype: torch.dtype) -> float:
    """Of the stream in `dtype` against offline in float32, in dB."""
    pairs = [(torch.cat(_run(VocoderStream(vocoder, dtype=dtype), turn)), turn.offline(vocoder)) for turn in turns]
    return _snr_db(pairs)


def step_time(
    vocoder: Vocoder,
    turn: Turn,
    slots: int,
    dtype: torch.dtype = torch.float32,
    graphs: bool | None = None,
    steps: int = 40,
) -> dict[str, float]:
    """A step that makes 80 ms of sound for each of `slots`, all past their beginning; the real-time factor is one's."""
    stream = VocoderStream(vocoder, slots, dtype=dtype, graphs=graphs)
    timed = Timed(stream._native)
    stream._native = timed  # type: ignore[assignment]
    opened = [stream.open() for _ in range(slots)]

    def step(number: int) -> None:
        for slot in opened:
            codes = turn.at([FRAMES_80_MS * number + slot + i for i in range(FRAMES_80_MS)])
            stream.accept(slot, *codes, frames=[1] * FRAMES_80_MS)
        packets = stream.step()
        assert number < WARM_STEPS or len(packets) == slots

    times = time_steps(step, timed, WARM_STEPS, steps, next(vocoder.parameters()).device)
    return times | {"rtf": round(times["p50"] / 80 / slots, 4)}


def unit_to_sound(vocoder: Vocoder, turn: Turn) -> float:
    """Median wall time in ms from a unit that makes a packet certain to that packet, at one slot."""
    stream = VocoderStream(vocoder)
    slot = stream.open()
    predicted = bool(vocoder.config.var_pred_hidden_dim)
    times = []
    previous = -1
    for index, unit in enumerate(turn.units):
        if unit == previous:
            continue
        previous = unit
        began = time.perf_counter()
        stream.accept(slot, *turn.at([index]), frames=None if predicted else [2])
        made = False
        while stream.ready() and not made:
            made = bool(stream.step())
        if made:
            times.append(time.perf_counter() - began)
        while stream.ready():
            stream.step()
    return quantiles_ms(times or [0.0])["p50"]


def low_latency(vocoder: Vocoder, turns: Sequence[Turn], look_ahead: int) -> dict[str, float]:
    """What handing sound out after `look_ahead` frames costs: distance to offline, clicks, time."""
    mel = mels = edge = inside = edges = insides = 0.0
    times: list[float] = []
    pairs: list[tuple[Tensor, Tensor]] = []
    for turn in turns:
        sound = torch.cat(_run(VocoderStream(vocoder, look_ahead_frames=look_ahead), turn, times))
        pairs.append((sound, turn.offline(vocoder)))
        difference = (_log_mel(sound) - _log_mel(pairs[-1][1])).abs()
        mel, mels = mel + float(difference.sum()), mels + difference.numel()
        flux, at_edge = spectral_flux(sound, FRAMES_80_MS * vocoder.config.hop_samples)
        edge, edges = edge + float(flux[at_edge].sum()), edges + int(at_edge.sum())
        inside, insides = inside + float(flux[~at_edge].sum()), insides + int((~at_edge).sum())
    return {
        "snr_db": _snr_db(pairs),
        "log_mel_db": round(mel / mels, 3),
        "flux_at_edges_over_elsewhere": round(edge / max(edges, 1) / (inside / max(insides, 1)), 3),
        "step_ms_p50": quantiles_ms(times)["p50"],
    }


def _run(stream: VocoderStream, turn: Turn, times: list[float] | None = None) -> list[Tensor]:
    """Packets of a turn that comes frame by frame."""
    slot = stream.open()
    packets = []
    for index in range(len(turn.units) + 1):
        if index == len(turn.units):
            stream.flush(slot)
        else:
            stream.accept(slot, *turn.at([index]), frames=[1])
        while stream.ready():
            began = time.process_time()
            packets += [packet.samples for packet in stream.step()]
            if times is not None and index > 30:
                times.append(time.process_time() - began)
    stream.close(slot)
    return packets


def _snr_db(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Energy of the second of each pair over that of the difference, over all of them."""
    signal = sum(float(offline.square().sum()) for _, offline in pairs)
    noise = sum(float((sound - offline).square().sum()) for sound, offline in pairs)
    return round(10 * math.log10(max(signal, 1e-30) / max(noise, 1e-30)), 2)


def _log_mel(sound: Tensor, bands: int = 80, size: int = 1024, hop: int = 256, rate_hz: int = 16000) -> Tensor:
    """Log mel energies in dB [bands, T], floored 80 dB under full scale."""
    power = torch.stft(sound, size, hop, window=torch.hann_window(size), return_complex=True).abs().square()
    top = 2595 * torch.log10(torch.tensor(1 + rate_hz / 2 / 700))
    edges = 700 * (10 ** (torch.linspace(0, float(top), bands + 2) / 2595) - 1)
    hz = torch.linspace(0, rate_hz / 2, size // 2 + 1)
    rising = (hz - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - hz) / (edges[2:] - edges[1:-1])[:, None]
    return 10 * torch.log10(torch.minimum(rising, falling).clamp(min=0) @ power + 1e-8)


def spectral_flux(sound: Tensor, packet: int, size: int = 32, hop: int = 8) -> tuple[Tensor, Tensor]:
    """Spectral flux [T] of 2 ms windows, and which of them [T] lie on an edge of packets of so many samples.

    Of the sound's differences: they leave less of the voice, and a click, which has all frequencies, stands out.
    """
    spectrum = torch.stft(sound.diff(), size, hop, window=torch.hann_window(size), return_complex=True).abs()
    flux = (spectrum[:, 1:] - spectrum[:, :-1]).clamp(min=0).sum(0)
    centre = torch.arange(1, spectrum.shape[1]) * hop
    return flux, torch.minimum(centre % packet, packet - centre % packet) <= size // 4
