"""Continued pretraining of a Spirit LM of any size on shards, on one process or many (FSDP2).

    python -m spiritrt.training.pretrain --config training/configs/continue.yaml
    torchrun --nproc-per-node 8 -m spiritrt.training.pretrain --config training/configs/paper-7b.yaml

AdamW at a constant rate after warm-up, as the paper trains. A step is `tokens_a_step` tokens in micro-batches of
`tokens_a_batch`, dealt to the processes in turn, so that the losses do not depend on how many there are. Checkpoints
are sharded (torch.distributed.checkpoint), hold everything, and may be resumed with another number of processes.
Of many, each keeps its own rows alone, and cuts them from the memory-mapped weights. SIGTERM ends at the next step with
a checkpoint. A run goes on from a checkpoint of the same family and data alone.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import FrameType

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import yaml
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm

from spiritrt.models.checkpoints import find, save_part
from spiritrt.models.llama import Llama, LlamaConfig
from spiritrt.models.weights import load_weights
from spiritrt.tokens.text import Tokenizer
from spiritrt.training.arguments import PRECISIONS, check_precision, launch
from spiritrt.training.batches import BatchStream
from spiritrt.training.checkpoint import check_origin, file_digest
from spiritrt.training.interleave import SpanPlan
from spiritrt.training.lm import digest_of
from spiritrt.training.packing import Packed
from spiritrt.training.processes import Place
from spiritrt.training.shard_documents import ShardDocuments, TokenMix, read_text, shard_version
from spiritrt.training.shards import Shard, tokenizer_versions

LATEST = "latest"


@dataclass(frozen=True, slots=True)
class PretrainPlan:
    """A run, as its YAML file says it; paths are relative to where it is started.

    `family` is trained in place: its `lm` part is read at the beginning and written at the end and every
    `export_minutes`. `minutes` 0 is no limit. `checkpoint_layers` trades time for memory (recomputed activations).
    """

    family: str
    work: str
    shards: tuple[str, ...]
    texts: tuple[str, ...] = ()
    shares: dict[str, float] = field(default_factory=lambda: TokenMix().shares)
    text_words: tuple[int, int] = (10, 30)
    speech_words: tuple[int, int] = (5, 15)
    context: int = 4096
    tokens_a_step: int = 1 << 20
    tokens_a_batch: int = 8192
    rate: float = 3e-5
    weight_decay: float = 0.1
    warmup_steps: int = 100
    clip: float = 1.0
    steps: int = 1000
    minutes: float = 0.0
    save_minutes: float = 15.0
    export_minutes: float = 30.0
    precision: str = "bf16"
    checkpoint_layers: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_precision(self.precision)
        if self.context > self.tokens_a_batch or self.tokens_a_step % self.tokens_a_batch:
            raise ValueError(
                f"tokens_a_batch ({self.tokens_a_batch}) must hold a context ({self.context}) and divide tokens_a_step "
                f"({self.tokens_a_step})"
            )
        if self.steps < 1 or self.rate <= 0 or not self.shards:
            raise ValueError(f"steps and rate must be above 0, shards not empty: {self}")
        if min(self.minutes, self.save_minutes, self.export_minutes) < 0:
            raise ValueError(f"minutes, save_minutes and export_minutes must not be below 0: {self}")

    @classmethod
    def read(cls, path: Path) -> PretrainPlan:
        """Of a YAML file. Raises ValueError for unknown or missing keys."""
        given: object = yaml.safe_load(path.read_text(encoding="utf-8"))
        known = {entry.name for entry in fields(cls)}
        if not isinstance(given, dict) or (unknown := set(given) - known):
            wrong = f"unknown keys {sorted(unknown)}" if isinstance(given, dict) else "no keys"
            raise ValueError(f"{path} has {wrong}; known are {', '.join(sorted(known))}")
        if missing := {"family", "work", "shards"} - set(given):
            raise ValueError(f"{path} does not say {', '.join(sorted(missing))}")
        try:
            values = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
            return cls(**values)  # type: ignore[arg-type]
        except TypeError as error:  # a text where a number belongs
            raise ValueError(f"{path}: {error}") from error

    @property
    def batches_a_step(self) -> int:
        return self.tokens_a_step // self.tokens_a_batch


def make_documents(plan: PretrainPlan) -> ShardDocuments:
    """The documents of a plan. Raises ValueError where a shard was made by other tokenizers than the family's."""
    found = find(plan.family)
    tokenizer = Tokenizer(found.tokenizer or found.folder, found.part("lm").config["vocab_size"])
    kinds = ("St", "Pi", "Hu") if tokenizer.vocabulary.expressive else ("Hu",)
    versions = tokenizer_versions(found, kinds)
    mix = TokenMix(plan.shares, SpanPlan(plan.text_words, plan.speech_words), plan.context)
    shards = [Shard(Path(folder), versions) for folder in plan.shards]
    return ShardDocuments(shards, tokenizer, mix, plan.seed, read_text([Path(text) for text in plan.texts]))


class RecomputedLayer(nn.Module):
    """A layer whose activations are computed again for the backward pass."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *given: Tensor | int | None) -> Tensor:
        return checkpoint(self.layer, *given, use_reentrant=False)


class Pretraining:
    """Model, optimizer and place in the data. `step()` is one optimizer step of all processes together."""

    def __init__(self, plan: PretrainPlan, place: Place) -> None:
        self.plan, self.place = plan, place
        part = find(plan.family).part("lm")
        self.config = dict(part.config)
        # of many, no device ever holds the whole model: memory comes with the rows
        with torch.device("meta") if place.world > 1 else nullcontext():
            self.model = Llama(LlamaConfig.from_official(self.config))
        if plan.checkpoint_layers:
            layers = self.model.model.layers
            for index in range(len(layers)):
                layers[index] = RecomputedLayer(layers[index])
        reduced = PRECISIONS[plan.precision]
        if place.world > 1:
            mesh = init_device_mesh(place.device.type, (place.world,))
            policy = MixedPrecisionPolicy(param_dtype=reduced, reduce_dtype=torch.float32)
            for layer in self.model.model.layers:
                fully_shard(layer, mesh=mesh, mp_policy=policy)
            fully_shard(self.model, mesh=mesh, mp_policy=policy)
            self.model.to_empty(device=place.device)
            self.autocast: AbstractContextManager[None] | torch.autocast = nullcontext()
        else:
            self.model.to(place.device)
            self.autocast = torch.autocast(place.device.type, reduced, enabled=reduced != torch.float32)
        stored = part.load()
        self._load(stored)
        # what the family's folder held and may hold now; only the first process has it, and writes `work/latest`
        self.known = [digest_of(stored)] if place.rank == 0 else []
        self.made_of = origin(plan, self.known[0]) if place.rank == 0 else {}
        decay = [p for p in self.model.parameters() if p.ndim > 1]
        plain = [p for p in self.model.parameters() if p.ndim <= 1]
        groups = [{"params": decay, "weight_decay": plan.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=plan.rate, betas=(0.9, 0.95))
        self.stream = BatchStream(make_documents(plan), plan.tokens_a_batch, packed=True)
        self.steps_done = 0

    def _load(self, stored: Mapping[str, Tensor]) -> None:
        """Take the weights of a family; where they are sharded, this process's rows of them alone."""
        expected = self.model.state_dict()
        named = {_plain(name): name for name in expected}
        given: dict[str, Tensor] = {}
        for name, value in stored.items():
            own = expected.get(named.get(name, name))
            given[named.get(name, name)] = _own_rows(value, own) if isinstance(own, DTensor) else value
        load_weights(self.model, given, ignore=("*.rotary_emb.inv_freq",))

    def step(self) -> float:
        """Train on the next `tokens_a_step` tokens; the mean loss of all processes' tokens, in nats."""
        batches = [self.stream.next() for _ in range(self.plan.batches_a_step)]
        total = sum(float(batch.weights.sum()) for batch in batches)
        own = batches[self.place.rank :: self.place.world]
        loss = torch.zeros((), device=self.place.device)
        # every process makes equally many passes: a collective waits for all
        for number in range(-(-len(batches) // self.place.world)):
            batch = (own[number] if number < len(own) else batches[0]).to(self.place.device)
            assert isinstance(batch, Packed)
            share = self._loss(batch) / total * float(number < len(own))
            # FSDP takes the mean over processes, the step wants their sum
            (share * self.place.world).backward()
            loss += share.detach()
        if self.place.world > 1:
            dist.all_reduce(loss)
        rate = self.plan.rate * min(1.0, (self.steps_done + 1) / max(1, self.plan.warmup_steps))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        nn.utils.clip_grad_norm_(self.model.parameters(), self.plan.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps_done += 1
        return float(loss)

    def _loss(self, batch: Packed) -> Tensor:
        """Weighted sum of the losses of a batch's tokens."""
        with self.autocast:
            logits = self.model(batch.ids, mask=batch.mask(), positions=batch.positions)[:, :-1]
        weights = batch.weights[:, 1:]
        chosen = weights > 0
        losses = F.cross_entropy(logits[chosen].float(), batch.ids[:, 1:][chosen], reduction="none")
        return (losses * weights[chosen]).sum()

    def save(self, work: Path) -> None:
        """Write everything to `work/step-N` and point `work/latest` to it; the one before is removed.

        Where `work/latest` is of this step already nothing is written: a kill would damage the only checkpoint.
        """
        name = f"step-{self.steps_done}"
        if _agreed(self.place, self.place.rank == 0 and _latest(work).get("folder") == name):
            return
        model, optimizer = get_state_dict(self.model, self.optimizer)
        dcp.save(
            {"model": model, "optimizer": optimizer}, checkpoint_id=str(work / name), no_dist=self.place.world == 1
        )
        if self.place.rank == 0:
            self._point(work, name)
            for old in work.glob("step-*"):
                if old.name != name:
                    shutil.rmtree(old)
        if self.place.world > 1:
            dist.barrier()

    def _point(self, work: Path, name: str) -> None:
        """Let `work/latest` say that the checkpoint of now is in `name`, and what it is of."""
        state = {
            "folder": name, "steps_done": self.steps_done, "stream": self.stream.state, "made_of": self.made_of,
            "known": self.known,
        }  # fmt: skip
        partial = work / f"{LATEST}.partial"
        partial.write_text(json.dumps(state), encoding="utf-8")
        partial.replace(work / LATEST)

    def resume(self, work: Path) -> bool:
        """Go on from `work/latest`; False where there is none.

        Raises ValueError, in every process, where it neither began from the family's language model nor wrote it, or
        where its place in the data is one in other data.
        """
        state: dict = _latest(work) if self.place.rank == 0 else {}
        refusal = ""
        if state:
            own_model = self.known[0] in state.get("known", ())
            wanted = {name: value for name, value in self.made_of.items() if name != "model" or not own_model}
            try:
                check_origin(state.get("made_of"), wanted, str(work / LATEST))
            except ValueError as error:
                refusal = str(error)
        if self.place.world > 1:
            said = [(state, refusal)]
            dist.broadcast_object_list(said, device=self.place.device)
            ((state, refusal),) = said
        if refusal:
            raise ValueError(refusal)
        if not state:
            return False
        self.made_of, self.known = state["made_of"], state["known"]
        model, optimizer = get_state_dict(self.model, self.optimizer)
        dcp.load(
            {"model": model, "optimizer": optimizer}, checkpoint_id=str(work / state["folder"]),
            no_dist=self.place.world == 1,
        )  # fmt: skip
        set_state_dict(self.model, self.optimizer, model_state_dict=model, optim_state_dict=optimizer)
        self.steps_done, self.stream.state = state["steps_done"], tuple(state["stream"])
        return True

    def export(self, work: Path) -> None:
        """Write the `lm` part of the family, in bf16, and before it a checkpoint, which must know what is written."""
        self.save(work)
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        whole = get_model_state_dict(self.model, options=options)
        if self.place.rank == 0:
            tensors = {
                _plain(name): value.to(torch.bfloat16) for name, value in whole.items() if isinstance(value, Tensor)
            }
            self.known = [self.known[0], self.known[-1], digest_of(tensors)]  # a kill may leave the one before
            self._point(work, f"step-{self.steps_done}")
            save_part(find(self.plan.family).folder, "lm", self.config, tensors)
        if self.place.world > 1:
            dist.barrier()


def origin(plan: PretrainPlan, model: str) -> dict[str, object]:
    """What a run is made of and a resumed one may not change, as JSON has it; the rate, the steps and the minutes may.

    `model` is the digest of the family's language model.
    """
    return {
        "model": f"{plan.family} ({model})", "shards": [shard_version(Path(folder)) for folder in plan.shards],
        "texts": [f"{text.name} ({file_digest(text)})" for text in map(Path, plan.texts)],
        "shares": dict(sorted(plan.shares.items())),
        "text_words": list(plan.text_words), "speech_words": list(plan.speech_words), "context": plan.context,
        "tokens_a_batch": plan.tokens_a_batch, "seed": plan.seed,
    }  # fmt: skip


def _latest(work: Path) -> dict:
    """What `work/latest` says; nothing where there is none."""
    return json.loads((work / LATEST).read_text(encoding="utf-8")) if (work / LATEST).is_file() else {}


def _plain(name: str) -> str:
    """A weight's name without the step through `RecomputedLayer`."""
    return name.replace(".layer.", ".")


def _own_rows(whole: Tensor, like: DTensor) -> DTensor:
    """This process's rows of `whole`, which need not be in memory, sharded as `like` is: dimension 0 in even chunks."""
    assert len(like.placements) == 1 and like.placements[0].is_shard(0), like.placements
    chunks = whole.chunk(like.device_mesh.size())
    rank = like.device_mesh.get_local_rank()
    rows = chunks[rank] if rank < len(chunks) else whole[:0]
    return DTensor.from_local(
        rows.to(like.device), like.device_mesh, like.placements, run_check=False, shape=whole.shape,
        stride=whole.stride(),
    )  # fmt: skip


def run(training: Pretraining, work: Path) -> Sequence[float]:
    """Train until the steps or the minutes are over; returns the losses. `work/pretrain.log` has a JSON line a step.

    The state is saved at the end and every `save_minutes`; the family gets the weights every `export_minutes`, and at
    the end by `export`.
    """
    plan, place = training.plan, training.place
    stopped: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.append(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    began = saved = exported = time.monotonic()
    losses = []
    bar = tqdm(
        total=plan.steps, initial=training.steps_done, desc="pretrain", file=sys.stderr, disable=place.rank > 0
    )  # fmt: skip
    while training.steps_done < plan.steps:
        losses.append(training.step())
        bar.update()
        bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
        if place.rank == 0:
            spent = time.monotonic() - began
            line = {"step": training.steps_done, "loss": losses[-1], "tokens": training.steps_done * plan.tokens_a_step}
            with (work / "pretrain.log").open("a", encoding="utf-8") as log:
                log.write(json.dumps(line | {"minutes": round(spent / 60, 3)}) + "\n")
        now = time.monotonic()
        over = bool(stopped) or bool(plan.minutes and now - began > 60 * plan.minutes)
        due = now - saved > 60 * plan.save_minutes
        stale = now - exported > 60 * plan.export_minutes
        over, due, stale = (_agreed(place, here) for here in (over, due, stale))
        if over:
            break
        if due:
            training.save(work)
            saved = now
        if stale:
            training.export(work)
            saved = exported = now
    bar.close()
    training.save(work)
    for number, handler in before.items():
        signal.signal(number, handler)
    return losses


def _agreed(place: Place, here: bool) -> bool:
    """Whether it is so in any process: all must do the same."""
    if place.world == 1:
        return here
    flag = torch.tensor(float(here), device=place.device)
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag > 0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Continued pretraining on shards; a second run goes on where the first stopped.",
        epilog="on many processes: torchrun --nproc-per-node N -m spiritrt.training.pretrain --config FILE",
    )
    parser.add_argument("--config", type=Path, required=True, help="YAML file of the run, see training/configs")
    parser.add_argument("--minutes", type=float, help="instead of the file's; 0 is no limit")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    plan = PretrainPlan.read(args.config)
    if args.minutes is not None:
        plan = replace(plan, minutes=args.minutes)
    place = Place.take()
    torch.manual_seed(plan.seed)
    training = Pretraining(plan, place)
    work = Path(plan.work)
    work.mkdir(parents=True, exist_ok=True)
    resumed = training.resume(work)
    if place.rank == 0:
        print(json.dumps({"processes": place.world, "resumed_at": training.steps_done if resumed else None}))
    run(training, work)
    training.export(work)
    if place.world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    launch(main)
