"""Sampling noise as a function of (seed, position, id) alone, in plain torch: the same bits in every variant.

Words come from Philox 4x32-10 (Salmon et al. 2011), keyed by the two halves of the seed, with the counter (low half of
the position, its high half, id // 4, 0); id % 4 says which of the four words. The upper 24 bits k of a word are the
number u = (k + 0.5) / 2**24, and the Gumbel noise -log(-log(u)) is computed in float64 and rounded to a multiple of
2**-18. No value of k lies within 4,800 float64 roundings of a boundary between two multiples, so every correct
implementation of the logarithm gives the same noise: checked over all 2**24 values.
"""

import torch
from torch import Tensor

ROUNDS = 10
MULTIPLIER_A, MULTIPLIER_B = 0xD2511F53, 0xCD9E8D57
WEYL_A, WEYL_B = 0x9E3779B9, 0xBB67AE85
LOW = 0xFFFFFFFF
# adding and taking away this float64 rounds to a multiple of 2**-18
ROUNDER = 1.5 * 2.0 ** (52 - 18)
LARGEST = 17.4  # no noise is above: -log(-log(1 - 2**-25)) = 17.33
SMALLEST = -2.9


def philox(seed: Tensor, position: Tensor, ids: Tensor) -> Tensor:
    """The 32-bit words, as int64, of seeds (all 64 bits count), positions and ids: int64 tensors that broadcast."""
    seed, position, ids = torch.broadcast_tensors(seed, position, ids)
    a, b = seed & LOW, (seed >> 32) & LOW
    x, y, z, w = position & LOW, (position >> 32) & LOW, ids >> 2, torch.zeros_like(ids)
    for _ in range(ROUNDS):
        # the products wrap around in int64, which leaves all their 64 bits in place
        first, second = x * MULTIPLIER_A, z * MULTIPLIER_B
        x, y, z, w = (second >> 32) & LOW ^ y ^ a, second & LOW, (first >> 32) & LOW ^ w ^ b, first & LOW
        a, b = (a + WEYL_A) & LOW, (b + WEYL_B) & LOW
    return torch.stack((x, y, z, w)).gather(0, (ids & 3)[None])[0]


def gumbel(seed: Tensor, position: Tensor, ids: Tensor) -> Tensor:
    """Standard Gumbel noise in float32, from -2.9 to 17.4, for what `philox` takes."""
    u = ((philox(seed, position, ids) >> 8).double() + 0.5) * 2.0**-24
    noise = -torch.log(-torch.log(u))
    return ((noise + ROUNDER) - ROUNDER).float()
