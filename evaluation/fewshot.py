"""Few-shot speech recognition, speech synthesis and classification, in the paper's prompt forms (spec, section 7).

Shots come from utterances that the seed holds out and that are never asked about: the shorter half of those by other
speakers, or of all where other speakers have too few. A model that was trained on the forms (nano) needs none.
"""

import random
from collections.abc import Callable, Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path

import numpy as np

import spiritrt
from spiritrt import GREEDY, Sampling, Speech, SpiritLM, Text
from spiritrt.evaluation.context import fitting, left_out_note
from spiritrt.evaluation.likelihood import Scorer
from spiritrt.evaluation.recognition import ErrorRates, Recognizer
from spiritrt.evaluation.report import Metric, Report, mean_metric, progress
from spiritrt.evaluation.speech_sets import Spoken, choose, read_labelled, read_librispeech
from spiritrt.generate import ASR_CLOSE, ASR_OPEN, LABEL_FLAG, TTS_FLAG
from spiritrt.tokens.units import merge
from spiritrt.tokens.vocabulary import format_speech

PAUSE_S = 0.2
STOP_WORD = Path(__file__).parent / "sets" / "stop.flac"  # by Kokoro's af_heart
ASR_TOKENS, TTS_TOKENS = 100, 300  # most new tokens


def default_shots(lm: SpiritLM, wanted: int | None, paper: int) -> int:
    """Shots asked for; else the paper's number, or none for a model that knows the forms."""
    if wanted is not None:
        if wanted < 0:
            raise ValueError(f"shots must be 0 or more, got {wanted}")
        return wanted
    return 0 if lm.family.checkpoint.reply == "chain" else paper


def draw_shots(pool: Sequence[Spoken], asked: Spoken, count: int, seed: int) -> list[Spoken]:
    """`count` examples for one utterance, a function of (seed, its id), of a pool of at least as many."""
    others = [item for item in pool if item.speaker != asked.speaker]
    others = others if len(others) >= count else list(pool)
    shorter = sorted(others, key=lambda item: (len(item.text), item.id))[: max(count, len(others) // 2)]
    return random.Random(f"{seed}/{asked.id}").sample(shorter, count)


def split_pool(
    utterances: Sequence[Spoken], limit: int | None, count: int, seed: int, spread: Callable[[Spoken], str]
) -> tuple[list[Spoken], list[Spoken]]:
    """What is asked about, and what `count` shots a prompt are drawn from; the two share nothing.

    The seed holds out a quarter of all, but at least `count` and at most four times as many, evenly over the groups of
    `spread`; the limit does not change which. Nothing is held out for no shots. Raises ValueError where nothing is left
    to ask about.
    """
    if not count:
        return choose(utterances, limit, seed), []
    if count >= len(utterances):
        raise ValueError(f"{count} shots were asked for and there are only {len(utterances)} recordings; lower --shots")
    groups: dict[str, list[Spoken]] = {}
    for item in random.Random(f"{seed}/shots").sample(utterances, len(utterances)):
        groups.setdefault(spread(item), []).append(item)
    rounds = [item for members in zip_longest(*groups.values()) for item in members if item is not None]
    pool = rounds[: max(count, min(4 * count, len(utterances) // 4))]
    held_out = {item.id for item in pool}
    return choose([item for item in utterances if item.id not in held_out], limit, seed), pool


def _speaker(item: Spoken) -> str:
    return item.speaker


def _label(item: Spoken) -> str:
    return item.text


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
    asked, pool = split_pool(read_librispeech(data), limit, count, seed, _speaker)
    scorer, errors = Scorer(lm), ErrorRates()
    lines: list[dict[str, object]] = []
    rows = []
    left_out: list[int] = []
    for item in progress(asked, "asr"):
        speech = scorer.speech(item.audio)
        examples = [(scorer.speech(shot.audio), shot.text) for shot in draw_shots(pool, item, count, seed)]
        kept = fitting(lm, partial(_asr_prompt, lm, examples, speech), count, ASR_TOKENS, str(item.audio))
        left_out.append(count - kept)
        heard = lm.transcribe(speech, examples[count - kept :], GREEDY, max_new_tokens=ASR_TOKENS)
        wer = errors.add(item.text, heard)
        rows.append((item.speaker, item.text, heard))
        lines.append({"id": item.id, "text": item.text, "heard": heard, "wer": round(wer, 4)})
    parts = {"words": errors.wer(), "characters": errors.cer()} | (by_speaker(rows) if speakers else {})
    settings: dict[str, str | int | float | bool] = {
        "data": str(data), "shots": count, "held_out": len(pool), "seed": seed, "max_new_tokens": ASR_TOKENS
    }  # fmt: skip
    return Report("asr", model, errors.wer(), parts, settings, left_out_note(left_out, count), tuple(lines))


def _asr_prompt(lm: SpiritLM, examples: Sequence[tuple[Speech, str]], speech: Speech, kept: int) -> str:
    """What `transcribe` goes on from with the last `kept` examples."""
    items: list[Text | Speech] = []
    for example, words in examples[len(examples) - kept :]:
        items += [example, Text(f"{ASR_OPEN}{words}{ASR_CLOSE}")]
    return lm.prompt_string([*items, speech, Text(ASR_OPEN)], output="text")


def tts_sampling(lm: SpiritLM, seed: int) -> Sampling:
    """0.8 and top-p 0.95, as in the published examples; greedy for a model that knows the forms (nano).

    Nano says a word in one way, and so greedy says it best: 55% of the words wrong where 0.6 and 0.9 had 62 (40 lines).
    """
    return GREEDY if lm.family.checkpoint.reply == "chain" else Sampling(0.8, 0.95, seed=seed)


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

    `stop_word` is a recording of the spoken word "stop" (by default `STOP_WORD`). Sampling is that of `tts_sampling`,
    by the seed. Raises ValueError where a stop word is given and no shots.
    """
    count = default_shots(lm, shots, 10)
    if stop_word is not None and not count:
        raise ValueError("--stop-word ends the shots of tts, and there are none: give --shots N as well")
    asked, pool = split_pool(read_librispeech(data), limit, count, seed, _speaker)
    stop_word = stop_word or STOP_WORD
    stop = spiritrt.audio.load(stop_word)
    errors = ErrorRates()
    lines: list[dict[str, object]] = []
    ending: dict[str, Speech] = {}
    left_out: list[int] = []
    silent = 0
    for number, item in enumerate(progress(asked, "tts")):
        drawn = draw_shots(pool, item, count, seed)
        for shot in drawn:
            if shot.id not in ending:
                ending[shot.id] = _ending(lm, shot.audio, stop)
        examples = [(shot.text, ending[shot.id]) for shot in drawn]
        kept = fitting(lm, partial(_tts_prompt, lm, examples, item.text), count, TTS_TOKENS, f"the text of {item.id}")
        left_out.append(count - kept)
        made = lm.speak(item.text, examples[count - kept :], tts_sampling(lm, seed + number), max_new_tokens=TTS_TOKENS)
        heard = recognizer(made.array) if len(made.array) else ""
        silent += not len(made.array)
        if kept:  # the spoken end flag is not part of the words
            heard = heard.rstrip(" .!?'\"").removesuffix("stop").removesuffix("Stop")
        wer = errors.add(item.text, heard)
        lines.append({"id": item.id, "text": item.text, "heard": heard, "wer": round(wer, 4)})
        if save_to is not None:
            spiritrt.audio.save(save_to / f"{item.id.replace('/', '-')}.wav", made.array)
    parts = {"words": errors.wer(), "characters": errors.cer()}
    notes: tuple[str, ...] = (f"{silent} texts brought forth no speech and count as wholly wrong",) if silent else ()
    sampling = tts_sampling(lm, seed)
    settings: dict[str, str | int | float | bool] = {
        "data": str(data), "shots": count, "held_out": len(pool), "seed": seed,
        "temperature": sampling.temperature, "top_p": sampling.top_p, "max_new_tokens": TTS_TOKENS,
    }  # fmt: skip
    if count:
        settings["stop_word"] = "stop.flac (shipped)" if stop_word == STOP_WORD else str(stop_word)
    notes += left_out_note(left_out, count)
    return Report("tts", model, errors.wer(), parts, settings, notes, tuple(lines))


def _tts_prompt(lm: SpiritLM, examples: Sequence[tuple[str, Speech]], text: str, kept: int) -> str:
    """What `speak` goes on from with the last `kept` examples."""
    flag = TTS_FLAG if kept else ""
    items: list[Text | Speech] = []
    for words, example in examples[len(examples) - kept :]:
        items += [Text(words + flag), example]
    return lm.prompt_string([*items, Text(text + flag)], output="speech")


def _ending(lm: SpiritLM, path: Path, stop: np.ndarray) -> Speech:
    """The tokens of a recording that ends in the stop word."""
    gap = np.zeros(round(PAUSE_S * spiritrt.audio.RATE_HZ), np.float32)
    whole = np.concatenate([spiritrt.audio.load(path), gap, stop])
    return Speech(tokens=format_speech(merge(lm.encode(whole, spiritrt.audio.RATE_HZ))))


def intent(lm: SpiritLM, model: str, data: Path, limit: int | None, shots: int | None, seed: int) -> Report:
    """Accuracy of the likeliest label (sum over the label's tokens) after `[Speech]units[Text]A:`; 30 shots by default.

    Shots are spread evenly over the labels.
    """
    count = default_shots(lm, shots, 30)
    utterances = read_labelled(data)
    labels = sorted({item.text for item in utterances})
    room = 1 + max(len(label.encode()) for label in labels)  # a token has a byte at least
    asked, pool = split_pool(utterances, limit, count, seed, _label)
    scorer = Scorer(lm)
    right: list[float] = []
    lines: list[dict[str, object]] = []
    left_out: list[int] = []
    for item in progress(asked, "intent"):
        examples = _even_shots(pool, item, labels, count, seed)
        string = partial(_label_prompt, scorer, examples, item)
        kept = fitting(lm, string, count, room, str(item.audio))
        left_out.append(count - kept)
        scores = [lm.logprobs(string(kept), label).sum for label in labels]
        guess = labels[max(range(len(labels)), key=lambda i: scores[i])]
        right.append(float(guess == item.text))
        lines.append({"id": item.id, "label": item.text, "guess": guess})
    main = mean_metric("accuracy", right)
    parts = {
        label: mean_metric("accuracy", [r for r, i in zip(right, asked, strict=True) if i.text == label])
        for label in sorted({item.text for item in asked})
    }
    settings: dict[str, str | int | float | bool] = {
        "data": str(data), "shots": count, "held_out": len(pool), "seed": seed, "labels": len(labels),
        "chance": round(1 / len(labels), 4),
    }  # fmt: skip
    return Report("intent", model, main, parts, settings, left_out_note(left_out, count), tuple(lines))


def _even_shots(pool: Sequence[Spoken], asked: Spoken, labels: Sequence[str], count: int, seed: int) -> list[Spoken]:
    rng = random.Random(f"{seed}/{asked.id}")
    groups = [[item for item in pool if item.text == label] for label in labels]
    for group in groups:
        rng.shuffle(group)
    drawn: list[Spoken] = []
    while len(drawn) < count and any(groups):
        drawn += [group.pop() for group in groups if group]
    drawn = drawn[:count]
    rng.shuffle(drawn)
    return drawn


def _label_prompt(scorer: Scorer, examples: Sequence[Spoken], item: Spoken, kept: int) -> str:
    """The prompt up to the flag before the label, with the last `kept` examples."""
    items: list[Text | Speech] = []
    for shot in examples[len(examples) - kept :]:
        items += [scorer.speech(shot.audio), Text(LABEL_FLAG + shot.text)]
    return scorer.lm.prompt_string([*items, scorer.speech(item.audio)], output="text") + LABEL_FLAG
