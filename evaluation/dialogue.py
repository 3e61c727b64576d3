"""Dialogue: the share of spoken questions that are answered right in speech, as the judge hears the answer.

A folder with `questions.jsonl`, lines of id, audio, text, answer and kind. Kinds that nano's grammar can check go by
what makes a reply right (`set_texts.right_answer`); for other kinds the reply must have the words of `answer`, whole
and in a row.
"""

from pathlib import Path

import numpy as np

import spiritrt
from spiritrt import GREEDY, Sampling, Speech, SpiritLM, Stop
from spiritrt.evaluation.likelihood import Scorer
from spiritrt.evaluation.recognition import ErrorRates, Recognizer
from spiritrt.evaluation.report import Metric, Report, mean_metric, progress
from spiritrt.evaluation.set_texts import right_answer
from spiritrt.evaluation.speech_sets import choose, read_questions
from spiritrt.tokens.vocabulary import SPEECH_MARKER, TEXT_MARKER, parse_speech

REPLY_FLAG = " A: "


def reply(lm: SpiritLM, question: Speech, sampling: Sampling, max_new_tokens: int) -> tuple[str, str, Speech]:
    """What the model understood, its reply in words, and the reply in speech; texts are empty where it makes none.

    A model that replies by a chain (nano) writes down what it heard and its answer before it speaks; without `A:`
    between them all that it wrote is what it understood. Another goes on in speech.
    """
    if lm.family.checkpoint.reply != "chain":
        output = lm.generate([question], "speech", sampling, max_new_tokens, Stop(silence_s=1.0))
        return "", "", next((item for item in output if isinstance(item, Speech)), _silence())
    prompt = lm.prompt_string([question], output="text")
    raw = lm.generate(prompt, "arbitrary", sampling, max_new_tokens, suppress_tokens=lm.family.transcript_ids).raw
    written, _, spoken = raw.partition(SPEECH_MARKER)
    heard, _, answer = written.removeprefix(TEXT_MARKER).partition(REPLY_FLAG)
    units = spoken.partition(TEXT_MARKER)[0]
    return heard.strip(), answer.strip(), lm.decode(parse_speech(units)) if units else _silence()


def _silence() -> Speech:
    return Speech(np.zeros(0, np.float32))


def dialogue(
    lm: SpiritLM,
    model: str,
    data: Path,
    limit: int | None,
    seed: int,
    recognizer: Recognizer,
    max_new_tokens: int = 400,
    save_to: Path | None = None,
) -> Report:
    """Accuracy of the spoken answers (the main figure), of their text, by kind, and how the questions were heard."""
    asked = choose(read_questions(data), limit, seed)
    scorer, understood = Scorer(lm), ErrorRates()
    spoken_right: list[float] = []
    text_right: list[float] = []
    lines: list[dict[str, object]] = []
    for item in progress(asked, "dialogue"):
        heard, answer, speech = reply(lm, scorer.speech(item.audio), GREEDY, max_new_tokens)
        said = recognizer(speech.array) if len(speech.array) else ""
        spoken_right.append(float(right_answer(item.kind, item.text, item.answer, said)))
        if lm.family.checkpoint.reply == "chain":
            text_right.append(float(bool(answer) and right_answer(item.kind, item.text, item.answer, answer)))
            understood.add(item.text, heard)
        if save_to is not None and len(speech.array):
            spiritrt.audio.save(save_to / f"{item.id.replace('/', '-')}.wav", speech.array)
        lines.append(
            {
                "id": item.id, "kind": item.kind, "question": item.text, "answer": item.answer, "understood": heard,
                "text": answer, "said": said, "right": bool(spoken_right[-1]),
            }
        )  # fmt: skip
    parts: dict[str, Metric] = {"speech": mean_metric("accuracy", spoken_right)}
    if text_right:
        parts["text"] = mean_metric("accuracy", text_right)
    if understood.words:
        parts["questions as understood"] = understood.wer()
    for kind in sorted({item.kind for item in asked if item.kind}):
        own = [right for right, item in zip(spoken_right, asked, strict=True) if item.kind == kind]
        parts[f"speech, {kind}"] = mean_metric("accuracy", own)
    settings: dict[str, str | int | float | bool] = {"data": str(data), "seed": seed, "max_new_tokens": max_new_tokens}
    return Report("dialogue", model, parts["speech"], parts, settings, (), tuple(lines))
