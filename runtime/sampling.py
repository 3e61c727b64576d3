"""How the next token is drawn, in plain float32 PyTorch: the rule that faster samplers are checked against."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


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
SMALLEST_TEMPERATURE = 1e-30  # below, float32 divides by nothing


def sample(logits: Tensor, allowed: Tensor, sampling: Sampling, position: int, used: Tensor | None = None) -> int:
    """Draws the id at `position` from `logits` [V], among the ids that `allowed` [V] marks.

    `used` holds ids that the repetition penalty applies to. Order: penalty, mask, temperature, top-k, top-p, min-p; the
    most likely id always stays.
    """
    scores = logits.float()
    if sampling.repetition_penalty != 1 and used is not None and len(used):
        seen = scores[used]
        penalised = torch.where(seen > 0, seen / sampling.repetition_penalty, seen * sampling.repetition_penalty)
        scores = scores.index_copy(0, used, penalised)
    scores = scores.masked_fill(~allowed, -torch.inf)
    if sampling.temperature == 0:
        return int(scores.argmax())
    # the distance to the best first: a tiny temperature would overflow on the logits themselves
    scaled = (scores - scores.max()) / max(sampling.temperature, SMALLEST_TEMPERATURE)
    probabilities, ids = torch.softmax(scaled, dim=-1).sort(descending=True, stable=True)
    keep = probabilities > 0
    if sampling.top_k:
        keep[sampling.top_k :] = False
    # an id stays while the ids before it hold less than top_p of what top-k left
    left = probabilities * keep
    keep &= (left.cumsum(0) - left) < sampling.top_p * left.sum()
    keep &= probabilities >= sampling.min_p * probabilities[0]
    keep[0] = True
    cumulative = (probabilities * keep).double().cumsum(0)
    target = uniform(sampling.seed, position) * float(cumulative[-1])
    chosen = int(torch.searchsorted(cumulative, target, right=True))
    last = int(keep.nonzero()[-1])
    return int(ids[min(chosen, last)])


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on (seed, position) alone (counter-based: Philox 4x64, Salmon et al. 2011)."""
    return float(np.random.Generator(np.random.Philox(key=seed, counter=position)).random())
