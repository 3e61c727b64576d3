"""An Expressive family out of nano: what it knew stays, and the new tokens are there."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import spiritrt
from spiritrt.models.checkpoints import CheckpointError, find, save_part
from spiritrt.models.pitch import PitchQuantizer, PitchQuantizerConfig
from spiritrt.models.style import StyleClassifier, StyleConfig
from spiritrt.tokens.units import merge
from spiritrt.training.expressive import make_expressive
from spiritrt.training.pitch import OFFICIAL_CONFIG
from spiritrt.training.style import official_config


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts") / "parts"
    torch.manual_seed(0)
    style = official_config(["lively f", "lively m", "neutral f", "neutral m"])
    save_part(
        folder,
        "pitch",
        OFFICIAL_CONFIG,
        PitchQuantizer(PitchQuantizerConfig.from_official(OFFICIAL_CONFIG)).state_dict(),
    )
    save_part(folder, "style", style, StyleClassifier(StyleConfig.from_official(style)).state_dict())
    return folder


def test_what_the_base_model_knew_stays(parts: Path, tmp_path: Path):
    vocabulary = make_expressive("nano", parts, tmp_path / "made")
    assert (vocabulary.pitches, vocabulary.styles, vocabulary.rows % 64) == (64, 4, 0)
    made, base = spiritrt.load(str(tmp_path / "made")), spiritrt.load("nano")
    assert made.family.expressive and made.family.vocabulary == vocabulary
    string = "[Text]what day is it[Speech][Hu5][Hu9]"
    ids = base.family.tokenizer.encode(string)
    assert made.family.tokenizer.encode(string) == ids
    size = base.family.vocabulary.size
    with torch.inference_mode():
        new, old = (lm.family.llama.float()(torch.tensor([ids]))[..., :size] for lm in (made, base))
    torch.testing.assert_close(new, old)
    assert made.family.tokenizer.encode("[St3][Pi63]", bos=False) == [size + 64 + 3, size + 63]
    with pytest.raises(ValueError, match="holds a model already"):
        make_expressive("nano", parts, tmp_path / "made")
    with pytest.raises(ValueError, match="Expressive already"):
        make_expressive(str(tmp_path / "made"), parts, tmp_path / "again")


def test_a_thin_one_shares_the_speech_parts_of_its_base(parts: Path, tmp_path: Path):
    base = shutil.copytree(find("nano").folder, tmp_path / "base")
    make_expressive(str(base), parts, tmp_path / "thin", layers=3, share=True)
    assert not list((tmp_path / "thin").glob("[hqv]*.safetensors"))
    thin, whole = find(tmp_path / "thin"), find(base)
    assert not thin.missing and thin.part("hubert") == whole.part("hubert")
    kept, had = thin.part("lm").load(), whole.part("lm").load()
    for at, layer in enumerate((0, 2, 5)):
        name = "model.layers.{}.mlp.up_proj.weight"
        assert torch.equal(kept[name.format(at)], had[name.format(layer)])
    assert spiritrt.load(str(tmp_path / "thin")).family.llama.config.num_hidden_layers == 3
    with pytest.raises(ValueError, match="layers must be 1 to 6, got 7"):
        make_expressive(str(base), parts, tmp_path / "other", layers=7)
    with pytest.raises(ValueError, match="--share needs --out beside"):
        make_expressive(str(base), parts, tmp_path / "in" / "there", share=True)
    shutil.rmtree(base)
    with pytest.raises(CheckpointError, match="takes its hubert from"):
        find(tmp_path / "thin")


def test_it_hears_all_three_kinds(parts: Path, tmp_path: Path):
    pytest.importorskip("local_attention")  # what torchfcpe needs
    make_expressive("nano", parts, tmp_path / "made")
    lm = spiritrt.load(str(tmp_path / "made"))
    tone = 0.3 * np.sin(np.arange(32000) * 2 * np.pi * 150 / 16000).astype(np.float32)
    tokens = merge(lm.encode(tone))
    assert {token.kind for token in tokens} == {"Hu", "Pi", "St"}
    assert lm.decode("".join(map(str, tokens))).samples.size > 0
    assert find(str(tmp_path / "made")).reply == "continuation"
