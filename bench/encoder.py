"""HubertStream: agreement with offline and time, over left context, chunk, look-ahead and norm policy."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby, product
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from spiritrt.bench.measure import Timed, load_clips, machine, quantiles_ms, slots_over_one, threads, time_steps
from spiritrt.duplex.calibration import Statistics, calibrate
from spiritrt.duplex.streams import CHUNK_MS, LEFT_MS, LOOK_AHEAD_MS, HubertStream, Norm
from spiritrt.models.family import Family
from spiritrt.models.hubert import Hubert, HubertConfig, KMeansQuantizer, LinearQuantizer, encode_units

SLOTS: tuple[int, ...] = (1, 4, 8, 16)
SLOTS_ON_GPU = (1, 8, 32, 128)
SLOTS_OFFICIAL, STEPS_OFFICIAL = (1, 4), 4  # on a CPU a step of the published size takes a fraction of a second
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


DEFAULT = Setting(LEFT_MS, CHUNK_MS, LOOK_AHEAD_MS)
# the norm "window" of a GroupNorm runs the convolutions over the whole window each time; the others over new sound
OFFICIAL_SETTINGS = tuple(
    Setting(*window, norm)
    for norm in get_args(Norm)[:2]
    for window in ((500, 320, 160), (1000, 320, 320), (2000, 640, 320), (4000, 160, 320))
)


def bench_encoder(
    model: str,
    folder: Path | None,
    clips: int,
    seconds: float,
    official_shape: bool,
    grid: bool = True,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> dict:
    """All of it, as JSON. `official_shape` takes random weights of 95M parameters: times alone mean something then."""
    family = Family.load(model, device, progress=False)
    parts: Parts = (family.hubert, family.quantizer)
    if official_shape:
        torch.manual_seed(0)
        width = OFFICIAL_SHAPE.encoder_embed_dim
        parts = (
            Hubert(OFFICIAL_SHAPE).eval().to(family.device),
            LinearQuantizer(width, width, 500).eval().to(family.device),
        )
    groups = {
        name: [torch.from_numpy(clip) for clip in group] for name, group in load_clips(folder, clips, seconds).items()
    }
    sounds = [sound for group in groups.values() for sound in group]
    slots, steps = (SLOTS_ON_GPU if family.device.type == "cuda" else SLOTS), 25
    if official_shape and family.device.type == "cpu":
        slots, steps = SLOTS_OFFICIAL, STEPS_OFFICIAL
    step = slots_over_one(
        lambda count: step_time(parts, sounds[0], DEFAULT, count, family.device, dtype, steps), slots, family.device
    )
    one = step["by_slots"]["1"]
    result: dict = {
        "summary": {
            "look_ahead_ms": LOOK_AHEAD_MS,
            "step_ms_p50": one["p50"],
            "rtf": one["rtf"],
            "python_share": one["python_share"],
            "eight_slots_over_one": step["eight_slots_over_one"],
        },
        "model": "official shape, random weights" if official_shape else model,
        "parameters": sum(parameter.numel() for part in parts for parameter in part.parameters()),
        "dtype": str(dtype).removeprefix("torch."),
        "machine": machine(family.device),
        "clips": {name: len(group) for name, group in groups.items()},
        "seconds": round(sum(len(sound) for sound in sounds) / 16000, 1),
        "default": asdict(DEFAULT),
        "step": {"sound_ms": DEFAULT.chunk_ms, **step},
    }
    with threads(1):
        if official_shape:
            result["windows"] = [
                {**asdict(s), **step_time(parts, sounds[0], s, 1, family.device, dtype, steps)}
                for s in OFFICIAL_SETTINGS
            ]
            return result
        chunk_80 = replace(DEFAULT, chunk_ms=80)
        result["step_80_ms"] = step_time(parts, sounds[0], chunk_80, 1, family.device, dtype)
        result["summary"] |= {"step_80_ms_p50": result["step_80_ms"]["p50"]}
        trade_off = _trade_off(parts, groups, grid)
    result["summary"] |= trade_off.pop("summary")
    return result | trade_off


def _trade_off(parts: Parts, groups: dict[str, list[Tensor]], grid: bool) -> dict:
    """Agreement and time of the default, with `grid` of all settings; and whether an unlimited window is offline."""
    device = next(parts[0].parameters()).device
    offline = {name: [encode_units(*parts, s.to(device)).tolist() for s in group] for name, group in groups.items()}
    sounds = [sound for group in groups.values() for sound in group]
    units = [u for group in offline.values() for u in group]
    statistics = None if parts[0].config.extractor_mode == "layer_norm" else calibrate(parts[0], sounds)
    norms: tuple[Norm, ...] = ("window",) if statistics is None else ("window", "running", "calibrated")
    settings = [Setting(*values) for values in product(LEFTS_MS, CHUNKS_MS, LOOK_AHEADS_MS, norms)] if grid else []
    if DEFAULT not in settings:
        settings.append(DEFAULT)
    rows = [{**asdict(s), **measure(parts, sounds, units, s, statistics)} for s in settings]
    chosen = rows[settings.index(DEFAULT)]
    return {
        "summary": {
            "agreement": chosen["agreement"],
            "edit_rate": chosen["edit_rate"],
            "unlimited_window_is_offline": all(
                _run(HubertStream(*parts, left_ms=None, look_ahead_ms=None), sound) == expected
                for sound, expected in zip(sounds, units, strict=True)
            ),
        },
        "default_by_folder": {
            name: {
                "seconds": round(sum(map(len, group)) / 16000, 1),
                **measure(parts, group, offline[name], DEFAULT, statistics),
            }
            for name, group in groups.items()
        },
        "trade_off": rows,
    }


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
        edits, kept = edits + edit_distance(a, b), kept + len(b)
    step = quantiles_ms(times)
    return {
        "agreement": round(equal / frames, 4),
        "edit_rate": round(edits / kept, 4),
        "step_ms_p50": step["p50"],
        "rtf": round(step["p50"] / setting.chunk_ms, 4),
    }


def step_time(
    parts: Parts,
    sound: Tensor,
    setting: Setting,
    slots: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    steps: int = 25,
) -> dict[str, float]:
    """A step of the setting for each of `slots`, with full windows; the real-time factor is that of one of them."""
    stream = _stream(parts, slots, setting, None, dtype)
    timed = Timed(stream._native)
    stream._native = timed  # type: ignore[assignment]
    opened = [stream.open() for _ in range(slots)]
    chunk = setting.chunk_ms * 16
    window_ms = setting.left_ms + setting.chunk_ms + setting.look_ahead_ms
    sound = sound.repeat(-(-(window_ms * 16 + chunk * (steps + 6) + 1600 * slots) // len(sound)))
    lead = window_ms * 16 + 80  # fills the window: every step from then on is alike
    for slot in opened:
        stream.accept(slot, sound[1600 * slot : 1600 * slot + lead])
    while stream.ready():
        stream.step()

    def step(number: int) -> None:
        for slot in opened:
            start = lead + number * chunk + 1600 * slot
            stream.accept(slot, sound[start : start + chunk])
        packets = stream.step()
        assert len(packets) == slots

    times = time_steps(step, timed, 2, steps, device)
    return times | {"rtf": round(times["p50"] / setting.chunk_ms / slots, 4)}


def plot(result: dict, file: Path) -> None:
    """Agreement against latency, a line for each left context, a panel for each norm policy."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = result["trade_off"]
    norms = sorted({row["norm"] for row in rows})
    figure, axes = pyplot.subplots(1, len(norms), figsize=(6 * len(norms), 4.5), squeeze=False, sharey=True)
    for axis, norm in zip(axes[0], norms, strict=True):
        for left in sorted({row["left_ms"] for row in rows if row["norm"] == norm}):
            best: dict[int, float] = {}  # over the ways to split a latency into chunk and look-ahead
            for row in rows:
                if row["norm"] == norm and row["left_ms"] == left:
                    latency = row["chunk_ms"] + row["look_ahead_ms"]
                    best[latency] = max(best.get(latency, 0.0), row["agreement"])
            axis.plot(sorted(best), [best[latency] for latency in sorted(best)], marker="o", label=f"{left / 1000:g} s")
        axis.set(title=f"norm: {norm}", xlabel="chunk + look-ahead, ms", ylabel="units equal to offline")
        axis.grid(alpha=0.3)
        axis.legend(title="left context")
    figure.suptitle(f"{result['model']}: {sum(result['clips'].values())} clips, {result['seconds']} s")
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def edit_distance(a: Sequence[int], b: Sequence[int]) -> int:
    """Insertions, deletions and replacements that turn `a` into `b` (Levenshtein)."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, start=1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]


def _stream(
    parts: Parts, slots: int, setting: Setting, statistics: Statistics | None, dtype: torch.dtype = torch.float32
) -> HubertStream:
    return HubertStream(
        *parts,
        slots,
        left_ms=setting.left_ms,
        chunk_ms=setting.chunk_ms,
        look_ahead_ms=setting.look_ahead_ms,
        norm=setting.norm,
        calibration=statistics if setting.norm == "calibrated" else None,
        dtype=dtype,
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
