"""Kernels of the language model's step: ops, their variants, and the registry in which they compete.

Importing this registers every variant. It needs no GPU and no Triton: a variant that cannot run says why.
"""

from spiritrt.kernels import (  # each registers its ops' variants
    cpu,
    embedding,
    linear,
    rms_norm,
    rotary_attention,
    rotary_prefill,
    sampling,
    shift_rotary,
)
from spiritrt.kernels.registry import Case, KernelError, Variant, case_of, choose, ops, register, tuned, variants

__all__ = [
    "Case", "KernelError", "Variant", "case_of", "choose", "cpu", "embedding", "linear", "ops", "register", "rms_norm",
    "rotary_attention", "rotary_prefill", "sampling", "shift_rotary", "tuned", "variants",
]  # fmt: skip
