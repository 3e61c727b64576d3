"""Attention of one new token a row, over rows, contexts and how keys and values are stored."""

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

MOST_BYTES = 4 << 30  # of one layer's keys and values; the float32 reference takes a few times a row's share beside it


def cases(here: Setting) -> Iterator[BenchCase]:
    config = here.preset.config
    for cache in here.caches:
        for rows in here.rows:
            for context in here.contexts:
                moved = pages_bytes(here, cache, rows, context, 1)
                if moved > MOST_BYTES:
                    continue
                yield BenchCase(
                    "rotary_attention", f"rows={rows} context={context}", NAMES[cache],
                    here.case(cache=cache, rows=rows), partial(_make, here, cache, rows, context), moved,
                    4 * config.num_attention_heads * config.head_dim * rows * context,
                    FP8_CACHE_TOLERANCE if cache == torch.float8_e4m3fn else here.tolerance,
                    importance=0 if context == 1024 and rows in (1, 64) else 1 if context == 1024 else 2,
                )  # fmt: skip


def _make(here: Setting, cache: torch.dtype, rows: int, context: int) -> Problem:
    return pages(here, cache, rows, context, 1).problem(here.preset.config.num_attention_heads)
