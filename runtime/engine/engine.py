"""Whole steps of the language model over many sequences at once: rows in, drawn ids and log-probabilities out."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from spiritrt.engine.forward import Forward, Kernels
from spiritrt.engine.graphs import CapturedStep, Drawn, buckets_for, capture
from spiritrt.engine.inputs import Shape, StepInputs
from spiritrt.engine.kv_cache import PAGE_TOKENS, KVCache, KVCacheConfig
from spiritrt.engine.masks import CAPACITY as MASKS
from spiritrt.engine.masks import EVERYTHING, Masks
from spiritrt.engine.steps import NOT_DRAWN, PASS_TOKENS, PREFILL_TOKENS, Pass, Piece, Row, Step, plan
from spiritrt.engine.weight_files import load
from spiritrt.engine.weights import STORED, ModelWeights
from spiritrt.kernels.sampling_state import SamplingState
from spiritrt.models.family import Family
from spiritrt.models.llama import rotary_frequencies
from spiritrt.sampling import GREEDY, Sampling

T = TypeVar("T")
CACHE_FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.float8_e4m3fn}
CUDA_SHARE = 0.8  # of the memory that is free once the weights are there: what the pages take by default
CPU_SHARE = 0.25  # of all memory, which a page takes up only once it is written
CALIBRATION_TOKENS, CALIBRATION_MARGIN, FP8_MAX = 256, 1.5, 448.0


class Engine:
    """A language model with a pool of pages for `slots` sequences, computed in steps. Not for two threads at once.

    A row's results depend on its slot's tokens, how they were cut into rows, its sampling and the model: not on other
    rows. On CUDA a step of decode rows is one graph, and results are read a step late without waiting: `late` is
    whether they arrive while the next step runs, so that reading them at once would wait.
    """

    def __init__(
        self,
        model: Family | ModelWeights,
        slots: int = 16,
        tokens: int | None = None,
        weights: str = "auto",
        cache: str = "auto",
        kernels: Mapping[str, str] | None = None,
        graphs: bool | None = None,
        buckets: Sequence[int] = (),
        page_size: int = PAGE_TOKENS,
        scales: Tensor | None = None,
        cache_folder: Path | None = None,
        progress: bool = True,
    ) -> None:
        """Loads or takes the weights, makes the pool, and on CUDA captures the graphs.

        Args:
            model: a family, whose language model is loaded in the format `weights`, or weights that are packed already.
            slots: sequences that may be open at once.
            tokens: of the pool, rounded up to pages; by default what all slots may hold, as far as memory allows.
            weights: see `weights.FORMATS`.
            cache: how keys and values are stored: fp32, bf16, fp16, fp8, or "auto", as activations are.
            kernels: variants to run, by op; see `Kernels`.
            graphs: whether steps of decode rows are CUDA graphs; by default on CUDA.
            buckets: decode rows are filled up to one of these numbers; by default with graphs alone, see `graphs.py`.
            scales: of an fp8 cache [layers, 2, KV]; by default taken from a short run, see `measure_scales`.
            cache_folder: where quantized weights are kept; see `weight_files.load`.
            progress: bars and notes on standard error.

        Raises ValueError for a choice that does not exist or does not work here, CheckpointError for the weights.
        """
        if cache not in ("auto", *CACHE_FORMATS):
            raise ValueError(f"cache must be one of auto, {', '.join(CACHE_FORMATS)}, got {cache!r}")
        if isinstance(model, Family):
            model = load_family(model, weights, cache_folder, progress)
        self.weights, self.config, self.device = model, model.config, model.device
        self._cuda = self.device.type == "cuda"
        self.graphs = self._cuda if graphs is None else graphs
        if self.graphs and not self._cuda:
            raise ValueError(f"graphs are for CUDA, and the model is on {self.device}")
        self.context = self.config.max_position_embeddings
        self.slots, self.late = slots, self._cuda
        self._buckets = tuple(sorted(buckets)) or (buckets_for(slots) if self.graphs else ())
        dtype = CACHE_FORMATS.get(cache, model.activations)
        with self._computing():
            self.kernels = Kernels.choose(model, dtype, page_size, kernels or {})
        self._state = SamplingState.new(slots + 1, self.config.vocab_size, MASKS, self.device)
        self._masks = Masks(self._state, self.config.vocab_size)
        self._sampled: dict[int, tuple[int, bool]] = {}  # mask of each open slot, and whether all logits are needed
        self._needed_for = frozenset({EVERYTHING})
        self._needed = self._masks.needed(self._needed_for).to(self.device)  # graphs read it: it stays where it is
        rows = max(slots, *self._buckets, 1)
        self._inputs = StepInputs(rows, max(PASS_TOKENS, rows + PREFILL_TOKENS), self.device)
        self._forward = Forward(model, self.kernels, self._state, self._inputs.fields)
        self._scales = None
        if dtype == torch.float8_e4m3fn:
            self._scales = (measure_scales(model) if scales is None else scales).to(self.device)
        shape = KVCacheConfig(
            self.config.num_hidden_layers, self.config.num_key_value_heads, self.config.head_dim, slots,
            pages=1, context=self.context, dtype=dtype, page_size=page_size,
        )  # fmt: skip
        wanted = slots * self.context if tokens is None else max(tokens, 1)
        if tokens is None:
            wanted = max(self.context, min(wanted, free_bytes(self.device) // shape.token_bytes))
        self.cache = KVCache(
            replace(shape, pages=-(-wanted // page_size)), self.device, self.kernels.shift_rotary,
            rotary_frequencies(self.config),
        )  # fmt: skip
        self._noise_offsets = [0] * (slots + 1)  # tokens evicted, so that no place of a call has another's noise
        self._drawn: set[int] = set()  # slots whose last drawn id is still to be continued
        self._captured: dict[int, CapturedStep] = {}
        if self.graphs:
            with self._computing():
                self._captured = self._capture(progress)

    @property
    def free_pages(self) -> int:
        return self.cache.free_pages

    def open(self) -> int:
        """A new empty slot, greedy over all ids. Raises OutOfSlots where all are open."""
        slot = self.cache.open()
        self._noise_offsets[slot] = 0
        self._sampled[slot] = (EVERYTHING, False)
        self.set_sampling(slot, GREEDY)
        self.clear_seen(slot)
        return slot

    def close(self, slot: int) -> None:
        """Gives the slot and its pages back."""
        self.cache.close(slot)
        self._drawn.discard(slot)
        del self._sampled[slot]

    def length(self, slot: int) -> int:
        """Tokens that the slot holds."""
        return self.cache.length(slot)

    def room(self, slot: int) -> int:
        """Tokens that still fit in the slot's context; `free_pages` says whether the pool has them."""
        return self.cache.room(slot)

    def truncate(self, slot: int, length: int) -> None:
        """Keeps the first `length` tokens; the next row must bring ids. Raises ValueError where fewer are held."""
        if length != self.cache.length(slot):
            self._drawn.discard(slot)
        self.cache.truncate(slot, length)

    def fork(self, slot: int) -> int:
        """A new slot with the same tokens and sampling; pages are shared until they are written. Raises OutOfSlots."""
        copy = self._share(slot)
        state = self._state
        for tensor in (state.mask, state.seed, state.temperature, state.top_k, state.top_p, state.min_p, state.penalty,
                       state.seen, state.last_ids, state.full):  # fmt: skip
            tensor[copy] = tensor[slot]
        self._sampled[copy] = self._sampled[slot]
        if slot in self._drawn:
            self._drawn.add(copy)
        return copy

    def share_prefix(self, slot: int) -> int:
        """A new slot that begins with all tokens of `slot`, on the same pages; greedy, as after `open`."""
        copy = self._share(slot)
        self.set_sampling(copy, GREEDY)
        self.clear_seen(copy)
        return copy

    def evict_middle(self, slot: int, keep_prefix: int, keep_recent: int) -> int:
        """Drops all but the first and the last tokens of a slot; returns how many. See `KVCache.evict_middle`."""
        with self._computing():
            dropped = self.cache.evict_middle(slot, keep_prefix, keep_recent)
        self._noise_offsets[slot] += dropped
        return dropped

    def mask(self, allowed: Tensor) -> int:
        """The number of a set of ids, bool [V], for `set_sampling`. Raises ValueError where it is empty.

        There is room for some hundred sets; `drop_mask`, as often as it was asked for, gives one back.
        """
        return self._masks.add(allowed)

    def drop_mask(self, mask: int) -> None:
        """Says that a mask is not needed any more; no open slot may draw with it then."""
        if self._masks.drop(mask):
            self._needed_for = frozenset()  # its number may soon stand for other ids

    def set_sampling(self, slot: int, sampling: Sampling, mask: int = EVERYTHING, full_logprobs: bool = False) -> None:
        """How ids are drawn in a slot from now on, from those that `mask` allows.

        Log-probabilities are over the allowed ids, or with `full_logprobs` over the whole vocabulary, which makes the
        head compute all of it. Raises ValueError for a slot or a mask that is not there.
        """
        self.cache.length(slot)
        self._masks.check(mask)
        self._sampled[slot] = (mask, full_logprobs)
        self._state.set_slot(
            slot, mask, sampling.seed, sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p,
            sampling.repetition_penalty, full_logprobs,
        )  # fmt: skip

    def clear_seen(self, slot: int) -> None:
        """Forgets which ids were drawn in a slot, for the repetition penalty."""
        self.cache.length(slot)
        self._state.seen[slot].zero_()

    def step(self, rows: Sequence[Row]) -> Step:
        """Appends each row's tokens to its slot and draws what comes next, all rows together.

        A row of more than `PREFILL_TOKENS` tokens is computed in pieces of so many. Raises OutOfPages, or ValueError
        for a row that cannot be, before anything is written.
        """
        self._check(rows)
        starts = [self.cache.length(row.slot) for row in rows]
        with self._computing():
            self.cache.reserve([(row.slot, row.tokens) for row in rows])
        try:
            with self._computing():
                self.cache.flush()
                step = self._passes(rows, starts)
        except BaseException:
            for row, start in zip(rows, starts, strict=True):
                self.truncate(row.slot, start)
            raise
        for row in rows:
            (self._drawn.add if row.draw else self._drawn.discard)(row.slot)
        return step

    def logits(self, slot: int, ids: Sequence[int]) -> Tensor:
        """Logits [T, V] after each of `ids` [T], at least one, which follow the slot's tokens and are not kept.

        Raises ValueError where ids do not fit or exist, OutOfPages where the pool is full.
        """
        return torch.cat(self._read(slot, ids, lambda first, logits: logits))

    def score(self, slot: int, ids: Sequence[int]) -> list[float]:
        """Log-probabilities of ids[1:], over the whole vocabulary: each after the slot's tokens and the ids before it.

        Nothing is kept. Raises ValueError where ids do not exist or ids[:-1] do not fit, OutOfPages where the pool is
        full.
        """
        self.check_ids(ids)

        def score(first: int, logits: Tensor) -> list[float]:
            targets = torch.tensor(ids[first + 1 : first + 1 + len(logits)], device=self.device)
            return torch.log_softmax(logits.float(), dim=-1).gather(1, targets[:, None])[:, 0].tolist()

        return [logprob for piece in self._read(slot, ids[:-1], score) for logprob in piece]

    def _read(self, slot: int, ids: Sequence[int], use: Callable[[int, Tensor], T]) -> list[T]:
        """What `use` makes of (index of the first id, logits) of each piece of `ids`; the slot is then as before."""
        self.check_ids(ids)
        start, made = self.cache.length(slot), []
        with self._computing():
            self.cache.reserve([(slot, len(ids))])
            try:
                self.cache.flush()
                for first in range(0, len(ids), PREFILL_TOKENS):
                    piece = Piece(0, slot, start + first, tuple(ids[first : first + PREFILL_TOKENS]), draw=False)
                    work = Pass((piece,), ()) if piece.tokens == 1 else Pass((), (piece,))
                    shape, _ = self._inputs.fill(work, self._noise_offsets, self.cache.scratch_slot)
                    x = self._forward.hidden(shape, self.cache, self._scales)
                    made.append(use(first, self._forward.head(x)))
            finally:
                self.cache.truncate(slot, start)
        return made

    def check_ids(self, ids: Sequence[int]) -> None:
        """Raises ValueError for an id that the model does not have."""
        for token in ids:
            if not 0 <= token < self.config.vocab_size:
                raise ValueError(f"token id {token} is outside the model's {self.config.vocab_size} rows")

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """Inference on the engine's device, whichever is the current one of this thread."""
        with torch.inference_mode(), torch.cuda.device(self.device) if self._cuda else nullcontext():
            yield

    def _share(self, slot: int) -> int:
        copy = self.cache.fork(slot)
        self._noise_offsets[copy] = self._noise_offsets[slot]
        return copy

    def _check(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self.cache.length(row.slot)
            if row.ids is None and row.slot not in self._drawn:
                raise ValueError(f"slot {row.slot} has no drawn id to continue with; its row must bring ids")
            self.check_ids(row.ids or ())

    def _passes(self, rows: Sequence[Row], starts: Sequence[int]) -> Step:
        self._need([self._sampled[row.slot] for row in rows if row.draw])
        order, results, count = [NOT_DRAWN] * len(rows), [], 0
        for work in plan(rows, starts, max(self._buckets, default=PASS_TOKENS)):
            bucket = 0 if work.prefill else next((size for size in self._buckets if size >= len(work.decode)), 0)
            shape, whose = self._inputs.fill(work, self._noise_offsets, self.cache.scratch_slot, bucket)
            if bucket in self._captured:
                drawn: Drawn | None = self._captured[bucket].replay()
            else:
                drawn = self._forward(shape, self.cache, self._needed, self._scales)
            if drawn is None:
                continue
            results.append(self._to_host(drawn, len(whose)))
            for position, row in enumerate(whose):
                if row != NOT_DRAWN:
                    order[row] = count + position
            count += len(whose)
        arrived = None
        if self._cuda and results:
            arrived = torch.cuda.Event()
            arrived.record()
        return Step(order, results, arrived)

    def _need(self, sampled: Sequence[tuple[int, bool]]) -> None:
        """Says which blocks of the head these (mask, all logits) draw from."""
        if not sampled:
            return
        masks = frozenset({EVERYTHING} if any(full for _, full in sampled) else {mask for mask, _ in sampled})
        if masks != self._needed_for:
            # from memory that is not pinned: taken at once, without waiting for the device
            self._needed.copy_(self._masks.needed(masks), non_blocking=True)
            self._needed_for = masks

    def _to_host(self, drawn: Drawn, count: int) -> Drawn:
        """Copies of the first `count` results in the host's memory; on CUDA they arrive later."""
        ids, logprobs = (
            torch.empty(count, dtype=tensor.dtype, pin_memory=self._cuda).copy_(tensor[:count], non_blocking=True)
            for tensor in drawn
        )
        return ids, logprobs

    def _capture(self, progress: bool) -> dict[int, CapturedStep]:
        """Graphs of decode steps; every row fills up while they are recorded."""
        self._inputs.fill(Pass((), ()), self._noise_offsets, self.cache.scratch_slot, max(self._buckets))

        def run(bucket: int) -> Drawn:
            # a replay must be right for any length, so the bound is the context
            shape = Shape(bucket, 0, bucket, bucket, gather=False, longest=1, reach=self.context)
            drawn = self._forward(shape, self.cache, self._needed, self._scales)
            assert drawn is not None
            return drawn

        return capture(run, self._buckets, progress)


def load_family(family: Family, weights: str, cache_folder: Path | None, progress: bool) -> ModelWeights:
    """The language model's weights of a family, on its device; "auto" is what the family's `dtype` says."""
    if weights == "auto" and family.lm_dtype is not None:
        weights = next(name for name, dtype in STORED.items() if dtype == family.lm_dtype)
    return load(family.checkpoint.part("lm"), family.name, weights, family.device, cache_folder, progress)


def free_bytes(device: torch.device) -> int:
    """What the pages of a pool may take by default."""
    if device.type == "cuda":
        return int(CUDA_SHARE * torch.cuda.mem_get_info(device)[0])
    return int(CPU_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def measure_scales(weights: ModelWeights) -> Tensor:
    """Scales of an fp8 cache [layers, 2, KV] float32: what a stored key or value is to be multiplied by.

    From the largest key and value of each head over 256 random ids, with half as much again to spare; what is larger
    still is clamped to the largest number of e4m3.
    """
    engine = Engine(weights, slots=1, tokens=CALIBRATION_TOKENS, graphs=False, progress=False)
    slot, count = engine.open(), min(CALIBRATION_TOKENS, engine.context)
    ids = torch.randint(engine.config.vocab_size, (count,), generator=torch.Generator().manual_seed(0)).tolist()
    engine.step([Row(slot, tuple(ids), draw=False)])
    pages = torch.tensor(engine.cache.account.pages_of(slot), device=engine.device)
    largest = [  # of whole pages, the last of which `count` may not fill
        pool[:, pages].flatten(1, 2)[:, :count].float().abs().amax((1, 3))
        for pool in (engine.cache.keys, engine.cache.values)
    ]
    return (CALIBRATION_MARGIN / FP8_MAX * torch.stack(largest, dim=1)).clamp(min=1e-8)
