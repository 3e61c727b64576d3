"""Cuts the language models of the whole golden folder down to what the tests need: 17 MB become 4 MB.

    python tests/data/shrink_golden.py ../shared/golden

Layers are kept bit for bit, the two bytes of each bf16 apart, because they compress so. Of the input embedding only the
rows that a golden prompt or continuation uses are kept; `tests/conftest.py` draws the others. Of the logits every 8th
text id and all later ids are kept. The output head of Base is whole; of that of Expressive the rows of those ids and
those prompts and continuations are kept: the other logits become 0, below every id that a continuation takes, and
likelihoods (which need all of them) are tested with Base, and with Expressive where the whole folder is.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(__file__).parent / "golden"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TEXT_IDS = 32000
CUT_HEAD = "spirit-lm-expressive-7b"


def shrink(whole: Path) -> None:
    models = json.loads((whole / "expected" / "lm.json").read_text())
    shutil.copyfile(whole / "expected" / "lm.json", GOLDEN / "expected" / "lm.json")
    for name, prompts in models.items():
        source, folder = (root / "checkpoints" / "spiritlm_model" / name for root in (whole, GOLDEN))
        folder.mkdir(parents=True, exist_ok=True)
        for file in source.iterdir():
            if file.suffix in (".json", ".model"):
                shutil.copyfile(file, folder / file.name)
        tensors = torch.load(source / "pytorch_model.bin", weights_only=True)
        used = {i for prompt in prompts.values() for value in prompt.values() if isinstance(value, list) for i in value}
        rows = torch.tensor(sorted(used))
        ids = np.r_[0:TEXT_IDS:8, TEXT_IDS : tensors[EMBEDDING].shape[0]]
        arrays, cut = {"rows": rows.numpy()}, {EMBEDDING: tensors[EMBEDDING][rows]}
        if name == CUT_HEAD:
            arrays["head_rows"] = np.union1d(ids, arrays["rows"])
            cut[HEAD] = tensors[HEAD][torch.from_numpy(arrays["head_rows"])]
        for key, tensor in (tensors | cut).items():
            raw = tensor.contiguous().view(torch.uint8).numpy().reshape(*tensor.shape, 2)
            arrays[key] = np.moveaxis(raw, -1, 0)
        np.savez_compressed(folder / "weights.npz", **arrays)

        logits = np.load(whole / "expected" / f"{name}_last_logits.npz")
        kept = {prompt: logits[prompt][ids] for prompt in logits.files}
        np.savez_compressed(GOLDEN / "expected" / f"{name}_last_logits.npz", ids=ids.astype(np.int32), **kept)


if __name__ == "__main__":
    shrink(Path(sys.argv[1]))
