"""How much of a sentence survives sound -> units -> sound: word error rate by Whisper tiny.en on held-out utterances.

Each utterance is transcribed as recorded, resynthesised from its raw frames, and resynthesised from deduplicated units
with predicted durations. The assistant's voices keep their voice, all others are spoken by the default speaker.

    python -m spiritrt.training.judge --corpus ../shared/corpus --model models/nano --json build/nano/judge.json
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from spiritrt.evaluation.recognition import ErrorRates, Recognizer
from spiritrt.models.checkpoints import find
from spiritrt.models.hubert import (
    Hubert,
    KMeansQuantizer,
    LinearQuantizer,
    encode_units,
    hubert_from_official,
    quantizer_from_official,
)
from spiritrt.models.vocoder import Vocoder, vocode_frames, vocode_units, vocoder_from_official
from spiritrt.training.arguments import launch
from spiritrt.training.corpora.manifest import RATE_HZ, Utterance, cut_utterances, read_manifest
from spiritrt.training.units import unlabelled_clips

KINDS = ("original", "frames", "durations")
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Family:
    """The speech parts of a model family."""

    hubert: Hubert
    quantizer: LinearQuantizer | KMeansQuantizer
    vocoder: Vocoder
    speakers: tuple[str, ...]

    @classmethod
    def load(cls, model: str) -> "Family":
        """Load encoder, quantizer and vocoder of the family `model` (name or folder)."""
        checkpoint = find(model)
        parts = {name: checkpoint.part(name) for name in ("hubert", "quantizer", "vocoder")}
        named = parts["vocoder"].config.get("speakers")
        return cls(
            hubert_from_official(parts["hubert"].config, parts["hubert"].load()),
            quantizer_from_official(parts["quantizer"].config, parts["quantizer"].load()),
            vocoder_from_official(parts["vocoder"].config, parts["vocoder"].load()),
            tuple(str(name) for name in named) if isinstance(named, list) else (),
        )

    def speaker(self, name: str) -> int:
        return self.speakers.index(name) if name in self.speakers else self.vocoder.config.default_speaker

    def resynthesize(self, samples: Floats, speaker: int) -> dict[str, Floats]:
        """The utterance as recorded, from raw frames, and from deduplicated units with predicted durations."""
        units = encode_units(self.hubert, self.quantizer, torch.from_numpy(samples))
        return {
            "original": samples,
            "frames": vocode_frames(self.vocoder, units, speaker=speaker).numpy(),
            "durations": vocode_units(self.vocoder, torch.unique_consecutive(units), speaker=speaker).numpy(),
        }


def group_of(utterance: Utterance, speakers: Sequence[str]) -> str:
    """`own voice` where the vocoder has the speaker, else `held-out voice` or `other voice`."""
    if utterance.speaker in speakers:
        return "own voice"
    return "held-out voice" if utterance.split == "test_voice" else "other voice"


def judge(
    family: Family, corpus: Path, limit: int | None, save_to: Path | None
) -> tuple[dict[str, dict[str, float]], list[dict[str, object]]]:
    """Word error rates of each group and kind on the held-out splits, and one line an utterance.

    Raises ValueError where nothing is held out.
    """
    utterances = [u for u in read_manifest(corpus) if u.split != "train"]
    if not utterances:
        raise ValueError(f"{corpus} holds no utterance out: give some of its lines another `split` than train")
    if limit is not None:
        chosen = np.random.default_rng(7).permutation(len(utterances))[:limit]
        utterances = [utterances[i] for i in sorted(chosen)]
    recognize = Recognizer(torch.get_num_threads())
    errors: dict[str, dict[str, ErrorRates]] = {}
    counts: dict[str, int] = {}
    lines: list[dict[str, object]] = []
    for u, samples in tqdm(cut_utterances(corpus, utterances), total=len(utterances), desc="judge", file=sys.stderr):
        group, speaker = group_of(u, family.speakers), family.speaker(u.speaker)
        counts[group] = counts.get(group, 0) + 1
        line: dict[str, object] = {"id": u.id, "group": group, "speaker": u.speaker, "text": u.text}
        for kind, sound in family.resynthesize(samples, speaker).items():
            heard = recognize(sound)
            tally = errors.setdefault(group, {}).setdefault(kind, ErrorRates())
            line[kind] = heard
            line[f"{kind}_wer"] = round(tally.add(u.text, heard), 3)
            if save_to is not None:
                save_to.mkdir(parents=True, exist_ok=True)
                soundfile.write(save_to / f"{u.id}_{kind}.wav", sound, RATE_HZ)
        lines.append(line)
    summary = {
        group: {"utterances": float(counts[group]), **{f"{kind}_wer": round(t.rate, 4) for kind, t in kinds.items()}}
        for group, kinds in sorted(errors.items())
    }
    return summary, lines


def judge_recordings(family: Family, folder: Path) -> list[dict[str, object]]:
    """Transcripts of untranscribed recordings before and after resynthesis by the default speaker, for reading."""
    recognize = Recognizer(torch.get_num_threads())
    lines: list[dict[str, object]] = []
    for clip, samples in unlabelled_clips(folder):
        made = family.resynthesize(samples, family.vocoder.config.default_speaker)
        heard = {kind: recognize(sound) for kind, sound in made.items()}
        tally = ErrorRates()
        tally.add(heard["original"], heard["frames"])
        lines.append({"id": clip.id, **heard, "frames_against_original": round(tally.rate, 3)})
    return lines


def speed(family: Family, seconds: float = 4.0) -> dict[str, float]:
    """Seconds of processing for a second of sound, encoder and vocoder, on the threads in use (median of 5)."""
    samples = torch.randn(int(seconds * RATE_HZ)) * 0.05
    units = encode_units(family.hubert, family.quantizer, samples)
    figures = {}
    for name, work in (
        ("encoder", lambda: encode_units(family.hubert, family.quantizer, samples)),
        ("vocoder", lambda: vocode_frames(family.vocoder, units, speaker=0)),
    ):
        times = []
        for _ in range(5):
            began = time.process_time()
            work()
            times.append(time.process_time() - began)
        figures[f"{name}_cpu_s_a_second"] = round(float(np.median(times)) / seconds, 4)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description="Word error rate of resynthesis on held-out utterances.")
    parser.add_argument("--corpus", type=Path, default=Path("../shared/corpus"))
    parser.add_argument("--model", default="models/nano", help="name or folder of the family")
    parser.add_argument("--limit", type=int, help="judge only so many utterances, drawn with a fixed seed")
    parser.add_argument("--recordings", type=Path, help="folder of other recordings to transcribe before and after")
    parser.add_argument("--save-to", type=Path, help="write the judged sound as WAV files into this folder")
    parser.add_argument("--json", type=Path, default=Path("build/nano/judge.json"))
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    family = Family.load(args.model)
    summary, lines = judge(family, args.corpus, args.limit, args.save_to)
    report = {"summary": summary, "speed": speed(family), "lines": lines}
    if args.recordings is not None:
        report["recordings"] = judge_recordings(family, args.recordings)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(report, indent=1, ensure_ascii=False), encoding="utf-8")
    print(json.dumps({k: v for k, v in report.items() if k != "lines"}, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    launch(main)
