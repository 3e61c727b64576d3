"""Packing of checkpoints, formats of weights, and the files that quantized ones are kept in."""

import os
import warnings

import pytest
import torch
from engine_models import SHAPES, VOCABULARY, packed, random_llama
from torch import Tensor

import spiritrt
from spiritrt.engine import weight_files
from spiritrt.engine.engine import Engine
from spiritrt.engine.weights import ModelWeights, pack, packed_shapes, random_tensors, unpack
from spiritrt.models.checkpoints import CheckpointError, Part, save_part
from spiritrt.models.llama import Llama

IDS = [int(i) for i in torch.randint(VOCABULARY, (60,), generator=torch.Generator().manual_seed(0))]


def scores(weights: ModelWeights) -> Tensor:
    engine = Engine(weights, slots=1, tokens=64, progress=False)
    return torch.tensor(engine.score(engine.open(), IDS))


def config_of(llama: Llama) -> dict:
    """`config.json` of a plain model."""
    c = llama.config
    return {
        "vocab_size": c.vocab_size, "hidden_size": c.hidden_size, "intermediate_size": c.intermediate_size,
        "num_hidden_layers": c.num_hidden_layers, "num_attention_heads": c.num_attention_heads,
        "num_key_value_heads": c.num_key_value_heads, "head_dim": c.head_dim, "rms_norm_eps": c.rms_norm_eps,
        "max_position_embeddings": c.max_position_embeddings, "rope_theta": c.rope_theta,
        "tie_word_embeddings": c.tie_word_embeddings,
    }  # fmt: skip


@pytest.fixture
def part(tmp_path) -> Part:
    llama = random_llama(**SHAPES["mqa, tied"])
    save_part(tmp_path / "model", "lm", config_of(llama), dict(llama.state_dict()))
    return Part("lm", config_of(llama), (tmp_path / "model" / "lm.safetensors",))


class TestPack:
    @pytest.mark.parametrize("shape", SHAPES)
    def test_any_order_of_tensors(self, shape):
        llama = random_llama(**SHAPES[shape])
        expected = pack(llama.config, llama.state_dict().items())
        found = pack(llama.config, reversed(llama.state_dict().items()))
        assert found.keys() == expected.keys() == packed_shapes(llama.config).keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())

    def test_what_does_not_belong(self):
        llama = random_llama()
        good = dict(llama.state_dict())
        for changed, message in (
            ({"lm_head.weight": torch.zeros(5, 40)}, r"lm_head\.weight: expected shape \(203, 40\), got \(5, 40\)"),
            ({"model.norm.bias": torch.zeros(40)}, r"1 unexpected weights: model\.norm\.bias"),
            ({"model.layers.0.self_attn.q_proj.bias": torch.zeros(32)}, "1 unexpected weights"),
        ):
            with pytest.raises(ValueError, match=message):
                pack(llama.config, (good | changed).items())
        del good["model.norm.weight"], good["model.layers.1.mlp.up_proj.weight"]
        with pytest.raises(ValueError, match=r"2 weights missing: model\.layers\.1\.mlp\.up_proj\.weight, model\.norm"):
            pack(llama.config, good.items())
        with pytest.raises(ValueError, match="weights must be one of auto, fp32, fp16, bf16, int8, fp8, got 'int4'"):
            pack(llama.config, llama.state_dict().items(), "int4")

    def test_old_checkpoints_and_tied_ones_hold_more(self):
        llama = random_llama(**SHAPES["mqa, tied"])
        more = dict(llama.state_dict()) | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
        assert "lm_head.weight" in more
        assert torch.equal(scores(unpack(llama.config, pack(llama.config, more.items()))), scores(packed(llama)))

    def test_random_weights_of_a_shape(self):
        config = random_llama().config
        weights = unpack(config, pack(config, random_tensors(config, torch.bfloat16, "cpu")))
        assert weights.stored == torch.bfloat16 and torch.isfinite(scores(weights)).all()


class TestFormats:
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize(("weights", "error"), [("fp16", 0.01), ("bf16", 0.05), ("int8", 0.15), ("fp8", 0.6)])
    def test_close_to_float32(self, shape, weights, error):
        """Mean differences of log-probabilities; activations stay float32 on a CPU."""
        llama = random_llama(**SHAPES[shape])
        model = packed(llama, weights)
        assert model.stored.itemsize == {"int8": 1, "fp8": 1}.get(weights, 2)
        assert model.activations == torch.float32
        difference = (scores(model) - scores(packed(llama))).abs().mean()
        assert 0 < float(difference) < error

    def test_as_stored(self):
        llama = random_llama().half()
        weights = packed(llama, "auto")
        assert weights.stored == weights.embedding.dtype == torch.float16


class TestFiles:
    def test_plain_weights_are_not_written(self, part, tmp_path):
        weights = weight_files.load(part, "little", "fp32", folder=tmp_path / "cache", progress=False)
        assert weights.stored == torch.float32 and not (tmp_path / "cache").exists()

    @pytest.mark.parametrize("weights", ["int8", "fp8"])
    def test_quantized_once(self, part, tmp_path, monkeypatch, weights):
        first = weight_files.load(part, "little", weights, folder=tmp_path / "cache", progress=False)
        (file,) = (tmp_path / "cache").iterdir()
        assert file.name.startswith(f"little-{weights}-") and file.suffix == ".safetensors"
        monkeypatch.setattr(weight_files, "pack", None)  # quantizing again would call it
        again = weight_files.load(part, "little", weights, folder=tmp_path / "cache", progress=False)
        assert torch.equal(scores(first), scores(again))

    @pytest.mark.parametrize("damage", ["cut", "other", "empty"])
    def test_a_damaged_file_is_made_anew(self, part, tmp_path, damage):
        folder = tmp_path / "cache"
        expected = scores(weight_files.load(part, "little", "int8", folder=folder, progress=False))
        (file,) = folder.iterdir()
        whole = file.read_bytes()
        if damage == "other":
            llama = random_llama(layers=1)
            weight_files.write(file, pack(llama.config, llama.state_dict().items(), "int8"))
        else:
            file.write_bytes(whole[: len(whole) // 2 if damage == "cut" else 0])
        with pytest.warns(UserWarning, match=rf"{file.name} is damaged .*; it is made anew"):
            again = weight_files.load(part, "little", "int8", folder=folder, progress=False)
        assert torch.equal(scores(again), expected) and file.read_bytes() == whole

    def test_a_checkpoint_that_changed_has_another_file(self, part, tmp_path):
        for times in range(3):
            weight_files.load(part, "little", "int8", folder=tmp_path / "cache", progress=False)
            assert len(list((tmp_path / "cache").iterdir())) == times + 1
            os.utime(part.files[0], ns=(0, 1000 + times))

    def test_a_folder_that_cannot_be_written(self, part, tmp_path):
        (tmp_path / "cache").write_text("no folder")
        with pytest.warns(UserWarning, match="int8 weights of little are not kept for the next time"):
            weights = weight_files.load(part, "little", "int8", folder=tmp_path / "cache", progress=False)
        assert weights.stored == torch.int8

    def test_says_where_they_are(self, part, tmp_path, capsys):
        for words in ("are kept in", "int8 weights of little: "):
            weight_files.load(part, "little", "int8", folder=tmp_path / "cache")
            out, err = capsys.readouterr()
            assert words in err and str(tmp_path / "cache") in err and not out

    def test_wrong_weights_name_their_file(self, part):
        save_part(part.files[0].parent, "lm", part.config, {"model.norm.weight": torch.zeros(40)})
        with pytest.raises(CheckpointError, match=r"lm\.safetensors: Llama: \d+ weights missing"):
            weight_files.load(part, "little", "int8", progress=False)

    def test_by_name_from_the_folder_of_the_environment(self, official, tmp_path, monkeypatch):
        monkeypatch.setenv("SPIRITRT_CACHE_DIR", str(tmp_path / "here"))
        model = str(official / "spiritlm_model" / "spirit-lm-base-7b")
        with warnings.catch_warnings(action="error"):
            lm = spiritrt.load(model, weights="int8", lazy=True, progress=False)
            assert lm.engine.weights.stored == torch.int8
        assert [file.name[:21] for file in (tmp_path / "here").iterdir()] == ["spirit-lm-base-7b-int"]
        assert len(lm.generate("[Text]hello", "text", max_new_tokens=3).ids) == 3
