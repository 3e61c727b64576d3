"""A Spirit LM to be trained, from a Hugging Face Llama folder: its weights with new rows for the speech tokens.

    python -m spiritrt.training.continued --llama LLAMA --speech nano --out build/mine

The folder needs `config.json`, `tokenizer.model` (SentencePiece) and weights (safetensors or .bin, whole or in shards):
Llama 1 and 2, Code Llama, TinyLlama, OpenLLaMA. Llama 3's tokenizer is not SentencePiece's, and is refused.
Text ids stay as they are; `[Text]`, `[Speech]`, `[Hu0]` ... follow from `vocab_size` of the tokenizer on, and rows are
padded to a multiple of 64. New rows are drawn at random with the mean and the deviation of the old ones. The result is
a family in our own layout (speech parts copied from `--speech`), which `spiritrt.training.lm --shards` trains on.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import sentencepiece
import torch
from torch import Tensor

from spiritrt.models.checkpoints import Part, find, save_part
from spiritrt.models.llama import LlamaConfig
from spiritrt.tokens.vocabulary import Vocabulary
from spiritrt.training.arguments import launch

MULTIPLE = 64
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
SUPPORTED = "supported are Llamas with a SentencePiece tokenizer.model: Llama 1 and 2, Code Llama, TinyLlama, OpenLLaMA"


def vocabulary_after(text_size: int, expressive: bool) -> Vocabulary:
    """The layout of speech tokens behind `text_size` text ids, padded."""
    units, pitches, styles = 501, 64 if expressive else 0, 100 if expressive else 0
    used = text_size + 2 + units + pitches + styles
    return Vocabulary(text_size, units, pitches, styles, -(-used // MULTIPLE) * MULTIPLE)


def added_tokens(vocabulary: Vocabulary) -> dict[str, object]:
    """`tokenizer_config.json` with the extra tokens of a vocabulary."""
    first, last = vocabulary.text_marker, vocabulary.size
    entries = {
        str(token_id): {"content": vocabulary.spelling(token_id), "special": False, "normalized": False}
        for token_id in range(first, last)
    }
    return {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "added_tokens_decoder": entries}


def extended(rows: Tensor, count: int, text_size: int, generator: torch.Generator) -> Tensor:
    """Embedding or head rows [V, C] as [count, C]: those of the text, and new ones like them at random.

    Rows between the tokenizer's size and V, which some checkpoints have as padding, are new as well. Raises ValueError
    where there are fewer rows than text ids.
    """
    if len(rows) < text_size:
        raise ValueError(f"the model has {len(rows)} rows, its tokenizer has {text_size} ids")
    old = rows[:text_size].float()
    noise = torch.randn(count - text_size, rows.shape[1], generator=generator)
    fresh = old.mean(dim=0) + old.std(dim=0) * noise
    return torch.cat([old, fresh]).to(rows.dtype)


def continue_from(
    llama: Path, speech: str, out: Path, expressive: bool | None = None, theta: float | None = None, seed: int = 0
) -> Vocabulary:
    """Write the family; returns its vocabulary.

    `expressive` is by default whether `speech` has a pitch part. `theta` changes RoPE's base (the paper: 100,000).
    Raises ValueError for a folder that is not a Llama's, a tokenizer that is not SentencePiece's (Llama 3), or an `out`
    that holds a model already.
    """
    if (out / "spiritrt.json").is_file():
        raise ValueError(f"{out} holds a model already; choose another --out")
    if not (llama / "config.json").is_file():
        raise ValueError(f"no config.json in {llama}: give a Hugging Face Llama folder")
    config = json.loads((llama / "config.json").read_text(encoding="utf-8"))
    LlamaConfig.from_official(config)
    pieces = read_pieces(llama)
    source = find(speech)
    expressive = "pitch" in source.parts if expressive is None else expressive
    vocabulary = vocabulary_after(pieces.get_piece_size(), expressive)
    tensors = Part("lm", config, weight_files(llama)).load()
    if EMBEDDING not in tensors:
        raise ValueError(f"{llama} has no {EMBEDDING}; its tensors begin with {sorted(tensors)[:2]}")
    generator = torch.Generator().manual_seed(seed)
    # tied rows part here: the new ones of the head and of the embedding learn different things
    head = tensors.get(HEAD, tensors[EMBEDDING])
    tensors[EMBEDDING] = extended(tensors[EMBEDDING], vocabulary.rows, vocabulary.text_size, generator)
    tensors[HEAD] = extended(head, vocabulary.rows, vocabulary.text_size, generator)
    config |= {"vocab_size": vocabulary.rows, "tie_word_embeddings": False}
    if theta is not None:
        config["rope_theta"] = theta
    for name in ("hubert", "quantizer", "vocoder", *(("pitch", "style") if expressive else ())):
        part = source.part(name)
        save_part(out, name, part.config, part.load())
    save_part(out, "lm", config, tensors)
    shutil.copy(llama / "tokenizer.model", out / "tokenizer.model")
    (out / "tokenizer_config.json").write_text(json.dumps(added_tokens(vocabulary), indent=1), encoding="utf-8")
    return vocabulary


def read_pieces(folder: Path) -> sentencepiece.SentencePieceProcessor:
    """The SentencePiece tokenizer of a Llama folder. Raises ValueError where there is none, as in Llama 3's."""
    file = folder / "tokenizer.model"
    if not file.is_file():
        other = (
            " (its tokenizer.json is of another kind, as Llama 3's)" if (folder / "tokenizer.json").is_file() else ""
        )
        raise ValueError(f"no tokenizer.model in {folder}{other}: {SUPPORTED}")
    try:
        return sentencepiece.SentencePieceProcessor(model_file=str(file))
    except RuntimeError as error:  # Llama 3's `original/tokenizer.model` is tiktoken's
        raise ValueError(f"{file} is not SentencePiece's, as Llama 3's is not: {SUPPORTED}") from error


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The weight files of a Hugging Face folder. Raises ValueError where there are none."""
    for pattern in ("model*.safetensors", "pytorch_model*.bin"):
        if files := sorted(folder.glob(pattern)):
            return tuple(files)
    raise ValueError(f"no weights in {folder}: model*.safetensors or pytorch_model*.bin")


def main() -> None:
    parser = argparse.ArgumentParser(description="Make a family to be trained out of a Hugging Face Llama.")
    parser.add_argument("--llama", type=Path, required=True, help="Hugging Face folder of a Llama")
    parser.add_argument("--speech", default="nano", help="family whose speech parts are taken")
    parser.add_argument("--out", type=Path, required=True, help="folder of the new family")
    parser.add_argument("--theta", type=float, help="RoPE's base, where it is to be changed (paper: 100000)")
    parser.add_argument("--seed", type=int, default=0, help="of the new rows")
    args = parser.parse_args()
    made = continue_from(args.llama, args.speech, args.out, theta=args.theta, seed=args.seed)
    print(json.dumps({"out": str(args.out), "text_ids": made.text_size, "rows": made.rows}))


if __name__ == "__main__":
    launch(main)
