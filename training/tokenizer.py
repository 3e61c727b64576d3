"""The text vocabulary of the nano family: SentencePiece BPE, 1024 ids, and the speech tokens behind it.

Ids 0 unk, 1 BOS, 2 EOS, 3-258 bytes, then pieces; `[Text]`, `[Speech]`, `[Hu0]`..`[Hu500]` follow from 1024 on and
stand in `tokenizer_config.json` (`added_tokens_decoder`). A prompt is split at their exact spellings, and each text run
between them is encoded on its own, with SentencePiece's dummy space in front (the slow Llama tokenizer's rule).

    python -m spiritrt.training.tokenizer --units build/nano/units.jsonl --out models/nano
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import sentencepiece

from spiritrt.training.arguments import launch, parse
from spiritrt.training.corpora.manifest import of_units, unit_lines
from spiritrt.training.corpora.text import exchange, sentence

TEXT_SIZE = 1024
UNITS = 501
ROWS = 1536


class NanoTokenizer:
    """Text ids and the ids of markers and units, as training documents need them."""

    text_marker = TEXT_SIZE
    speech_marker = TEXT_SIZE + 1
    first_unit = TEXT_SIZE + 2

    def __init__(self, folder: Path) -> None:
        file = folder / "tokenizer.model"
        if not file.is_file():
            raise FileNotFoundError(
                f"no {file.name} in {folder}: run `python -m spiritrt.training.tokenizer --out {folder}`"
            )
        try:
            self._pieces = sentencepiece.SentencePieceProcessor(model_file=str(file))
        except (OSError, RuntimeError) as error:
            raise ValueError(f"{file}: not a SentencePiece model: {error}") from error
        if (size := self._pieces.get_piece_size()) != TEXT_SIZE:
            raise ValueError(f"{folder}/tokenizer.model has {size} pieces, expected {TEXT_SIZE}")

    def encode_text(self, text: str) -> list[int]:
        """Ids of one text run, without BOS."""
        return self._pieces.encode(text)

    def decode_text(self, ids: list[int]) -> str:
        """The text of ids below 1024."""
        return self._pieces.decode(ids)


def training_lines(units: Path | None, exchanges: int, sentences: int, seed: int) -> Iterator[str]:
    """Lines as the model will see them: grammar text in its document forms, and the training text of a units file."""
    for index in range(exchanges):
        pair = exchange(seed, index)
        yield f"{pair.user} A: {pair.assistant}"
        if index % 8 == 0:
            yield f"{pair.user.lower().rstrip('.?')} A: {pair.assistant}"
        if index % 4 == 0:
            yield f"<START Transcript>{pair.user}<END>"
    for index in range(sentences):
        yield sentence(seed, index)
    if units is not None:
        for utterance in unit_lines(units):
            if utterance["split"] == "train":
                yield utterance["text"]


def train(lines: Iterator[str], out: Path) -> None:
    """Train the model and write `tokenizer.model`, `tokenizer_config.json`, `special_tokens_map.json` into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    scratch = out / "tokenizer.tmp"
    with scratch.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines,
            model_writer=file,
            model_type="bpe",
            vocab_size=TEXT_SIZE,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=True,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            character_coverage=1.0,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            num_threads=1,
            minloglevel=2,
        )
    scratch.replace(out / "tokenizer.model")
    special = ["[Text]", "[Speech]", *(f"[Hu{unit}]" for unit in range(UNITS))]
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": False}
    added = {str(TEXT_SIZE + i): {"content": name, **flags} for i, name in enumerate(special)}
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "legacy": True,
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "clean_up_tokenization_spaces": False,
        "sp_model_kwargs": {},
        "added_tokens_decoder": added,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", "utf-8")
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (out / "special_tokens_map.json").write_text(json.dumps(names, indent=1) + "\n", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the text vocabulary of the nano family.")
    parser.add_argument("--units", type=Path, help="units.jsonl of a corpus, whose training text is added")
    parser.add_argument("--out", type=Path, default=Path("build/nano/model"))
    parser.add_argument("--exchanges", type=int, default=40000)
    parser.add_argument("--sentences", type=int, default=8000)
    parser.add_argument("--seed", type=int, default=0)
    args = parse(parser, "tokenizer", device=False)
    if args.units is not None:
        of_units(args.units)  # SentencePiece would wrap the error of a missing file
    train(training_lines(args.units, args.exchanges, args.sentences, args.seed), args.out)


if __name__ == "__main__":
    launch(main)
