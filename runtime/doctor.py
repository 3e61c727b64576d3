"""`spiritrt doctor`: what is installed, what is not and why, and whether a model is complete."""

import importlib
import importlib.metadata
import os
import platform

import torch

from spiritrt.extras import install
from spiritrt.models import checkpoints
from spiritrt.models.family import Family
from spiritrt.models.pitch import FcpeTracker, YaaptTracker

BUILD = "pip install --no-build-isolation --no-deps --force-reinstall -e ."  # in a clone
PACKAGES = ("spiritrt", "torch", "numpy", "safetensors", "sentencepiece", "soundfile", "soxr", "typer", "rich")
OPTIONAL = {  # packages: what for, and where they come from
    "onnxruntime": "voice activity: pip install onnxruntime",
    "silero-vad": "voice activity: pip install --no-deps silero-vad",
    "triton": "GPU kernels: comes with a CUDA build of torch",
    "torchaudio": "forced alignment and resampling parity: has no CPU build beside this torch",
    "faster-whisper": f"the judge of speech: {install('eval')}",
}


def examine(model: str | None = None) -> dict:
    """What `spiritrt doctor` reports, as plain JSON values; `ok` is false where something that is needed is wrong."""
    problems: list[str] = []
    report: dict = {
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {torch.get_num_threads()} torch threads",
        "versions": {name: _version(name) for name in PACKAGES},
        "devices": _devices(),
        "extension": _extension(problems),
        "optional": {name: _importable(name, use) for name, use in OPTIONAL.items()},
        "pitch_trackers": {"fcpe": _makes(FcpeTracker), "yaapt": _makes(YaaptTracker)},
        "checkpoints_dir": str(root) if (root := checkpoints.official_root()) else None,
        "models": {},
    }
    names = [model] if model else ["nano", "nano-expressive", *(_official_names())]
    for name in names:
        report["models"][name] = _model(name, problems)
    report["problems"] = problems
    report["ok"] = not problems
    return report


def render(report: dict) -> str:
    """The report as text for a person."""
    lines = [f"python {report['python']} on {report['machine']}"]
    lines.append("versions: " + ", ".join(f"{name} {version}" for name, version in report["versions"].items()))
    lines += [f"device {device}" for device in report["devices"]]
    lines.append(f"C++ extension: {report['extension']}")
    for title in ("optional", "pitch_trackers"):
        lines += [f"{title.replace('_', ' ')} {name}: {state}" for name, state in report[title].items()]
    lines.append(
        f"{checkpoints.ENVIRONMENT}: {report['checkpoints_dir'] or 'not set (needed for official names only)'}"
    )
    for name, state in report["models"].items():
        if state["complete"]:
            parts = ", ".join(f"{part} {size / 1e6:.1f} MB" for part, size in state["parts"].items())
            lines.append(f"model {name}: complete ({parts})")
        else:
            lines.append(f"model {name}: {'INCOMPLETE' if state['folder'] else 'cannot be read'}, see below")
    lines.append("all good" if report["ok"] else "problems:\n" + "\n".join(f"  {p}" for p in report["problems"]))
    return "\n".join(lines)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _devices() -> list[str]:
    devices = ["cpu"]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        devices.append(f"cuda:{index} {properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    if len(devices) == 1:
        why = "this torch is built without CUDA" if torch.version.cuda is None else "no CUDA device is visible"
        devices.append(f"no cuda: {why}")
    return devices


def _extension(problems: list[str]) -> str:
    try:
        info = importlib.import_module("spiritrt._C").build_info()
    except ImportError as error:
        problems.append(f"the C++ extension does not import ({error}); build it in a clone: {BUILD}")
        return "missing"
    if info["torch"] != torch.__version__.split("+")[0]:
        problems.append(
            f"the C++ extension was built with torch {info['torch']}, running {torch.__version__}; rebuild it in a "
            f"clone: {BUILD}"
        )
    return f"built with torch {info['torch']}, compiler {info['compiler']}, {info['vector']} instructions"


def _importable(package: str, use: str) -> str:
    module = package.replace("-", "_")
    try:
        importlib.import_module(module)
    except Exception as error:  # a broken optional package must not break the report, whatever it raises
        if isinstance(error, ModuleNotFoundError) and error.name == module:
            return f"not installed; {use}"
        return f"not available ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}); {use}"
    return _version(package)


def _makes(tracker: type) -> str:
    try:
        tracker()
    except (ImportError, ValueError, RuntimeError) as error:
        return f"not available ({error})"
    return "available"


def _official_names() -> list[str]:
    root = checkpoints.official_root()
    return [n for n in checkpoints.OFFICIAL_NAMES if root and (root / "spiritlm_model" / n).is_dir()]


def _model(name: str, problems: list[str]) -> dict:
    """Whether a model is complete: every file there, and every part loads and fits its configuration."""
    try:
        found = checkpoints.find(name)
    except checkpoints.CheckpointError as error:
        why = str(error).removeprefix(f"{name}: ").removeprefix(f"no model {name!r}: ")  # the name is said already
        problems.append(f"model {name}: {why}")
        return {"complete": False, "folder": None, "parts": {}, "problems": [why]}
    faults = [f"missing {file}" for file in found.missing]
    sizes = {part.name: sum(file.stat().st_size for file in part.files) for part in found.parts.values()}
    family = Family(found, dtype="auto", progress=False)
    loads = {"lm": "llama", "hubert": "hubert", "quantizer": "quantizer", "vocoder": "vocoder",
             "pitch": "pitch_quantizer", "style": "style_classifier"}  # fmt: skip
    for part in ["tokenizer"] * (found.tokenizer is not None and "lm" in sizes) + list(sizes):
        try:
            getattr(family, loads.get(part, part))
        except ValueError as error:
            faults.append(str(error))
    problems += [f"model {name}: {fault}" for fault in faults]
    return {"complete": not faults, "folder": str(found.folder), "parts": sizes, "problems": faults}
