"""A 7B model has to load on a machine that can just hold it: what loading needs beyond the weights themselves."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from spiritrt.models.llama import Llama, LlamaConfig

SMALL = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
BIG = {
    "vocab_size": 16384,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
}
PEAK_MEMORY = Path(__file__).parent / "data" / "peak_memory.py"


def random_weights(words: dict[str, int]) -> dict[str, Tensor]:
    """bf16 weights of a Llama, the same noise over and over."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in Llama(LlamaConfig.from_official(words)).state_dict().items()}
    noise = (0.02 * torch.randn(1 << 20, generator=torch.Generator().manual_seed(0))).bfloat16()
    return {
        name: noise.repeat(-(-shape.numel() // len(noise)))[: shape.numel()].view(shape).clone()
        for name, shape in shapes.items()
    }


def write_model(root: Path, words: dict[str, int], tensors: dict[str, Tensor], form: str) -> Path:
    folder = root / "spiritlm_model" / "spirit-lm-base-7b"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(words))
    (folder / "tokenizer.model").touch()
    if form == "bin":
        torch.save(tensors, folder / "pytorch_model.bin")
        return root
    shards = {f"model-{i}.safetensors": list(tensors)[i::3] for i in range(3)}
    for file, names in shards.items():
        save_file({name: tensors[name] for name in names}, folder / file)
    index = {"weight_map": {name: file for file, names in shards.items() for name in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return root


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize(
    ("form", "weights"),
    [("bin", "plain"), ("sharded safetensors", "plain"), ("bin", "int8"), ("sharded safetensors", "bf16")],
)
def test_loading_needs_little_more_than_the_weights(form, weights, tmp_path):
    """Peak growth of resident memory, of the plain module and of engines. Every weight is read, so that all comes in.

    In int8 the embedding stays in 16 bits, and one weight at a time is in memory as it was.
    """
    big = random_weights(BIG)
    size = sum(tensor.numel() * tensor.element_size() for tensor in big.values())
    assert size > 250e6
    limit = 1.2 * size
    if weights == "int8":
        embedding = big["model.embed_tokens.weight"].nbytes
        size = (size + embedding) // 2
        limit = 1.2 * size + embedding
    small_root = write_model(tmp_path / "small", SMALL, random_weights(SMALL), form)
    big_root = write_model(tmp_path / "big", BIG, big, form)
    try:
        arguments = [sys.executable, PEAK_MEMORY, small_root, big_root, weights]
        run = subprocess.run(arguments, stdout=subprocess.PIPE, check=True)
    finally:
        for file in (*big_root.glob("**/*model*.*"), *big_root.glob("cache/*")):
            file.unlink()
    grown = int(run.stdout)
    assert 0.9 * size < grown <= limit, f"{grown / 1e6:.0f} MB for {size / 1e6:.0f} MB of weights"
