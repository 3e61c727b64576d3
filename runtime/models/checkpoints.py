"""Reads model files: Spirit LM's official layout and spiritrt's own. Nothing else opens them.

The official layout is that of the public release (`speech_tokenizer/...`, `spiritlm_model/...`). Our own is one folder:
`spiritrt.json` with the official configuration of each part, `<part>.safetensors`, and the tokenizer's files. It can
share a part with a family in the folder beside: `"shared": {"hubert": "nano"}`.
Tensors are memory-mapped and never unpickled beyond plain weights.
"""

import ctypes
import json
import mmap
import os
import re
import shutil
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import torch
import yaml
from rich.console import Console
from rich.progress import Progress
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

PARTS = ("lm", "hubert", "quantizer", "vocoder", "pitch", "style")
MANIFEST = "spiritrt.json"
TOKENIZER_FILES = ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json")
OFFICIAL_NAMES = {"spirit-lm-base-7b": False, "spirit-lm-expressive-7b": True}
ENVIRONMENT = "SPIRITLM_CHECKPOINTS_DIR"
CACHE_ENVIRONMENT = "SPIRITRT_CACHE_DIR"
MADV_DONTNEED = 4  # Linux: mapped pages are read from the file again when they are touched


class CheckpointError(ValueError):
    """A checkpoint that is missing, truncated or unsafe; the message names the file and what to do."""


@dataclass(frozen=True, slots=True)
class Part:
    """One model of a family on disk: its official configuration, and the files that hold its tensors."""

    name: str
    config: dict
    files: tuple[Path, ...]
    key: str | None = None  # the entry of a .pt that holds the tensors

    def tensors(self, progress: str | None = None, once: bool = False) -> Iterator[tuple[str, Tensor]]:
        """Yields (name, memory-mapped tensor); with `progress` a bar of that title goes to standard error.

        With `once` each tensor is for reading until the next is asked for: what was mapped of it is let go then, so
        that a model which is copied piece by piece does not count twice.
        """
        console = Console(stderr=True)
        with Progress(console=console, transient=True, disable=progress is None or not console.is_terminal) as bar:
            task = bar.add_task(progress or "", total=sum(f.stat().st_size for f in self.files))
            for file in self.files:
                mapped = file.suffix == ".safetensors" or zipfile.is_zipfile(file)
                for name, tensor in _read_tensors(file, self.key):
                    yield name, tensor
                    if once and mapped:
                        _let_go(tensor)
                    bar.advance(task, tensor.numel() * tensor.element_size())

    def load(self) -> dict[str, Tensor]:
        """All tensors by name."""
        return dict(self.tensors())

    @contextmanager
    def named_in_errors(self) -> Iterator[None]:
        """Turns a ValueError about this part's weights or configuration into a CheckpointError that names its file."""
        try:
            yield
        except ValueError as error:
            raise CheckpointError(f"{self.files[0]}: {error}") from error


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model family on disk: `parts` holds the parts that are whole, `missing` the files that are not there.

    `reply` is the form in which the model is trained to converse: "chain" or "continuation" (see `SessionConfig`).
    """

    name: str
    folder: Path
    parts: dict[str, Part]
    tokenizer: Path | None
    missing: tuple[Path, ...] = ()
    reply: str = "continuation"

    def part(self, name: str) -> Part:
        """The part of this name. Raises CheckpointError naming the missing files."""
        if name not in self.parts:
            gone = ", ".join(str(p) for p in self.missing) or f"no '{name}' in {self.folder / MANIFEST}"
            raise CheckpointError(f"{self.name} has no {name} part: {gone}")
        return self.parts[name]


def find(name_or_folder: str | Path) -> Checkpoint:
    """Finds a family by name ("nano", "spirit-lm-base-7b") or folder (own layout, official root, a model within one).

    Official names are looked for under the folder that SPIRITLM_CHECKPOINTS_DIR names. Raises CheckpointError saying
    what was looked for and where.
    """
    text = str(name_or_folder)
    shipped = Path(__file__).resolve().parents[2] / "models" / text
    packaged = Path(__file__).resolve().parents[1] / "weights" / text
    for folder in (Path(text), shipped, packaged):
        if (folder / MANIFEST).is_file():
            return _read_own(folder)
    root = official_root()
    if text in OFFICIAL_NAMES:
        if root is None:
            raise CheckpointError(
                f"{text}: set {ENVIRONMENT} to the folder that holds spiritlm_model/ and speech_tokenizer/"
            )
        return _read_official(root, text)
    folder = Path(text).resolve()
    if folder.name in OFFICIAL_NAMES and folder.parent.name == "spiritlm_model":
        return _read_official(folder.parent.parent, folder.name)
    if (folder / "spiritlm_model").is_dir():
        present = [n for n in OFFICIAL_NAMES if (folder / "spiritlm_model" / n).is_dir()]
        if len(present) == 1:
            return _read_official(folder, present[0])
        raise CheckpointError(
            f"{folder} holds {' and '.join(present) or 'no known model'}: name one, as {folder}/spiritlm_model/NAME"
        )
    raise CheckpointError(
        f"no model {text!r}: give a shipped name (nano, nano-expressive), a folder with {MANIFEST}, an official "
        f"checkpoint folder, or one of {', '.join(OFFICIAL_NAMES)} with {ENVIRONMENT} set"
    )


def official_root() -> Path | None:
    """The folder that SPIRITLM_CHECKPOINTS_DIR names, None where it is not set."""
    root = os.environ.get(ENVIRONMENT)
    return Path(root) if root else None


def cache_root() -> Path:
    """Where quantized weights are kept: the folder of SPIRITRT_CACHE_DIR, else `spiritrt` in the user's cache."""
    if root := os.environ.get(CACHE_ENVIRONMENT):
        return Path(root)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spiritrt"


def _read_own(folder: Path) -> Checkpoint:
    manifest = read_json(folder / MANIFEST)
    if manifest.get("format") != 1:
        raise CheckpointError(f"{folder / MANIFEST}: format {manifest.get('format')!r} is not 1; convert again")
    configs = manifest.get("parts")
    if not isinstance(configs, dict) or any(n not in PARTS or not isinstance(c, dict) for n, c in configs.items()):
        raise CheckpointError(f"{folder / MANIFEST}: 'parts' must hold a configuration for each of {', '.join(PARTS)}")
    shared = _read_shared(folder, manifest.get("shared", {}))
    # pitch and style go together: one without the other is a hole
    needed = PARTS if configs.keys() & {"pitch", "style"} else PARTS[:4]
    files = {name: folder / f"{name}.safetensors" for name in needed}
    parts = {n: Part(n, configs[n], (file,)) for n, file in files.items() if n in configs and file.is_file()}
    parts = {n: parts[n] if n in parts else shared[n] for n in needed if n in parts or n in shared}
    missing = [file for name, file in files.items() if name not in parts]
    tokenizer = folder if (folder / "tokenizer.model").is_file() else None
    if tokenizer is None:
        missing.append(folder / "tokenizer.model")
    name, reply = manifest.get("name", folder.name), manifest.get("reply", "continuation")
    return Checkpoint(name, folder, parts, tokenizer, tuple(missing), reply)


def _read_shared(folder: Path, shared: object) -> dict[str, Part]:
    """Parts that `folder` takes from families beside it: {part: name of that folder}."""
    if not isinstance(shared, dict) or any(n not in PARTS or not isinstance(f, str) for n, f in shared.items()):
        raise CheckpointError(f"{folder / MANIFEST}: 'shared' must name a family beside it for a part, got {shared!r}")
    parts = {}
    for name, family in shared.items():
        beside = folder.parent / Path(family).name  # beside it and nowhere else
        if not (beside / MANIFEST).is_file():
            raise CheckpointError(f"{folder / MANIFEST} takes its {name} from {beside}: no {MANIFEST} there")
        parts[name] = _read_own(beside).part(name)
    return parts


def _read_official(root: Path, name: str) -> Checkpoint:
    expressive = OFFICIAL_NAMES[name]
    speech = root / "speech_tokenizer"
    hubert = speech / "hubert_25hz"
    vocoder = speech / ("hifigan_spiritlm_expressive_w2v2" if expressive else "hifigan_spiritlm_base")
    pitch, style = speech / "vqvae_f0_quantizer", speech / "style_encoder_w2v2"
    language_model = root / "spiritlm_model" / name
    files: dict[str, tuple[Path, ...]] = {
        "lm": (language_model / "config.json", language_model / "tokenizer.model", *_weight_files(language_model)),
        "hubert": (hubert / "mhubert_base_25hz.pt",),
        "quantizer": (hubert / "L11_quantizer_500.pt",),
        "vocoder": tuple(vocoder / f for f in ("config.json", "generator.pt", "speakers.txt")),
    }
    if expressive:
        files["pitch"] = (pitch / "config.yaml", pitch / "model.pt")
        files["style"] = (style / "config.json", style / "pytorch_model.bin")
    else:
        files["vocoder"] += (vocoder / "styles.txt",)
    missing = tuple(file for group in files.values() for file in group if not file.is_file())
    parts: dict[str, Part] = {}
    for part, group in files.items():
        if any(file in missing for file in group):
            continue
        if part == "lm":
            parts[part] = Part(part, read_json(group[0]), group[2:])
        elif part == "hubert":
            parts[part] = _part_of_pt(part, group[0], "model_weight")
        elif part == "quantizer":
            raw = _load_pt(group[0])
            parts[part] = _part_of_pt(part, group[0], "model_weight" if "model_weight" in raw else None)
        elif part == "vocoder":
            config = read_json(group[0]) | {"speakers": _read_lines(group[2])}
            if not expressive:
                config["styles"] = _read_lines(group[3])
            parts[part] = Part(part, config, (group[1],), "generator")
        elif part == "pitch":
            parts[part] = Part(part, read_yaml(group[0]), (group[1],), "model")
        else:
            parts[part] = Part(part, read_json(group[0]), (group[1],))
    tokenizer = language_model if (language_model / "tokenizer.model").is_file() else None
    return Checkpoint(name, language_model, parts, tokenizer, missing)


def _part_of_pt(name: str, file: Path, key: str | None) -> Part:
    """A part whose configuration lies in the same .pt as its tensors."""
    raw = _load_pt(file)
    if key is not None and key not in raw:
        raise CheckpointError(f"{file}: has no entry {key!r}, only {', '.join(map(repr, raw)) or 'nothing'}")
    unused = (key, "dictionaries_symbols")
    config = {k: v for k, v in raw.items() if k not in unused and not isinstance(v, Tensor)}
    return Part(name, config, (file,), key)


def _load_pt(file: Path) -> dict:
    """The content of a .pt or .bin, memory-mapped where its format allows, never more than plain weights."""
    try:
        raw = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except UnpicklingError as error:
        # torch's own message advises to load unsafely, so only the name of the object is taken from it
        if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise CheckpointError(f"{file}: holds more than plain weights ({found[1]}), refused as unsafe") from error
        raise CheckpointError(f"{file}: not a readable checkpoint (damaged, truncated or another format)") from error
    except (OSError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"{file}: not a readable checkpoint (truncated?): {reason}") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{file}: expected a dictionary of tensors, got {type(raw).__name__}")
    return raw


def _read_tensors(file: Path, key: str | None) -> Iterator[tuple[str, Tensor]]:
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 (not a dict)
                    yield name, opened.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file}: not a readable safetensors file (truncated?): {error}") from error
        return
    raw = _load_pt(file)
    tensors = raw.get(key) if key else raw
    if not isinstance(tensors, dict):
        raise CheckpointError(f"{file}: has no tensors under {key!r}, only {', '.join(map(repr, raw)) or 'nothing'}")
    for name, value in tensors.items():
        if isinstance(value, Tensor):
            yield name, value


def _let_go(tensor: Tensor) -> None:
    """Takes a tensor's pages of a mapped file out of this process's memory; the file keeps them."""
    if sys.platform != "linux":
        return
    start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (tensor.data_ptr() + tensor.numel() * tensor.element_size()) // mmap.PAGESIZE * mmap.PAGESIZE
    if end > start:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), MADV_DONTNEED)


def _weight_files(folder: Path) -> tuple[Path, ...]:
    """The files of a Hugging Face Llama folder that hold its weights; a plain .bin where none is found."""
    for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        if (folder / index).is_file():
            shards = read_json(folder / index).get("weight_map")
            if not isinstance(shards, dict) or not shards or not all(isinstance(f, str) for f in shards.values()):
                raise CheckpointError(f"{folder / index}: has no 'weight_map' from weights to their files")
            return tuple(folder / f for f in sorted(set(shards.values())))
    single = folder / "model.safetensors"
    return (single if single.is_file() else folder / "pytorch_model.bin",)


def save_part(
    folder: str | Path, part: str, config: dict, tensors: dict[str, Tensor], reply: str | None = None
) -> None:
    """Writes `<part>.safetensors` and the part's official `config` into `spiritrt.json` of `folder` (own layout).

    `reply` notes the form in which a language model converses (see `Checkpoint`). Both files are replaced whole, so a
    reader never sees half of one. Raises ValueError for an unknown part name.
    """
    if part not in PARTS:
        raise ValueError(f"part must be one of {', '.join(PARTS)}, got {part!r}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / f"{part}.safetensors.tmp"
    stored: dict[str, Tensor] = {}
    memory: set[int] = set()
    for name, tensor in tensors.items():
        whole = tensor.detach().cpu().contiguous()
        start = whole.untyped_storage().data_ptr()
        stored[name] = whole.clone() if start in memory else whole  # safetensors refuses tied weights
        memory.add(start)
    save_file(stored, scratch, metadata={"format": "pt"})
    scratch.chmod(0o644)  # safetensors writes for its owner alone
    scratch.replace(folder / f"{part}.safetensors")
    manifest = _manifest_of(folder)
    parts = manifest["parts"] | {part: config}
    manifest["parts"] = {name: parts[name] for name in PARTS if name in parts}
    if reply is not None:
        manifest["reply"] = reply
    _write_manifest(folder, manifest)


def share_parts(folder: str | Path, family: str, names: tuple[str, ...]) -> None:
    """Notes in `spiritrt.json` of `folder` that these parts are those of `family`, a folder beside it."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    manifest = _manifest_of(folder)
    manifest["shared"] = manifest.get("shared", {}) | dict.fromkeys(names, family)
    _read_shared(folder, manifest["shared"])  # raises where they are not there
    _write_manifest(folder, manifest)


def _manifest_of(folder: Path) -> dict:
    file = folder / MANIFEST
    return read_json(file) if file.is_file() else {"format": 1, "name": folder.name, "parts": {}}


def _write_manifest(folder: Path, manifest: dict) -> None:
    scratch = folder / f"{MANIFEST}.tmp"
    scratch.write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    scratch.replace(folder / MANIFEST)


def convert(source: str | Path, folder: str | Path) -> Checkpoint:
    """Rewrites any readable family as one folder in our own layout, and returns what is there now.

    Raises CheckpointError where the source lacks a part, or the folder already holds a model.
    """
    found = find(source)
    folder = Path(folder)
    if found.missing:
        raise CheckpointError(f"{found.name} is incomplete, missing: {', '.join(str(p) for p in found.missing)}")
    if (folder / MANIFEST).exists():
        raise CheckpointError(f"{folder} already holds a model; choose another folder or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in found.parts.items():
        save_part(folder, name, part.config, dict(part.tensors(f"converting {name}")), found.reply)
    if found.tokenizer:
        for file in TOKENIZER_FILES:
            if (found.tokenizer / file).is_file():
                shutil.copyfile(found.tokenizer / file, folder / file)
    return find(folder)


def read_json(file: Path) -> dict:
    """A JSON object from `file`. Raises CheckpointError naming the file."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file}: expected a JSON object, got {type(value).__name__}")
    return value


def read_yaml(file: Path) -> dict:
    """A YAML mapping from `file`. Raises CheckpointError naming the file."""
    try:
        value = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise CheckpointError(f"{file}: cannot be read as YAML: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file}: expected a YAML mapping, got {type(value).__name__}")
    return value


def _read_lines(file: Path) -> list[str]:
    return [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
