"""Weights into modules: every key accounted for, every shape checked, weight norm folded.

Official checkpoints are plain mappings from key to tensor. A key that a module does not know is an error unless an
explicit pattern allows it: a silently ignored weight is a model that sounds almost right.
"""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T", bool, int, float, str)

# (magnitude, direction) suffixes: torch.nn.utils.weight_norm, then torch.nn.utils.parametrizations.weight_norm
_WEIGHT_NORM_SUFFIXES = (
    ("weight_g", "weight_v"),
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),
)


def load_weights(
    module: nn.Module, tensors: Mapping[str, Tensor], ignore: Sequence[str] = (), *, assign: bool = False
) -> None:
    """Load `tensors` into `module`, key by key, with nothing left over and nothing missing.

    Weight-normed pairs (`weight_g`, `weight_v`, or `parametrizations.weight.original0/1`) are folded where the module
    holds a plain `weight`. Values are converted to the module's dtype; with `assign` the module takes the tensors
    themselves (for a module on the meta device), dtype and all.

    Args:
        tensors: official key -> tensor.
        ignore: glob patterns (`decoder.*`) of keys that may be there and are not used.

    Raises:
        ValueError: keys missing, keys that are neither known nor ignored, a wrong shape (key, expected, got), or a
            value that is not a tensor.
    """
    expected = module.state_dict(keep_vars=True)
    kept = {key: value for key, value in tensors.items() if key in expected or not _matches(key, ignore)}
    for key, value in kept.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{key}: expected a tensor, got {type(value).__name__}")
    folded = fold_weight_norm(kept, keep=expected)

    name = type(module).__name__
    # a counter that eval never reads; older checkpoints do not carry it
    optional = {key for key in expected if key.endswith("num_batches_tracked")}
    missing = sorted(set(expected) - set(folded) - optional)
    if missing:
        raise ValueError(f"{name}: {len(missing)} weights missing: {_listing(missing)}")
    unexpected = sorted(set(folded) - set(expected))
    if unexpected:
        raise ValueError(f"{name}: {len(unexpected)} unexpected weights: {_listing(unexpected)}")
    for key, value in folded.items():
        if value.shape != expected[key].shape:
            raise ValueError(f"{name}: {key}: expected shape {tuple(expected[key].shape)}, got {tuple(value.shape)}")
    module.load_state_dict(folded, strict=False, assign=assign)


def fold_weight_norm(tensors: Mapping[str, Tensor], keep: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Turn every weight-normed pair of `tensors` into the plain `weight` it stands for: `g * v / |v|`.

    The norm is taken over the dimensions in which the magnitude has size 1, so any `dim` of weight norm is read off the
    shapes. Pairs whose magnitude key is in `keep` (a module that is itself weight-normed) are left as they are.

    Raises:
        ValueError: a magnitude without its direction (or the other way round), or shapes that do not go together.
    """
    folded = dict(tensors)
    for g_suffix, v_suffix in _WEIGHT_NORM_SUFFIXES:
        for key in tensors:
            if not key.endswith((g_suffix, v_suffix)) or (keep is not None and key in keep):
                continue
            stem = key.removesuffix(g_suffix).removesuffix(v_suffix)
            g_key, v_key = stem + g_suffix, stem + v_suffix
            if g_key not in tensors or v_key not in tensors:
                raise ValueError(f"{key}: weight norm needs both {g_key} and {v_key}")
            if key == v_key:
                continue
            g, v = folded.pop(g_key), folded.pop(v_key)
            if g.dim() != v.dim() or any(a not in (1, b) for a, b in zip(g.shape, v.shape, strict=True)):
                raise ValueError(f"{g_key}: shape {tuple(g.shape)} is no magnitude for {v_key} {tuple(v.shape)}")
            reduced = tuple(d for d in range(g.dim()) if g.shape[d] == 1)
            g, v = g.float(), v.float()
            folded[stem + "weight"] = v * (g / torch.linalg.vector_norm(v, dim=reduced, keepdim=True))
    return folded


def config_value(config: Mapping[str, object], key: str, kind: type[T], default: T | None = None) -> T:
    """Read `config[key]` as a `kind` (bool, int, float or str; whole numbers are taken as float).

    Raises:
        ValueError: the key is missing and has no default, or its value has another type.
    """
    value = config.get(key)
    if value is None:
        if default is None:
            raise ValueError(f"config has no {key!r}; it must be of type {kind.__name__}")
        return default
    if kind is float and type(value) is int:
        return kind(value)
    if type(value) is not kind:
        raise ValueError(f"config {key!r} must be of type {kind.__name__}, got {value!r}")
    return value


def config_section(config: Mapping[str, object], key: str) -> Mapping[str, object]:
    """Read `config[key]` as a mapping; ValueError where it is missing or something else."""
    value = config.get(key)
    if not isinstance(value, Mapping):
        raise ValueError(f"config has no section {key!r}, got {value!r}")
    return value


def config_integers(config: Mapping[str, object], key: str) -> tuple[int, ...]:
    """Read `config[key]` as a list of whole numbers; ValueError where it is missing or something else."""
    value = config.get(key)
    if not isinstance(value, Sequence) or isinstance(value, str) or any(type(item) is not int for item in value):
        raise ValueError(f"config {key!r} must be a list of whole numbers, got {value!r}")
    return tuple(value)


def _matches(key: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def _listing(keys: Sequence[str]) -> str:
    shown = ", ".join(keys[:4])
    return shown if len(keys) <= 4 else f"{shown} and {len(keys) - 4} more"
