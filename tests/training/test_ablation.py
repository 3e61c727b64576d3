"""The ablation's bookkeeping: every mix and seed once, resumed where it was, figures over seeds."""

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from spiritrt.training import ablation
from spiritrt.training.ablation import ablate, show, summary
from spiritrt.training.lm import Plan


def accuracy(value: float) -> dict[str, dict[str, float | int]]:
    return {f"{d} mean": {"accuracy": value, "count": 4, "spread": 0.2} for d in ("T", "S", "T->S", "S->T")}


def test_the_spread_is_over_seeds():
    figures = summary({"interleaved": [accuracy(0.7), accuracy(0.8), accuracy(0.9)], "pairs": []})
    assert set(figures) == {"interleaved"}
    assert figures["interleaved"]["T->S"] == {
        "accuracy": 0.8, "count": 3, "spread": pytest.approx(0.1 / 3**0.5, rel=1e-4),
    }  # fmt: skip
    apart = [accuracy(0.7), accuracy(0.8)]
    apart[0]["S->T mean"]["accuracy"], apart[1]["T->S mean"]["accuracy"] = 0.9, 0.6
    both = summary({"pairs": apart})["pairs"]["cross-modal"]  # 0.8 and 0.7
    assert both["accuracy"] == pytest.approx(0.75) and both["spread"] == pytest.approx(0.05)
    out = StringIO()
    show(figures, Console(file=out, width=100))
    assert "80.0 ± 5.8" in out.getvalue()


def test_finished_runs_are_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    trained: list[tuple[str, int]] = []

    def train_one(mix, plan, units, heard, family, work, context=512):
        trained.append((mix, plan.seed))
        if (mix, plan.seed) == ("pairs", 1) and trained.count(("pairs", 1)) == 1:
            raise SystemExit("stopped")
        return work, 100 + plan.seed

    values = {"interleaved": 0.9, "pairs": 0.6}
    monkeypatch.setattr(ablation, "train_one", train_one)
    monkeypatch.setattr(ablation, "score", lambda model, stories, limit: accuracy(values[model.name.split("-")[0]]))
    units, stories = tmp_path / "units.jsonl", tmp_path / "stories"
    stories.mkdir()
    for file in (units, stories / "stories.jsonl"):
        file.write_text("{}")
    arguments = (list(values), 2, Plan(steps=3), units, None, tmp_path, tmp_path / "work", stories)
    with pytest.raises(SystemExit):
        ablate(*arguments)
    figures = ablate(*arguments)
    assert trained == [("interleaved", 0), ("pairs", 0), ("interleaved", 1), ("pairs", 1), ("pairs", 1)]
    assert figures["pairs"]["S"]["accuracy"] == 0.6 and figures["interleaved"]["S"]["count"] == 2
    written = json.loads((tmp_path / "work" / "ablation.json").read_text())
    assert written["tokens"] == {"interleaved": [100, 101], "pairs": [100, 101]} and written["plan"]["steps"] == 3
    with pytest.raises(ValueError, match="the checkpoint is of plan"):
        ablate(*arguments[:2], Plan(steps=4), *arguments[3:])
    (stories / "stories.jsonl").write_text("[]")
    with pytest.raises(ValueError, match="the checkpoint is of stories"):
        ablate(*arguments)
