"""Resynthesis: what survives sound -> units -> sound.

Word error rate by the judge, of the recording, of its raw frames, and of deduplicated units with predicted durations;
F0 frame error of the frames; for Expressive the share of style codes that come back; predicted MOS where a predictor is
installed (`pip install --no-deps distillmos==0.9.1 xls-r-sqa==0.1.0`).
"""

import contextlib
import importlib
import importlib.util
import io
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import spiritrt
from spiritrt import SpiritLM
from spiritrt.evaluation.recognition import ErrorRates, Recognizer
from spiritrt.evaluation.report import Metric, Report, mean_metric, progress, rate_metric
from spiritrt.evaluation.speech_sets import choose, read_librispeech
from spiritrt.models.pitch import PitchTracker
from spiritrt.tokens.units import merge
from spiritrt.tokens.vocabulary import format_speech

Floats = NDArray[np.float32]
KINDS = ("recording", "frames", "durations")
MOS_PACKAGES = ("distillmos", "xls_r_sqa")
GROSS = 0.2  # a voiced frame further off than this share of its F0 is a pitch error


def f0_frame_errors(real: Floats, made: Floats, tracker: PitchTracker) -> tuple[int, int]:
    """Frames (200 Hz) whose voicing differs or whose F0 is off by more than 20%, and all frames (Chu and Alwan 2009).

    The longer sound is cut to the length of the other.
    """
    length = min(len(real), len(made))
    a, b = (tracker(torch.from_numpy(np.ascontiguousarray(sound[:length]))) for sound in (real, made))
    voiced_a, voiced_b = a.voiced > 0.5, b.voiced > 0.5
    off = voiced_a & voiced_b & ((b.f0_hz / a.f0_hz.clamp_min(1e-3) - 1).abs() > GROSS)
    return int(((voiced_a != voiced_b) | off).sum()), len(a.voiced)


def mos_predictor() -> Callable[[Floats], float] | None:
    """Predicted mean opinion score (1 to 5) of 16 kHz sound by distillmos, or None where it is not installed."""
    if any(importlib.util.find_spec(name) is None for name in MOS_PACKAGES):
        return None
    with _torchaudio_or_names(), contextlib.redirect_stdout(io.StringIO()):
        import distillmos

        model = distillmos.ConvTransformerSQAModel().eval()

    def predict(samples: Floats) -> float:
        with torch.no_grad():
            return float(model(torch.from_numpy(samples)[None]))

    return predict


@contextlib.contextmanager
def _torchaudio_or_names() -> Iterator[None]:
    """Lets `import torchaudio` succeed inside, where its builds do not import beside a CPU build of torch.

    The predictor reads no files and makes no MFCC: it wants the names alone.
    """
    try:
        importlib.import_module("torchaudio.transforms")
        found = True
    except (ImportError, OSError, RuntimeError):
        found = False
    if found:
        yield
        return
    package, transforms = types.ModuleType("torchaudio"), types.ModuleType("torchaudio.transforms")
    vars(transforms).update(MFCC=None, Resample=None)
    vars(package).update(transforms=transforms)
    sys.modules |= {"torchaudio": package, "torchaudio.transforms": transforms}
    try:
        yield
    finally:
        del sys.modules["torchaudio"], sys.modules["torchaudio.transforms"]


def resynthesis(
    lm: SpiritLM,
    model: str,
    data: Path,
    limit: int | None,
    seed: int,
    recognizer: Recognizer,
    save_to: Path | None = None,
    speakers: bool = False,
) -> Report:
    """Word error rate of resynthesis from frames (the main figure) and the rest, also by group of voices, or by voice.

    Voices that the vocoder names are spoken by themselves, all others by the default speaker. Raises ImportError where
    the pitch tracker is not installed, before anything is judged.
    """
    tracker = lm.family.pitch_tracker
    named = lm.family.checkpoint.part("vocoder").config.get("speakers")
    voices = [str(name) for name in named] if isinstance(named, list) else []
    utterances = choose(read_librispeech(data), limit, seed)
    errors: dict[str, ErrorRates] = {kind: ErrorRates() for kind in KINDS}
    groups: dict[str, ErrorRates] = {}
    pitch_errors: list[tuple[int, int]] = []
    style_right: list[tuple[int, int]] = []
    predict = mos_predictor()
    scores: dict[str, list[float]] = {kind: [] for kind in KINDS}
    lines: list[dict[str, object]] = []
    for item in progress(utterances, "resynthesis"):
        sound = spiritrt.audio.load(item.audio)
        speaker = voices.index(item.speaker) if item.speaker in voices else None
        units = lm.encode(sound)
        made = {
            "recording": sound,
            "frames": lm.decode(units, speaker).array,
            "durations": lm.decode(format_speech(merge(units)), speaker).array,
        }
        line: dict[str, object] = {"id": item.id, "text": item.text}
        group = item.speaker if speakers else "own voices" if item.speaker in voices else "other voices"
        for kind, samples in made.items():
            heard = recognizer(samples)
            line[kind] = heard
            line[f"{kind} wer"] = round(errors[kind].add(item.text, heard), 4)
            groups.setdefault(f"{group}, {kind}", ErrorRates()).add(item.text, heard)
            if predict is not None:
                scores[kind].append(predict(samples))
            if save_to is not None:
                spiritrt.audio.save(save_to / f"{item.id.replace('/', '-')}_{kind}.wav", samples)
        pitch_errors.append(f0_frame_errors(sound, made["frames"], tracker))
        if lm.family.expressive:
            again = lm.encode(made["frames"]).style or ()
            pairs = list(zip(units.style or (), again, strict=False))
            style_right.append((sum(a == b for a, b in pairs), len(pairs)))
        lines.append(line)
    frames, recording = errors["frames"], errors["recording"]
    # of the same words, so that what the judge mishears in both has no part in the spread
    more = [a - b for a, b in zip(frames.word_errors, recording.word_errors, strict=True)]
    parts: dict[str, Metric] = {kind: rates.wer() for kind, rates in errors.items()}
    parts["frames less recording"] = rate_metric("wer_difference", more, frames.words)
    parts |= {name: rates.wer() for name, rates in sorted(groups.items())} if len(groups) > len(KINDS) else {}
    parts["f0"] = rate_metric(
        "f0_frame_error", [wrong for wrong, _ in pitch_errors], [frames for _, frames in pitch_errors]
    )
    if style_right:
        parts["style"] = rate_metric(
            "style_accuracy", [right for right, _ in style_right], [codes for _, codes in style_right]
        )
    parts |= {f"{kind}, mos": mean_metric("mos", values) for kind, values in scores.items() if values}
    notes = () if predict else ("no predicted MOS: pip install --no-deps distillmos==0.9.1 xls-r-sqa==0.1.0",)
    return Report("resynthesis", model, frames.wer(), parts, {"data": str(data), "seed": seed}, notes, tuple(lines))
