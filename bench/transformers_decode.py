"""`transformers` on the same random weights: what a decode step of `generate` takes, eager and compiled."""

import gc
import importlib.util
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Protocol, cast

import torch
from torch import Tensor

from spiritrt.bench.decode import TOLERANCES, Cell, StepTimes, Timed, attempt, difference_from, late, wrong_by
from spiritrt.engine.weights import random_tensors
from spiritrt.models.llama import LlamaConfig

TOKENS, WARM_TOKENS = 16, 4
EAGER, COMPILED = "transformers", "transformers, static cache, torch.compile"
MOST_ROWS = 32


class Clock:
    """Stands in for a streamer: notes when each token is there."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def put(self, tokens: Tensor) -> None:
        """Takes the prompt first, then each step's tokens, on the host."""
        self.at.append(time.perf_counter())

    def end(self) -> None:
        """The last token has come."""


class Output(Protocol):
    """What their models return."""

    logits: Tensor


class Model(Protocol):
    """What is needed of a `LlamaForCausalLM`, whose own types do not fit themselves."""

    def __call__(self, input_ids: Tensor) -> Output: ...

    def generate(
        self, inputs: Tensor, *, attention_mask: Tensor, generation_config: object, streamer: Clock | None = None
    ) -> object: ...


def beside(
    config: LlamaConfig, dtype: torch.dtype, device: torch.device, cells: Sequence[Cell], judge: list[float] | str,
    ids: Sequence[int], mode: str, until: float | None, tell: Callable[[str], None],
) -> list[Timed]:  # fmt: skip
    """The middle context by `transformers`, in one mode: the fewest rows and, eagerly, the most (to `MOST_ROWS`)."""
    middle = cells[0].context
    rows = sorted({cell.rows for cell in cells if cell.context == middle and cell.rows <= MOST_ROWS})
    name = "fp32" if dtype == torch.float32 else "bf16"
    counts = dict.fromkeys((rows[0], rows[-1]) if mode == EAGER else rows[:1])
    found = [Timed(Cell(count, middle, name, name), by=mode) for count in counts]
    if late(until):
        return [replace(timed, wrong="no time was left") for timed in found]
    if importlib.util.find_spec("transformers") is None:
        return [replace(timed, wrong="transformers is not installed") for timed in found]
    model = attempt(lambda: load(config, dtype, device))
    if isinstance(model, str):
        return [replace(timed, wrong=model) for timed in found]
    wrong = wrong_by(difference_from(judge, partial(score, model, ids, device)), TOLERANCES[name])
    if wrong is not None:
        return [replace(timed, wrong=wrong) for timed in found]
    done = []
    for timed in found:
        tell(f"{timed.by}, {timed.cell.name}")
        done.append(timed.finished(attempt(partial(measure, model, config, timed.cell, mode == COMPILED, device))))
    torch.compiler.reset()  # what was compiled holds the weights
    return done


def load(config: LlamaConfig, dtype: torch.dtype, device: torch.device) -> Model:
    """A `LlamaForCausalLM` with the weights of `random_tensors`."""
    from transformers import LlamaConfig as TheirConfig
    from transformers import LlamaForCausalLM

    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
             "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "rope_theta")  # fmt: skip
    fields = {name: getattr(config, name) for name in names}
    rope = {"rope_type": "default", "rope_theta": config.rope_theta}  # where version 5 looks, and 4 does not
    theirs = TheirConfig.from_dict({**fields, "rope_parameters": rope, "tie_word_embeddings": False})
    gc.collect()  # an engine may have been there
    with torch.device(device):
        model = LlamaForCausalLM(theirs)
    # assigned, not converted: the frequencies of their positions stay float32
    model.load_state_dict(dict(random_tensors(config, dtype, str(device))), assign=True)
    return cast(Model, model.eval())


@torch.inference_mode()
def score(model: Model, ids: Sequence[int], device: torch.device) -> list[float]:
    """Log-probabilities of ids[1:]."""
    given = torch.tensor([list(ids)], device=device)
    logprobs = torch.log_softmax(model(given).logits[0, :-1].float(), dim=-1)
    return logprobs.gather(1, given[0, 1:, None])[:, 0].tolist()


def measure(model: Model, config: LlamaConfig, cell: Cell, compiled: bool, device: torch.device) -> StepTimes:
    """Milliseconds between tokens of `generate`, greedy; a first run compiles where there is something to compile."""
    from transformers import CompileConfig, GenerationConfig

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, config.vocab_size, (cell.rows, cell.context), generator=generator).to(device)
    settings = GenerationConfig(
        max_new_tokens=TOKENS + WARM_TOKENS, min_new_tokens=TOKENS + WARM_TOKENS, do_sample=False, pad_token_id=0,
        eos_token_id=None, cache_implementation="static" if compiled else None, disable_compile=not compiled,
    )  # fmt: skip
    if compiled:
        settings.compile_config = CompileConfig()
        settings.compile_config._compile_all_devices = True  # on a CPU too
        model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    clock = Clock()
    model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings, streamer=clock)
    return StepTimes.of([b - a for a, b in pairwise(clock.at[-TOKENS - 1 :])])
