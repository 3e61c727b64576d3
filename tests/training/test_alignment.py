"""Forced alignment: the best path against all paths, and nano's encoder on a recording; curation of a folder."""

import itertools
import json
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from spiritrt.evaluation.speech_sets import Spoken
from spiritrt.training.corpora.alignment import (
    Aligner,
    Alignment,
    State,
    best_path,
    find_forced_align,
    path_of_torchaudio,
    states_of,
)
from spiritrt.training.corpora.curation import Filters, count_unpaired, curate, main, read_source, reason_to_drop
from spiritrt.training.corpora.manifest import Word, manifest_line, read_manifest
from spiritrt.training.corpora.pronounce import find_lexicons

needs_lexicon = pytest.mark.skipif(
    find_lexicons() is None, reason="no pronouncing lexicon: pip install --no-deps misaki==0.9.4"
)
REPOSITORY = Path(__file__).parents[2]
ASKED = "What color is a strawberry?"
QUESTION = REPOSITORY / "runtime" / "duplex" / "recordings" / "question.flac"
SILENT = (True, False, False, True, False, True)  # a state is a silence


def every_path(frames: int, silent: tuple[bool, ...]) -> list[tuple[int, ...]]:
    """Paths that stay, move on, leave out one state, or leave out two of which one is a silence."""
    found = []
    for path in itertools.combinations_with_replacement(range(len(silent)), frames):
        gaps = [range(a + 1, b) for a, b in itertools.pairwise((-1, *path, len(silent)))]
        if all(len(gap) < 2 or (len(gap) == 2 and any(silent[i] for i in gap)) for gap in gaps):
            found.append(path)
    return found


@pytest.mark.parametrize(("seed", "cost"), [(0, 4.0), (1, 0.5), (2, 0.5), (3, 0.0), (4, 1.0), (5, 30.0)])
def test_the_best_path_is_the_best_of_all(seed: int, cost: float):
    log_probs = np.log(np.random.default_rng(seed).dirichlet(np.full(4, 0.5), size=5) + 1e-4)
    states = [State(column, -1 if s else 0) for column, s in zip((0, 1, 2, 0, 3, 0), SILENT, strict=True)]

    def worth(path: tuple[int, ...]) -> float:
        left_out = sum(not SILENT[i] for i in range(len(SILENT)) if i not in path)
        return sum(log_probs[t, states[s].column] for t, s in enumerate(path)) - cost * left_out

    best = best_path(log_probs, states, cost)
    assert worth(tuple(best)) == pytest.approx(max(map(worth, every_path(5, SILENT))))


def test_too_few_frames():
    states = [State(0, -1), *(State(1, word) for word in range(9)), State(0, -1)]
    with pytest.raises(ValueError, match="too few"):
        best_path(np.zeros((2, 2)), states)


# two words of two phones, the second of one and the first of the other alike; column 2 is silence
TWO_WORDS = [State(2, -1), State(0, 0), State(1, 0), State(2, -1), State(1, 1), State(3, 1), State(2, -1)]


@pytest.mark.parametrize(
    ("labels", "path"),
    [
        ("__0011_13_", "0011223456"),
        ("0_1_13", "112345"),  # silence within the first word counts to the phone before it
        ("01_1_3", "123445"),  # and within the second
        ("01__1333", "12334555"),
    ],
)
def test_labels_of_torchaudio_become_states(labels: str, path: str):
    log_probs = np.log(np.full((len(labels), 4), 0.25))

    def forced_align(given: torch.Tensor, targets: torch.Tensor, blank: int) -> tuple[torch.Tensor, torch.Tensor]:
        assert given.shape == (1, len(labels), 4) and given.dtype == torch.float32
        assert targets.tolist() == [[0, 1, 1, 3]] and blank == 2
        return torch.tensor([[int(label.replace("_", "2")) for label in labels]]), given[..., 0]

    assert path_of_torchaudio(forced_align, log_probs, TWO_WORDS, blank=2) == [int(state) for state in path]
    with pytest.raises(ValueError, match="4 frames are too few for 4 phones, which need 5"):
        path_of_torchaudio(forced_align, log_probs[:4], TWO_WORDS, blank=2)


class Broken(types.ModuleType):
    """torchaudio where the libraries that it was built for are missing."""

    def __getattr__(self, name: str) -> object:
        raise OSError("libcudart.so.13: cannot open shared object file")


@pytest.mark.parametrize(("module", "reason"), [(None, "halted"), (Broken("torchaudio.functional"), "libcudart")])
def test_torchaudio_is_taken_where_it_can_be(
    monkeypatch: pytest.MonkeyPatch, module: types.ModuleType | None, reason: str
):
    monkeypatch.setitem(sys.modules, "torchaudio.functional", module)
    assert find_forced_align("auto") is None and find_forced_align("own") is None
    with pytest.raises(ValueError, match=f"{reason}.*take auto or own"):
        find_forced_align("torchaudio")
    with pytest.raises(ValueError, match="one of auto, own, torchaudio, got 'kaldi'"):
        find_forced_align("kaldi")


@needs_lexicon
def test_torchaudio_finds_the_words_where_our_own_does():
    if find_forced_align("auto") is None:
        pytest.skip("torchaudio does not import here")
    samples, _ = soundfile.read(QUESTION, dtype="float32")
    own, other = (Aligner.load("nano", aligner=name).align(samples, ASKED) for name in ("own", "torchaudio"))
    assert other.score == pytest.approx(own.score, abs=0.1)
    for a, b in zip(own.words, other.words, strict=True):
        assert a.word == b.word and abs(a.start_s - b.start_s) < 0.09 and abs(a.end_s - b.end_s) < 0.09


@needs_lexicon
def test_states_of_a_text():
    states, words = states_of("Go, dog!", ["SIL", "O", "d", "ɡ", "ɔ"])
    assert words == ["Go", "dog"]
    assert [s.symbol for s in states[1:4]] == ["ɡ", "ˌO", " "]
    assert [(s.column, s.word) for s in states] == [
        (0, -1), (3, 0), (1, 0), (0, -1), (2, 1), (4, 1), (3, 1), (0, -1),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="no words"):
        states_of("!", ["SIL"])
    with pytest.raises(ValueError, match="inventory"):
        states_of("Go", ["SIL", "n"])


@pytest.fixture(scope="module")
def aligner() -> Aligner:
    return Aligner.load("nano", aligner="own")


@needs_lexicon
def test_nano_finds_the_words_of_a_recording(aligner: Aligner):
    samples, _ = soundfile.read(QUESTION, dtype="float32")
    text = ASKED
    right, wrong = aligner.align(samples, text), aligner.align(samples, "Please turn off every kitchen light.")
    assert right.score > -1.5 > wrong.score
    starts = [word.start_s for word in right.words]
    assert starts == sorted(starts) and right.words[-1].end_s <= len(samples) / 16000
    assert "".join(symbol for symbol, _, _ in right.phones).split(" ")[2] == "ɪz"
    ends = [time for _, start, end in right.phones for time in (start, end)]
    assert ends == sorted(ends)
    loud = np.flatnonzero(np.abs(samples) > 0.1 * np.abs(samples).max()) / 16000
    assert abs(right.words[0].start_s - loud[0]) < 0.12 and abs(right.words[-1].end_s - loud[-1]) < 0.2


def test_an_aligner_needs_phone_pure_units(tmp_path: Path, official: Path):
    with pytest.raises(ValueError, match="phone-pure"):
        Aligner.load(str(official / "spiritlm_model" / "spirit-lm-base-7b"))
    with pytest.raises(ValueError, match="SIL"):
        Aligner(None, None, ["a", "b"])


def words(*spans: tuple[float, float]) -> tuple[Word, ...]:
    return tuple(Word("word", start, end) for start, end in spans)


@pytest.mark.parametrize(
    ("alignment", "duration_s", "reason", "why"),
    [
        (Alignment(words((0, 0.3)), -0.5), 0.2, "length", "0.2 s, not 0.4 to 30 s"),
        (Alignment(words((0, 0.3)), -0.5), 40.0, "length", "40.0 s"),
        (Alignment(words((0, 0.3)), -2.5), 1.0, "score", "-2.50, not -1.5 or more"),
        (Alignment(words((0, 0.3), (0.3, 0.3)), -0.5), 1.0, "lost word", "no sound for 'word'"),
        (Alignment(words((0, 2.3), (2.3, 2.6)), -0.5), 3.0, "word length", "'word' 2.30 s, not 0.04 to 1.6 s"),
    ],
)
def test_reasons_to_drop(alignment: Alignment, duration_s: float, reason: str, why: str):
    dropped = reason_to_drop(alignment, duration_s, Filters())
    assert dropped is not None and dropped[0] == reason and why in dropped[1]


def test_what_fits_is_kept():
    assert reason_to_drop(Alignment(words((0, 0.3), (0.3, 0.6)), -0.5), 1.0, Filters()) is None


class Refusing:
    """An aligner for recordings that are never aligned."""

    def align(self, samples: np.ndarray, text: str) -> Alignment:
        raise AssertionError(f"aligned {len(samples) / 16000:g} s of {text!r}")


@pytest.mark.parametrize(
    ("seconds", "text", "reason", "why"),
    [
        (31.0, ASKED, "length", "31.0 s, not 0.4 to 30 s"),
        (0.2, ASKED, "length", "0.2 s"),
        (2.0, "We met in 1990.", "text", "written word '1990.', timed word none left"),
        (2.0, "We have 10 cats.", "text", "written word '10', timed word 'cats'"),
        (2.0, "Salt & pepper", "text", "written word '&', timed word 'pepper'"),
        (2.0, "...", "text", "no words"),
    ],
)
def test_what_is_too_long_or_unwritable_is_not_aligned(
    tmp_path: Path, seconds: float, text: str, reason: str, why: str
):
    soundfile.write(tmp_path / "a.flac", np.zeros(round(seconds * 16000)), 16000)
    kept, (line,) = curate([Spoken("a", tmp_path / "a.flac", text, "ann")], Refusing(), Filters(), tmp_path)
    assert not kept and line["dropped"] == reason and why in line["why"]


@needs_lexicon
def test_a_folder_becomes_a_corpus(tmp_path: Path, aligner: Aligner):
    samples, _ = soundfile.read(QUESTION, dtype="float32")
    text = ASKED
    for name, said, sound in (
        ("ann/good", text, samples), ("ann/wrong", "Please turn off every kitchen light.", samples),
        ("bob/odd", "zzqx zzqx", samples), ("bob/silent", text, 0 * samples),
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        soundfile.write(tmp_path / f"{name}.wav", sound, 16000)
        (tmp_path / f"{name}.txt").write_text(said)
    source = read_source(tmp_path)
    assert [(item.id, item.speaker) for item in source][:2] == [("ann-good", "ann"), ("ann-wrong", "ann")]
    kept, lines = curate(source, aligner, Filters(), tmp_path)
    assert {line["id"]: line["dropped"] for line in lines} == {
        "ann-good": None, "ann-wrong": "score", "bob-odd": "unusable", "bob-silent": "score",
    }  # fmt: skip
    (tmp_path / "manifest.jsonl").write_text("".join(map(manifest_line, kept)))
    (read,) = read_manifest(tmp_path)
    assert read.file == "ann/good.wav" and read.text == text and len(read.words) == len(text.split())
    assert all((line["dropped"] is None) == (line["why"] is None) for line in lines)


def test_a_source_without_recordings_is_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="nothing does not exist"):
        read_source(tmp_path / "nothing")
    (tmp_path / "a.wav").touch()
    with pytest.raises(FileNotFoundError, match=r"NAME\.txt"):
        read_source(tmp_path)


@pytest.mark.parametrize("layout", ["pairs", "librispeech"])
def test_what_has_no_partner_is_counted(tmp_path: Path, layout: str):
    (tmp_path / "ann").mkdir()
    for name in ("a.wav", "b.flac", "c.wav", "notes.md"):
        (tmp_path / "ann" / name).touch()
    if layout == "pairs":
        for name in ("a", "lone", "other"):
            (tmp_path / "ann" / f"{name}.txt").write_text("one")
    else:
        (tmp_path / "ann" / "ann.trans.txt").write_text("a ONE\n")
    assert count_unpaired(tmp_path, read_source(tmp_path)) == {
        "without text": 2,
        "without recording": 2 if layout == "pairs" else 0,
    }


@needs_lexicon
def test_the_command_reports_what_was_left_out(
    tmp_path: Path, aligner: Aligner, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "ann").mkdir()
    for name in ("good", "silent"):
        shutil.copy(QUESTION, tmp_path / "ann" / f"{name}.flac")
    (tmp_path / "ann" / "good.txt").write_text(ASKED)
    monkeypatch.setattr(Aligner, "load", lambda *given: aligner)
    monkeypatch.setattr(sys, "argv", ["curation", "--source", str(tmp_path), "--out", str(tmp_path / "corpus")])
    main()
    report = json.loads((tmp_path / "corpus" / "curation.json").read_text())
    assert report["unpaired"] == {"without text": 1, "without recording": 0}
    said = json.loads(capsys.readouterr().out)
    assert said["kept"] == 1 and said["unpaired"] == report["unpaired"]
