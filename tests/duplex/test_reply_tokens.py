"""The forms of a reply: which tokens may come, what they mean, and what its text is."""

from collections.abc import Sequence

import pytest
from session_rig import VOCABULARY, language

from spiritrt.duplex.config import ReplyPolicy, SessionConfig
from spiritrt.duplex.events import TextOut
from spiritrt.duplex.reply_tokens import ReplyTokens
from spiritrt.tokens.vocabulary import EOS, SpeechToken

FLAG = 20  # the text id of " A:" in the rig
FIRST, SPEECH, TEXT = VOCABULARY.first_unit, VOCABULARY.speech_marker, VOCABULARY.text_marker


def reply(policy: ReplyPolicy, chain: bool = True, most: int = 400, **config: int) -> ReplyTokens:
    return ReplyTokens(language(chain), SessionConfig(reply=policy, **config), most)  # type: ignore[arg-type]


def feed(tokens: ReplyTokens, ids: Sequence[int]) -> list[TextOut]:
    return [text for i in ids for text in tokens.take(i)[2]]


def test_a_chain_hands_out_the_words_whole_and_the_answer_as_it_grows() -> None:
    tokens = reply("chain")
    assert tokens.opening == (TEXT,) and tokens.mask == "text"
    texts = feed(tokens, [13, 14, FLAG])
    assert texts == [TextOut("bc", "heard")] and tokens.mask == "text", "there is nothing to say yet"
    texts = feed(tokens, [15, 16])
    assert texts == [TextOut("d", "reply"), TextOut("e", "reply")] and tokens.mask == "text_end"
    going_on, speech, _ = tokens.take(SPEECH)
    assert (going_on, speech, tokens.mask) == (SPEECH, None, "speech_end")
    assert tokens.take(FIRST + 3)[:2] == (FIRST + 3, SpeechToken("Hu", 3))
    assert tokens.take(EOS)[0] is None and tokens.finished == "end"
    assert tokens.ids == [TEXT, 13, 14, FLAG, 15, 16, SPEECH, FIRST + 3]
    assert tokens.ids[: tokens.transcript] == [TEXT, 13, 14]


def test_a_text_that_grows_too_long_is_followed_by_speech() -> None:
    tokens = reply("chain", max_text_tokens=4)
    feed(tokens, [13, FLAG, 14, 15])
    going_on, _, _ = tokens.take(16)
    assert going_on == SPEECH and tokens.mask == "speech_end" and not tokens.finished


@pytest.mark.parametrize(("end", "finished"), [(EOS, "end"), (SPEECH, "end")])
def test_a_reply_in_text_ends_with_its_text(end: int, finished: str) -> None:
    tokens = reply("text")
    assert feed(tokens, [13, FLAG, 14]) == [TextOut("b", "heard"), TextOut("c", "reply")]
    assert tokens.take(end)[0] is None and tokens.finished == finished
    assert tokens.text_only and tokens.ids == [TEXT, 13, FLAG, 14]


def test_other_models_answer_in_plain_text() -> None:
    tokens = reply("text", chain=False)
    assert tokens.mask == "text_end"
    assert feed(tokens, [13, 14]) == [TextOut("b", "reply"), TextOut("c", "reply")]


def test_speech_ends_by_repetition_or_at_its_most() -> None:
    tokens = reply("continuation", repeats=3, repeated_tokens=6)
    drawn = 0
    while not tokens.finished:
        tokens.take(FIRST + drawn % 2)
        drawn += 1
    assert (tokens.finished, drawn) == ("repetition", 6)
    tokens = reply("continuation", most=5)
    for code in range(5):
        tokens.take(FIRST + code)
    assert tokens.finished == "length" and len(tokens.speech) == 5
