"""Few-shot tasks on a model that says nothing sensible: forms, shots, counting and errors."""

from pathlib import Path

import numpy as np
import pytest
from stand_ins import Judge, tone

import spiritrt
from spiritrt import GREEDY, Speech, SpiritLM
from spiritrt.evaluation.context import fitting
from spiritrt.evaluation.fewshot import (
    STOP_WORD,
    asr,
    default_shots,
    draw_shots,
    intent,
    split_pool,
    tts,
    tts_sampling,
)
from spiritrt.evaluation.speech_sets import Spoken


@pytest.fixture
def words_heard(monkeypatch) -> list[list[str]]:
    """`transcribe` says "good" and notes the words of the shots it was given."""
    given: list[list[str]] = []

    def transcribe(self, source, shots=(), sampling=None, max_new_tokens=0):
        assert source.tokens.startswith("[Hu")
        given.append([words for _, words in shots])
        return "good"

    monkeypatch.setattr(SpiritLM, "transcribe", transcribe)
    return given


def test_asr_counts_word_errors_over_all_words(base_lm, librispeech: Path, words_heard):
    pytest.importorskip("jiwer")
    report = asr(base_lm, "m", librispeech, None, 0, seed=0, speakers=True)
    # 1 + 2 and 1 + 2 + 3 words, of which one each is right
    assert report.main.name == "wer" and report.main.value == pytest.approx(4 / 9) and report.main.count == 5
    assert report.parts["84"].value == pytest.approx(3 / 6) and report.parts["1272"].value == pytest.approx(1 / 3)
    assert words_heard == [[]] * 5 and report.settings["held_out"] == 0


def test_shots_of_asr_are_not_asked_about(base_lm, librispeech: Path, words_heard):
    pytest.importorskip("jiwer")
    report = asr(base_lm, "m", librispeech, None, 2, seed=0)
    assert report.main.count == 3 and report.settings["shots"] == report.settings["held_out"] == 2
    assert [len(shots) for shots in words_heard] == [2, 2, 2]
    left = sorted(len(line["text"].split()) for line in report.lines)
    assert sorted(left + [len(words.split()) for words in words_heard[0]]) == [1, 1, 2, 2, 3]


def spoken(count: int, speakers: int) -> list[Spoken]:
    return [Spoken(f"{n % speakers}-{n}", Path(f"{n}.wav"), "word " * (n + 1), str(n % speakers)) for n in range(count)]


def by_speaker(item: Spoken) -> str:
    return item.speaker


@pytest.mark.parametrize(
    ("recordings", "shots", "held_out"),
    [(400, 10, 40), (97, 10, 24), (40, 30, 30), (5, 4, 4), (40, 0, 0)],
)
def test_the_seed_holds_out_what_shots_are_drawn_from(recordings: int, shots: int, held_out: int):
    utterances = spoken(recordings, speakers=4)
    asked, pool = split_pool(utterances, None, shots, 3, by_speaker)
    assert len(pool) == held_out and not set(asked) & set(pool) and set(asked) | set(pool) == set(utterances)
    assert (asked, pool) == split_pool(utterances, None, shots, 3, by_speaker)
    limited, same = split_pool(utterances, 1, shots, 3, by_speaker)
    assert same == pool and len(limited) == 1 and limited[0] in asked
    if pool:
        each = [sum(item.speaker == str(speaker) for item in pool) for speaker in range(4)]
        assert max(each) - min(each) <= 1
    if recordings > 40:
        assert set(pool) != set(split_pool(utterances, None, shots, 4, by_speaker)[1])


def test_a_set_needs_more_recordings_than_shots():
    with pytest.raises(ValueError, match="lower --shots"):
        split_pool(spoken(5, 2), None, 5, 0, by_speaker)


def test_shots_are_of_other_speakers_where_they_have_enough():
    pool = spoken(12, speakers=3)
    asked = Spoken("0-99", Path("99.wav"), "word", "0")
    shots = draw_shots(pool, asked, 4, seed=0)
    assert shots == draw_shots(pool, asked, 4, seed=0)
    assert any(shots != draw_shots(pool, asked, 4, seed=seed) for seed in range(1, 5))
    # of the eight by others the shorter four
    assert {shot.id for shot in shots} == {"1-1", "2-2", "1-4", "2-5"}
    assert {shot.speaker for shot in draw_shots(pool, asked, 9, seed=0)} == {"0", "1", "2"}


def test_default_shots(base_lm):
    assert default_shots(base_lm, None, 10) == 10 and default_shots(base_lm, 0, 10) == 0
    with pytest.raises(ValueError, match="shots"):
        default_shots(base_lm, -1, 10)


def test_tts_is_heard_by_the_judge(base_lm, librispeech: Path, tmp_path: Path, monkeypatch):
    pytest.importorskip("jiwer")
    asked, encoded, encode = [], [], SpiritLM.encode

    def speak(self, text, shots=(), sampling=None, max_new_tokens=0, speaker=None, style=None):
        asked.append((text, [example.tokens for _, example in shots], sampling, max_new_tokens))
        return Speech(np.zeros(0 if text == "GOOD" else 8000, np.float32))

    def noted(self, source, rate=None, channel=None):
        encoded.append(len(source))
        return encode(self, source, rate, channel)

    monkeypatch.setattr(SpiritLM, "speak", speak)
    monkeypatch.setattr(SpiritLM, "encode", noted)
    judge = Judge(["Good good, stop."])
    stop = tone(tmp_path / "stop.wav", seconds=0.3)
    with pytest.raises(ValueError, match="--shots N"):
        tts(base_lm, "m", librispeech, None, 0, 0, judge, stop)
    report = tts(base_lm, "m", librispeech, None, 1, 0, judge, stop, save_to=tmp_path / "made")
    # one of the five is held out; "GOOD" brings forth nothing, and of the others "good good" is heard
    wrong = {"GOOD": 1, "GOOD GOOD": 0, "GOOD GOOD GOOD": 1}
    texts = [text for text, *_ in asked]
    words = sum(len(text.split()) for text in texts)
    assert len(texts) == 4 and report.main.value == pytest.approx(sum(map(wrong.get, texts)) / words)
    assert report.notes[0].startswith(f"{texts.count('GOOD')} texts brought forth no speech")
    # the shot is encoded once, with a pause and the stop word behind it
    assert encoded == [round(16000 * (0.4 + 0.2 + 0.3))] and len({tokens[0] for _, tokens, *_ in asked}) == 1
    assert [(s.temperature, s.top_p, s.seed, limit) for _, _, s, limit in asked] == [
        (0.8, 0.95, number, 300) for number in range(4)
    ]
    assert report.settings["temperature"] == 0.8 and report.settings["max_new_tokens"] == 300
    assert report.settings["stop_word"] == str(stop)
    spoken_ids = [line["id"] for line in report.lines if line["text"] != "GOOD"]
    assert all(spiritrt.audio.load(tmp_path / "made" / f"{name}.wav").shape == (8000,) for name in spoken_ids)
    # without a recording the shipped one
    encoded.clear()
    report = tts(base_lm, "m", librispeech, None, 1, 0, judge)
    assert encoded == [round(16000 * (0.4 + 0.2)) + len(spiritrt.audio.load(STOP_WORD))]
    assert report.settings["stop_word"] == "stop.flac (shipped)"
    assert "stop_word" not in tts(base_lm, "m", librispeech, None, 0, 0, judge).settings


def test_the_shipped_stop_word_is_short_and_loud():
    samples = spiritrt.audio.load(STOP_WORD)
    assert 0.4 < len(samples) / 16000 < 1 and np.abs(samples).max() > 0.5 and STOP_WORD.stat().st_size < 16_000


def test_nano_speaks_greedily(base_lm, monkeypatch):
    assert (tts_sampling(base_lm, 5).temperature, tts_sampling(base_lm, 5).seed) == (0.8, 5)
    monkeypatch.setattr(type(base_lm.family.checkpoint), "reply", "chain", raising=False)
    assert tts_sampling(base_lm, 5) == GREEDY


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
    # one of each label is held out
    assert report.main.value == 0.5 and report.main.count == 4 and report.parts["music"].value == 1.0
    assert report.settings["chance"] == 0.5
    assert prompts[0].count("[Text]A:") == 3 and prompts[0].endswith("[Text]A:")
    assert "[Text]A:lights" in prompts[0] and "[Text]A:music" in prompts[0]
    with pytest.raises(ValueError, match="only 6 recordings"):
        intent(base_lm, "m", tmp_path, None, None, seed=0)


def test_shots_give_way_to_the_context(stuck_lm, tmp_path: Path):
    for label in ("turn on the lights in the kitchen", "play some music in the garden"):
        for number in range(3):
            tone(tmp_path / label / f"x{number}-0.wav", 100 + 50 * number, 0.5)
    report = intent(stuck_lm, "m", tmp_path, 1, 4, seed=0)
    assert report.notes and report.notes[0].startswith("1 of 1 prompts lack up to ") and "of 4 shots" in report.notes[0]


def test_asr_and_tts_leave_out_shots_rather_than_end(stuck_lm, librispeech: Path, tmp_path: Path, monkeypatch):
    """A context of 64 tokens has no room for a shot and 100 or 300 new tokens."""
    pytest.importorskip("jiwer")
    report = asr(stuck_lm, "m", librispeech, None, 3, seed=0)
    assert report.main.count == 2 and report.notes == ("2 of 2 prompts lack up to 3 of 3 shots: the context was full",)
    stop = tone(tmp_path / "stop.wav", seconds=0.3)
    report = tts(stuck_lm, "m", librispeech, None, 3, 0, Judge(["good stop"]), stop)
    assert report.notes[-1] == "2 of 2 prompts lack up to 3 of 3 shots: the context was full"


def test_a_prompt_takes_what_shots_fit(stuck_lm):
    def prompt(kept: int) -> str:
        return "[Hu1]" * (19 + 20 * kept)  # with the two tokens that open a prompt 21, 41, 61

    assert len(stuck_lm.family.tokenizer.encode(prompt(0))) == 21
    assert [fitting(stuck_lm, prompt, 9, room, "x") for room in (3, 4, 23, 24, 99)] == [2, 1, 1, 0, 0]
    with pytest.raises(ValueError, match="this one alone is longer than the context of 64"):
        fitting(stuck_lm, lambda kept: prompt(3), 2, 1, "this one")
