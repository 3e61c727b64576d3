"""The figures of the language model's report, on results with known errors, and greedy decoding on a random Llama."""

import pytest
import torch

from spiritrt.models.llama import Llama, LlamaConfig
from spiritrt.training.corpora.pronounce import find_lexicons
from spiritrt.training.lm_report import Reader, phone_error_rate, plain, right_share, word_error_rate

INVENTORY = ["SIL", "ɡ", "ɡ", "O", "n", "W"]


def test_word_error_rate_ignores_case_and_marks():
    assert plain("Yes, it IS two o'clock.") == "yes it is two o'clock"
    assert word_error_rate([("Go on, now.", "go on now"), ("One two.", "one three four")]) == pytest.approx(2 / 5)


@pytest.mark.skipif(find_lexicons() is None, reason="no pronouncing lexicon: pip install --no-deps misaki==0.9.4")
def test_phone_error_rate_counts_runs_once_and_no_silence():
    assert phone_error_rate([("Go now.", [0, 1, 2, 3, 3, 0, 4, 5, 0])], INVENTORY) == 0
    assert phone_error_rate([("Go now.", [1, 3, 3, 5])], INVENTORY) == pytest.approx(1 / 4)


def test_right_share_judges_the_content():
    asked = "What is two plus two?"
    truth = "That makes four altogether."
    results = [("addition", asked, truth, "The answer is four."), ("addition", asked, truth, "The answer is five.")]
    assert right_share(results) == {"right": 0.5, "count": 2}


def test_greedy_continuation_equals_the_whole_pass_and_stops():
    torch.manual_seed(0)
    model = Llama(LlamaConfig(1536, 32, 48, 2, 2, 2, 16, 64)).eval()
    reader = Reader(model, None)
    prompt = [1, 1025, 1030, 1031, 1024]
    made = reader.continue_greedily(prompt, stops=(), most=6)
    for place, token in enumerate(made):
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + made[:place]]))[0, -1, :1527]
        assert token == int(logits.argmax())
    first = made.index(made[3])
    assert reader.continue_greedily(prompt, stops=(made[3],), most=6) == made[:first]
