"""Resynthesis of both forms, heard by a stand-in for the judge."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from stand_ins import Judge, needs_fcpe, tone

from spiritrt.evaluation import resynthesis as resynthesis_module
from spiritrt.evaluation.resynthesis import f0_frame_errors, mos_predictor, resynthesis
from spiritrt.models.family import Family
from spiritrt.models.pitch import PitchTrack


def test_f0_frame_error_counts_voicing_and_gross_errors():
    tracks = iter(
        [
            PitchTrack(torch.tensor([100.0, 100, 100, 100, 0]), torch.tensor([1.0, 1, 1, 0, 0])),
            PitchTrack(torch.tensor([110.0, 121, 100, 100, 0]), torch.tensor([1.0, 1, 0, 1, 0])),
        ]
    )
    heard = []

    def tracker(waveform):
        heard.append(len(waveform))
        return next(tracks)

    assert f0_frame_errors(np.zeros(400, np.float32), np.zeros(500, np.float32), tracker) == (3, 5)
    assert heard == [400, 400]


@needs_fcpe
def test_expressive_reports_style_and_pitch(expressive_lm, tmp_path: Path):
    pytest.importorskip("jiwer")
    chapter = tmp_path / "84" / "7"
    for number in range(2):
        tone(chapter / f"84-7-{number}.flac", 120 + 60 * number, 1.1)
    (chapter / "84-7.trans.txt").write_text("84-7-0 GOOD DAY\n84-7-1 GOOD DAY\n")
    judge = Judge(["good day", "good", "bad", "good day", "good day", "good day"])
    report = resynthesis(expressive_lm, "m", tmp_path, None, 0, judge, save_to=tmp_path / "made")
    assert report.parts["recording"].value == 0 and report.main.value == 0.25
    assert report.parts["durations"].value == 0.5 and report.parts["frames less recording"].value == 0.25
    assert 0 <= report.parts["f0"].value <= 1 and 0 <= report.parts["style"].value <= 1
    assert report.parts["style"].name == "style_accuracy" and report.parts["f0"].name == "f0_frame_error"
    assert len(list((tmp_path / "made").glob("*.wav"))) == 6
    assert len(judge.heard[1]) == pytest.approx(1.1 * 16000, abs=640)


@needs_fcpe
def test_the_difference_is_spread_as_pairs_are(base_lm, librispeech: Path):
    """Two recordings of five are misheard, and so is their resynthesis; of one, the resynthesis alone."""
    pytest.importorskip("jiwer")
    for table in librispeech.rglob("*.trans.txt"):
        names = [line.split()[0] for line in table.read_text().splitlines()]
        table.write_text("".join(f"{name} GOOD\n" for name in names))
    heard = [("bad", "bad", "bad")] * 2 + [("good", "good", "good")] * 2 + [("good", "bad", "bad")]
    report = resynthesis(base_lm, "m", librispeech, None, 0, Judge([text for item in heard for text in item]))
    assert report.main.value == 0.6 and report.parts["recording"].value == pytest.approx(0.4)
    more = report.parts["frames less recording"]
    assert more.name == "wer_difference" and more.value == pytest.approx(0.2) and more.count == 5
    # one item of five differs: sqrt(0.2 * 0.8 / 5), by bootstrap
    assert more.spread == pytest.approx((0.2 * 0.8 / 5) ** 0.5, rel=0.1) and more.spread < report.main.spread


def test_a_missing_pitch_tracker_is_said_before_anything_is_judged(base_lm, librispeech: Path, monkeypatch):
    def missing(self):
        raise ImportError("FcpeTracker needs torchfcpe")

    monkeypatch.setattr(Family, "pitch_tracker", property(missing))
    judge = Judge(["good"])
    with pytest.raises(ImportError, match="torchfcpe"):
        resynthesis(base_lm, "m", librispeech, 1, 0, judge)
    assert not judge.heard


@needs_fcpe
def test_base_has_no_style(base_lm, librispeech: Path):
    pytest.importorskip("jiwer")
    report = resynthesis(base_lm, "m", librispeech, 1, 0, Judge(["good good"]))
    assert "style" not in report.parts and report.main.count == 1


def test_predicted_mos_where_the_predictor_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A stand-in that wants torchaudio's names and talks on standard output, as the real one does."""
    monkeypatch.setattr(resynthesis_module.importlib.util, "find_spec", lambda name: None)
    assert mos_predictor() is None
    (tmp_path / "distillmos.py").write_text(
        "import torchaudio, torch\nfrom torchaudio.transforms import MFCC\n"
        "class ConvTransformerSQAModel(torch.nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        print('weights loaded')\n"
        "    def forward(self, x):\n        return x.mean(dim=1)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "distillmos", raising=False)
    monkeypatch.setattr(resynthesis_module.importlib.util, "find_spec", lambda name: object())
    before = "torchaudio" in sys.modules
    predict = mos_predictor()
    assert predict is not None and predict(np.full(100, 3.5, np.float32)) == pytest.approx(3.5)
    assert ("torchaudio" in sys.modules) == before
    monkeypatch.delitem(sys.modules, "distillmos", raising=False)
