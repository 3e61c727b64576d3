"""Prints by how many bytes resident memory grows at most while a model is loaded and run, after a small one was.

Arguments: a small model's folder, a large one's, and the format of an engine's weights or "plain" for the module.
"""

import re
import sys
from pathlib import Path

import torch

from spiritrt.engine.engine import Engine
from spiritrt.engine.steps import Row
from spiritrt.models.checkpoints import find
from spiritrt.models.family import Family


def status(entry: str) -> int:
    return int(re.search(rf"{entry}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


@torch.inference_mode()
def load_and_run(root: str) -> None:
    family = Family(find(root), dtype="bfloat16", progress=False)
    if sys.argv[3] == "plain":
        family.llama(torch.arange(16)[None])
        for parameter in family.llama.parameters():
            parameter.max()
        return
    weights = "auto" if sys.argv[3] == "bf16" else sys.argv[3]
    engine = Engine(family, slots=1, tokens=16, weights=weights, cache_folder=Path(root) / "cache", progress=False)
    engine.step([Row(engine.open(), tuple(range(16)))])


torch.set_num_threads(1)
load_and_run(sys.argv[1])
Path("/proc/self/clear_refs").write_text("5")  # peak := now
before = status("VmRSS")
load_and_run(sys.argv[2])
print(status("VmHWM") - before)
