"""MMLU: its files, its prompt, and shots that give way where the context is short."""

from pathlib import Path

import pytest
from stand_ins import ScorerByName

from spiritrt.evaluation.knowledge import mmlu
from spiritrt.evaluation.likelihood import Scorer

ROW = "{},red,green,blue,black,{}\n"


def school(folder: Path, shots: int = 5, questions: int = 3) -> Path:
    for split, count, answers in (("dev", shots, "A"), ("test", questions, "BCD")):
        path = folder / split / f"world_facts_{split}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(ROW.format(f"{split} {i}?", answers[i % len(answers)]) for i in range(count)))
    return folder


def test_the_prompt_and_the_likeliest_letter(base_lm, tmp_path: Path):
    scorer = ScorerByName({" A": (-3, 1), " B": (-1, 1), " C": (-2, 1), " D": (-9, 1)})
    scorer.lm = base_lm
    report = mmlu(scorer, "m", school(tmp_path), None, shots=1)
    assert report.main.value == pytest.approx(1 / 3) and report.parts["world_facts"].count == 3
    assert scorer.prompts[0] == [
        "The following are multiple choice questions (with answers) about world facts.\n\n"
        "dev 0?\nA. red\nB. green\nC. blue\nD. black\nAnswer: A\n\n"
        "test 0?\nA. red\nB. green\nC. blue\nD. black\nAnswer:"
    ]
    assert [line["guess"] for line in report.lines] == ["B"] * 3 and not report.notes
    assert mmlu(scorer, "m", tmp_path, 2, shots=0).main.count == 2
    drawn = {mmlu(scorer, "m", tmp_path, 1, shots=0, seed=seed).lines[0]["question"] for seed in range(9)}
    assert drawn == {"test 0?", "test 1?", "test 2?"}


def test_with_a_model_and_a_short_context(stuck_lm, tmp_path: Path):
    """Context 64: not one shot fits; all tokens are equally likely, so that the first letter is taken."""
    report = mmlu(Scorer(stuck_lm), "m", school(tmp_path, questions=2), None)
    assert report.notes == ("2 of 2 prompts lack up to 5 of 5 shots: the context was full",)
    assert {line["guess"] for line in report.lines} == {"A"}


def test_bad_folders_are_named(base_lm, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="SUBJECT_test"):
        mmlu(Scorer(base_lm), "m", tmp_path, None)
    school(tmp_path)
    (tmp_path / "dev" / "world_facts_dev.csv").unlink()
    with pytest.raises(FileNotFoundError, match="--shots 0"):
        mmlu(Scorer(base_lm), "m", tmp_path, None)
    (tmp_path / "test" / "world_facts_test.csv").write_text("q?,a,b,c,d,E\n")
    with pytest.raises(ValueError, match="line 1"):
        mmlu(Scorer(base_lm), "m", tmp_path, None, shots=0)
