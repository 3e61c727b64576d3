"""An Expressive family from a Base one: pitch and style parts, their tokens, and new rows of the language model.

    python -m spiritrt.training.expressive --base models/nano --parts build/parts --out models/nano-expressive --share

`--parts` is a folder into which `spiritrt.training.pitch` and `style` exported. What the Base model knows of text and
units stays; the rows of the new tokens are drawn like the old ones and learnt by `spiritrt.training.lm --shards`. The
vocoder is the Base one's, which leaves pitch and style aside, until `spiritrt.training.vocoder --shards` makes its own.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from torch import Tensor

from spiritrt.models.checkpoints import find, save_part, share_parts
from spiritrt.models.pitch import PitchQuantizerConfig
from spiritrt.models.style import StyleConfig
from spiritrt.tokens.text import Tokenizer
from spiritrt.tokens.vocabulary import Vocabulary
from spiritrt.training.arguments import launch
from spiritrt.training.continued import EMBEDDING, HEAD, MULTIPLE, added_tokens, extended

SPEECH_PARTS = ("hubert", "quantizer", "vocoder")


def thinned(tensors: dict[str, Tensor], config: dict, layers: int) -> tuple[dict[str, Tensor], dict]:
    """A Llama with `layers` of its layers, evenly spaced, the first and the last among them; and its configuration.

    Raises ValueError where it does not have so many, or none is asked for.
    """
    had = config["num_hidden_layers"]
    if not 1 <= layers <= had:
        raise ValueError(f"layers must be 1 to {had}, got {layers}")
    kept = [round(i * (had - 1) / max(layers - 1, 1)) for i in range(layers)]
    made = {name: tensor for name, tensor in tensors.items() if ".layers." not in name}
    for at, layer in enumerate(kept):
        prefix = f"model.layers.{layer}."
        made |= {f"model.layers.{at}.{n.removeprefix(prefix)}": t for n, t in tensors.items() if n.startswith(prefix)}
    return made, config | {"num_hidden_layers": layers}


def make_expressive(
    base: str, parts: Path, out: Path, seed: int = 0, layers: int | None = None, share: bool = False
) -> Vocabulary:
    """Write the family; returns its vocabulary.

    `layers` keeps so many of the language model's. With `share` encoder and vocoder stay in the folder of `base`,
    which must be beside `out`. It converses by going on with the speech, whatever form `base` was trained to. Raises
    ValueError where `base` has pitch and style already, `parts` lacks one, or `out` holds a model.
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
    tensors, config = lm.load(), lm.config
    if layers is not None:
        tensors, config = thinned(tensors, config, layers)
    generator = torch.Generator().manual_seed(seed)
    for name in (EMBEDDING, HEAD):
        tensors[name] = extended(tensors[name], rows, old.size, generator)
    if share and source.folder.resolve().parent != out.resolve().parent:
        raise ValueError(f"--share needs --out beside {source.folder}, got {out}")
    for name in () if share else SPEECH_PARTS:
        part = source.part(name)
        save_part(out, name, part.config, part.load())
    save_part(out, "pitch", pitch.config, pitch.load())
    save_part(out, "style", style.config, style.load())
    if share:
        share_parts(out, source.folder.name, SPEECH_PARTS)
    save_part(out, "lm", config | {"vocab_size": rows}, tensors)
    shutil.copy(folder / "tokenizer.model", out / "tokenizer.model")
    (out / "tokenizer_config.json").write_text(json.dumps(added_tokens(vocabulary), indent=1), encoding="utf-8")
    return vocabulary


def main() -> None:
    parser = argparse.ArgumentParser(description="Make an Expressive family out of a Base one, to be trained.")
    parser.add_argument("--base", default="nano", help="Base family")
    parser.add_argument("--parts", type=Path, required=True, help="folder with a pitch and a style part")
    parser.add_argument("--out", type=Path, required=True, help="folder of the new family")
    parser.add_argument("--seed", type=int, default=0, help="of the new rows")
    parser.add_argument("--layers", type=int, help="layers of the language model to keep (default: all)")
    parser.add_argument(
        "--share", action="store_true", help="leave encoder and vocoder in the folder of --base, beside --out"
    )
    args = parser.parse_args()
    made = make_expressive(args.base, args.parts, args.out, args.seed, args.layers, args.share)
    print(json.dumps({"out": str(args.out), "pitches": made.pitches, "styles": made.styles, "rows": made.rows}))


if __name__ == "__main__":
    launch(main)
