"""The shipped Expressive family: whole, in two folders, and it goes on with speech in all three kinds of tokens."""

from pathlib import Path

import pytest

import spiritrt
from spiritrt.models.checkpoints import find

SOUND = Path(__file__).parents[1] / "data" / "golden" / "audio" / "leading_blank.flac"


def test_it_is_whole_with_the_parts_of_nano():
    mine, nano = find("nano-expressive"), find("nano")
    assert not mine.missing and mine.reply == "continuation"
    assert [name for name, part in mine.parts.items() if part == nano.parts.get(name)] == [
        "hubert", "quantizer", "vocoder",
    ]  # fmt: skip


def test_it_hears_and_goes_on_with_pitch_and_style():
    pytest.importorskip("local_attention")  # what torchfcpe needs
    lm = spiritrt.load("nano-expressive", progress=False)
    person = spiritrt.Speech(spiritrt.audio.load(SOUND))
    out = lm.generate([person], "speech", spiritrt.Sampling(seed=3), max_new_tokens=100)
    (speech,) = out
    assert all(f"[{kind}" in speech.tokens for kind in ("Hu", "Pi", "St")) and speech.samples.size > 0
