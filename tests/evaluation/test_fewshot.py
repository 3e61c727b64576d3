"""Few-shot tasks on a model that says nothing sensible: forms, shots, counting and errors."""

from pathlib import Path

import numpy as np
import pytest
from stand_ins import Judge, tone

import spiritrt
from spiritrt import Speech, SpiritLM
from spiritrt.evaluation.fewshot import asr, default_shots, draw_shots, intent, split_pool, tts
from spiritrt.evaluation.speech_sets import read_librispeech


@pytest.fixture
def words_heard(monkeypatch) -> list[list[str]]:
    """`transcribe` says "good" and notes the words of the shots it was given."""
    given: list[list[str]] = []

    def transcribe(self, source, shots=(), sampling=None, max_new_tokens=100):
        assert source.tokens.startswith("[Hu")
        given.append([words for _, words in shots])
        return "good"

    monkeypatch.setattr(SpiritLM, "transcribe", transcribe)
    return given


def test_asr_counts_word_errors_over_all_words(base_lm, librispeech: Path, words_heard):
    pytest.importorskip("jiwer")
    report = asr(base_lm, "m", librispeech, None, 1, seed=0, speakers=True)
    # 1 + 2 and 1 + 2 + 3 words, of which one each is right
    assert report.main.name == "wer" and report.main.value == pytest.approx(4 / 9) and report.main.count == 5
    assert report.parts["84"].value == pytest.approx(3 / 6) and report.parts["1272"].value == pytest.approx(1 / 3)
    assert all(len(shots) == 1 for shots in words_heard) and report.settings["shots"] == 1


def test_shots_are_of_other_speakers_and_seeded(librispeech: Path):
    utterances = read_librispeech(librispeech)
    asked, pool = split_pool(utterances, 2, seed=3)
    assert len(asked) == 2 and len(pool) == 3 and not set(asked) & set(pool)
    assert split_pool(utterances, None, seed=3) == (utterances, utterances)
    shots = draw_shots(utterances, utterances[0], 2, seed=0)
    assert shots == draw_shots(utterances, utterances[0], 2, seed=0)
    assert {shot.speaker for shot in shots} == {"84"}
    with pytest.raises(ValueError, match="lower --shots"):
        draw_shots(utterances, utterances[0], 9, seed=0)


def test_default_shots(base_lm):
    assert default_shots(base_lm, None, 10) == 10 and default_shots(base_lm, 0, 10) == 0
    with pytest.raises(ValueError, match="shots"):
        default_shots(base_lm, -1, 10)


def test_tts_is_heard_by_the_judge(base_lm, librispeech: Path, tmp_path: Path, monkeypatch):
    pytest.importorskip("jiwer")
    asked = []

    def speak(self, text, shots=(), sampling=None, max_new_tokens=300, speaker=None, style=None):
        asked.append((text, [(words, len(example.array)) for words, example in shots]))
        return Speech(np.zeros(0 if text == "GOOD" else 8000, np.float32))

    monkeypatch.setattr(SpiritLM, "speak", speak)
    judge = Judge(["Good good, stop."])
    with pytest.raises(ValueError, match="--stop-word"):
        tts(base_lm, "m", librispeech, None, 1, 0, judge)
    stop = tone(tmp_path / "stop.wav", seconds=0.3)
    report = tts(base_lm, "m", librispeech, None, 1, 0, judge, stop, save_to=tmp_path / "made")
    # two of the five brought forth nothing: 1 + 1 errors; "good good" for three words: 1 error
    assert report.main.value == pytest.approx(3 / 9) and "2 texts" in report.notes[0]
    assert asked[0][1] and asked[0][1][0][1] == round(16000 * (0.4 + 0.2 + 0.3))
    assert spiritrt.audio.load(tmp_path / "made" / "84-7-0002.wav").shape == (8000,)


def test_intent_takes_the_likeliest_label(base_lm, tmp_path: Path, monkeypatch):
    for label in ("lights", "music"):
        for number in range(3):
            tone(tmp_path / label / f"x{number}-0.wav", 100 + 50 * number, 0.2)
    prompts = []

    def logprobs(self, prompt, continuation):
        prompts.append(prompt)
        return spiritrt.LogProbs(-len(continuation), -1.0, [])

    monkeypatch.setattr(SpiritLM, "logprobs", logprobs)
    report = intent(base_lm, "m", tmp_path, None, 2, seed=0)
    assert report.main.value == 0.5 and report.parts["music"].value == 1.0 and report.settings["chance"] == 0.5
    assert prompts[0].count("[Text]A:") == 3 and prompts[0].endswith("[Text]A:")
    assert "[Text]A:lights" in prompts[0] and "[Text]A:music" in prompts[0]
    with pytest.raises(ValueError, match="only 5 other"):
        intent(base_lm, "m", tmp_path, None, None, seed=0)


def test_shots_give_way_to_the_context(stuck_lm, tmp_path: Path):
    for label in ("turn on the lights in the kitchen", "play some music in the garden"):
        for number in range(3):
            tone(tmp_path / label / f"x{number}-0.wav", 100 + 50 * number, 0.5)
    report = intent(stuck_lm, "m", tmp_path, 1, 4, seed=0)
    assert report.notes and "of 4 shots fit" in report.notes[0]
