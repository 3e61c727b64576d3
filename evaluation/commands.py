"""`spiritrt eval NAME`: runs an evaluation, prints its table, and writes all of it as JSON."""

import sys
import tempfile
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

import spiritrt
from spiritrt.evaluation.report import Report
from spiritrt.options import Device, Model

SETS = Path(__file__).parent / "sets"
# where each evaluation's own small set lies below SETS
OWN_SETS = {
    "wuggy": "lexical/dev", "blimp": "syntactic/dev", "storycloze": "stories", "salmon": "moods", "mmlu": "mmlu",
    "asr": "utterances", "tts": "utterances", "intent": "intent", "stsp": "moods", "resynthesis": "utterances",
    "dialogue": "questions",
}  # fmt: skip
# options that only some evaluations take
TAKEN_BY = {
    "--shots": ("mmlu", "asr", "tts", "intent"), "--stop-word": ("tts",), "--speakers": ("asr", "resynthesis"),
    "--text-classifier": ("stsp",), "--speech-classifier": ("stsp",), "--save-to": ("tts", "resynthesis", "dialogue"),
}  # fmt: skip
SALMON_SAMPLES = 40


class Evaluation(StrEnum):
    """What to evaluate."""

    WUGGY = "wuggy"
    BLIMP = "blimp"
    STORYCLOZE = "storycloze"
    SALMON = "salmon"
    MMLU = "mmlu"
    ASR = "asr"
    TTS = "tts"
    INTENT = "intent"
    STSP = "stsp"
    RESYNTHESIS = "resynthesis"
    DIALOGUE = "dialogue"


def evaluate(
    name: Annotated[Evaluation, typer.Argument(help="What to evaluate.")],
    model: Model = "nano",
    data: Annotated[
        Path | None, typer.Option(help="Data in its public layout (by default a small set made here).")
    ] = None,
    output: Annotated[Path | None, typer.Option("--json", help="File for the result.")] = None,
    limit: Annotated[int | None, typer.Option(help="Most items (of each part or subject).", min=1)] = None,
    shots: Annotated[
        int | None, typer.Option(help="Examples in the prompt (by default the paper's number; none for nano).", min=0)
    ] = None,
    seed: Annotated[int, typer.Option(help="Draws items, shots and samples.")] = 0,
    stop_word: Annotated[
        Path | None, typer.Option(help='tts with shots: a recording of the word "stop" (by default the shipped one).')
    ] = None,
    speakers: Annotated[bool, typer.Option("--speakers", help="asr, resynthesis: figures by speaker too.")] = False,
    text_classifier: Annotated[Path | None, typer.Option(help="stsp: folder of a transformers classifier.")] = None,
    speech_classifier: Annotated[Path | None, typer.Option(help="stsp: folder of a transformers classifier.")] = None,
    save_to: Annotated[Path | None, typer.Option(help="Folder for what was made to be heard, as WAV.")] = None,
    device: Device = "cpu",
    dtype: Annotated[str, typer.Option(help="Of the language model: auto, float32, bfloat16, float16.")] = "auto",
) -> None:
    """Evaluate a model on a public data set in its own layout, or on a small set made here.

    Standard output carries the table; --json FILE keeps the figures, their counts and spreads, and every item. The
    judge of speech (tts, resynthesis, dialogue) is the extra "eval"; where it is missing the error says how to get it.

    Example: spiritrt eval asr --model spirit-lm-base-7b --data LibriSpeech/test-clean --limit 200 --json asr.json
    """
    report = run(
        name.value, model, data, limit, shots, seed, stop_word, speakers, text_classifier, speech_classifier, save_to,
        device, dtype,
    )  # fmt: skip
    if output is not None:
        report.write(output)
    on = "the shipped small set" if data is None else str(data)
    replace(report, on=on).show(Console(file=sys.stdout))


def run(
    name: str,
    model: str = "nano",
    data: Path | None = None,
    limit: int | None = None,
    shots: int | None = None,
    seed: int = 0,
    stop_word: Path | None = None,
    speakers: bool = False,
    text_classifier: Path | None = None,
    speech_classifier: Path | None = None,
    save_to: Path | None = None,
    device: str = "cpu",
    dtype: str = "auto",
) -> Report:
    """Run one evaluation by name; see `evaluate`.

    Raises ValueError, FileNotFoundError or ImportError, each with its remedy.
    """
    given = {
        "--shots": shots is not None, "--stop-word": stop_word is not None, "--speakers": speakers,
        "--text-classifier": text_classifier is not None, "--speech-classifier": speech_classifier is not None,
        "--save-to": save_to is not None,
    }  # fmt: skip
    for option, takers in TAKEN_BY.items():
        if given[option] and name not in takers:
            raise ValueError(f"{option} means nothing to {name}: it belongs to {', '.join(takers)}")
    # the judge first: a missing package should be said before a model is loaded
    if name in ("tts", "resynthesis", "dialogue"):
        from spiritrt.evaluation.recognition import Recognizer

        recognizer = Recognizer(torch.get_num_threads())
    folder = SETS / OWN_SETS[name] if data is None else data
    if not folder.exists():
        remedy = "give --data" if data is None else "--data takes a folder or file that is there"
        raise FileNotFoundError(f"no data at {folder}: {remedy}")
    lm = spiritrt.load(model, device, dtype, lazy=name in ("resynthesis", "stsp"))
    if name in ("wuggy", "blimp", "salmon"):
        from spiritrt.evaluation.likelihood import Scorer
        from spiritrt.evaluation.pairs import minimal_pairs, salmon

        if name != "salmon":
            return minimal_pairs(name, Scorer(lm), model, folder, limit, seed)
        if data is not None:
            return salmon(Scorer(lm), model, folder, limit, seed=seed)
        from spiritrt.evaluation.salmon_sets import make_salmon

        with tempfile.TemporaryDirectory() as made:
            make_salmon(folder, Path(made), limit or SALMON_SAMPLES, seed)
            return salmon(Scorer(lm), model, Path(made), limit, seed=seed)
    if name in ("storycloze", "mmlu"):
        from spiritrt.evaluation.knowledge import mmlu
        from spiritrt.evaluation.likelihood import Scorer
        from spiritrt.evaluation.stories import storycloze

        if name == "storycloze":
            return storycloze(Scorer(lm), model, folder, limit, seed=seed)
        return mmlu(Scorer(lm), model, folder, limit, 5 if shots is None else shots, seed)
    if name == "stsp":
        from spiritrt.evaluation.sentiment import speech_judge, stsp, text_judge
        from spiritrt.evaluation.set_texts import text_mood

        judge_text = text_judge(text_classifier) if text_classifier else text_mood
        judge_speech = speech_judge(speech_classifier) if speech_classifier else None
        return stsp(lm, model, folder, limit, seed, judge_text, judge_speech)
    from spiritrt.evaluation import fewshot

    if name == "asr":
        return fewshot.asr(lm, model, folder, limit, shots, seed, speakers)
    if name == "intent":
        return fewshot.intent(lm, model, folder, limit, shots, seed)
    if name == "tts":
        return fewshot.tts(lm, model, folder, limit, shots, seed, recognizer, stop_word, save_to)
    if name == "resynthesis":
        from spiritrt.evaluation.resynthesis import resynthesis

        return resynthesis(lm, model, folder, limit, seed, recognizer, save_to, speakers)
    from spiritrt.evaluation.dialogue import dialogue

    return dialogue(lm, model, folder, limit, seed, recognizer, save_to=save_to)
