"""Prints by how many bytes resident memory grows at most while a model is loaded and run, after a small one was."""

import re
import sys
from pathlib import Path

import torch

from spiritrt.models.checkpoints import find
from spiritrt.models.family import Family


def status(entry: str) -> int:
    return int(re.search(rf"{entry}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


@torch.inference_mode()
def load_and_run(root: str) -> None:
    llama = Family(find(root), dtype="bfloat16", progress=False).llama
    llama(torch.arange(16)[None])
    for parameter in llama.parameters():
        parameter.max()


torch.set_num_threads(1)
load_and_run(sys.argv[1])
Path("/proc/self/clear_refs").write_text("5")  # peak := now
before = status("VmRSS")
load_and_run(sys.argv[2])
print(status("VmHWM") - before)
