"""Drawing ids, over rows, what may be drawn, and the filters."""

from collections.abc import Iterator
from functools import partial

import torch

from spiritrt.bench.kernels.cases import NAMES, BenchCase, Problem, Setting
from spiritrt.kernels.sampling_state import SamplingState

LOGPROB_TOLERANCE = 1e-4  # ids have to be the same
FILTERS: dict[str, dict[str, float | int]] = {
    "greedy": {"temperature": 0.0},
    "top_p": {"temperature": 0.8, "top_p": 0.95},
    "all": {"temperature": 0.8, "top_k": 50, "top_p": 0.95, "min_p": 0.02},
}


def cases(here: Setting) -> Iterator[BenchCase]:
    vocabulary = here.preset.config.vocab_size
    for modality, ids in (("speech", len(here.preset.speech)), ("arbitrary", vocabulary)):
        for filters in FILTERS:
            for rows in here.rows:
                yield BenchCase(
                    "sampling", f"{modality} {filters} rows={rows}", NAMES[here.activations], here.case(rows=rows),
                    partial(_make, here, modality, filters, rows), rows * (ids * here.activations.itemsize + 32),
                    tolerance=LOGPROB_TOLERANCE, importance=1 if filters == "top_p" and rows in (1, 64) else 2,
                )  # fmt: skip


def _make(here: Setting, modality: str, filters: str, rows: int) -> Problem:
    vocabulary = here.preset.config.vocab_size
    state = SamplingState.new(rows, vocabulary, 2, here.device)
    speech = torch.zeros(vocabulary, dtype=torch.bool)
    speech[here.preset.speech.start : here.preset.speech.stop] = True
    state.set_mask(1, speech)
    values = FILTERS[filters]
    for slot in range(rows):
        state.set_slot(
            slot, int(modality == "speech"), slot, float(values["temperature"]), int(values.get("top_k", 0)),
            float(values.get("top_p", 1.0)), float(values.get("min_p", 0.0)),
        )  # fmt: skip
    logits = 3 * here.random(rows, vocabulary, generator=here.generator())
    slots = torch.arange(rows, dtype=torch.int32, device=here.device)
    positions = torch.arange(100, 100 + rows, dtype=torch.int64, device=here.device)
    return Problem((logits, state, slots, positions), (state.last_ids, state.seen))
