"""Triton where it is installed; elsewhere stand-ins, so that an op's file imports and its other variants work.

Every file with Triton kernels says `from spiritrt.kernels.language import tl, triton` and gives its variants
`triton_supports`. Whether kernels are interpreted is decided when they are decorated, so `TRITON_INTERPRET` must be in
the environment before `spiritrt` is imported.
"""

import os
from typing import TYPE_CHECKING

from spiritrt.kernels.registry import Case

if TYPE_CHECKING:
    import triton
    import triton.language as tl

    INSTALLED = True
else:
    try:
        import triton
        import triton.language as tl

        INSTALLED = True
    except ImportError:

        class _Absent:
            """Any attribute or call of a module that is not there; as a decorator it gives the function back."""

            def __getattr__(self, name):
                if name.startswith("__"):
                    raise AttributeError(name)
                return self

            def __call__(self, *args, **kwargs):
                return args[0] if len(args) == 1 and callable(args[0]) else self

            def __getitem__(self, index):
                return self

        triton = tl = _Absent()
        INSTALLED = False

INTERPRETED = INSTALLED and os.environ.get("TRITON_INTERPRET", "0") in ("1", "true", "True", "on", "ON")


def triton_supports(case: Case) -> str | None:
    """Why a Triton kernel cannot run on `case`, or None where it can; ops add their own conditions."""
    if not INSTALLED:
        return "triton is not installed"
    if case.device == "cpu" and not INTERPRETED:
        return "Triton runs on the CPU only under TRITON_INTERPRET=1"
    if case.device == "cuda" and case.capability is not None and case.capability < (8, 0):
        return f"compute capability {case.capability[0]}.{case.capability[1]} is below 8.0"
    return None
