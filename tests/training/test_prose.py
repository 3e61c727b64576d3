"""Which sentences of a text are kept to be spoken."""

from pathlib import Path

import pytest

from spiritrt.training.corpora.pronounce import find_lexicons
from spiritrt.training.corpora.prose import raw_sentences, sentences, speakable

pytestmark = pytest.mark.skipif(
    find_lexicons() is None, reason="no pronouncing lexicon: pip install --no-deps misaki==0.9.4"
)


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("the dog ran home", "The dog ran home."),
        ("Where did she go?", "Where did she go?"),
        ("As usual, she arrived late.;", "As usual, she arrived late."),
        ("too few", None),
        ("it costs 30 pounds now", None),
        ("the FBI took him away", None),
        ("the zzqx took him away", None),
        ("he was naked all day", None),
        ("one , two and three", None),
        (" ".join(["go"] * 15), None),
    ],
)
def test_only_speakable_sentences_are_kept(written, kept):
    assert speakable(written) == kept


def test_texts_and_dictionaries_are_read(tmp_path: Path):
    (tmp_path / "story.txt").write_text("The sun was hot. The sea was cold!\nThe SUN was hot? No.")
    assert sentences(raw_sentences(tmp_path)) == ["The sun was hot.", "The sea was cold!"]
    assert sentences(raw_sentences(tmp_path / "story.txt")) == ["The sun was hot.", "The sea was cold!"]
    (tmp_path / "data.verb").write_text('000 x | run away; "the cat ran away quickly"; "short one"\n')
    assert sentences(raw_sentences(tmp_path)) == ["The cat ran away quickly."]
    with pytest.raises(FileNotFoundError, match="no text"):
        list(raw_sentences(tmp_path / "absent"))
