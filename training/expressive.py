"""An Expressive family from a Base one: pitch and style parts, their tokens, and new rows of the language model.

    python -m spiritrt.training.expressive --base nano --parts build/parts --out build/expressive

`--parts` is a folder into which `spiritrt.training.pitch` and `style` exported. What the Base model knows of text and
units stays; the rows of the new tokens are drawn like the old ones and learnt by `spiritrt.training.lm --shards`. The
vocoder is the Base one's, which leaves pitch and style aside.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch

from spiritrt.models.checkpoints import find, save_part
from spiritrt.models.pitch import PitchQuantizerConfig
from spiritrt.models.style import StyleConfig
from spiritrt.tokens.text import Tokenizer
from spiritrt.tokens.vocabulary import Vocabulary
from spiritrt.training.continued import EMBEDDING, HEAD, MULTIPLE, added_tokens, extended


def make_expressive(base: str, parts: Path, out: Path, seed: int = 0) -> Vocabulary:
    """Write the family; returns its vocabulary.

    Raises ValueError where `base` has pitch and style already, `parts` lacks one, or `out` holds a model.
    """
    if (out / "spiritrt.json").is_file():
        raise ValueError(f"{out} holds a model already; choose another --out")
    source, added = find(base), find(str(parts))
    lm = source.part("lm")
    folder = source.tokenizer or source.folder
    old = Tokenizer(folder, lm.config["vocab_size"]).vocabulary
    if old.expressive:
        raise ValueError(f"{base} is Expressive already")
    pitch, style = added.part("pitch"), added.part("style")
    pitches = PitchQuantizerConfig.from_official(pitch.config).l_bins
    styles = StyleConfig.from_official(style.config).num_labels
    rows = -(-(old.size + pitches + styles) // MULTIPLE) * MULTIPLE
    vocabulary = Vocabulary(old.text_size, old.units, pitches, styles, rows)
    tensors = lm.load()
    generator = torch.Generator().manual_seed(seed)
    for name in (EMBEDDING, HEAD):
        tensors[name] = extended(tensors[name], rows, old.size, generator)
    for name in ("hubert", "quantizer", "vocoder"):
        part = source.part(name)
        save_part(out, name, part.config, part.load())
    save_part(out, "pitch", pitch.config, pitch.load())
    save_part(out, "style", style.config, style.load())
    save_part(out, "lm", lm.config | {"vocab_size": rows}, tensors, reply=source.reply)
    shutil.copy(folder / "tokenizer.model", out / "tokenizer.model")
    (out / "tokenizer_config.json").write_text(json.dumps(added_tokens(vocabulary), indent=1), encoding="utf-8")
    return vocabulary


def main() -> None:
    parser = argparse.ArgumentParser(description="Make an Expressive family out of a Base one, to be trained.")
    parser.add_argument("--base", default="nano", help="Base family")
    parser.add_argument("--parts", type=Path, required=True, help="folder with a pitch and a style part")
    parser.add_argument("--out", type=Path, required=True, help="folder of the new family")
    parser.add_argument("--seed", type=int, default=0, help="of the new rows")
    args = parser.parse_args()
    made = make_expressive(args.base, args.parts, args.out, args.seed)
    print(json.dumps({"out": str(args.out), "pitches": made.pitches, "styles": made.styles, "rows": made.rows}))


if __name__ == "__main__":
    main()
