"""Stories in three layouts, in the directions that they allow."""

import json
from collections import Counter
from pathlib import Path

import pytest
from stand_ins import ScorerByName, tone

from spiritrt.evaluation.commands import OWN_SETS, SETS
from spiritrt.evaluation.stories import Part, Story, against_others, read_stories, storycloze

COLUMNS = (
    "InputStoryid,InputSentence1,InputSentence2,InputSentence3,InputSentence4,RandomFifthSentenceQuiz1,"
    "RandomFifthSentenceQuiz2,AnswerRightEnding\n"
)


def test_the_csv_file_of_the_story_cloze_test_is_text_alone(tmp_path: Path):
    path = tmp_path / "cloze.csv"
    path.write_text(COLUMNS + "a,One.,Two.,Three.,Four.,Bad end.,Good end.,2\n")
    scorer = ScorerByName({" Good end.": (-6, 3), " Bad end.": (-5, 2)})
    for place in (path, tmp_path):
        report = storycloze(scorer, "m", place, None)
        assert report.parts["T mean"].value == 1.0 and report.parts["T sum"].value == 0.0
        assert report.main == report.parts["T mean"] and len(report.notes) == 3
    assert scorer.prompts[0] == ["One. Two. Three. Four."]
    path.write_text(COLUMNS + "a,One.,Two.,Three.,Four.,Bad end.,Good end.,third\n")
    with pytest.raises(ValueError, match="line 2"):
        read_stories(path)


def test_whole_spoken_stories_are_speech_alone(tmp_path: Path):
    for name in ("3_correct", "3_incorrect", "9_correct", "9_incorrect"):
        tone(tmp_path / f"{name}.wav")
    table = {"3_correct.wav": (-2, 2), "3_incorrect.wav": (-3, 2), "9_correct.wav": (-5, 1), "9_incorrect.wav": (-4, 1)}
    scorer = ScorerByName(table)
    report = storycloze(scorer, "m", tmp_path, None)
    assert report.main.value == 0.5 and report.main.count == 2 and set(report.parts) == {"S mean", "S sum"}
    assert scorer.prompts == [[], []]
    (tmp_path / "9_incorrect.wav").unlink()
    with pytest.raises(ValueError, match="no partner 9_incorrect"):
        read_stories(tmp_path)


def test_lines_with_text_and_sound_go_in_all_directions(tmp_path: Path):
    story = {
        "id": 7, "prompt": {"text": "Once.", "audio": "p.wav"}, "right": {"text": "Yes.", "audio": "r.wav"},
        "wrong": {"text": "No.", "audio": "w.wav"},
    }  # fmt: skip
    written = {"id": 8, "prompt": {"text": "Then."}, "right": {"text": "Yes."}, "wrong": {"text": "No."}}
    (tmp_path / "stories.jsonl").write_text(f"{json.dumps(story)}\n{json.dumps(written)}\n")
    scorer = ScorerByName(
        {" Yes.": (-1, 1), " No.": (-2, 1), "Yes.": (-2, 1), "No.": (-1, 1), "r.wav": (-2, 2), "w.wav": (-3, 2)}
    )
    report = storycloze(scorer, "m", tmp_path, None)
    values = {name: (metric.value, metric.count) for name, metric in report.parts.items() if name.endswith("mean")}
    assert values == {"T mean": (1.0, 2), "S mean": (1.0, 1), "T->S mean": (1.0, 1), "S->T mean": (0.0, 1)}
    assert scorer.prompts == [["Once."], ["Then."], ["p.wav"], ["Once."], ["p.wav"]]
    assert report.main == report.parts["S mean"]
    (tmp_path / "stories.jsonl").write_text('{"id": 1, "prompt": {}}\n')
    with pytest.raises(ValueError, match="line 1"):
        read_stories(tmp_path)


def test_no_stories(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="no stories"):
        read_stories(tmp_path)


def test_a_story_meets_the_endings_of_others():
    stories = [Story(str(n), Part(f"p{n}"), Part(f"r{n // 2}"), Part(f"w{n}")) for n in range(8)]
    crossed = against_others(stories, 3)
    assert len(crossed) == 24 and crossed == against_others(stories, 3)
    for story in stories:
        mine = [c for c in crossed if c.id.startswith(f"{story.id}/")]
        assert all(c.right == story.right and c.wrong.text[0] == "r" and c.wrong != c.right for c in mine)
        assert len({c.wrong.text for c in mine}) == 3
    assert len(against_others(stories, 99)) == 8 * 3  # every ending that says something else, once


def test_a_story_told_twice_meets_each_ending_once():
    stories = [Story(str(n), Part(f"p{n // 2}"), Part(f"r{n // 2}"), Part(f"w{n}")) for n in range(8)]
    crossed = against_others(stories, 3)
    assert len(crossed) == len({(c.prompt, c.wrong) for c in crossed}) == 4 * 3


def told(folder: Path, count: int) -> ScorerByName:
    """`count` stories in writing, two lines each: the first's wrong ending is unlikelier, the second's likelier."""
    lines, table = [], {}
    for n in range(2 * count):
        story, wrong = n // 2, f"Wrong {n}."
        parts = {"prompt": f"Begin {story}.", "right": f"Right {story}.", "wrong": wrong}
        lines.append({"id": n} | {name: {"text": text} for name, text in parts.items()})
        table |= {f" Right {story}.": (-3, 1), f" {wrong}": (-4 + 2 * (n % 2), 1)}
    (folder / "stories.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return ScorerByName(table)


def test_lines_of_one_story_count_once(tmp_path: Path):
    report = storycloze(told(tmp_path, 5), "m", tmp_path, None)
    assert (report.main.value, report.main.count, report.main.spread) == (0.5, 5, 0.0)
    assert len(report.lines) == 10
    crossed = storycloze(told(tmp_path, 5), "m", tmp_path, None, others=3)
    assert crossed.main.count == 5 and len(crossed.lines) == 15
    one = storycloze(told(tmp_path, 5), "m", tmp_path, 1, others=3)
    assert one.main.count == 1 and len(one.lines) == 3


def test_a_limit_draws_whole_stories_by_the_seed(tmp_path: Path):
    scorer = told(tmp_path, 20)

    def drawn(seed: int) -> list[object]:
        report = storycloze(scorer, "m", tmp_path, 4, seed=seed)
        assert report.main.count == 4 and report.settings["seed"] == seed
        return [line["id"] for line in report.lines]

    assert drawn(0) == drawn(0) != drawn(1)
    assert set(Counter(int(str(name)) // 2 for name in drawn(0)).values()) == {2}


def test_endings_of_two_modalities_cannot_be_scored(tmp_path: Path):
    line = {"id": 1, "prompt": {"text": "Once."}, "right": {"text": "Yes."}, "wrong": {"audio": "w.wav"}}
    (tmp_path / "stories.jsonl").write_text(json.dumps(line))
    with pytest.raises(ValueError, match="one modality"):
        storycloze(ScorerByName({}), "m", tmp_path, None)


def test_the_small_set_counts_its_distinct_dialogues():
    stories = read_stories(SETS / OWN_SETS["storycloze"])
    assert len(stories) == 70 and len({story.group for story in stories}) == 35
    crossed = against_others(stories, 10)
    assert len(crossed) == 350 == len({(c.group, c.wrong.text) for c in crossed})
