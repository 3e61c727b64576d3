"""A corpus is checked line by line, and described."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from spiritrt.training.corpora.manifest import manifest_line, match_words, read_corpora, read_manifest
from spiritrt.training.corpora.validation import Limits, plot, read_lines, statistics, validate


def line(**changes: object) -> dict[str, object]:
    words = [{"word": "Good", "start_s": 0.1, "end_s": 0.4}, {"word": "day", "start_s": 0.4, "end_s": 0.9}]
    return {"id": "a", "audio": "a.wav", "text": "Good day.", "speaker": "ann", "words": words} | changes


def corpus(folder: Path, *lines: dict[str, object], samples: np.ndarray | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    sound = 0.3 * np.sin(np.arange(16000) * 0.1) if samples is None else samples
    soundfile.write(folder / "a.wav", sound, 16000, subtype="FLOAT")
    (folder / "manifest.jsonl").write_text("".join(json.dumps(item) + "\n" for item in lines))
    return folder


def kinds(folder: Path, **settings: bool) -> set[tuple[str, str]]:
    return {(problem.severity, problem.kind) for problem in validate(folder, Limits(), **settings)[1]}


def test_a_good_corpus_has_no_problems_and_its_defaults(tmp_path: Path):
    folder = corpus(
        tmp_path, line(), line(id="b", style="lively", split="test", offset_s=0.2, duration_s=0.8, words=[])
    )
    assert kinds(folder) == {("warning", "words")}
    first, second = read_manifest(folder)
    assert (first.style, first.role, first.split, first.dialogue, first.duration_s) == (
        "neutral", "single", "train", None, 1.0,
    )  # fmt: skip
    assert (second.style, second.offset_s, second.duration_s) == ("lively", 0.2, 0.8)
    (folder / "manifest.jsonl").write_text(manifest_line(first) + manifest_line(second))
    assert read_manifest(folder) == [first, second]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"words": [{"word": "Good", "start_s": 0.4, "end_s": 0.1}]}, ("error", "order")),
        (
            {"words": [{"word": "Good", "start_s": 0.4, "end_s": 0.6}, {"word": "day", "start_s": 0.1, "end_s": 0.3}]},
            ("error", "order"),
        ),
        ({"words": [{"word": "Good", "start_s": 0.4, "end_s": 1.6}]}, ("error", "outside")),
        ({"words": [{"word": "Good", "start_s": 0.4, "end_s": 0.41}]}, ("warning", "word length")),
        ({"text": "Good night."}, ("error", "words")),
        ({"text": "Good 2 day."}, ("error", "words")),
        ({"text": "Good day, 2."}, ("error", "words")),
        ({"text": "Good"}, ("error", "words")),
        ({"text": " "}, ("error", "text")),
        ({"duration_s": 3.0}, ("error", "outside")),
        ({"audio": "b.wav", "duration_s": 1.0}, ("error", "file")),
        ({"audio": "b.wav"}, ("error", "line")),
        ({"split": "dev"}, ("error", "line")),
        ({"words": "none"}, ("error", "line")),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, change: dict[str, object], problem: tuple[str, str]):
    assert problem in kinds(corpus(tmp_path, line(**change)))


@pytest.mark.parametrize(
    ("text", "timed", "matched"),
    [
        ("Good day.", "good day", "Good=good|day.=day"),
        ("Twenty-one cats", "twenty one cats", "Twenty-one=twenty one|cats=cats"),
        ("- No,-ice is—so - ", "No ice is so", "- No,-ice=No ice|is—so -=is so"),
        ("No, ice is here -", "No ice is here", "No,=No|ice=ice|is=is|here -=here"),
        ("Don’t stop", "don t - stop", "Don’t=don t -|stop=stop"),
        ("10 cafés", "10 cafés", "10=10|cafés=cafés"),
    ],
)
def test_written_words_are_matched_with_the_timed_ones(text: str, timed: str, matched: str):
    words = timed.split()
    found = match_words(text, words, "a")
    assert "|".join(f"{written}={' '.join(words[first:last])}" for written, first, last in found) == matched
    assert " ".join(written for written, _, _ in found) == " ".join(text.split())


@pytest.mark.parametrize(
    ("text", "timed", "message"),
    [
        ("I am 10 now", "I am ten now", "a: written word '10', timed word 'ten'"),
        ("Tom & Ann", "Tom and Ann", "a: written word '&', timed word 'and'"),
        ("Twenty-two", "twenty one", "a: written word 'Twenty-two', timed word 'twenty one'"),
        ("We met in 1990", "We met in", "a: written word '1990', timed word none left"),
        ("We met", "We met in", "a: no written word for the timed word 'in'"),
        ("-", "", "a: no words"),
    ],
)
def test_text_and_times_that_differ_are_named(text: str, timed: str, message: str):
    with pytest.raises(ValueError, match=message):
        match_words(text, timed.split(), "a")


@pytest.mark.parametrize(
    ("samples", "problem"),
    [
        (np.clip(3 * np.sin(np.arange(16000) * 0.1), -1, 1), ("warning", "clipped")),
        (np.zeros(16000), ("warning", "quiet")),
        (np.r_[0.3 * np.sin(np.arange(4000) * 0.1), np.zeros(12000)], ("warning", "silence")),
        (np.full(16000, np.nan), ("error", "sound")),
    ],
)
def test_sound_is_looked_at(tmp_path: Path, samples: np.ndarray, problem: tuple[str, str]):
    folder = corpus(tmp_path, line(), samples=samples)
    assert problem in kinds(folder) and problem not in kinds(folder, sound=False)


def test_an_id_twice_and_an_empty_manifest(tmp_path: Path):
    _, problems = read_lines(corpus(tmp_path / "twice", line(), line()))
    assert [(problem.kind, problem.where) for problem in problems] == [("id", "a")]
    _, problems = read_lines(corpus(tmp_path / "empty"))
    assert problems[0].severity == "error"
    with pytest.raises(ValueError, match="ids must differ"):
        read_corpora([corpus(tmp_path / "one", line()), corpus(tmp_path / "two", line())])


def test_statistics_and_plot(tmp_path: Path):
    pytest.importorskip("matplotlib")
    folder = corpus(tmp_path, line(), line(id="b", speaker="bob", text="Good good day."))
    utterances = read_manifest(folder)
    report = statistics(utterances)
    assert report["utterances"] == 2 and report["words"] == 5 and report["word forms"] == 2
    assert report["by speaker"]["bob"]["hours"] == pytest.approx(1 / 3600, abs=1e-4)
    assert report["words_a_second"] == pytest.approx(2 / 0.8)
    plot(utterances, tmp_path / "plots" / "report.png")
    assert (tmp_path / "plots" / "report.png").read_bytes()[:4] == b"\x89PNG"


def test_the_command_ends_with_status_1_where_there_are_errors(tmp_path: Path):
    folder = corpus(tmp_path, line(), line(id="b", duration_s=9.0))
    command = [sys.executable, "-m", "spiritrt.training.corpora.validation", "--corpus", str(folder)]
    done = subprocess.run([*command, "--json", str(tmp_path / "r.json")], capture_output=True, text=True)
    assert done.returncode == 1 and "b: ends at 9.00 s" in done.stderr
    assert json.loads(done.stdout)["problems"]["error: outside"] == 1
    assert len(json.loads((tmp_path / "r.json").read_text())["problems"]) == 1
