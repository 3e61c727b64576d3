"""Rows of the embedding table: for ids just sampled, with the first norm, and from raw unit frames."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from spiritrt.bench.kernels.cases import NAMES, PAGE_TOKENS, BenchCase, Problem, Setting
from spiritrt.kernels.unit_frames import FrameRow, FrameSlots

FRAMES = 10  # HuBERT units a slot brings, 0.4 s of speech


def cases(here: Setting) -> Iterator[BenchCase]:
    width, item = here.preset.config.hidden_size, here.activations.itemsize
    for rows in here.rows:
        for op, moved, make in (
            ("embedding", 2, _make_ids),
            ("embed_norm", 3, _make_normed),
            ("embed_frames", 3 * FRAMES, _make_frames),
        ):
            yield BenchCase(
                op, f"rows={rows} width={width}", NAMES[here.activations], here.case(here.activations, rows=rows),
                partial(make, here, rows), rows * moved * width * item, tolerance=here.tolerance, importance=2,
            )  # fmt: skip


def _table(here: Setting) -> Tensor:
    config = here.preset.config
    return here.random(config.vocab_size, config.hidden_size, generator=here.generator())


def _make_ids(here: Setting, rows: int) -> Problem:
    """Every id stands for the one last drawn in its slot."""
    last = torch.randperm(here.preset.config.vocab_size, generator=torch.Generator().manual_seed(1))[:rows]
    slots = torch.arange(rows, dtype=torch.int32, device=here.device)
    ids = torch.full((rows,), -1, dtype=torch.int64, device=here.device)
    return Problem((ids, _table(here), slots, last.to(here.device)))


def _make_normed(here: Setting, rows: int) -> Problem:
    ids, table, slots, last = _make_ids(here, rows).arguments
    config = here.preset.config
    weight = 1 + 0.1 * here.random(config.hidden_size, generator=here.generator(1))
    return Problem((ids, table, weight, config.rms_norm_eps, slots, last))


def _make_frames(here: Setting, rows: int) -> Problem:
    """The first frames of as many recordings, so that a call needs nothing of what was held before."""
    config, vocabulary = here.preset.config, here.preset.vocabulary
    firsts = (-1, -1, vocabulary.first_unit)
    slots = FrameSlots(rows, firsts, device=here.device)
    plan = slots.plan([FrameRow(slot, hubert=FRAMES) for slot in range(rows)])
    codes = torch.randint(0, 5, (rows * FRAMES,), generator=torch.Generator().manual_seed(2), dtype=torch.int32)
    table = torch.arange(rows, dtype=torch.int32, device=here.device)[:, None].repeat(1, 4)
    lengths = torch.zeros(rows, dtype=torch.int64, device=here.device)
    weight = 1 + 0.1 * here.random(config.hidden_size, generator=here.generator(1))
    arguments = (
        codes.to(here.device), plan, slots.held, firsts, _table(here), weight, config.rms_norm_eps, lengths, table,
        PAGE_TOKENS,
    )  # fmt: skip
    return Problem(arguments, (slots.held, lengths))
