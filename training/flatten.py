"""The same speech on one note a voice: what a vocoder learns from whose input has no pitch.

Units carry no pitch, so a vocoder trained on natural speech averages over all that the pitch may have been, and what
comes out is hoarse. Here every voiced frame gets the voice's median pitch instead, rounded to a multiple of the unit
rate: each frame of 40 ms then holds a whole number of periods, which a stack of upsampling layers makes by itself.

    python -m spiritrt.training.flatten --out build/nano

Writes `flat/audio.npy` and `flat/audio.json`, the clips of the voices to be learnt and of those that help to, and
`flat/notes.json`; `--more` adds the clips that are not there yet, on the notes that are. Source of the analysis and the
synthesis: WORLD (Morise et al., 2016, IEICE Trans. E99-D).
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from spiritrt.training.arguments import launch
from spiritrt.training.corpora.manifest import RATE_HZ, AudioStore
from spiritrt.training.units import HOP_SAMPLES
from spiritrt.training.vocoder_data import speakers_of, training_lines

Floats = NDArray[np.float64]
LOWEST_HZ, HIGHEST_HZ = 60.0, 450.0
UNIT_HZ = RATE_HZ / HOP_SAMPLES
QUIET = 1e-12  # power of what is silent: WORLD takes logarithms


def pitch(samples: Floats) -> tuple[Floats, Floats]:
    """Fundamental in Hz (0 where unvoiced) [T] every 5 ms of `samples` [N], and the times in seconds [T]."""
    import pyworld

    rough, times = pyworld.dio(samples, RATE_HZ, f0_floor=LOWEST_HZ, f0_ceil=HIGHEST_HZ)
    return pyworld.stonemask(samples, rough, times, RATE_HZ), times


def note(f0: Floats) -> float:
    """The median of the voiced frames, in Hz, rounded to a multiple of the unit rate.

    Raises ValueError where nothing is voiced.
    """
    voiced = f0[f0 > 0]
    if not len(voiced):
        raise ValueError("nothing is voiced: there is no pitch to keep")
    return max(1, round(float(np.median(voiced)) / UNIT_HZ)) * UNIT_HZ


def flattened(samples: Floats, f0: Floats, times: Floats, note_hz: float) -> Floats:
    """`samples` [N] with every voiced frame at `note_hz`; timing, timbre and noise stay.

    The pulses stand at multiples of the period from the first sample, through pauses as well: where the note is a
    multiple of the unit rate, they stand at the same places of every unit, and voiced sound is a function of the units.
    """
    import pyworld

    envelope = pyworld.cheaptrick(samples, f0, times, RATE_HZ)
    noise_share = pyworld.d4c(samples, f0, times, RATE_HZ) ** 2
    noise_share[f0 == 0] = 1.0
    # one after the other, for WORLD's pulses begin anew after each pause
    voiced = np.maximum(envelope * (1 - noise_share), QUIET)
    rest = np.maximum(envelope * noise_share, QUIET)
    pulses = pyworld.synthesize(np.full_like(f0, note_hz), voiced, np.zeros_like(envelope), RATE_HZ)
    noise = pyworld.synthesize(np.zeros_like(f0), rest, np.ones_like(envelope), RATE_HZ)
    made = (pulses + noise)[: len(samples)]
    return np.pad(made, (0, len(samples) - len(made)))


def main() -> None:
    parser = argparse.ArgumentParser(description="Put the speech of each voice on one note.")
    parser.add_argument("--out", type=Path, default=Path("build/nano"), help="folder with audio.npy and audio.json")
    parser.add_argument("--speakers", nargs="+", help="voices to keep (default: nano's own, else all that are there)")
    parser.add_argument("--others-from", type=int, help="and every voice with so many training utterances")
    parser.add_argument("--more", action="store_true", help="keep what was made before, and add what is not there yet")
    args = parser.parse_args()
    store = AudioStore(args.out)
    speakers = speakers_of(store, args.speakers)
    if args.others_from is not None:
        lines = training_lines(store)
        speakers += tuple(sorted(s for s in lines if lines[s] >= args.others_from and s not in speakers))
    flat = args.out / "flat"
    before = AudioStore(flat) if args.more else None
    notes: dict[str, float] = json.loads((flat / "notes.json").read_text("utf-8")) if before else {}
    made = []
    for speaker in speakers:
        clips = [c for c in store.clips.values() if c.speaker == speaker and not (before and c.id in before.clips)]
        sounds = [store.read(clip).astype(np.float64) for clip in clips]
        tracks = [pitch(sound) for sound in tqdm(sounds, desc=f"{speaker}, pitch", file=sys.stderr)]
        if speaker not in notes:
            notes[speaker] = note(np.concatenate([f0 for f0, _ in tracks]))
        for clip, sound, (f0, times) in zip(tqdm(clips, desc=speaker, file=sys.stderr), sounds, tracks, strict=True):
            made.append((clip, flattened(sound, f0, times, notes[speaker]).astype(np.float32)))
    flat.mkdir(exist_ok=True)
    (flat / "notes.json").write_text(json.dumps(notes), encoding="utf-8")
    if before:
        before.extend(flat, made)
    else:
        AudioStore.write(flat, made)
    print(json.dumps({"clips": len(made), "notes_hz": notes}))


if __name__ == "__main__":
    launch(main)
