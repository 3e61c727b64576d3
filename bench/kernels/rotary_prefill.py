"""Attention of rows that bring several tokens: a listening session's few, and a piece of a prompt."""

from collections.abc import Iterator
from functools import partial

import torch

from spiritrt.bench.kernels.cases import (
    FP8_CACHE_TOLERANCE,
    NAMES,
    BenchCase,
    Problem,
    Setting,
    pages,
    pages_bytes,
)

ROWS_AND_NEW = ((1, 5), (16, 5), (1, 128), (16, 128))


def cases(here: Setting) -> Iterator[BenchCase]:
    config = here.preset.config
    for cache in here.caches:
        for rows, new in ROWS_AND_NEW:
            for held in (0, here.contexts[len(here.contexts) // 2]):
                pairs = new * held + new * (new + 1) // 2  # of queries and the keys they see
                yield BenchCase(
                    "rotary_prefill", f"rows={rows} new={new} held={held}", NAMES[cache],
                    here.case(cache=cache, rows=rows), partial(_make, here, cache, rows, held, new),
                    pages_bytes(here, cache, rows, held, new),
                    4 * config.num_attention_heads * config.head_dim * rows * pairs,
                    FP8_CACHE_TOLERANCE if cache == torch.float8_e4m3fn else here.tolerance,
                    importance=1 if held else 2,
                )  # fmt: skip


def _make(here: Setting, cache: torch.dtype, rows: int, held: int, new: int) -> Problem:
    return pages(here, cache, rows, held, new).problem(here.preset.config.num_attention_heads)
