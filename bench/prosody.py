"""PitchStream and StyleStream against offline, over their windows, for Expressive models."""

import time
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path

import torch

from spiritrt import audio
from spiritrt.bench.encoder import edit_distance
from spiritrt.bench.measure import load_clips, machine, quantiles_ms, threads
from spiritrt.duplex.prosody import PitchStream, StyleStream
from spiritrt.models.family import Family
from spiritrt.models.pitch import encode_pitch
from spiritrt.models.style import encode_style

# (left_ms, chunk_ms, look_ahead_ms) and (left_s, lag_ms); the streams' defaults are first
PITCH_WINDOWS = ((1600, 320, 160), (800, 320, 160), (1600, 80, 0), (1600, 320, 0), (1600, 320, 320), (3200, 640, 640))
STYLE_WINDOWS = ((3, 240), (0, 240), (3, 40), (3, 500), (3, 1000), (10, 1000))
PACKET_SAMPLES = 320

Encode = Callable[[audio.Samples], list[int]]


def bench_prosody(model: str, folder: Path | None, clips: int, seconds: float) -> dict:
    """All of it, as JSON.

    Raises ValueError for a model whose speech has no pitch and style tokens.
    """
    family = Family.load(model, progress=False)
    if not family.expressive:
        raise ValueError(f"{model} has no pitch and style tokens: this benchmark needs an Expressive model")
    tracker, quantizer, classifier = family.pitch_tracker, family.pitch_quantizer, family.style_classifier
    sounds = [clip for group in load_clips(folder, clips, seconds).values() for clip in group]
    with threads(1):
        pitch = [
            {"left_ms": left, "chunk_ms": chunk, "look_ahead_ms": ahead}
            | measure(
                PitchStream(tracker, quantizer, left, chunk, ahead),
                sounds,
                lambda sound: encode_pitch(tracker, quantizer, torch.from_numpy(sound)).tolist(),
            )
            for left, chunk, ahead in PITCH_WINDOWS
        ]
        style = [
            {"left_s": left, "lag_ms": lag}
            | measure(
                StyleStream(classifier, left, lag),
                sounds,
                lambda sound: encode_style(classifier, torch.from_numpy(sound)).tolist(),
            )
            for left, lag in STYLE_WINDOWS
        ]
    names = ("agreement", "edit_rate", "rtf")
    return {
        "summary": {
            kind: {name: rows[0][name] for name in names} for kind, rows in (("pitch", pitch), ("style", style))
        },
        "model": model,
        "machine": machine(family.device),
        "clips": len(sounds),
        "seconds": round(sum(map(len, sounds)) / audio.RATE_HZ, 1),
        "pitch": pitch,
        "style": style,
    }


def measure(stream: PitchStream | StyleStream, sounds: Sequence[audio.Samples], offline: Encode) -> dict[str, float]:
    """Agreement code by code, edit rate (of pitch after deduplication), and the time of a call that commits codes."""
    equal = codes = edits = kept = 0
    times: list[float] = []
    for sound in sounds:
        streamed: list[int] = []
        stream.reset()
        for start in range(0, len(sound) + PACKET_SAMPLES, PACKET_SAMPLES):
            packet = sound[start : start + PACKET_SAMPLES]
            began = time.process_time()
            made = stream.accept(packet) if len(packet) else stream.flush()
            if made:
                times.append(time.process_time() - began)
            streamed += made
        expected = offline(sound)
        assert len(streamed) == len(expected)
        equal += sum(a == b for a, b in zip(streamed, expected, strict=True))
        codes += len(expected)
        pair = [streamed, expected]
        if isinstance(stream, PitchStream):  # style tokens are never deduplicated
            pair = [[code for code, _ in groupby(sequence)] for sequence in pair]
        edits, kept = edits + edit_distance(*pair), kept + len(pair[1])
    total_s = sum(map(len, sounds)) / audio.RATE_HZ
    return {
        "agreement": round(equal / codes, 4),
        "edit_rate": round(edits / kept, 4),
        "step_ms_p50": quantiles_ms(times)["p50"],
        "rtf": round(sum(times) / total_s, 4),
    }
