"""Only the hypothesis's own tokens count, and the marker before it belongs to the prompt."""

from pathlib import Path

import pytest
import torch
from stand_ins import tone

from spiritrt import LogProbs, Speech, Text
from spiritrt.evaluation.likelihood import Comparison, Scorer, accuracies

ONE, TWO = "[Hu409][Hu367]", "[Hu406][Hu150][Hu304]"


@pytest.mark.parametrize(
    ("prompt", "hypothesis", "before", "after"),
    [
        ([], Speech(tokens=TWO), "[Speech]", TWO),
        ([Text("a dog")], Speech(tokens=TWO), "[Text]a dog[Speech]", TWO),
        ([Speech(tokens=ONE)], Speech(tokens=TWO), f"[Speech]{ONE}", TWO),
        ([Speech(tokens=ONE)], Text("a dog"), f"[Speech]{ONE}[Text]", "a dog"),
        ([Text("a dog")], Text(" ran"), "[Text]a dog", " ran"),
    ],
)
def test_markers_are_not_scored(base_lm, prompt, hypothesis, before, after):
    tokenizer = base_lm.family.tokenizer
    held, whole = tokenizer.encode(before), tokenizer.encode(before + after)
    with torch.inference_mode():
        logprobs = base_lm.family.llama(torch.tensor([whole]))[0].double().log_softmax(-1)
    expected = [float(logprobs[i - 1, whole[i]]) for i in range(len(held), len(whole))]
    (score,) = Scorer(base_lm).score(prompt, [hypothesis])
    assert score.tokens == pytest.approx(expected, rel=1e-4)


def test_hypotheses_of_two_modalities_cannot_be_compared(base_lm):
    with pytest.raises(ValueError, match="all be text or all be speech"):
        Scorer(base_lm).score([], [Text("a"), Speech(tokens=ONE)])


def test_a_recording_is_encoded_once_and_a_bad_one_is_named(base_lm, tmp_path: Path, monkeypatch):
    path = tone(tmp_path / "a.wav")
    scorer = Scorer(base_lm)
    first = scorer.speech(path)
    assert first.tokens is not None and first.tokens.startswith("[Hu")
    path.unlink()
    assert scorer.speech(path).tokens == first.tokens
    with pytest.raises(ValueError, match=r"short\.wav"):
        scorer.speech(tone(tmp_path / "short.wav", seconds=0.01))


def test_ties_count_half():
    def score(total: float, tokens: int) -> LogProbs:
        return LogProbs(total, total / tokens, [])

    results = [
        Comparison.of(score(-6, 3), score(-5, 2)), Comparison.of(score(-4, 2), score(-4, 2)),
        Comparison.of(score(-9, 1), score(-9, 3)),
    ]  # fmt: skip
    assert [(r.mean, r.sum) for r in results] == [(1.0, 0.0), (0.5, 0.5), (0.0, 0.5)]
    assert {kind: metric.value for kind, metric in accuracies(results).items()} == {"mean": 0.5, "sum": 1 / 3}
    both = accuracies(results, ["one", "two", "one"])
    assert {kind: (metric.value, metric.count) for kind, metric in both.items()} == {
        "mean": (0.5, 2),
        "sum": (0.375, 2),
    }
