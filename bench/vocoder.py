"""VocoderStream: exactness, time of a step by slots, time from unit to sound, and what a shorter look-ahead costs."""

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from spiritrt.bench.measure import Timed, clock, load_clips, machine, quantiles_ms
from spiritrt.duplex.streams import VocoderStream
from spiritrt.models.family import Family
from spiritrt.models.vocoder import Vocoder, VocoderConfig, vocode_expanded

FRAMES_80_MS = 2
SLOTS = (1, 4, 8, 16)
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


def bench_vocoder(model: str, folder: Path | None, clips: int, seconds: float, official_shape: bool) -> dict:
    """All of it, as JSON. `official_shape` takes random weights of the published size instead of the model's."""
    family = Family.load(model, progress=False)
    device = family.device
    vocoder = Vocoder(OFFICIAL_SHAPE).eval().to(device) if official_shape else family.vocoder
    if vocoder.config.num_f0_tokens or vocoder.config.num_style_tokens:
        raise ValueError(f"the vocoder of {model} takes pitch or style codes; this benchmark drives Base vocoders")
    turns = [list(family.encode(clip).hubert) for clip in load_clips(folder, clips, seconds)]
    error = max(exact_error(vocoder, units) for units in turns)
    by_slots = {str(slots): step_time(vocoder, turns[0], slots, device) for slots in SLOTS}
    one = by_slots["1"]
    latency = [{"look_ahead_frames": n, **low_latency(vocoder, turns, n)} for n in LOOK_AHEADS]
    return {
        "summary": {
            "max_abs_error": error,
            "step_ms_p50": one["p50"],
            "rtf": one["rtf"],
            "unit_to_sound_ms_p50": unit_to_sound(vocoder, turns[0]),
            "python_share": one["python_share"],
            "eight_slots_over_one": round(by_slots["8"]["p50"] / one["p50"], 2),
            "delay_ms": round(VocoderStream(vocoder).delay_samples / vocoder.config.sampling_rate * 1e3, 1),
        },
        "model": "official shape, random weights" if official_shape else model,
        "parameters": sum(parameter.numel() for parameter in vocoder.parameters()),
        "machine": machine(device),
        "step": {"sound_ms": 80, "by_slots": by_slots},
        "low_latency": latency,
    }


def exact_error(vocoder: Vocoder, units: Sequence[int]) -> float:
    """Largest difference of a sample between exact mode, fed frame by frame, and offline."""
    stream = VocoderStream(vocoder)
    packets = _run(stream, units)
    offline = vocode_expanded(vocoder, torch.tensor(units, device=next(vocoder.parameters()).device)).cpu()
    return float((torch.cat(packets) - offline).abs().max())


def step_time(vocoder: Vocoder, units: Sequence[int], slots: int, device: torch.device, steps: int = 40) -> dict:
    """A step that makes 80 ms of sound for each of `slots`, all past their beginning."""
    stream = VocoderStream(vocoder, slots)
    timed = Timed(stream._native)
    stream._native = timed  # type: ignore[assignment]
    opened = [stream.open() for _ in range(slots)]
    times: list[float] = []
    whole = 0.0
    for step in range(steps + 12):
        if step == 12:  # all stages are at work
            times.clear()
            whole = timed.seconds = 0.0
        began, wall = clock(device), time.perf_counter()
        for slot in opened:
            frames = [units[(FRAMES_80_MS * step + slot + i) % len(units)] for i in range(FRAMES_80_MS)]
            stream.accept(slot, frames, frames=[1] * FRAMES_80_MS)
        packets = stream.step()
        whole += time.perf_counter() - wall
        times.append(clock(device) - began)
        assert step < 12 or len(packets) == slots
    quantiles = quantiles_ms(times)
    return {
        **quantiles,
        "rtf": round(quantiles["p50"] / 80 / slots, 4),
        "python_share": round(1 - timed.seconds / whole, 4),
    }


def unit_to_sound(vocoder: Vocoder, units: Sequence[int]) -> float:
    """Median wall time in ms from a unit that makes a packet certain to that packet, at one slot."""
    stream = VocoderStream(vocoder)
    slot = stream.open()
    predicted = bool(vocoder.config.var_pred_hidden_dim)
    times = []
    for previous, unit in zip([-1, *units], units, strict=False):
        if unit == previous:
            continue
        began = time.perf_counter()
        stream.accept(slot, [unit], frames=None if predicted else [2])
        made = False
        while stream.ready() and not made:
            made = bool(stream.step())
        if made:
            times.append(time.perf_counter() - began)
        while stream.ready():
            stream.step()
    return quantiles_ms(times or [0.0])["p50"]


def low_latency(vocoder: Vocoder, turns: Sequence[Sequence[int]], look_ahead: int) -> dict[str, float]:
    """What handing sound out after `look_ahead` frames costs: distance to offline, clicks, time."""
    signal = noise = mel = mels = edge = inside = edges = insides = 0.0
    times: list[float] = []
    device = next(vocoder.parameters()).device
    for units in turns:
        stream = VocoderStream(vocoder, look_ahead_frames=look_ahead)
        sound = torch.cat(_run(stream, units, times))
        offline = vocode_expanded(vocoder, torch.tensor(units, device=device)).cpu()
        signal += float(offline.square().sum())
        noise += float((sound - offline).square().sum())
        difference = (_log_mel(sound) - _log_mel(offline)).abs()
        mel, mels = mel + float(difference.sum()), mels + difference.numel()
        flux, at_edge = _flux(sound, FRAMES_80_MS * vocoder.config.hop_samples)
        edge, edges = edge + float(flux[at_edge].sum()), edges + int(at_edge.sum())
        inside, insides = inside + float(flux[~at_edge].sum()), insides + int((~at_edge).sum())
    snr = 10 * torch.log10(torch.tensor(signal / max(noise, 1e-30)))
    return {
        "snr_db": round(float(snr), 2),
        "log_mel_db": round(mel / mels, 3),
        "flux_at_edges_over_elsewhere": round(edge / max(edges, 1) / (inside / max(insides, 1)), 3),
        "step_ms_p50": quantiles_ms(times)["p50"],
    }


def _run(stream: VocoderStream, units: Sequence[int], times: list[float] | None = None) -> list[Tensor]:
    """Packets of a turn that comes frame by frame."""
    slot = stream.open()
    packets = []
    for index, unit in enumerate([*units, None]):
        if unit is None:
            stream.flush(slot)
        else:
            stream.accept(slot, [unit], frames=[1])
        while stream.ready():
            began = time.process_time()
            packets += [packet.samples for packet in stream.step()]
            if times is not None and index > 30:
                times.append(time.process_time() - began)
    stream.close(slot)
    return packets


def _log_mel(sound: Tensor, bands: int = 80, size: int = 1024, hop: int = 256, rate_hz: int = 16000) -> Tensor:
    """Log mel energies in dB [bands, T], floored 80 dB under full scale."""
    power = torch.stft(sound, size, hop, window=torch.hann_window(size), return_complex=True).abs().square()
    top = 2595 * torch.log10(torch.tensor(1 + rate_hz / 2 / 700))
    edges = 700 * (10 ** (torch.linspace(0, float(top), bands + 2) / 2595) - 1)
    hz = torch.linspace(0, rate_hz / 2, size // 2 + 1)
    rising = (hz - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - hz) / (edges[2:] - edges[1:-1])[:, None]
    return 10 * torch.log10(torch.minimum(rising, falling).clamp(min=0) @ power + 1e-8)


def _flux(sound: Tensor, packet: int, size: int = 256, hop: int = 64) -> tuple[Tensor, Tensor]:
    """Spectral flux [T] of short windows, and which of them lie on a packet's edge."""
    spectrum = torch.stft(sound, size, hop, window=torch.hann_window(size), return_complex=True).abs()
    flux = (spectrum[:, 1:] - spectrum[:, :-1]).clamp(min=0).sum(0)
    centre = torch.arange(1, spectrum.shape[1]) * hop
    return flux, torch.minimum(centre % packet, packet - centre % packet) <= size // 2
