"""Packed weights of a checkpoint; quantized ones are kept on disk, so that only the first load quantizes."""

import hashlib
import json
import os
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from spiritrt.engine.weights import QUANTIZED, ModelWeights, pack, unpack
from spiritrt.models.checkpoints import Part, cache_root
from spiritrt.models.llama import LlamaConfig

VERSION = 1  # of what lies in the files
ALIGNMENT = 64
_NAMES = {
    torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int8: "I8",
    torch.float8_e4m3fn: "F8_E4M3",
}  # fmt: skip


def load(
    part: Part,
    name: str,
    weights: str = "auto",
    device: str | torch.device = "cpu",
    folder: Path | None = None,
    progress: bool = True,
) -> ModelWeights:
    """Weights of the language model `part`, packed in the format `weights` on `device`.

    int8 and fp8 are written to `folder` (default: `checkpoints.cache_root`) once and read from there later; a file that
    is damaged, or belongs to other checkpoint files, is made anew. Raises CheckpointError for weights that do not fit.
    """
    device = torch.device(device)
    config = LlamaConfig.from_official(part.config)
    if weights not in QUANTIZED:
        title = f"loading {name}" if progress else None
        with part.named_in_errors():
            return unpack(config, pack(config, part.tensors(title, once=True), weights, device))
    file = (folder or cache_root()) / f"{name}-{weights}-{fingerprint(part)}.safetensors"
    say = Console(stderr=True, quiet=not progress)
    if file.is_file():
        try:
            packed = read(file, config, weights, device)
            say.print(f"{weights} weights of {name}: {file}", markup=False, highlight=False, soft_wrap=True)
            return unpack(config, packed)
        except ValueError as error:
            warnings.warn(f"{file} is damaged ({error}); it is made anew", stacklevel=2)
    title = f"quantizing {name} to {weights}" if progress else None
    with part.named_in_errors():
        packed = pack(config, part.tensors(title, once=True), weights, device)
    try:
        write(file, packed)
        say.print(
            f"{weights} weights of {name} ({file.stat().st_size / 1e6:.1f} MB) are kept in {file}",
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip
    except OSError as error:
        warnings.warn(f"{weights} weights of {name} are not kept for the next time: {error}", stacklevel=2)
    return unpack(config, packed)


def fingerprint(part: Part) -> str:
    """16 digits that change with the checkpoint's configuration and its files' names, sizes and times."""
    files = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in part.files]
    content = json.dumps([VERSION, part.config, files], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def read(file: Path, config: LlamaConfig, weights: str, device: torch.device) -> dict[str, Tensor]:
    """Packed tensors of a file that `write` made. Raises ValueError where it is damaged or of another model."""
    packed = {name: tensor.to(device, copy=True) for name, tensor in Part("lm", {}, (file,)).tensors(once=True)}
    stored = unpack(config, packed).stored
    if stored != QUANTIZED[weights]:
        raise ValueError(f"expected weights of {QUANTIZED[weights]}, got {stored}")
    return packed


def write(file: Path, packed: Mapping[str, Tensor]) -> None:
    """Writes tensors as safetensors, one after the other, in a file that appears once it is whole."""
    header: dict[str, dict] = {}
    end = 0
    for name, tensor in packed.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    words = json.dumps(header).encode()
    words += b" " * (-(len(words) + 8) % ALIGNMENT)
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_suffix(f".{os.getpid()}.tmp")
    try:
        with scratch.open("wb") as out:
            out.write(struct.pack("<Q", len(words)) + words)
            for tensor in packed.values():
                tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().tofile(out)
        scratch.replace(file)
    finally:
        scratch.unlink(missing_ok=True)
