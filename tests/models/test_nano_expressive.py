"""The shipped Expressive family: whole, in two folders, and it goes on with speech in all three kinds of tokens."""

import numpy as np
import pytest

import spiritrt
from spiritrt.models.checkpoints import find


def test_it_is_whole_with_the_parts_of_nano():
    mine, nano = find("nano-expressive"), find("nano")
    assert not mine.missing and mine.reply == "continuation"
    assert [name for name, part in mine.parts.items() if part == nano.parts.get(name)] == [
        "hubert", "quantizer", "vocoder",
    ]  # fmt: skip


def test_it_hears_and_goes_on_with_pitch_and_style():
    pytest.importorskip("local_attention")  # what torchfcpe needs
    lm = spiritrt.load("nano-expressive", progress=False)
    tone = 0.3 * np.sin(np.arange(32000) * 2 * np.pi * 150 / 16000).astype(np.float32)
    out = lm.generate([spiritrt.Speech(tone)], "speech", spiritrt.Sampling(seed=3), max_new_tokens=60)
    (speech,) = out
    assert all(f"[{kind}" in speech.tokens for kind in ("Hu", "Pi", "St")) and speech.samples.size > 0
