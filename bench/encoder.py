"""HubertStream: agreement with offline and time, over left context, chunk, look-ahead and norm policy."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby, product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from spiritrt.bench.measure import Timed, clock, load_clips, machine, quantiles_ms
from spiritrt.duplex.calibration import Statistics, calibrate
from spiritrt.duplex.streams import HubertStream, Norm
from spiritrt.duplex.token_streams import CHUNK_MS, LEFT_MS, LOOK_AHEAD_MS
from spiritrt.models.family import Family
from spiritrt.models.hubert import Hubert, HubertConfig, KMeansQuantizer, LinearQuantizer, encode_units

SLOTS = (1, 4, 8, 16)
LEFTS_MS, CHUNKS_MS, LOOK_AHEADS_MS = (500, 1000, 2000, 4000), (40, 80, 160, 320), (0, 80, 160, 320, 640)
OFFICIAL_SHAPE = HubertConfig(conv_layers=((512, 10, 5), *((512, 3, 2),) * 4, *((512, 2, 2),) * 3))

Parts = tuple[Hubert, LinearQuantizer | KMeansQuantizer]


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to stream."""

    left_ms: int
    chunk_ms: int
    look_ahead_ms: int
    norm: Norm = "window"

    @property
    def latency_ms(self) -> int:
        """Sound between the beginning of a frame and its unit, at most."""
        return self.chunk_ms + self.look_ahead_ms


def bench_encoder(
    model: str, folder: Path | None, clips: int, seconds: float, official_shape: bool, grid: bool = True
) -> dict:
    """All of it, as JSON. `official_shape` takes random weights of 95M parameters: times alone mean something then."""
    family = Family.load(model, progress=False)
    parts: Parts = (family.hubert, family.quantizer)
    if official_shape:
        torch.manual_seed(0)
        width = OFFICIAL_SHAPE.encoder_embed_dim
        parts = Hubert(OFFICIAL_SHAPE).eval().to(family.device), LinearQuantizer(width, width, 500).eval()
    sounds = [torch.from_numpy(clip) for clip in load_clips(folder, clips, seconds)]
    offline = [encode_units(*parts, sound.to(family.device)).tolist() for sound in sounds]
    statistics = None if parts[0].config.extractor_mode == "layer_norm" else calibrate(parts[0], sounds)
    default = Setting(LEFT_MS, CHUNK_MS, LOOK_AHEAD_MS)
    by_slots = {str(slots): step_time(parts, sounds[0], default, slots, family.device) for slots in SLOTS}
    norms: tuple[Norm, ...] = ("window",) if statistics is None else ("window", "running", "calibrated")
    settings = [Setting(*values) for values in product(LEFTS_MS, CHUNKS_MS, LOOK_AHEADS_MS, norms)] if grid else []
    if default not in settings:
        settings.append(default)
    trade_off = [{**asdict(s), **measure(parts, sounds, offline, s, statistics)} for s in settings]
    chosen = next(row for setting, row in zip(settings, trade_off, strict=True) if setting == default)
    return {
        "summary": {
            "agreement": chosen["agreement"],
            "edit_rate": chosen["edit_rate"],
            "look_ahead_ms": LOOK_AHEAD_MS,
            "step_ms_p50": by_slots["1"]["p50"],
            "rtf": by_slots["1"]["rtf"],
            "unlimited_window_is_offline": all(
                unlimited(parts, sound) == units for sound, units in zip(sounds, offline, strict=True)
            ),
            "python_share": by_slots["1"]["python_share"],
            "eight_slots_over_one": round(by_slots["8"]["p50"] / by_slots["1"]["p50"], 2),
        },
        "model": "official shape, random weights" if official_shape else model,
        "parameters": sum(parameter.numel() for part in parts for parameter in part.parameters()),
        "machine": machine(family.device),
        "clips": len(sounds),
        "seconds": round(sum(len(sound) for sound in sounds) / 16000, 1),
        "default": asdict(default),
        "step": {"sound_ms": default.chunk_ms, "by_slots": by_slots},
        "trade_off": trade_off,
    }


def unlimited(parts: Parts, sound: Tensor) -> list[int]:
    """Units of a stream whose window is the whole turn."""
    return _run(HubertStream(*parts, left_ms=None, look_ahead_ms=None), sound)


def measure(
    parts: Parts,
    sounds: Sequence[Tensor],
    offline: Sequence[list[int]],
    setting: Setting,
    statistics: Statistics | None,
) -> dict[str, float]:
    """Agreement of units frame by frame, edit rate after deduplication, and the time of a step."""
    equal = frames = edits = kept = 0
    times: list[float] = []
    for sound, expected in zip(sounds, offline, strict=True):
        units = _run(_stream(parts, 1, setting, statistics), sound, times)
        equal += int(np.sum(np.array(units) == np.array(expected)))
        frames += len(expected)
        a, b = ([unit for unit, _ in groupby(sequence)] for sequence in (units, expected))
        edits, kept = edits + _edits(a, b), kept + len(b)
    step = quantiles_ms(times)
    return {
        "agreement": round(equal / frames, 4),
        "edit_rate": round(edits / kept, 4),
        "step_ms_p50": step["p50"],
        "rtf": round(step["p50"] / setting.chunk_ms, 4),
    }


def step_time(
    parts: Parts, sound: Tensor, setting: Setting, slots: int, device: torch.device, steps: int = 25
) -> dict[str, float]:
    """A step of the setting for each of `slots`, with full windows."""
    stream = _stream(parts, slots, setting, None)
    timed = Timed(stream._native)
    stream._native = timed  # type: ignore[assignment]
    opened = [stream.open() for _ in range(slots)]
    chunk = setting.chunk_ms * 16
    before = (setting.left_ms + setting.latency_ms) * 16 // chunk + 2
    sound = sound.repeat(-(-(chunk * (before + steps) + 1600 * slots) // len(sound)))
    times: list[float] = []
    whole = 0.0
    for step in range(before + steps):
        if step == before:
            times.clear()
            whole = timed.seconds = 0.0
        began, wall = clock(device), time.perf_counter()
        for slot in opened:
            start = step * chunk + 1600 * slot
            stream.accept(slot, sound[start : start + chunk])
        packets = stream.step()
        whole += time.perf_counter() - wall
        times.append(clock(device) - began)
        assert step < before or len(packets) == slots
    quantiles = quantiles_ms(times)
    return {
        **quantiles,
        "rtf": round(quantiles["p50"] / setting.chunk_ms / slots, 4),
        "python_share": round(1 - timed.seconds / whole, 4),
    }


def plot(result: dict, file: Path) -> None:
    """Agreement against latency, a line for each left context, a panel for each norm policy."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = result["trade_off"]
    norms = sorted({row["norm"] for row in rows})
    figure, axes = pyplot.subplots(1, len(norms), figsize=(6 * len(norms), 4.5), squeeze=False, sharey=True)
    for axis, norm in zip(axes[0], norms, strict=True):
        for left in LEFTS_MS:
            best: dict[int, float] = {}  # over the ways to split a latency into chunk and look-ahead
            for row in rows:
                if row["norm"] == norm and row["left_ms"] == left:
                    latency = row["chunk_ms"] + row["look_ahead_ms"]
                    best[latency] = max(best.get(latency, 0.0), row["agreement"])
            axis.plot(sorted(best), [best[latency] for latency in sorted(best)], marker="o", label=f"{left / 1000:g} s")
        axis.set(title=f"norm: {norm}", xlabel="chunk + look-ahead, ms", ylabel="units equal to offline")
        axis.grid(alpha=0.3)
        axis.legend(title="left context")
    figure.suptitle(f"{result['model']}: {result['clips']} clips, {result['seconds']} s")
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def _stream(parts: Parts, slots: int, setting: Setting, statistics: Statistics | None) -> HubertStream:
    return HubertStream(
        *parts,
        slots,
        left_ms=setting.left_ms,
        chunk_ms=setting.chunk_ms,
        look_ahead_ms=setting.look_ahead_ms,
        norm=setting.norm,
        calibration=statistics if setting.norm == "calibrated" else None,
    )


def _run(stream: HubertStream, sound: Tensor, times: list[float] | None = None) -> list[int]:
    """Units of one turn that comes in packets of 20 ms."""
    slot = stream.open()
    units: list[int] = []
    for packet in [*sound.split(320), None]:
        if packet is None:
            stream.flush(slot)
        else:
            stream.accept(slot, packet)
        while stream.ready():
            began = time.process_time()
            for made in stream.step():
                units += made.units
            if times is not None:
                times.append(time.process_time() - began)
    stream.close(slot)
    return units


def _edits(a: Sequence[int], b: Sequence[int]) -> int:
    """Levenshtein distance."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, start=1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]
