"""Few-shot speech recognition, speech synthesis and classification, in the paper's prompt forms (spec, section 7).

Shots are drawn by the seed from the utterances that are not asked about, the shorter half of them, from other speakers
where there are any. A model that was trained on the forms (nano) needs none.
"""

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import spiritrt
from spiritrt import GREEDY, Sampling, Speech, SpiritLM, Text
from spiritrt.evaluation.likelihood import Scorer
from spiritrt.evaluation.recognition import ErrorRates, Recognizer
from spiritrt.evaluation.report import Metric, Report, mean_metric, progress
from spiritrt.evaluation.speech_sets import Spoken, choose, read_labelled, read_librispeech
from spiritrt.generate import LABEL_FLAG

PAUSE_S = 0.2


def default_shots(lm: SpiritLM, wanted: int | None, paper: int) -> int:
    """Shots asked for; else the paper's number, or none for a model that knows the forms."""
    if wanted is not None:
        if wanted < 0:
            raise ValueError(f"shots must be 0 or more, got {wanted}")
        return wanted
    return 0 if lm.family.checkpoint.reply == "chain" else paper


def draw_shots(pool: Sequence[Spoken], asked: Spoken, count: int, seed: int) -> list[Spoken]:
    """`count` examples for one utterance, a function of (seed, its id). Raises ValueError where there are too few."""
    if not count:
        return []
    others = [item for item in pool if item.speaker != asked.speaker] or [i for i in pool if i.id != asked.id]
    shorter = sorted(others, key=lambda item: (len(item.text), item.id))[: max(count, len(others) // 2)]
    if len(shorter) < count:
        raise ValueError(
            f"{count} shots were asked for and there are only {len(shorter)} other utterances; lower --shots"
        )
    return random.Random(f"{seed}/{asked.id}").sample(shorter, count)


def split_pool(utterances: Sequence[Spoken], limit: int | None, seed: int) -> tuple[list[Spoken], list[Spoken]]:
    """What is asked about, and what shots are drawn from: all the rest, or everything where nothing is left."""
    asked = choose(utterances, limit, seed)
    names = {item.id for item in asked}
    return asked, [item for item in utterances if item.id not in names] or list(utterances)


def by_speaker(rows: Sequence[tuple[str, str, str]]) -> dict[str, Metric]:
    """Word error rate by speaker of (speaker, reference, guess) rows, where there is more than one speaker."""
    groups: dict[str, ErrorRates] = {}
    for speaker, reference, guess in rows:
        groups.setdefault(speaker, ErrorRates()).add(reference, guess)
    return {name: errors.wer() for name, errors in sorted(groups.items())} if len(groups) > 1 else {}


def asr(
    lm: SpiritLM, model: str, data: Path, limit: int | None, shots: int | None, seed: int, speakers: bool = False
) -> Report:
    """Word error rate of `transcribe`, greedy; 10 shots by default."""
    count = default_shots(lm, shots, 10)
    asked, pool = split_pool(read_librispeech(data), limit, seed)
    scorer, errors = Scorer(lm), ErrorRates()
    lines: list[dict[str, object]] = []
    rows = []
    for item in progress(asked, "asr"):
        examples = [(scorer.speech(shot.audio), shot.text) for shot in draw_shots(pool, item, count, seed)]
        heard = lm.transcribe(scorer.speech(item.audio), examples, GREEDY)
        wer = errors.add(item.text, heard)
        rows.append((item.speaker, item.text, heard))
        lines.append({"id": item.id, "text": item.text, "heard": heard, "wer": round(wer, 4)})
    parts = {"words": errors.wer(), "characters": errors.cer()} | (by_speaker(rows) if speakers else {})
    return Report(
        "asr", model, errors.wer(), parts, {"data": str(data), "shots": count, "seed": seed}, (), tuple(lines)
    )


def tts(
    lm: SpiritLM,
    model: str,
    data: Path,
    limit: int | None,
    shots: int | None,
    seed: int,
    recognizer: Recognizer,
    stop_word: Path | None = None,
    save_to: Path | None = None,
) -> Report:
    """Word and character error rate of `speak`, heard by the judge; 10 shots by default, which end in "stop".

    `stop_word` is a recording of the spoken word "stop". Sampling as the paper's examples (0.6, top-p 0.9) by the seed.
    Raises ValueError where shots are wanted without it.
    """
    count = default_shots(lm, shots, 10)
    if count and stop_word is None:
        raise ValueError("shots of tts end in the spoken word: give --stop-word FILE, a recording of it, or --shots 0")
    asked, pool = split_pool(read_librispeech(data), limit, seed)
    stop = None if stop_word is None else spiritrt.audio.load(stop_word)
    errors = ErrorRates()
    lines: list[dict[str, object]] = []
    silent = 0
    for number, item in enumerate(progress(asked, "tts")):
        examples = [(shot.text, _ending(shot.audio, stop)) for shot in draw_shots(pool, item, count, seed)]
        made = lm.speak(item.text, examples, Sampling(0.6, 0.9, seed=seed + number))
        heard = recognizer(made.array) if len(made.array) else ""
        silent += not len(made.array)
        if count:  # the spoken end flag is not part of the words
            heard = heard.rstrip(" .!?'\"").removesuffix("stop").removesuffix("Stop")
        wer = errors.add(item.text, heard)
        lines.append({"id": item.id, "text": item.text, "heard": heard, "wer": round(wer, 4)})
        if save_to is not None:
            spiritrt.audio.save(save_to / f"{item.id.replace('/', '-')}.wav", made.array)
    parts = {"words": errors.wer(), "characters": errors.cer()}
    notes = (f"{silent} texts brought forth no speech and count as wholly wrong",) if silent else ()
    settings: dict[str, str | int | float | bool] = {"data": str(data), "shots": count, "seed": seed}
    return Report("tts", model, errors.wer(), parts, settings, notes, tuple(lines))


def _ending(path: Path, stop: np.ndarray | None) -> Speech:
    assert stop is not None
    sound = spiritrt.audio.load(path)
    gap = np.zeros(round(PAUSE_S * spiritrt.audio.RATE_HZ), np.float32)
    return Speech(np.concatenate([sound, gap, stop]))


def intent(lm: SpiritLM, model: str, data: Path, limit: int | None, shots: int | None, seed: int) -> Report:
    """Accuracy of the likeliest label (sum over the label's tokens) after `[Speech]units[Text]A:`; 30 shots by default.

    Shots are spread evenly over the labels.
    """
    count = default_shots(lm, shots, 30)
    utterances = read_labelled(data)
    labels = sorted({item.text for item in utterances})
    asked, pool = split_pool(utterances, limit, seed)
    scorer = Scorer(lm)
    right: list[float] = []
    lines: list[dict[str, object]] = []
    kept_least = count
    for item in progress(asked, "intent"):
        examples = _even_shots(pool, item, labels, count, seed)
        strings, kept = _label_prompt(scorer, examples, item, labels)
        kept_least = min(kept_least, kept)
        scores = [lm.logprobs(strings, label).sum for label in labels]
        guess = labels[max(range(len(labels)), key=lambda i: scores[i])]
        right.append(float(guess == item.text))
        lines.append({"id": item.id, "label": item.text, "guess": guess})
    main = mean_metric("accuracy", right)
    parts = {
        label: mean_metric("accuracy", [r for r, i in zip(right, asked, strict=True) if i.text == label])
        for label in sorted({item.text for item in asked})
    }
    settings: dict[str, str | int | float | bool] = {
        "data": str(data), "shots": count, "seed": seed, "labels": len(labels), "chance": round(1 / len(labels), 4),
    }  # fmt: skip
    notes = (f"only {kept_least} of {count} shots fit into the context at times",) if kept_least < count else ()
    return Report("intent", model, main, parts, settings, notes, tuple(lines))


def _even_shots(pool: Sequence[Spoken], asked: Spoken, labels: Sequence[str], count: int, seed: int) -> list[Spoken]:
    rng = random.Random(f"{seed}/{asked.id}")
    groups = [[item for item in pool if item.text == label and item.id != asked.id] for label in labels]
    for group in groups:
        rng.shuffle(group)
    drawn: list[Spoken] = []
    while len(drawn) < count and any(groups):
        drawn += [group.pop() for group in groups if group]
    if len(drawn) < count:
        raise ValueError(
            f"{count} shots were asked for and there are only {len(drawn)} other recordings; lower --shots"
        )
    drawn = drawn[:count]
    rng.shuffle(drawn)
    return drawn


def _label_prompt(scorer: Scorer, examples: list[Spoken], item: Spoken, labels: Sequence[str]) -> tuple[str, int]:
    """The prompt string up to the flag, with as many of the shots (from the last on) as fit, and how many those are."""
    lm = scorer.lm
    context = lm.family.lm_config.max_position_embeddings
    longest = max(labels, key=len)
    for kept in range(len(examples), -1, -1):
        items: list[Text | Speech] = []
        for shot in examples[len(examples) - kept :]:
            items += [scorer.speech(shot.audio), Text(LABEL_FLAG + shot.text)]
        items.append(scorer.speech(item.audio))
        string = lm.prompt_string(items, output="text") + LABEL_FLAG
        if len(lm.family.tokenizer.encode(string + longest)) + len(longest) < context:
            return string, kept
    raise ValueError(f"{item.audio} alone is longer than the context of {context} tokens")
