"""A thin language model's configuration and a shard for it, without the sound that it would be of."""

import json
from pathlib import Path

import numpy as np

from spiritrt.models.checkpoints import find
from spiritrt.training.shards import tokenizer_versions

CONFIG = {
    "model_type": "llama", "vocab_size": 1536, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "rms_norm_eps": 1e-5, "rope_theta": 100000.0,
    "max_position_embeddings": 256, "tie_word_embeddings": False,
}  # fmt: skip


def make_shard(folder: Path, family: Path, text: str = "") -> None:
    """Twenty utterances of eight words; `text` is the text of all of them."""
    rng = np.random.default_rng(0)
    count, frames = 20, 60
    folder.mkdir()
    np.save(folder / "Hu.npy", rng.integers(0, 500, count * frames).astype(np.uint16))
    np.save(folder / "Hu_offsets.npy", np.arange(count + 1, dtype=np.int64) * frames)
    np.save(folder / "words.npy", np.tile(np.arange(8, dtype=np.float32) * 0.3, count))
    np.save(folder / "word_offsets.npy", np.arange(count + 1, dtype=np.int64) * 8)
    line = {"text": text, "speaker": "x", "split": "train", "words": "what color is the big blue moon now".split()}  # noqa: SIM905
    lines = [json.dumps(line | {"id": f"u{n}"}).encode() + b"\n" for n in range(count)]
    (folder / "lines.jsonl").write_bytes(b"".join(lines))
    np.save(folder / "line_offsets.npy", np.cumsum([0, *map(len, lines)]))
    versions = tokenizer_versions(find(str(family)), ("Hu",))
    header = {"format": 1, "model": "x", "tokenizers": versions, "utterances": count, "words": 8 * count}
    (folder / "shard.json").write_text(json.dumps(header | {"Hu": count * frames}))
