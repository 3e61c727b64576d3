"""What a user sets of sampling, and one draw by the rule that all of the kernels follow."""

from dataclasses import dataclass
from numbers import Integral, Real

import torch
from torch import Tensor

from spiritrt.kernels import reference
from spiritrt.kernels.sampling_state import signed


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling of one request. `temperature` 0 is greedy; `top_k` 0, `top_p` 1 and `min_p` 0 are off.

    The token at a position is a function of (logits, seed, position) alone: no generator carries state from token to
    token or between requests. `repetition_penalty` divides positive and multiplies negative logits of ids that were
    generated before (Keskar et al. 2019).
    """

    temperature: float = 0.8
    top_p: float = 0.95
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p", "min_p", "repetition_penalty"):
            if not isinstance(getattr(self, name), Real):
                raise ValueError(f"{name} must be a number, got {getattr(self, name)!r}")
        for name in ("top_k", "seed"):
            if not isinstance(getattr(self, name), Integral):
                raise ValueError(f"{name} must be a whole number, got {getattr(self, name)!r}")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be 0 (greedy) or more, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (off) or more, got {self.top_k}")
        if not 0 <= self.min_p < 1:
            raise ValueError(f"min_p must be from 0 to below 1, got {self.min_p}")
        if not 0 < self.repetition_penalty < float("inf"):
            raise ValueError(f"repetition_penalty must be above 0, got {self.repetition_penalty}")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed must be from 0 to 2**64 - 1, got {self.seed}")


GREEDY = Sampling(temperature=0.0)


def sample(logits: Tensor, allowed: Tensor, sampling: Sampling, position: int, used: Tensor | None = None) -> int:
    """Draws the id at `position` from `logits` [V], among the ids that `allowed` [V] marks.

    `used` holds ids that the repetition penalty applies to. The rule is that of `spiritrt.kernels.sampling`: penalty,
    mask, temperature, top-k, top-p, min-p, then the largest of score and Gumbel noise. Equally likely ids at the edge
    of a filter stay together; the most likely id always stays.
    """
    seen = torch.zeros_like(allowed)
    if used is not None:
        seen[used] = True
    return reference.draw(
        logits.float(), allowed, seen, signed(sampling.seed), position, sampling.temperature, sampling.top_k,
        sampling.top_p, sampling.min_p, sampling.repetition_penalty,
    )  # fmt: skip
