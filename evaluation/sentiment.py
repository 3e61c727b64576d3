"""STSP, sentiment preservation: does what the model goes on with have the mood of what it was given (paper, section 5)?

A folder with `records*.jsonl` as Spirit LM's public code has them, `wav_path` relative to the folder:

    {"id": 1, "wav_path": "emov/sam/Amused/x.wav", "emotion": "amused", "split": "test", "text": "..."}

`text` (or `transcription`) is needed where the prompt is text. The judges of mood are folders of transformers'
classifiers where they are given. Else text is judged by counting words, and speech by its prosody: by the nearest of
the moods' means over the records of split `train`.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import spiritrt
from spiritrt import Sampling, Speech, SpiritLM, Text
from spiritrt.evaluation.likelihood import Scorer
from spiritrt.evaluation.report import Metric, Report, mean_metric, progress
from spiritrt.evaluation.set_texts import text_mood
from spiritrt.evaluation.speech_sets import choose
from spiritrt.models.pitch import PitchTracker

MOODS = ("positive", "neutral", "negative")
MOOD_OF = {
    "amused": "positive", "happy": "positive", "laughing": "positive", "lively": "positive", "positive": "positive",
    "neutral": "neutral", "default": "neutral", "narration": "neutral",
    "angry": "negative", "anger": "negative", "sad": "negative", "disgusted": "negative", "disgust": "negative",
    "subdued": "negative", "negative": "negative",
}  # fmt: skip
DIRECTIONS = {"T->T": ("text", "text"), "T->S": ("text", "speech"), "S->T": ("speech", "text"),
              "S->S": ("speech", "speech")}  # fmt: skip
Floats = NDArray[np.float64]
TextJudge = Callable[[str], str]
SpeechJudge = Callable[[NDArray[np.float32]], str]


@dataclass(frozen=True, slots=True)
class Record:
    """A recording with its mood, and its words where they are known."""

    id: str
    audio: Path
    mood: str
    split: str
    text: str | None


def read_records(folder: Path) -> list[Record]:
    """Records of every `records*.jsonl` in a folder; emotions without one of the three moods are left out.

    Raises FileNotFoundError where there are none, ValueError for a bad line.
    """
    files = sorted(folder.glob("records*.jsonl"))
    if not files:
        raise FileNotFoundError(f"no records*.jsonl in {folder}")
    records = []
    for path in files:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                entry = json.loads(line)
                mood = MOOD_OF.get(str(entry.get("sentiment") or entry["emotion"]).lower())
                text = entry.get("text") or entry.get("transcription")
                record = (str(entry["id"]), folder / entry["wav_path"], entry.get("split", "test"), text)
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path}, line {number}: {type(error).__name__}: {error}") from error
            if mood is not None:
                records.append(Record(record[0], record[1], mood, record[2], record[3]))
    if not any(record.split == "test" for record in records):
        raise ValueError(f"no record of {folder} has split 'test' and a known emotion ({', '.join(MOOD_OF)})")
    return records


def prosody(samples: NDArray[np.float32], tracker: PitchTracker) -> Floats:
    """What is lively in speech, whoever speaks: spread and range of log F0, voiced share, spread of the level in dB,
    peaks of the level a second: [5]. The mean F0 is left out, since it tells voices apart rather than moods."""
    track = tracker(torch.from_numpy(samples))
    voiced = track.voiced.numpy() > 0.5
    f0 = np.log(track.f0_hz.numpy()[voiced].astype(float)) if voiced.any() else np.zeros(1)
    frames = samples[: len(samples) // 320 * 320].reshape(-1, 320)
    level = 10 * np.log10(np.square(frames, dtype=float).mean(axis=1) + 1e-8)
    loud = level > level.max() - 40
    smooth = np.convolve(level, np.ones(5) / 5, mode="same")
    peaks = (smooth[1:-1] > smooth[:-2]) & (smooth[1:-1] >= smooth[2:]) & loud[1:-1]
    low, high = np.percentile(f0, [10, 90])
    return np.array([f0.std(), high - low, voiced.mean(), level[loud].std(), peaks.sum() / max(loud.sum() / 50, 0.1)])


class ProsodyJudge:
    """The mood of speech by the nearest mean of its standardised prosody."""

    def __init__(self, examples: Sequence[tuple[NDArray[np.float32], str]], tracker: PitchTracker) -> None:
        """Raises ValueError where one of the moods has no example."""
        if missing := set(MOODS) - {mood for _, mood in examples}:
            raise ValueError(
                f"no examples of {', '.join(sorted(missing))} to judge speech by: records of split 'train'"
            )
        self._tracker = tracker
        features = np.stack([prosody(samples, tracker) for samples, _ in examples])
        self._mean, self._scale = features.mean(axis=0), features.std(axis=0) + 1e-6
        labels = np.array([mood for _, mood in examples])
        scaled = (features - self._mean) / self._scale
        self._centres = np.stack([scaled[labels == mood].mean(axis=0) for mood in MOODS])

    def __call__(self, samples: NDArray[np.float32]) -> str:
        scaled = (prosody(samples, self._tracker) - self._mean) / self._scale
        return MOODS[int(np.square(self._centres - scaled).sum(axis=1).argmin())]


def text_judge(folder: Path) -> TextJudge:
    """A transformers text classifier in `folder`; nothing is fetched. Raises ValueError for a bad folder or label."""
    _check_folder(folder)
    from transformers import pipeline

    classify = pipeline("text-classification", model=str(folder))
    return lambda text: _known_mood(folder, classify(text)[0]["label"])


def speech_judge(folder: Path) -> SpeechJudge:
    """A transformers audio classifier (16 kHz) in `folder`; nothing is fetched. Raises as `text_judge`."""
    _check_folder(folder)
    from transformers import pipeline

    classify = pipeline("audio-classification", model=str(folder))
    return lambda samples: _known_mood(folder, classify(samples)[0]["label"])


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise ValueError(f"no classifier at {folder}: give a folder that transformers' save_pretrained wrote")


def _known_mood(folder: Path, label: str) -> str:
    if label.lower() not in MOOD_OF:
        raise ValueError(f"{folder} says {label!r}, which is none of {', '.join(MOOD_OF)}")
    return MOOD_OF[label.lower()]


def stsp(
    lm: SpiritLM,
    model: str,
    data: Path,
    limit: int | None,
    seed: int,
    judge_text: TextJudge = text_mood,
    judge_speech: SpeechJudge | None = None,
    max_new_tokens: int = 120,
) -> Report:
    """Share of continuations with the mood of the prompt, in four directions; the main figure is their mean.

    Speech outputs under 80 ms and empty texts count as wrong. Sampling as the paper's (0.8, top-p 0.95) by the seed.
    `speech inputs` and `text inputs` say how often the judges find the mood of the prompts themselves.
    """
    records = read_records(data)
    asked = choose([record for record in records if record.split == "test"], limit, seed)
    if judge_speech is None:
        examples = [(spiritrt.audio.load(record.audio), record.mood) for record in records if record.split == "train"]
        judge_speech = ProsodyJudge(examples, lm.family.pitch_tracker)
    scorer = Scorer(lm)
    found: dict[str, list[float]] = {direction: [] for direction in DIRECTIONS}
    inputs: dict[str, list[float]] = {"speech inputs": [], "text inputs": []}
    lines: list[dict[str, object]] = []
    for number, record in enumerate(progress(asked, "stsp")):
        inputs["speech inputs"].append(float(judge_speech(spiritrt.audio.load(record.audio)) == record.mood))
        if record.text is not None:
            inputs["text inputs"].append(float(judge_text(record.text) == record.mood))
        for direction, (before, after) in DIRECTIONS.items():
            if before == "text" and record.text is None:
                continue
            item = Text(record.text or "") if before == "text" else scorer.speech(record.audio)
            sampling = Sampling(0.8, 0.95, seed=seed + number)
            output = lm.generate([item], "text" if after == "text" else "speech", sampling, max_new_tokens)
            mood = _mood(output.text, judge_text) if after == "text" else _heard(output, judge_speech)
            found[direction].append(float(mood == record.mood))
            lines.append({"id": record.id, "direction": direction, "mood": record.mood, "made": mood})
    parts: dict[str, Metric] = {
        name: mean_metric("accuracy", values) for name, values in {**found, **inputs}.items() if values
    }
    notes = tuple(f"{name}: the records have no text" for name, values in found.items() if not values)
    main = mean_metric("accuracy", [value for values in found.values() for value in values])
    return Report("stsp", model, main, parts, {"data": str(data), "seed": seed}, notes, tuple(lines))


def _mood(text: str, judge: TextJudge) -> str | None:
    return judge(text) if text.strip() else None


def _heard(output: Sequence[Text | Speech], judge: SpeechJudge) -> str | None:
    sounds = [item.array for item in output if isinstance(item, Speech)]
    samples = np.concatenate(sounds) if sounds else np.zeros(0, np.float32)
    return judge(samples) if len(samples) >= spiritrt.audio.RATE_HZ * 0.08 else None
