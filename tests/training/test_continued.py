"""A Llama folder becomes a family to be trained: text as before, new rows for speech, and training from shards."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import sentencepiece
import soundfile
import torch
from safetensors.torch import save_file

import spiritrt
from spiritrt.models.checkpoints import find
from spiritrt.models.llama import Llama, LlamaConfig
from spiritrt.training.batches import BatchStream
from spiritrt.training.continued import EMBEDDING, continue_from, extended, vocabulary_after
from spiritrt.training.corpora.manifest import read_manifest
from spiritrt.training.interleave import SpanPlan
from spiritrt.training.lm import Plan, Start, Trainer, from_shards, initialise
from spiritrt.training.shards import write_shard

CONFIG = {
    "model_type": "llama", "vocab_size": 352, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "max_position_embeddings": 256, "tie_word_embeddings": True,
}  # fmt: skip


def small_llama(config: dict) -> Llama:
    torch.manual_seed(0)
    model = Llama(LlamaConfig.from_official(config))
    initialise(model)
    return model


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder of a small Llama with tied rows, some of them padding, in two shards."""
    folder = tmp_path_factory.mktemp("llama")
    lines = ["the quick brown fox jumps over the lazy dog", "pack my box with five dozen jugs"] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(folder / "tokenizer"), vocab_size=340, model_type="bpe",
        byte_fallback=True, unk_id=0, bos_id=1, eos_id=2, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    (folder / "config.json").write_text(json.dumps(CONFIG))
    weights = small_llama(CONFIG).state_dict()
    del weights["lm_head.weight"]
    names = sorted(weights)
    for part, own in (("1", names[::2]), ("2", names[1::2])):
        tensors = {name: weights[name].to(torch.bfloat16) for name in own}
        save_file(tensors, folder / f"model-0000{part}-of-00002.safetensors")
    return folder


@pytest.fixture(scope="module")
def family(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("family") / "mine"
    continue_from(llama, "nano", out, theta=100000.0)
    return out


def test_rows_are_padded_and_hold_all_kinds():
    assert vocabulary_after(32000, False).rows == 32512 and vocabulary_after(32000, True).rows == 32704
    assert vocabulary_after(100, True).expressive and not vocabulary_after(100, False).expressive


def test_new_rows_are_like_the_old_ones():
    rows = torch.randn(300, 8) * torch.arange(1, 9) + 5
    made = extended(rows, 5000, 256, torch.Generator().manual_seed(0))
    assert torch.equal(made[:256], rows[:256])
    torch.testing.assert_close(made[256:].mean(0), rows[:256].mean(0), atol=0.5, rtol=0)
    torch.testing.assert_close(made[256:].std(0), rows[:256].std(0), atol=0, rtol=0.05)
    with pytest.raises(ValueError, match="has 300 rows"):
        extended(rows, 5000, 301, torch.Generator())


def test_text_is_read_as_before_and_speech_is_there(llama: Path, family: Path):
    lm = spiritrt.load(str(family))
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(llama / "tokenizer.model"))
    size = pieces.get_piece_size()
    assert lm.family.vocabulary.text_size == size and lm.family.vocabulary.rows % 64 == 0
    assert lm.family.tokenizer.encode("the lazy dog[Speech][Hu7]") == [
        1, *pieces.encode("the lazy dog"), size + 1, size + 2 + 7,
    ]  # fmt: skip
    assert find(str(family)).part("lm").config["rope_theta"] == 100000.0
    original = small_llama(CONFIG | {"rope_theta": 100000.0}).bfloat16().float()
    ids = torch.tensor([[1, *pieces.encode("the lazy dog")]])
    with torch.inference_mode():
        expected = original.eval()(ids)[..., :size]
        torch.testing.assert_close(lm.family.llama.float()(ids)[..., :size], expected, atol=1e-4, rtol=1e-3)
    speech = lm.generate("[Text]the dog", "speech", spiritrt.Sampling(seed=1), max_new_tokens=30)
    assert speech.samples.size > 0


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.model"])
def test_bad_folders_are_named(llama: Path, family: Path, tmp_path: Path, missing: str):
    with pytest.raises(ValueError, match="holds a model already"):
        continue_from(llama, "nano", family)
    for file in llama.iterdir():
        if file.name != missing:
            (tmp_path / file.name).symlink_to(file)
    with pytest.raises(ValueError, match=missing):
        continue_from(tmp_path, "nano", tmp_path / "out")


def test_a_llama_without_sentencepiece_is_refused(llama: Path, tmp_path: Path):
    """Llama 3: a tokenizer.json alone, or tiktoken's file under the name of SentencePiece's."""
    for file in llama.iterdir():
        if file.name != "tokenizer.model":
            (tmp_path / file.name).symlink_to(file)
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "BPE"}}')
    supported = r"supported are .* Llama 1 and 2, .*TinyLlama"
    with pytest.raises(ValueError, match=rf"no tokenizer\.model .*Llama 3.*{supported}"):
        continue_from(tmp_path, "nano", tmp_path / "out")
    (tmp_path / "tokenizer.model").write_text("IQ== 0\nIg== 1\nIw== 2\n")
    with pytest.raises(ValueError, match=rf"tokenizer\.model is not SentencePiece's.*{supported}"):
        continue_from(tmp_path, "nano", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_it_trains_from_shards_and_resumes(family: Path, tmp_path: Path):
    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / "a.wav", 0.3 * np.sin(np.cumsum(rng.uniform(0.02, 0.3, 48000))), 16000)
    words = [{"word": f"w{n}", "start_s": 0.3 * n, "end_s": 0.3 * n + 0.3} for n in range(10)]
    line = {"id": "a", "audio": "a.wav", "text": " ".join(w["word"] for w in words), "speaker": "x", "words": words}
    (tmp_path / "manifest.jsonl").write_text(json.dumps(line) + "\n")
    (tmp_path / "text.txt").write_text("the quick brown fox\n\nfive dozen jugs")
    lm = spiritrt.load(str(family), lazy=True)
    write_shard(tmp_path / "shard", tmp_path, read_manifest(tmp_path), lm.family)
    plan = Plan(batch_tokens=256, steps=6, warmup_steps=1, matrix_rate=1e-3, other_rate=1e-3)

    spans = SpanPlan(text_words=(1, 3), speech_words=(1, 3))

    def trainer(out: Path = family) -> Trainer:
        documents, start = from_shards([tmp_path / "shard"], [tmp_path / "text.txt"], out, plan, 128, spans)
        assert set(documents.kinds) == {"speech", "interleaved", "text"}
        return Trainer(plan, BatchStream(documents, plan.batch_tokens, window=16, packed=True), start)

    first = trainer()
    losses = [first.step() for _ in range(5)]
    assert all(map(math.isfinite, losses)) and losses[-1] < losses[0]
    again = trainer()
    assert [again.step() for _ in range(2)] == losses[:2]
    again.save(tmp_path / "lm.pt")
    resumed = trainer()
    resumed.load(tmp_path / "lm.pt")
    assert [resumed.step() for _ in range(3)] == losses[2:]
    out = shutil.copytree(family, tmp_path / "out")
    resumed.export(out, tmp_path / "lm.pt")
    assert find(str(out)).part("lm").config["num_key_value_heads"] == 1
    trainer(out).load(tmp_path / "lm.pt")  # what it exported itself
    trainer().load(tmp_path / "lm.pt")  # what it began from


def test_a_state_of_another_family_is_refused(family: Path, tmp_path: Path):
    plan = Plan(steps=1)
    nothing = BatchStream(SimpleNamespace(mix=SimpleNamespace(context=16), seed=0), 256)  # never read
    mine = Start.of(find(str(family)), plan, 0)
    first = Trainer(plan, nothing, mine)
    first.save(tmp_path / "lm.pt")
    assert mine.tensors is not None
    retrained = replace(mine, tensors=mine.tensors | {EMBEDDING: mine.tensors[EMBEDDING] + 1}, digest="another")
    with pytest.raises(ValueError, match="neither began from the language model in --out nor wrote it"):
        Trainer(plan, nothing, retrained).load(tmp_path / "lm.pt")
    longer = replace(mine, config=mine.config | {"max_position_embeddings": 77})
    with pytest.raises(ValueError, match=r"of another model \(max_position_embeddings \d+ there and 77 here\)"):
        Trainer(plan, nothing, longer).load(tmp_path / "lm.pt")
