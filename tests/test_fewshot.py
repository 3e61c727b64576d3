"""Scoring, and the paper's few-shot forms: what the model is shown is compared as a string."""

import numpy as np
import pytest
import torch

from spiritrt import GREEDY, Output, Sampling, Speech, SpiritLM, Text
from spiritrt.engine.steps import Step

ONE, TWO, THREE = "[Hu409][Hu367]", "[Hu406][Hu150][Hu304]", "[Hu130]"


def spoken(tokens: str) -> Speech:
    return Speech(tokens=tokens)


@pytest.fixture
def outputs(monkeypatch) -> list[Output]:
    """Every output that `generate` gives from now on."""
    collected: list[Output] = []
    generate = SpiritLM.generate

    def record(self, *args, **kwargs):
        collected.append(generate(self, *args, **kwargs))
        return collected[-1]

    monkeypatch.setattr(SpiritLM, "generate", record)
    return collected


def full_logprobs(lm: SpiritLM, prompt: str, whole: str) -> list[float]:
    """Log-softmax over the full vocabulary of what `whole` adds to `prompt`, from one pass over all logits."""
    held, ids = lm.family.tokenizer.encode(prompt), lm.family.tokenizer.encode(whole)
    with torch.inference_mode():
        logits = lm.family.llama(torch.tensor([ids]))[0].double()
    assert ids[: len(held)] == held and logits.shape[-1] == lm.family.vocabulary.rows
    scores = logits - logits.exp().sum(-1, keepdim=True).log()
    return [float(scores[i - 1, ids[i]]) for i in range(len(held), len(ids))]


class TestLogProbs:
    @pytest.mark.parametrize(
        ("prompt", "continuation", "before", "whole"),
        [
            ("[Text]hello", " there you are", "[Text]hello", "[Text]hello there you are"),
            (f"[Speech]{ONE}", TWO, f"[Speech]{ONE}", f"[Speech]{ONE}{TWO}"),
            ([Text("hello")], [Text(" you")], "[Text]hello", "[Text]hello you"),
            ([Text("hello")], " you", "[Text]hello", "[Text]hello you"),
            ("[Text]hello", [Text(" you")], "[Text]hello", "[Text]hello you"),
            # the marker between belongs to the prompt, one that is spelled or further in counts
            ([spoken(ONE)], [Text("A:yes")], f"[Speech]{ONE}[Text]", f"[Speech]{ONE}[Text]A:yes"),
            (f"[Speech]{ONE}", [Text("a"), spoken(TWO)], f"[Speech]{ONE}[Text]", f"[Speech]{ONE}[Text]a[Speech]{TWO}"),
            ([Text("a")], [spoken(TWO)], "[Text]a[Speech]", f"[Text]a[Speech]{TWO}"),
            ([], [spoken(TWO)], "[Speech]", f"[Speech]{TWO}"),
            ([spoken(ONE)], "[Text]A:yes", f"[Speech]{ONE}", f"[Speech]{ONE}[Text]A:yes"),
            ("", "[Text]hello", "", "[Text]hello"),
        ],
    )
    def test_sum_and_mean_over_the_full_vocabulary(self, base_lm, prompt, continuation, before, whole):
        expected = full_logprobs(base_lm, before, whole)
        scores = base_lm.logprobs(prompt, continuation)
        assert scores.tokens == pytest.approx(expected, rel=1e-4)
        assert scores.sum == pytest.approx(sum(expected), rel=1e-4)
        assert scores.mean == pytest.approx(sum(expected) / len(expected), rel=1e-4)

    def test_where_the_continuation_changes_the_last_token(self, base_lm):
        """ "he" and "llo" are one piece together, so it is the whole word that counts."""
        encode = base_lm.family.tokenizer.encode
        assert encode("[Text]hello")[:-1] == encode("[Text]he")[:-1] and len(encode("[Text]hello")) == len(
            encode("[Text]he")
        )
        assert base_lm.logprobs("[Text]he", "llo").tokens == pytest.approx(
            full_logprobs(base_lm, "[Text]", "[Text]hello")
        )

    @pytest.mark.parametrize("continuation", ["", []])
    def test_nothing_to_score(self, base_lm, continuation):
        with pytest.raises(ValueError, match="the continuation adds no token to the prompt: ''"):
            base_lm.logprobs("[Text]hello", continuation)

    def test_over_the_context(self, stuck_lm):
        assert len(stuck_lm.logprobs("[Text]", " word" * 59).tokens) > 50
        with pytest.raises(ValueError, match="the model's context is 64"):
            stuck_lm.logprobs("[Text]", " word" * 80)


class TestTranscribe:
    def test_the_form(self, base_lm, outputs):
        shots = [(spoken(ONE), "one two"), (spoken(TWO), "three")]
        words = base_lm.transcribe(spoken(THREE), shots, max_new_tokens=4)
        assert base_lm.family.tokenizer.decode(outputs[0].prompt_ids) == (
            f"[Speech]{ONE}[Text]<START Transcript>one two<END>[Speech]{TWO}[Text]<START Transcript>three<END>"
            f"[Speech]{THREE}[Text]<START Transcript>"
        )
        assert words == outputs[0].text.strip() and max(outputs[0].ids) < 32000

    def test_ends_at_the_flag(self, base_lm, monkeypatch):
        tokenizer = base_lm.family.tokenizer
        form = f"[Speech]{THREE}[Text]<START Transcript>"
        said = tokenizer.encode(f"{form} good morning <END>[Speech]")[len(tokenizer.encode(form)) :]
        ids = iter(said)
        monkeypatch.setattr(Step, "ids", property(lambda step: [next(ids)]))
        assert base_lm.transcribe(spoken(THREE)) == "good morning"
        assert len(list(ids)) <= 2  # the flag was seen as soon as it was whole

    def test_sound_is_heard(self, base_lm, outputs, golden):
        base_lm.transcribe(golden / "audio" / "odd_length.flac", max_new_tokens=1)
        base_lm.transcribe(Speech(golden / "audio" / "odd_length.flac"), max_new_tokens=1)
        assert outputs[0].prompt_ids == outputs[1].prompt_ids and len(outputs[0].prompt_ids) > 20


class TestSpeak:
    def test_the_form(self, base_lm, outputs):
        shots = [("one two", spoken(ONE)), ("three", spoken(TWO))]
        speech = base_lm.speak("good morning", shots, max_new_tokens=5)
        assert base_lm.family.tokenizer.decode(outputs[0].prompt_ids) == (
            f"[Text]one two 'stop'[Speech]{ONE}[Text]three 'stop'[Speech]{TWO}[Text]good morning 'stop'[Speech]"
        )
        assert speech.tokens == outputs[0].raw
        np.testing.assert_array_equal(speech.array, outputs[0].samples)

    def test_without_shots_there_is_no_flag(self, base_lm, outputs):
        base_lm.speak("good morning", max_new_tokens=3, sampling=GREEDY, speaker=1)
        assert base_lm.family.tokenizer.decode(outputs[0].prompt_ids) == "[Text]good morning[Speech]"

    @pytest.mark.parametrize("end", ["</s>", "[Text]"])
    def test_ends_where_the_text_of_another_shot_begins(self, base_lm, monkeypatch, end):
        script = iter([32003, 32004, 32000 if end == "[Text]" else 2])
        sets = []
        add = base_lm.engine.mask
        monkeypatch.setattr(base_lm.engine, "mask", lambda allowed: sets.append(allowed) or add(allowed))
        monkeypatch.setattr(Step, "ids", property(lambda step: [next(script)]))
        assert base_lm.speak("good morning", [("one two", spoken(ONE))]).tokens == "[Hu1][Hu2]"
        (allowed,) = sets
        assert allowed[[32003, 32004, 32000, 2]].all()

    def test_a_model_that_ends_at_once_says_nothing(self, stuck_lm):
        speech = stuck_lm.speak("good morning", sampling=GREEDY)  # EOS is the lowest id that may come
        assert speech.tokens == "" and speech.array.shape == (0,) and speech.seconds == 0

    def test_never_goes_on_without_end(self, stuck_lm):
        speech = stuck_lm.speak("good morning", sampling=Sampling(temperature=1.0, top_p=1.0), max_new_tokens=10**6)
        assert 1 <= len(speech.array) <= 64 * 640 * 100

    @pytest.mark.parametrize("text", ["", " \n"])
    def test_nothing_to_say(self, base_lm, text):
        with pytest.raises(ValueError, match="there is nothing to say: the text is '"):
            base_lm.speak(text)

    @pytest.mark.parametrize("text", ["[Speech]", "say [Hu12]"])
    def test_text_is_literal(self, base_lm, text):
        with pytest.raises(ValueError, match="Text holds the token"):
            base_lm.speak(text)


class TestClassify:
    def test_the_form(self, base_lm):
        shots = [(spoken(ONE), "yes"), (spoken(TWO), "no")]
        found = base_lm.classify(spoken(THREE), ["yes", "no", "not at all"], shots)
        form = f"[Speech]{ONE}[Text]A:yes[Speech]{TWO}[Text]A:no[Speech]{THREE}[Text]"
        expected = {
            label: sum(full_logprobs(base_lm, form, f"{form}A:{label}")) for label in ("yes", "no", "not at all")
        }
        assert found.scores == pytest.approx(expected, rel=1e-4)
        assert found.label == max(expected, key=lambda label: expected[label])

    def test_the_best_wins_wherever_it_stands(self, base_lm):
        labels = ["music", "weather", "alarm", "call"]
        first = base_lm.classify(spoken(THREE), labels)
        again = base_lm.classify(spoken(THREE), labels[::-1])
        assert first.label == again.label == max(first.scores, key=lambda label: first.scores[label])
        assert again.scores == pytest.approx(first.scores)

    def test_one_string_is_no_list_of_labels(self, base_lm):
        with pytest.raises(ValueError, match="labels must be a list of strings, got 'question'"):
            base_lm.classify(spoken(ONE), labels="question")

    def test_no_labels(self, base_lm):
        with pytest.raises(ValueError, match="classify needs at least one label"):
            base_lm.classify(spoken(ONE), [])
