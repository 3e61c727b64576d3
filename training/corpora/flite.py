"""Cheap extra speakers for the encoder: generated sentences spoken by flite, without labels.

flite's voices were made from recordings of real people; at 40-80 times real time an hour takes about a minute. Rate and
pitch vary from line to line. The teacher of `spiritrt.training.units` labels the sound afterwards (`--unlabelled`).

    python -m spiritrt.training.corpora.flite --out build/unlabelled/flite --minutes 90
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import soundfile
import soxr
from tqdm import tqdm

from spiritrt.training.corpora.manifest import RATE_HZ, read_manifest
from spiritrt.training.corpora.text import exchange, sentence

# share of the lines, and the mean pitch in Hz that the voice was recorded at
VOICES = {"slt": (0.4, 170.0), "rms": (0.35, 95.0), "awb": (0.25, 130.0)}
SEED = 4711


def plain(text: str) -> str:
    """Lower case words only, to compare texts."""
    return " ".join(re.findall(r"[a-z']+", text.lower()))


def lines(seed: int, count: int, excluded: set[str]) -> list[str]:
    """`count` different generated lines (questions, answers, sentences), none of them in `excluded` (`plain` texts)."""
    made: dict[str, str] = {}
    index = 0
    while len(made) < count:
        spoken = exchange(seed, index)
        for text in (spoken.user, spoken.assistant, sentence(seed, index)):
            if plain(text) not in excluded:
                made.setdefault(plain(text), text)
        index += 1
        if index > 20 * count:
            raise ValueError(f"the grammar gives only {len(made)} different lines, {count} were asked for")
    return list(made.values())[:count]


def speak(binaries: Path, voice: str, text: str, path: Path, stretch: float, pitch_hz: float) -> float:
    """Write `text` as a 16 kHz FLAC file and return its length in seconds."""
    partial = path.with_suffix(".wav")
    command = [
        str(binaries / f"flite_cmu_us_{voice}"), "--setf", f"duration_stretch={stretch:.3f}",
        "--setf", f"int_f0_target_mean={pitch_hz:.1f}", "-t", text, "-o", str(partial),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    samples, rate = soundfile.read(partial, dtype="float32")
    partial.unlink()
    sound = samples if rate == RATE_HZ else soxr.resample(samples, rate, RATE_HZ)
    soundfile.write(path, sound * (0.7 / max(1e-3, float(np.abs(sound).max()))), RATE_HZ)
    return len(sound) / RATE_HZ


def main() -> None:
    parser = argparse.ArgumentParser(description="Speak generated sentences with flite, as unlabelled speech.")
    parser.add_argument("--out", type=Path, default=Path("build/unlabelled/flite"))
    parser.add_argument("--corpus", type=Path, default=Path("../shared/corpus"), help="its held-out texts are left out")
    parser.add_argument("--minutes", type=float, default=90, help="minutes of speech to make")
    parser.add_argument("--binaries", type=Path, help="folder of the flite programs (default: where `flite` is)")
    parser.add_argument("--seed", type=int, default=SEED)
    args = parser.parse_args()
    found = shutil.which("flite")
    binaries = args.binaries or (Path(found).parent if found else None)
    if binaries is None or not os.access(binaries / "flite_cmu_us_slt", os.X_OK):
        raise SystemExit("flite is not installed: `apt-get install flite`, or give --binaries")
    args.out.mkdir(parents=True, exist_ok=True)
    held_out = {plain(u.text) for u in read_manifest(args.corpus) if u.split != "train"}
    rng = np.random.default_rng(args.seed)
    names, shares = list(VOICES), np.array([share for share, _ in VOICES.values()])
    seconds = 0.0
    progress = tqdm(total=round(60 * args.minutes), desc="flite", unit="s", file=sys.stderr)
    for number, text in enumerate(lines(args.seed, round(30 * args.minutes), held_out)):
        voice = names[int(rng.choice(len(names), p=shares))]
        pitch_hz = VOICES[voice][1] * float(rng.uniform(0.85, 1.2))
        path = args.out / f"{number:05d}_{voice}.flac"
        made = speak(binaries, voice, text, path, float(rng.uniform(0.8, 1.15)), pitch_hz)
        seconds += made
        progress.update(round(made))
        if seconds >= 60 * args.minutes:
            break
    progress.close()
    print(f"{seconds / 60:.1f} minutes of speech in {args.out}")


if __name__ == "__main__":
    main()
