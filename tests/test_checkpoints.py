import json
import pickle
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import spiritrt
from spiritrt import GREEDY, CheckpointError, SpiritLM
from spiritrt.models import checkpoints
from spiritrt.models.checkpoints import Checkpoint, convert, find, save_part
from spiritrt.models.family import Family

NAMES = {"base": "spirit-lm-base-7b", "expressive": "spirit-lm-expressive-7b"}
IDS = torch.tensor([[1, 32000, 500, 600, 32001, 32002, 32400]])

# what each part reads, under the root of the official layout
SPEECH = "speech_tokenizer"
FILES = {
    "hubert": (f"{SPEECH}/hubert_25hz/mhubert_base_25hz.pt",),
    "quantizer": (f"{SPEECH}/hubert_25hz/L11_quantizer_500.pt",),
    "pitch": (f"{SPEECH}/vqvae_f0_quantizer/config.yaml", f"{SPEECH}/vqvae_f0_quantizer/model.pt"),
    "style": (f"{SPEECH}/style_encoder_w2v2/config.json", f"{SPEECH}/style_encoder_w2v2/pytorch_model.bin"),
}
BASE_VOCODER = [
    f"{SPEECH}/hifigan_spiritlm_base/{f}" for f in ("config.json", "generator.pt", "speakers.txt", "styles.txt")
]
EXPRESSIVE_VOCODER = [
    f"{SPEECH}/hifigan_spiritlm_expressive_w2v2/{f}" for f in ("config.json", "generator.pt", "speakers.txt")
]
MISSING = [("base", part, file) for part in ("hubert", "quantizer") for file in FILES[part]]
MISSING += [("base", "vocoder", file) for file in BASE_VOCODER]
MISSING += [("expressive", part, file) for part in FILES for file in FILES[part]]
MISSING += [("expressive", "vocoder", file) for file in EXPRESSIVE_VOCODER]
MISSING += [(model, "lm", f"spiritlm_model/{NAMES[model]}/{f}") for model in NAMES
            for f in ("config.json", "tokenizer.model", "pytorch_model.bin")]  # fmt: skip
WEIGHTS = [entry for entry in MISSING if entry[2].endswith((".pt", ".bin"))]
MODULES = {"lm": "llama", "pitch": "pitch_quantizer", "style": "style_classifier"}


@pytest.fixture
def root(official, tmp_path) -> Iterator[Path]:
    """A copy of the official folder to be damaged, made of links."""
    for file in official.glob("**/*"):
        for found in file.glob("**/*") if file.is_symlink() and file.is_dir() else [file]:
            if found.is_file():
                link = tmp_path / "root" / found.relative_to(official)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(found.resolve())
    yield tmp_path / "root"
    shutil.rmtree(tmp_path)


@pytest.fixture(scope="session")
def weights(official) -> dict[str, Tensor]:
    """The weights of the Base language model."""
    return torch.load(official / "spiritlm_model" / NAMES["base"] / "pytorch_model.bin", weights_only=True)


def model_in(root: Path, model: str = "base") -> Path:
    return root / "spiritlm_model" / NAMES[model]


def load_part(root: Path, model: str, part: str) -> None:
    getattr(Family(find(model_in(root, model)), progress=False), MODULES.get(part, part))


def replace(file: Path, content: bytes | dict | list) -> None:
    """Puts something else in a file's place: bytes, or what is pickled as a checkpoint."""
    file.unlink(missing_ok=True)
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)


def write_weights(folder: Path, tensors: dict[str, Tensor], form: str) -> None:
    """Writes language model weights as Hugging Face does, in one of its forms."""
    (folder / "pytorch_model.bin").unlink(missing_ok=True)
    suffix = "safetensors" if "safetensors" in form else "bin"
    write: Callable = save_file if suffix == "safetensors" else torch.save
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    if form == "legacy bin":
        torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    elif "sharded" not in form:
        write(tensors, folder / f"{stem}.{suffix}")
    else:
        names = list(tensors)
        shards = {f"{stem}-0000{i + 1}-of-00003.{suffix}": names[i::3] for i in range(3)}
        for file, held in shards.items():
            write({name: tensors[name] for name in held}, folder / file)
        index = {"metadata": {}, "weight_map": {name: file for file, held in shards.items() for name in held}}
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))


class TestFind:
    def test_by_name_folder_and_root(self, official, root, monkeypatch):
        shutil.rmtree(model_in(root, "expressive"))
        by_folder = find(model_in(root))
        assert by_folder.name == NAMES["base"] and not by_folder.missing
        assert find(str(root)) == by_folder
        monkeypatch.setenv(checkpoints.ENVIRONMENT, str(root))
        assert find(NAMES["base"]) == by_folder
        assert set(by_folder.parts) == {"lm", "hubert", "quantizer", "vocoder"}
        names = by_folder.part("vocoder").config
        assert (len(names["speakers"]), len(names["styles"])) == (names["num_speakers"], names["num_styles"])
        monkeypatch.setenv(checkpoints.ENVIRONMENT, str(official))
        assert set(find(NAMES["expressive"]).parts) == set(checkpoints.PARTS)

    def test_a_root_with_two_models_asks_for_one(self, official):
        with pytest.raises(CheckpointError, match="holds spirit-lm-base-7b and spirit-lm-expressive-7b: name one"):
            find(official)

    def test_a_name_needs_the_environment(self, monkeypatch):
        monkeypatch.delenv(checkpoints.ENVIRONMENT, raising=False)
        with pytest.raises(CheckpointError, match="spirit-lm-base-7b: set SPIRITLM_CHECKPOINTS_DIR to the folder"):
            spiritrt.load(NAMES["base"])

    def test_what_is_no_model(self, tmp_path):
        for name in ("spirit-lm-70b", str(tmp_path), str(tmp_path / "gone")):
            with pytest.raises(CheckpointError, match=f"no model {name!r}: give a shipped name"):
                find(name)

    @pytest.mark.parametrize(
        ("manifest", "message"),
        [
            ('{"format": 2, "parts": {}}', "format 2 is not 1; convert again"),
            ('{"format": 1}', "'parts' must hold a configuration for each of lm, hubert, quantizer, vocoder"),
            ('{"format": 1, "parts": {"ears": {}}}', "'parts' must hold a configuration"),
            ('{"format": 1, "parts": {"lm": 3}}', "'parts' must hold a configuration"),
            ("{", "cannot be read as JSON"),
            ("[]", "expected a JSON object, got list"),
        ],
    )
    def test_broken_manifests(self, tmp_path, manifest, message):
        (tmp_path / "spiritrt.json").write_text(manifest)
        with pytest.raises(CheckpointError, match=rf"spiritrt\.json: {message}"):
            find(tmp_path)


class TestLanguageModelFiles:
    @pytest.mark.parametrize("form", ["bin", "legacy bin", "sharded bin", "safetensors", "sharded safetensors"])
    def test_every_form_is_the_same_model(self, root, base_lm, weights, form):
        write_weights(model_in(root), weights, form)
        lm = spiritrt.load(str(model_in(root)), lazy=True)
        with torch.inference_mode():
            assert torch.equal(lm.family.llama(IDS), base_lm.family.llama(IDS))

    def test_rotary_buffers_of_old_checkpoints_are_left_out(self, root, weights):
        write_weights(model_in(root), weights | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}, "bin")
        load_part(root, "base", "lm")

    @pytest.mark.parametrize("form", ["bin", "safetensors"])
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"lm_head.weight": torch.zeros(5, 64)}, r"lm_head\.weight: expected shape \(32512, 64\), got \(5, 64\)"),
            ({"model.norm.bias": torch.zeros(64)}, r"1 unexpected weights: model\.norm\.bias"),
            ({"model.norm.weight": None}, r"1 weights missing: model\.norm\.weight"),
        ],
    )
    def test_wrong_weights_are_named(self, root, weights, form, change, message):
        write_weights(model_in(root), {k: v for k, v in (weights | change).items() if v is not None}, form)
        with pytest.raises(ValueError, match=message):
            load_part(root, "base", "lm")

    def test_a_missing_shard_is_named(self, root, weights):
        write_weights(model_in(root), weights, "sharded safetensors")
        (model_in(root) / "model-00002-of-00003.safetensors").unlink()
        with pytest.raises(CheckpointError, match=r"has no lm part: .*model-00002-of-00003\.safetensors"):
            load_part(root, "base", "lm")

    @pytest.mark.parametrize("index", ["{}", '{"weight_map": {}}', '{"weight_map": ["x"]}', '{"weight_map": {"a": 1}}'])
    def test_a_broken_index(self, root, index):
        (model_in(root) / "pytorch_model.bin.index.json").write_text(index)
        with pytest.raises(CheckpointError, match=r"bin\.index\.json: has no 'weight_map' from weights to their files"):
            find(model_in(root))

    @pytest.mark.parametrize("form", ["legacy bin", "safetensors"])
    @pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
    def test_truncated(self, root, weights, form, share):
        write_weights(model_in(root), weights, form)
        (file,) = find(model_in(root)).part("lm").files
        replace(file, file.read_bytes()[: int(share * file.stat().st_size)])
        with pytest.raises(CheckpointError, match=rf"{re.escape(str(file))}: not a readable .*truncated"):
            load_part(root, "base", "lm")

    def test_a_config_that_lacks_words(self, root):
        replace(model_in(root) / "config.json", b'{"hidden_size": 64}')
        with pytest.raises(ValueError, match="config has no 'num_attention_heads'"):
            load_part(root, "base", "lm")

    @pytest.mark.parametrize(
        ("dtype", "expected"), [("auto", "float32"), ("bfloat16", "bfloat16"), ("float16", "float16")]
    )
    def test_dtype(self, official, dtype, expected):
        lm = spiritrt.load(str(model_in(official)), dtype=dtype, lazy=True)
        assert lm.family.llama.lm_head.weight.dtype == getattr(torch, expected)
        assert len(lm.generate("[Text]hello", "text", GREEDY, 2).ids) == 2

    def test_unknown_dtype_and_device(self, official):
        with pytest.raises(ValueError, match="dtype must be one of auto, float32, bfloat16, float16, got 'int8'"):
            spiritrt.load(str(model_in(official)), dtype="int8", lazy=True)
        with pytest.raises(ValueError, match="device 'toaster' cannot be used here"):
            spiritrt.load(str(model_in(official)), device="toaster", lazy=True)


class TestDamage:
    @pytest.mark.parametrize(("model", "part", "file"), MISSING, ids=[f"{m}-{Path(f).name}" for m, _, f in MISSING])
    def test_a_missing_file_is_named_by_what_needs_it(self, root, model, part, file):
        (root / file).unlink()
        found = find(model_in(root, model))
        assert found.missing == (root / file,) and part not in found.parts
        with pytest.raises(CheckpointError, match=rf"{NAMES[model]} has no {part} part: {re.escape(str(root / file))}"):
            load_part(root, model, part)
        other = "quantizer" if part != "quantizer" else "hubert"
        load_part(root, model, other)

    @pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
    @pytest.mark.parametrize(("model", "part", "file"), WEIGHTS, ids=[f"{m}-{Path(f).name}" for m, _, f in WEIGHTS])
    def test_truncated(self, root, model, part, file, share):
        whole = (root / file).read_bytes()
        replace(root / file, whole[: int(share * len(whole))])
        with pytest.raises(
            CheckpointError, match=rf"{re.escape(str(root / file))}: not a readable checkpoint \(.*truncated"
        ):
            load_part(root, model, part)

    @pytest.mark.parametrize(
        "content",
        [b"version https://git-lfs.github.com/spec/v1\n", b"<html>404</html>", pickle.dumps(None, protocol=2)],
    )
    def test_something_else_altogether(self, root, content):
        replace(model_in(root) / "pytorch_model.bin", content)
        with pytest.raises(
            CheckpointError, match=r"pytorch_model\.bin: (not a readable checkpoint|expected a dictionary)"
        ):
            load_part(root, "base", "lm")

    @pytest.mark.parametrize("form", ["zip", "legacy", "bare pickle"])
    @pytest.mark.parametrize("kind", ["code", "object"])
    def test_more_than_plain_weights_is_refused(self, root, tmp_path, form, kind):
        mark = tmp_path / "ran"
        value = {"a": _Code(mark)} if kind == "code" else {"a": Path("x")}
        file = model_in(root) / "pytorch_model.bin"
        file.unlink()
        if form == "bare pickle":
            file.write_bytes(pickle.dumps(value, protocol=2))
        else:
            torch.save(value, file, _use_new_zipfile_serialization=form == "zip")
        with pytest.raises(CheckpointError) as caught:
            load_part(root, "base", "lm")
        assert re.search(
            r"pytorch_model\.bin: holds more than plain weights \(\S+\), refused as unsafe", str(caught.value)
        )
        assert "weights_only" not in str(caught.value)  # nobody is told to load it all the same
        assert not mark.exists()

    @pytest.mark.parametrize(
        ("model", "part", "file", "message"),
        [
            ("base", "hubert", FILES["hubert"][0], "has no entry 'model_weight'"),
            ("base", "vocoder", BASE_VOCODER[1], "has no tensors under 'generator', only 'other'"),
            ("expressive", "pitch", FILES["pitch"][1], "has no tensors under 'model', only 'other'"),
        ],
    )
    def test_tensors_under_another_name(self, root, model, part, file, message):
        replace(root / file, {"other": {"weight": torch.zeros(2)}})
        with pytest.raises(CheckpointError, match=rf"{re.escape(file)}: {message}"):
            load_part(root, model, part)

    @pytest.mark.parametrize(("file", "part"), [(BASE_VOCODER[0], "vocoder"), (FILES["pitch"][0], "pitch")])
    def test_broken_configs(self, root, file, part):
        replace(root / file, b"{ x: [")
        with pytest.raises(CheckpointError, match=rf"{re.escape(file)}: cannot be read as"):
            load_part(root, "base" if part == "vocoder" else "expressive", part)


@pytest.fixture(scope="module", params=NAMES)
def pair(request, tmp_path_factory) -> tuple[SpiritLM, SpiritLM, Checkpoint]:
    """A golden model, and itself in our own layout."""
    lm = request.getfixturevalue(f"{request.param}_lm")
    folder = tmp_path_factory.mktemp("own") / request.param
    converted = convert(lm.family.checkpoint.folder, folder)
    return lm, spiritrt.load(str(folder)), converted


class TestConvert:
    def test_is_one_folder_of_safetensors_and_json(self, pair):
        lm, _, converted = pair
        files = {file.name for file in converted.folder.iterdir()}
        assert files == {"spiritrt.json", *checkpoints.TOKENIZER_FILES, *(f"{p}.safetensors" for p in converted.parts)}
        assert set(converted.parts) == set(lm.family.checkpoint.parts) and not converted.missing

    def test_speaks_and_writes_the_same(self, pair, golden):
        lm, own, _ = pair
        for output in ("text", "speech"):
            mine, theirs = (model.generate("[Text]hello", output, GREEDY, 8) for model in (own, lm))
            assert (mine.ids, mine.logprobs) == (theirs.ids, theirs.logprobs)
            np.testing.assert_array_equal(mine.samples, theirs.samples)
        file = golden / "audio" / "leading_blank.flac"
        assert own.encode(file) == lm.encode(file)
        np.testing.assert_array_equal(own.decode(own.encode(file)).array, lm.decode(lm.encode(file)).array)

    def test_from_our_own_layout(self, pair, tmp_path):
        _, _, converted = pair
        again = convert(converted.folder, tmp_path / "again")
        assert set(again.parts) == set(converted.parts)
        assert all(again.part(name).config == part.config for name, part in converted.parts.items())
        for name in converted.parts:
            assert (again.folder / f"{name}.safetensors").read_bytes() == converted.part(name).files[0].read_bytes()

    def test_keeps_how_the_model_replies(self, pair, tmp_path):
        _, _, converted = pair
        assert converted.reply == "continuation"
        manifest = json.loads((converted.folder / "spiritrt.json").read_text())
        for file in converted.folder.iterdir():
            (tmp_path / file.name).symlink_to(file)
        replace(tmp_path / "spiritrt.json", json.dumps(manifest | {"reply": "chain"}).encode())
        assert convert(tmp_path, tmp_path / "again").reply == "chain"

    def test_never_over_another_model(self, pair):
        lm, _, converted = pair
        with pytest.raises(CheckpointError, match="already holds a model; choose another folder or remove it"):
            convert(lm.family.checkpoint.folder, converted.folder)

    def test_a_part_that_is_gone_is_named(self, pair, tmp_path):
        _, _, converted = pair
        for file in converted.folder.iterdir():
            if file.name != "vocoder.safetensors":
                (tmp_path / file.name).symlink_to(file)
        lm = spiritrt.load(str(tmp_path), lazy=True)
        assert lm.generate("[Text]hello", "text", GREEDY, 1).ids
        with pytest.raises(CheckpointError, match=r"has no vocoder part: .*vocoder\.safetensors"):
            lm.decode("[Hu1]")
        with pytest.raises(CheckpointError, match=r"is incomplete, missing: .*vocoder\.safetensors"):
            convert(tmp_path, tmp_path / "again")

    def test_tied_weights(self, root, weights, tmp_path):
        config = json.loads((model_in(root) / "config.json").read_text()) | {"tie_word_embeddings": True}
        replace(model_in(root) / "config.json", json.dumps(config).encode())
        embedding = weights["model.embed_tokens.weight"]
        untied = {name: tensor for name, tensor in weights.items() if name != "lm_head.weight"}
        logits = []
        for tensors in (untied | {"lm_head.weight": embedding}, untied):
            write_weights(model_in(root), tensors, "bin")
            logits.append(spiritrt.load(str(model_in(root)), lazy=True).family.llama(IDS))
            convert(model_in(root), tmp_path / f"{len(logits)}")
            llama = spiritrt.load(str(tmp_path / f"{len(logits)}"), lazy=True).family.llama
            assert llama.lm_head.weight.data_ptr() == llama.model.embed_tokens.weight.data_ptr()
            logits.append(llama(IDS))
        assert all(torch.equal(logits[0], other) for other in logits[1:])

    def test_unknown_part(self, tmp_path):
        with pytest.raises(ValueError, match=r"part must be one of lm, hubert, .*, got 'ears'"):
            save_part(tmp_path, "ears", {}, {})


class _Code:
    """What a pickle can do to whoever loads it without care."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable, tuple[str, str]]:
        return (open, (str(self.mark), "w"))
