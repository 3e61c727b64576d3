"""Moving the kept tokens of a long call to their new places, keys re-rotated, in all layers."""

from collections.abc import Iterator
from functools import partial

import torch

from spiritrt.bench.kernels.cases import FP8_CACHE_TOLERANCE, NAMES, PAGE_TOKENS, BenchCase, Problem, Setting
from spiritrt.models.llama import rotary_frequencies

DELTA = -512  # positions


def cases(here: Setting) -> Iterator[BenchCase]:
    config = here.preset.config
    for cache in here.caches:
        for tokens in (here.contexts[0], here.contexts[-1] // 2):
            token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * cache.itemsize
            yield BenchCase(
                "shift_rotary", f"tokens={tokens} layers={config.num_hidden_layers}", NAMES[cache],
                here.case(cache=cache), partial(_make, here, cache, tokens), 2 * tokens * token,
                tolerance=FP8_CACHE_TOLERANCE if cache == torch.float8_e4m3fn else here.tolerance, importance=2,
            )  # fmt: skip


def _make(here: Setting, cache: torch.dtype, tokens: int) -> Problem:
    config, generator = here.preset.config, here.generator()
    half = -(-tokens // PAGE_TOKENS)
    shape = (
        config.num_hidden_layers, 2 * half, PAGE_TOKENS, config.num_key_value_heads, config.head_dim
    )  # fmt: skip
    keys, values = (here.random(*shape, generator=generator).to(cache) for _ in range(2))
    target = torch.randperm(half * PAGE_TOKENS, generator=torch.Generator().manual_seed(0))[:tokens].to(here.device)
    source = target.flip(0) + half * PAGE_TOKENS
    frequencies = rotary_frequencies(config).to(here.device)
    return Problem((keys, values, source, target, DELTA, frequencies), (keys, values))
