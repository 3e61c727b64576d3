"""STSP, sentiment preservation: does what the model goes on with have the mood of what it was given (paper, section 5)?

A folder with `records*.jsonl` as Spirit LM's public code has them, or one such file, `wav_path` relative to the folder:

    {"id": 1, "wav_path": "emov/sam/Amused/x.wav", "emotion": "amused", "split": "test", "asr": "..."}

The words (`text`, `transcription` or `asr`) are needed where the prompt is text; the public EmoV-DB records have none.
The judges of mood are folders of transformers' classifiers where they are given. Else text is judged by counting words,
and speech by its prosody: by the nearest of the moods' means over the records of split `train`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
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
ASKED = ("test", "dev")
WORDS = ("text", "transcription", "asr")
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


def read_records(data: Path) -> list[Record]:
    """Records of a file, or of every `records*.jsonl` in a folder, where their emotion is one of the three moods.

    Files overlap (the public demo records are among the test records): a recording is read once, with its words from
    whichever line has them, and in split `test` where any line says so. Raises FileNotFoundError where there are none,
    ValueError for a bad line or an id with two recordings.
    """
    folder = data.parent if data.is_file() else data
    files = [data] if data.is_file() else sorted(folder.glob("records*.jsonl"))
    if not files:
        raise FileNotFoundError(f"no records*.jsonl in {folder}")
    records: dict[str, Record] = {}
    for path in files:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                record = _record(json.loads(line), folder)
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path}, line {number}: {type(error).__name__}: {error}") from error
            known = records.get(record.id, record)
            if known.audio != record.audio:
                raise ValueError(f"{path}, line {number}: id {record.id} is {known.audio} in another line")
            split = "test" if "test" in (known.split, record.split) else known.split
            records[record.id] = replace(known, split=split, text=known.text or record.text)
    found = [record for record in records.values() if record.mood]
    if not any(record.split in ASKED for record in found):
        raise ValueError(f"no record of {data} has split 'test' or 'dev' and a known emotion ({', '.join(MOOD_OF)})")
    return found


def _record(entry: dict[str, str], folder: Path) -> Record:
    """One line; the mood is empty where the emotion is none of the three."""
    mood = MOOD_OF.get(str(entry.get("sentiment") or entry["emotion"]).lower(), "")
    words = next((entry[field] for field in WORDS if entry.get(field)), None)
    return Record(str(entry["id"]), folder / entry["wav_path"], mood, entry.get("split", "test"), words)


def asked_about(records: Sequence[Record]) -> list[Record]:
    """Records of split `test`, or of `dev` where there is no `test`."""
    split = next(split for split in ASKED if any(record.split == split for record in records))
    return [record for record in records if record.split == split]


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


def stsp_sampling(lm: SpiritLM, seed: int) -> Sampling:
    """0.9 and top-p 0.95, as in Spirit LM's public code of STSP; 0.8 for a model that replies by a chain (nano).

    The figures of models/nano/README.md were measured with the latter.
    """
    return Sampling(0.8 if lm.family.checkpoint.reply == "chain" else 0.9, 0.95, seed=seed)


def stsp(
    lm: SpiritLM,
    model: str,
    data: Path,
    limit: int | None,
    seed: int,
    judge_text: TextJudge = text_mood,
    judge_speech: SpeechJudge | None = None,
    max_new_tokens: int | None = None,
) -> Report:
    """Share of continuations with the mood of the prompt, in four directions; the main figure is their mean.

    Speech outputs under 80 ms and empty texts count as wrong. Sampling is that of `stsp_sampling`, by the seed, and 200
    new tokens as in the public code (nano: 120). `speech inputs` and `text inputs` say how often the judges find the
    mood of the prompts themselves. Raises ImportError where the pitch tracker is needed and not installed, before
    anything is judged.
    """
    if judge_speech is None or lm.family.expressive:
        _ = lm.family.pitch_tracker
    if max_new_tokens is None:
        max_new_tokens = 120 if lm.family.checkpoint.reply == "chain" else 200
    records = read_records(data)
    asked = choose(asked_about(records), limit, seed)
    if judge_speech is None:
        judge_speech = ProsodyJudge(_examples(records, data), lm.family.pitch_tracker)
    scorer = Scorer(lm)
    found: dict[str, list[float]] = {direction: [] for direction in DIRECTIONS}
    inputs: dict[str, list[float]] = {"speech inputs": [], "text inputs": []}
    lines: list[dict[str, object]] = []
    for number, record in enumerate(progress(asked, "stsp")):
        inputs["speech inputs"].append(float(judge_speech(spiritrt.audio.load(record.audio)) == record.mood))
        if record.text is not None:
            inputs["text inputs"].append(float(judge_text(record.text) == record.mood))
        sampling = stsp_sampling(lm, seed + number)
        for direction, (before, after) in DIRECTIONS.items():
            if before == "text" and record.text is None:
                continue
            item = Text(record.text or "") if before == "text" else scorer.speech(record.audio)
            output = lm.generate([item], "text" if after == "text" else "speech", sampling, max_new_tokens)
            mood = _mood(output.text, judge_text) if after == "text" else _heard(output, judge_speech)
            found[direction].append(float(mood == record.mood))
            lines.append({"id": record.id, "direction": direction, "mood": record.mood, "made": mood})
    parts: dict[str, Metric] = {
        name: mean_metric("accuracy", values) for name, values in {**found, **inputs}.items() if values
    }
    main = mean_metric("accuracy", [value for values in found.values() for value in values])
    settings: dict[str, str | int | float | bool] = {
        "data": str(data), "seed": seed, "temperature": stsp_sampling(lm, seed).temperature, "top_p": 0.95,
        "max_new_tokens": max_new_tokens, "directions": " ".join(name for name, values in found.items() if values),
    }  # fmt: skip
    return Report("stsp", model, main, parts, settings, _missing_words(asked, found), tuple(lines))


def _missing_words(asked: Sequence[Record], found: Mapping[str, Sequence[float]]) -> tuple[str, ...]:
    """A note where records without words leave out directions or thin them."""
    without = sum(record.text is None for record in asked)
    if not without:
        return ()
    kept = [name for name, values in found.items() if values]
    if len(kept) < len(DIRECTIONS):
        covers = (
            f"the mean is of {' and '.join(kept)} alone, {len(kept)} of 4 directions: compare it with no mean of four"
        )
    else:
        covers = "T->T and T->S cover fewer records than the others and weigh less in the mean"
    return (f"{covers} ({without} of {len(asked)} records have none of {', '.join(WORDS)})",)


def _examples(records: Sequence[Record], data: Path) -> list[tuple[NDArray[np.float32], str]]:
    """Recordings of split `train` with their moods, from the files beside where `data` is a file without any."""
    train = [record for record in records if record.split == "train"]
    if not train and data.is_file():
        train = [record for record in read_records(data.parent) if record.split == "train"]
    return [(spiritrt.audio.load(record.audio), record.mood) for record in train]


def _mood(text: str, judge: TextJudge) -> str | None:
    return judge(text) if text.strip() else None


def _heard(output: Sequence[Text | Speech], judge: SpeechJudge) -> str | None:
    sounds = [item.array for item in output if isinstance(item, Speech)]
    samples = np.concatenate(sounds) if sounds else np.zeros(0, np.float32)
    return judge(samples) if len(samples) >= spiritrt.audio.RATE_HZ * 0.08 else None
