"""TokenMerger against what the public code writes for the golden clips, and on nano's own units of real speech."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import spiritrt
from spiritrt.tokens.units import TokenMerger, Units, merge
from spiritrt.tokens.vocabulary import SpeechToken, format_speech

EXPECTED = Path(__file__).parents[1] / "data/golden/expected/units.json"
OPERATIONS = ["hubert", "pitch", "style"] * 4 + ["reset"]
CUTS = st.lists(st.tuples(st.sampled_from(OPERATIONS), st.integers(1, 30)), max_size=40)


@pytest.fixture(scope="module")
def nano_units(nano: spiritrt.SpiritLM, speech: Tensor) -> Units:
    return nano.encode(speech.numpy())


def merged(units: Units, cuts: list[tuple[str, int]]) -> list[SpeechToken]:
    """Tokens of units that come bit by bit, each kind at its own pace, begun anew at a "reset"."""
    merger = TokenMerger(("Hu",) if units.pitch is None else ("St", "Pi", "Hu"))
    whole = {kind: list(codes) for kind in ("hubert", "pitch", "style") if (codes := getattr(units, kind)) is not None}
    left, tokens = dict(whole), list[SpeechToken]()
    for kind, count in [*cuts, *((kind, 9999) for kind in whole)]:
        if kind == "reset":
            merger.reset()
            left, tokens = dict(whole), []
        elif kind in left:
            tokens += merger.accept(**{"hubert": []} | {kind: left[kind][:count]})
            left[kind] = left[kind][count:]
    return tokens + merger.flush()


@pytest.mark.parametrize("clip", ["leading_blank", "odd_length"])
@settings(max_examples=30, deadline=None)
@given(cuts=CUTS)
def test_golden_units_give_the_golden_strings_for_any_split_and_resets(clip: str, cuts: list[tuple[str, int]]) -> None:
    golden = json.loads(EXPECTED.read_text())[clip]
    for family in ("base", "expressive"):
        codes = {kind: [int(code) for code in text.split()] for kind, text in golden[f"units_{family}"].items()}
        assert format_speech(merged(Units(**codes), cuts)) == golden[f"string_{family}"]


@settings(max_examples=30, deadline=None)
@given(cuts=CUTS)
def test_nano_units_give_the_offline_tokens_for_any_split_and_resets(
    nano_units: Units, cuts: list[tuple[str, int]]
) -> None:
    assert merged(nano_units, cuts) == merge(nano_units)
