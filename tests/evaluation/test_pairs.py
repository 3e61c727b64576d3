"""sWUGGY, sBLIMP and SALMon are read in their own layouts and scored as their papers say."""

from pathlib import Path

import pytest
from stand_ins import ScorerByName, tone

from spiritrt.evaluation.pairs import SALMON_PARTS, minimal_pairs, read_gold, read_salmon, salmon

GOLD = """id,filename,voice,frequency,word,phones,length,correct
1,aa,v1,5,cat,K AE T,3,1
1,ab,v1,5,kit,K IY T,3,0
1,ac,v2,5,cat,K AE T,3,1
1,ad,v2,5,kit,K IY T,3,0
2,ae,v1,oov,dog,D AO G,3,1
2,af,v1,oov,dig,D IY G,3,0
"""


def test_voices_are_averaged_within_an_id(tmp_path: Path):
    folder = tmp_path / "lexical" / "dev"
    folder.mkdir(parents=True)
    (folder / "gold.csv").write_text(GOLD)
    table = {"aa.wav": (-2, 2), "ab.wav": (-9, 3), "ac.wav": (-9, 3), "ad.wav": (-2, 2)} | {
        "ae.wav": (-6, 3), "af.wav": (-5, 2),
    }  # fmt: skip
    report = minimal_pairs("wuggy", ScorerByName(table), "m", tmp_path, None)
    # id 1: one voice right, one wrong; id 2: right by the mean, wrong by the sum
    assert report.main.value == 0.75 and report.main.count == 2
    assert report.parts["sum"].value == 0.25
    assert report.lines[0] == {
        "id": "1/", "kind": "5", "right": "aa.wav", "wrong": "ab.wav", "mean": 1.0, "sum": 1.0,
    }  # fmt: skip


def test_a_limit_draws_whole_ids_by_the_seed(tmp_path: Path):
    rows = [(n, voice, correct) for n in range(20) for voice in "ab" for correct in (1, 0)]
    gold = "".join(f"{n},{n}{voice}{correct},{voice},{correct}\n" for n, voice, correct in rows)
    (tmp_path / "gold.csv").write_text("id,filename,voice,correct\n" + gold)
    scorer = ScorerByName({f"{n}{voice}{correct}.wav": (correct, 1) for n, voice, correct in rows})

    def drawn(limit: int | None, seed: int) -> list[object]:
        return [line["id"] for line in minimal_pairs("wuggy", scorer, "m", tmp_path, limit, seed).lines]

    assert drawn(4, 0) == drawn(4, 0) != drawn(4, 1)
    assert len(drawn(4, 0)) == 8 and len(set(drawn(4, 0))) == 4
    assert len(drawn(None, 0)) == 40


@pytest.mark.parametrize(
    ("gold", "message"),
    [
        ("id,filename,voice\n1,a,v\n", "no column correct"),
        (GOLD + "3,ag,v1,1,x,y,1,1\n", "id 3 .* has only a correct"),
        ("id,filename,correct\n", "holds no pairs"),
    ],
)
def test_bad_gold_files_are_named(tmp_path: Path, gold: str, message: str):
    (tmp_path / "gold.csv").write_text(gold)
    with pytest.raises(ValueError, match=message):
        read_gold(tmp_path, "lexical")


def test_no_gold_file(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="lexical/dev"):
        read_gold(tmp_path, "lexical")


def test_salmon_takes_the_first_by_name_as_the_right_one(tmp_path: Path):
    for number in (0, 10, 2):
        for place in (0, 1):
            tone(tmp_path / "gender_consistency" / f"sample_{number}_{place}.wav")
            tone(tmp_path / "bg_alignment" / "before" / f"sample_{number}_{place}.wav")
    pairs = read_salmon(tmp_path, "gender_consistency")
    assert [(p.group, p.right.name) for p in pairs] == [(str(n), f"sample_{n}_0.wav") for n in (0, 2, 10)]
    table = {f"sample_{n}_{p}.wav": (-float(p + n), 1) for n in (0, 2) for p in (0, 1)}
    table |= {"sample_10_0.wav": (-4, 2), "sample_10_1.wav": (-2, 1)}
    report = salmon(ScorerByName(table), "m", tmp_path, None)
    assert report.parts["gender_consistency"].value == pytest.approx(2.5 / 3)
    assert report.parts["bg_alignment"].count == 3 and report.main.count == 6
    assert len(report.notes) == len(SALMON_PARTS) - 2
    drawn = [salmon(ScorerByName(table), "m", tmp_path, 1, seed=seed).lines[0]["id"] for seed in range(9)]
    assert len(set(drawn)) == 3
    (tmp_path / "gender_consistency" / "sample_2_1.wav").unlink()
    with pytest.raises(ValueError, match="sample 2 has one recording"):
        read_salmon(tmp_path, "gender_consistency")
    with pytest.raises(FileNotFoundError, match="none of SALMon's parts"):
        salmon(ScorerByName({}), "m", tmp_path / "elsewhere", None)
