"""`spiritrt finetune`: LoRA on a task's documents, merged into a family of its own (needs peft).

Tasks are the forms that the model is asked in (spec, section 7):

    asr           [Speech]units[Text]<START Transcript>words<END></s>, the loss on the words alone
    tts           [Text]words[Speech]units</s>, the loss on the units alone
    interleaved   words now as text, now as speech, the loss on everything

Spans of the interleaved documents are 3-10 words of text and 3-8 of speech by default, for lines as short as nano's;
the paper's are 10-30 and 5-15, within which a line of eight words hardly ever changes its modality.

Data are shards of the model's own tokenizers (`spiritrt.training.shards`). The rank-limited change is trained, then
added to the weights: the result loads like any family. `adapter.safetensors` keeps the change by itself.

In bf16 the frozen weights stay as they are stored and only the change is float32: of a 7B model in bf16 they take
14 GB, in fp32 28 GB.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from spiritrt.extras import install
from spiritrt.generate import ASR_CLOSE, ASR_OPEN
from spiritrt.models.checkpoints import find, save_part
from spiritrt.models.llama import Llama, LlamaConfig
from spiritrt.models.weights import load_weights
from spiritrt.tokens.text import Tokenizer
from spiritrt.training.arguments import CPU, autocast, check_batches
from spiritrt.training.batches import BatchStream
from spiritrt.training.checkpoint import Budget, Schedule, check_minutes, check_origin, load_checkpoint, set_lr
from spiritrt.training.interleave import Segment, SpanPlan, draw_spans, encode, rng_of
from spiritrt.training.lm import digest_of, loss_of
from spiritrt.training.loop import train
from spiritrt.training.shard_documents import FamilyEncoder, shard_version
from spiritrt.training.shards import Shard, Tokenized, tokenizer_versions

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class FinetunePlan:
    """How to fine-tune; `rank` and `alpha` are LoRA's (Hu et al. 2021), `spans` those of the interleaved documents.

    An optimizer step reads `accumulate` batches of `batch_tokens`.
    """

    task: str = "asr"
    rank: int = 16
    alpha: int = 32
    rate: float = 2e-4
    steps: int = 500
    batch_tokens: int = 4096
    accumulate: int = 1
    context: int = 1024
    warmup_steps: int = 20
    spans: SpanPlan = SpanPlan(text_words=(3, 10), speech_words=(3, 8))  # noqa: RUF009 (frozen)
    precision: str = "fp32"
    seed: int = 0

    def __post_init__(self) -> None:
        check_batches(self.precision, self.accumulate)
        if self.task not in TASKS:
            raise ValueError(f"task must be one of {', '.join(TASKS)}, got {self.task!r}")
        if self.rank < 1 or self.alpha <= 0 or self.rate <= 0 or self.steps < 1:
            raise ValueError(f"rank, alpha, rate and steps must be above 0: {self}")
        if not 16 <= self.context <= self.batch_tokens:
            raise ValueError(f"context must lie in 16..batch_tokens ({self.batch_tokens}), got {self.context}")


class TaskDocuments:
    """The endless set of a task's documents; one that is longer than the context is passed over."""

    def __init__(self, shards: Sequence[Shard], tokenizer: Tokenizer, plan: FinetunePlan) -> None:
        self.shards, self.mix, self.seed = shards, plan, plan.seed
        self.tokenizer, self.encoder = tokenizer, FamilyEncoder(tokenizer)
        self._make = TASKS[plan.task]
        self._lines = [
            (shard, i) for shard, lines in enumerate(shards) for i in range(len(lines))
            if plan.task != "interleaved" or lines.has_words(i)
        ]  # fmt: skip
        if not self._lines:
            raise ValueError(f"the shards have nothing for {plan.task}: utterances with word times are needed")

    def document(self, epoch: int, index: int) -> tuple[list[int], list[float]]:
        rng = rng_of(self.seed, epoch, index)
        for _ in range(100):
            shard, line = rng.choice(self._lines)
            ids, weights = encode(self._make(self, self.shards[shard][line], rng), self.encoder)
            if len(ids) <= self.mix.context:
                return ids, weights
        raise ValueError(f"hardly a document of {self.mix.task} fits into {self.mix.context} tokens: raise the context")

    def units(self, line: Tokenized, first: int = 0, last: int | None = None) -> tuple[int, ...]:
        vocabulary = self.tokenizer.vocabulary
        return tuple(vocabulary.id_of(token) - self.encoder.first_unit for token in line.tokens(first, last))


def _asr(documents: TaskDocuments, line: Tokenized, rng: random.Random) -> list[Segment]:
    return [
        Segment("speech", units=documents.units(line), weight=0.0, marker_weight=0.0),
        Segment("text", text=f"{ASR_OPEN}{line.text}{ASR_CLOSE}", ends_turn=True),
    ]


def _tts(documents: TaskDocuments, line: Tokenized, rng: random.Random) -> list[Segment]:
    return [
        Segment("text", text=line.text, weight=0.0, marker_weight=0.0),
        Segment("speech", units=documents.units(line), ends_turn=True),
    ]


def _interleaved(documents: TaskDocuments, line: Tokenized, rng: random.Random) -> list[Segment]:
    segments = []
    for span in draw_spans(len(line.words), documents.mix.spans, rng):
        spoken = line.sounding(span.start, span.end) if span.modality == "speech" else span.start
        if spoken > span.start:
            segments.append(Segment("speech", units=documents.units(line, span.start, spoken)))
        if spoken < span.end:
            segments.append(Segment("text", text=" ".join(line.words[spoken : span.end])))
    return segments


TASKS: dict[str, Callable[[TaskDocuments, Tokenized, random.Random], list[Segment]]] = {
    "asr": _asr, "tts": _tts, "interleaved": _interleaved,
}  # fmt: skip


def add_lora(model: Llama, plan: FinetunePlan) -> list[nn.Parameter]:
    """Puts float32 adapters on every projection of `model`, freezes the rest, and returns what is to be trained.

    Raises ImportError where peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ImportError(f"fine-tuning needs peft: {install('finetune')} ({error})") from error
    config = LoraConfig(r=plan.rank, lora_alpha=plan.alpha, lora_dropout=0.0, target_modules=list(TARGETS), bias="none")
    inject_adapter_in_model(config, model)
    trained = [p for p in model.parameters() if p.requires_grad]
    for p in trained:  # peft gives them the dtype of the frozen weights
        p.data = p.data.float()
    return trained


def merged(model: Llama) -> dict[str, Tensor]:
    """The weights of a model with its adapters added, under the names that it had without them."""
    from peft.tuners.lora import LoraLayer

    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.merge()
    return {
        name.replace(".base_layer.", "."): value.detach()
        for name, value in model.state_dict().items()
        if "lora_" not in name
    }


def origin(
    config: Mapping[str, object], weights: Mapping[str, Tensor], shards: Sequence[Path], plan: FinetunePlan
) -> dict[str, object]:
    """What a run is made of and a resumed one may not change; the rate, the steps, the minutes, the precision and how
    many batches a step reads may.

    `model` is a hash of the base model's configuration and weights, each of the `shards` its folder's name with a hash
    of its header and of where its lines and words lie.
    """
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode() + digest_of(weights).encode())
    return {
        "model": digest.hexdigest()[:12], "shards": [shard_version(folder) for folder in shards], "task": plan.task,
        "rank": plan.rank, "alpha": plan.alpha, "text_words": list(plan.spans.text_words),
        "speech_words": list(plan.spans.speech_words), "context": plan.context, "batch_tokens": plan.batch_tokens,
        "seed": plan.seed,
    }  # fmt: skip


def load_frozen(config: dict, stored: Mapping[str, Tensor], precision: str) -> Llama:
    """The base model, its weights as they are stored, or for fp32 in float32."""
    with torch.device("meta"):
        llama = Llama(LlamaConfig.from_official(config))
    load_weights(llama, stored, ignore=("*.rotary_emb.inv_freq",), assign=True)
    return llama.float() if precision == "fp32" else llama


class FinetuneTrainer:
    """Base model with its adapters, optimizer and place in the data; `step()` returns the figures of one step."""

    def __init__(
        self, llama: Llama, stream: BatchStream, plan: FinetunePlan, made_of: Mapping[str, object],
        device: torch.device = CPU,
    ) -> None:  # fmt: skip
        """`made_of` is what the state says of itself (`origin`). Raises ImportError where peft is not installed."""
        self.plan, self.stream, self.made_of, self.device = plan, stream, dict(made_of), device
        self.trained = add_lora(llama, plan)
        self.model = llama.to(device)
        self.adapters = {name: p for name, p in llama.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(self.trained, lr=plan.rate, weight_decay=0.0)
        self.schedule = Schedule(plan.rate, plan.steps, warmup=min(plan.warmup_steps, plan.steps))
        self.losses: list[float] = []
        self.step_index = 0

    def step(self) -> dict[str, float]:
        set_lr(self.optimizer, self.schedule(self.step_index))
        total = 0.0
        for _ in range(self.plan.accumulate):
            batch = self.stream.next().to(self.device)
            with autocast(self.device, self.plan.precision):
                share = loss_of(self.model, batch) / self.plan.accumulate
            share.backward()
            total += float(share.detach())
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step_index += 1
        self.losses.append(total)
        return {"loss": total}

    def state(self) -> dict[str, object]:
        return {
            "step": self.step_index, "epoch": self.stream.epoch, "group": self.stream.group,
            "optimizer": self.optimizer.state_dict(), "made_of": self.made_of,
            "adapters": {name: p.detach().cpu() for name, p in self.adapters.items()},
        }  # fmt: skip

    def resume(self, state: Mapping[str, object]) -> None:
        self.step_index = int(state["step"])  # type: ignore[call-overload]
        self.stream.state = (int(state["epoch"]), int(state["group"]))  # type: ignore[call-overload]
        self.optimizer.load_state_dict(state["optimizer"])  # type: ignore[arg-type]
        with torch.no_grad():
            for name, value in state["adapters"].items():  # type: ignore[attr-defined]
                self.adapters[name].copy_(value)


def finetune(
    model: str, shards: Sequence[Path], out: Path, plan: FinetunePlan, minutes: float, device: str = "cpu"
) -> list[float]:
    """Fine-tune a family on shards and write the result as the family `out`; returns the losses of this run.

    `out/finetune.ckpt` is the state: a run that was stopped goes on. `out/finetune.log` has a JSON line every 10 steps.
    Raises ValueError where `minutes` is 0 or less, the shards are of other tokenizers, `out` holds another model, or
    its state is of another base model, task, rank or data.
    """
    check_minutes(minutes)
    source = find(model)
    config = source.part("lm").config
    tokenizer = Tokenizer(source.tokenizer or source.folder, config["vocab_size"])
    kinds = ("St", "Pi", "Hu") if tokenizer.vocabulary.expressive else ("Hu",)
    versions = tokenizer_versions(source, kinds)
    documents = TaskDocuments([Shard(folder, versions) for folder in shards], tokenizer, plan)
    state_file = out / "finetune.ckpt"
    if (out / "spiritrt.json").is_file() and not state_file.is_file():
        raise ValueError(f"{out} holds a model already; choose another folder")
    torch.manual_seed(plan.seed)
    stored = source.part("lm").load()
    made_of = origin(config, stored, shards, plan)
    llama = load_frozen(config, stored, plan.precision)
    trainer = FinetuneTrainer(llama, BatchStream(documents, plan.batch_tokens), plan, made_of, torch.device(device))
    if (state := load_checkpoint(state_file)) is not None:
        check_origin(state.get("made_of"), made_of, str(state_file))
        trainer.resume(state)
    out.mkdir(parents=True, exist_ok=True)
    train(trainer, plan.steps, state_file, out / "finetune.log", Budget(minutes), every=10)
    adapter = out / "adapter.safetensors"
    save_file({name: p.detach().cpu().contiguous() for name, p in trainer.adapters.items()}, adapter)
    adapter.chmod(0o644)  # safetensors writes for its owner alone
    for name in source.parts:
        if name != "lm":
            save_part(out, name, source.part(name).config, source.part(name).load())
    dtypes = {name: value.dtype for name, value in stored.items()}
    tensors = {name: value.cpu().to(dtypes[name]) for name, value in merged(llama).items() if name in dtypes}
    save_part(out, "lm", config, tensors, reply=source.reply)
    for file in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
        if ((source.tokenizer or source.folder) / file).is_file():
            shutil.copy((source.tokenizer or source.folder) / file, out / file)
    return trainer.losses
