"""Trains the nano language model: a small Llama from scratch, on documents of `lm_data`, for a number of minutes.

    python -m spiritrt.training.lm --minutes 60

Muon steps the matrices, AdamW embeddings, head and norms; the rate rises over the first steps and falls linearly to
zero at the end of the budget. Runs resume from `lm.pt` where they were stopped (model, optimizers, place in the data,
time spent).
One idle core of a Xeon read 3,500 tokens a second (float32, 5.6M parameters); bf16 was slower there. One with AMX,
beside other work, read 1,235 in float32 and 1,871 in bf16.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from spiritrt.models.checkpoints import Checkpoint, find, save_part
from spiritrt.models.llama import Llama, LlamaConfig
from spiritrt.models.weights import load_weights
from spiritrt.tokens.text import Tokenizer
from spiritrt.training.arguments import (
    CPU,
    PRECISIONS,
    add_settings,
    autocast,
    check_precision,
    launch,
    parse,
    settings,
)
from spiritrt.training.batches import Batch, BatchStream
from spiritrt.training.checkpoint import file_digest
from spiritrt.training.interleave import SpanPlan
from spiritrt.training.lm_data import MIXES, Documents, load_documents
from spiritrt.training.muon import Muon
from spiritrt.training.packing import Packed
from spiritrt.training.shard_documents import KINDS, PAPER, ShardDocuments, TokenMix, read_text
from spiritrt.training.shards import Shard, tokenizer_versions
from spiritrt.training.tokenizer import ROWS, NanoTokenizer

OF_SHARDS = ("text", "context", "shares", "text_words", "speech_words")  # options, None where they are not given
OF_UNITS = ("units", "heard", "mix", "prose", "begin")


@dataclass(frozen=True, slots=True)
class Plan:
    """Shape of the model and of its training; `minutes` is the whole budget, over all resumed runs.

    An optimizer step reads `accumulate` batches of `batch_tokens`.

    With `steps` above 0 the schedule follows steps instead of time, and a resumed run repeats an unbroken one exactly.
    """

    width: int = 256
    layers: int = 6
    heads: int = 4
    inner: int = 704
    batch_tokens: int = 4096
    accumulate: int = 1
    matrix_rate: float = 4e-3
    other_rate: float = 2e-3
    weight_decay: float = 0.02
    warmup_steps: int = 80
    clip: float = 1.0
    minutes: float = 60.0
    steps: int = 0
    precision: str = "fp32"
    seed: int = 0

    def __post_init__(self) -> None:
        check_precision(self.precision)
        for name in ("width", "layers", "heads", "inner", "batch_tokens", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of {self.heads} heads")
        if self.minutes <= 0 and self.steps <= 0:
            raise ValueError(f"give minutes or steps above 0, got {self.minutes} and {self.steps}")

    def llama(self) -> LlamaConfig:
        """The model's configuration."""
        return LlamaConfig.from_official(self.official())

    def official(self) -> dict[str, int | float | str | bool | list[str] | None]:
        """The model's `config.json`, in Hugging Face's words."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": ROWS,
            "hidden_size": self.width,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads,
            "head_dim": self.width // self.heads,
            "hidden_act": "silu",
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "rope_theta": 100000.0,
            "rope_scaling": None,
            "tie_word_embeddings": False,
            "attention_bias": False,
            "mlp_bias": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "torch_dtype": "bfloat16",
        }


def initialise(model: Llama) -> None:
    """Normal weights of deviation 0.02; those that end a residual branch are scaled down by the depth (GPT-2)."""
    scale = (2 * model.config.num_hidden_layers) ** -0.5
    for name, weight in model.named_parameters():
        if weight.ndim == 2:
            ends_branch = name.endswith(("o_proj.weight", "down_proj.weight"))
            nn.init.normal_(weight, std=0.02 * (scale if ends_branch else 1.0))


def loss_of(model: Llama, batch: Batch | Packed) -> Tensor:
    """Weighted mean cross-entropy, in nats a token, of predicting each id from those before it in its document."""
    if isinstance(batch, Packed):
        logits = model(batch.ids, mask=batch.mask(), positions=batch.positions)[:, :-1]
    else:
        logits = model(batch.ids[:, :-1])
    weights = batch.weights[:, 1:]
    chosen = weights > 0
    losses = F.cross_entropy(logits[chosen].float(), batch.ids[:, 1:][chosen], reduction="none")
    return (losses * weights[chosen]).sum() / weights.sum()


@dataclass(frozen=True, slots=True)
class Start:
    """Another beginning than the plan's: a model's `config.json` and, to go on from, its weights.

    `reply` is the form in which the model will converse (see `Checkpoint`), None for a plain continuation. `digest` is
    that of the part as it lies on disk: a state goes on only from where it began or from what it exported itself.
    """

    config: dict
    tensors: dict[str, Tensor] | None = None
    reply: str | None = None
    digest: str | None = None

    @classmethod
    def of(cls, checkpoint: Checkpoint, plan: Plan, rows: int) -> Start:
        """The language model of a family, or where it has none the plan's shape over `rows` rows."""
        if "lm" not in checkpoint.parts:
            return cls(plan.official() | {"vocab_size": rows})
        part = checkpoint.part("lm")
        tensors = part.load()
        return cls(part.config, tensors, checkpoint.reply if checkpoint.reply == "chain" else None, digest_of(tensors))

    @classmethod
    def of_units(cls, checkpoint: Checkpoint, out: Path, plan: Plan) -> Start:
        """The language model of a family, to go on from in `out` with nano's documents.

        Raises ValueError where it has none, or where its tokenizer is not that of `out`.
        """
        if "lm" not in checkpoint.parts:
            raise ValueError(f"{checkpoint.folder} has no language model to begin from")
        folders = (checkpoint.tokenizer or checkpoint.folder, out)
        if len({file_digest(folder / "tokenizer.model", folder / "tokenizer_config.json") for folder in folders}) > 1:
            raise ValueError(f"{folders[0]} and {out} have different tokenizers: copy those of the former")
        return replace(cls.of(checkpoint, plan, ROWS), reply="chain")


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """Names and bytes of weights, in short."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode())
        found.update(tensors[name].detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


class Trainer:
    """Model, optimizers and place in the data; `step` trains on one batch, `state` is all of it."""

    def __init__(self, plan: Plan, stream: BatchStream, start: Start | None = None, device: torch.device = CPU) -> None:
        torch.manual_seed(plan.seed)
        self.plan, self.stream, self.device = plan, stream, device
        self.official = plan.official() if start is None else start.config
        self.reply = "chain" if start is None else start.reply
        self.known = [None if start is None else start.digest]  # what the family's folder held and may hold now
        self.model = Llama(LlamaConfig.from_official(self.official))
        if start is None or start.tensors is None:
            initialise(self.model)
        else:
            load_weights(self.model, start.tensors, ignore=("*.rotary_emb.inv_freq",))
        self.model.to(device)
        matrices = [p for name, p in self.model.named_parameters() if p.ndim == 2 and ".layers." in name]
        chosen = {id(p) for p in matrices}
        others = [p for p in self.model.parameters() if id(p) not in chosen]
        self.optimizers: list[torch.optim.Optimizer] = [
            Muon(matrices, lr=plan.matrix_rate, weight_decay=plan.weight_decay, dtype=PRECISIONS[plan.precision]),
            torch.optim.AdamW(others, lr=plan.other_rate, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        self.rates = (plan.matrix_rate, plan.other_rate)
        self.steps_done = 0
        self.tokens = 0
        self.spent_s = 0.0

    @property
    def progress(self) -> float:
        """Share of the budget that is spent, 0 to 1."""
        if self.plan.steps:
            return min(1.0, self.steps_done / self.plan.steps)
        return min(1.0, self.spent_s / (60 * self.plan.minutes))

    def step(self) -> float:
        """One optimizer step; the mean loss of its batches in nats a token."""
        begin = time.monotonic()
        scale = min(1.0, (self.steps_done + 1) / self.plan.warmup_steps) * max(0.01, 1 - self.progress)
        loss = 0.0
        for _ in range(self.plan.accumulate):
            batch = self.stream.next().to(self.device)
            with autocast(self.device, self.plan.precision):
                share = loss_of(self.model, batch) / self.plan.accumulate
            share.backward()
            loss += float(share.detach())
            self.tokens += batch.tokens
        nn.utils.clip_grad_norm_(self.model.parameters(), self.plan.clip)
        for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * scale
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.steps_done += 1
        self.spent_s += time.monotonic() - begin
        return loss

    def save(self, path: Path) -> None:
        """Write everything to `path`; a reader never sees half of it."""
        state = {
            "plan": asdict(self.plan),
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "stream": self.stream.state,
            "stream_shape": self.stream.shape,
            "steps_done": self.steps_done,
            "tokens": self.tokens,
            "spent_s": self.spent_s,
            "official": self.official,
            "known": self.known,
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, path)

    def load(self, path: Path) -> None:
        """Continue from `path`; with batches of another shape at the beginning of the next window of documents.

        Raises ValueError where the model there has another shape, or is another family's.
        """
        state = torch.load(path, map_location="cpu", weights_only=True)
        mine, its = self.official, state.get("official", self.official)
        if differing := sorted(key for key in mine | its if mine.get(key) != its.get(key)):
            said = ", ".join(f"{key} {its.get(key)} there and {mine.get(key)} here" for key in differing)
            raise ValueError(f"{path} is of another model ({said}): choose another --work, or move it away")
        if self.known[0] is not None and self.known[0] not in state.get("known", self.known):
            raise ValueError(
                f"{path} neither began from the language model in --out nor wrote it: choose another --work, or move it"
                " away to begin from that model"
            )
        self.known = state.get("known", self.known)
        if state["plan"]["seed"] != self.plan.seed:
            raise ValueError(f"{path} has seed {state['plan']['seed']}, not {self.plan.seed}: choose another --work")
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.stream.resume(tuple(state["stream"]), state.get("stream_shape", self.stream.shape))
        self.steps_done, self.tokens, self.spent_s = state["steps_done"], state["tokens"], state["spent_s"]

    def export(self, folder: Path, state: Path) -> None:
        """Write the `lm` part of a family, in bf16, and before it `state`, which must know what is written."""
        tensors = {name: tensor.to("cpu", torch.bfloat16) for name, tensor in self.model.state_dict().items()}
        self.known = [self.known[0], self.known[-1], digest_of(tensors)]  # a kill may leave the one before
        self.save(state)
        save_part(folder, "lm", self.official, tensors, reply=self.reply)


def run(trainer: Trainer, work: Path, out: Path | None, export_minutes: float, save_minutes: float = 4.0) -> None:
    """Train until the budget is spent; save, export and log on the way.

    `work/lm.pt` is the state, `work/lm.log` has one JSON line every 50 steps and one of those that are left at the end.
    SIGTERM and SIGINT save and stop.
    """
    stopped: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.append(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    saved_s = exported_s = trainer.spent_s
    losses: list[float] = []

    def log_means() -> None:
        line = {
            "step": trainer.steps_done,
            "minutes": round(trainer.spent_s / 60, 2),
            "loss": round(sum(losses) / len(losses), 4),
            "tokens": trainer.tokens,
            "tokens_per_s": round(trainer.tokens / trainer.spent_s),
        }
        losses.clear()
        with (work / "lm.log").open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")

    bar = tqdm(total=100, initial=round(100 * trainer.progress), desc="lm", file=sys.stderr, unit="%")
    while trainer.progress < 1 and not stopped:
        losses.append(trainer.step())
        bar.update(round(100 * trainer.progress) - bar.n)
        bar.set_postfix(loss=f"{losses[-1]:.3f}", step=trainer.steps_done, refresh=False)
        if trainer.steps_done % 50 == 0:
            log_means()
        if trainer.spent_s - saved_s > 60 * save_minutes:
            trainer.save(work / "lm.pt")
            saved_s = trainer.spent_s
        if out is not None and trainer.spent_s - exported_s > 60 * export_minutes:
            trainer.export(out, work / "lm.pt")
            exported_s = saved_s = trainer.spent_s
    bar.close()
    if losses:
        log_means()
    if out is None:
        trainer.save(work / "lm.pt")
    else:
        trainer.export(out, work / "lm.pt")
    for number, handler in before.items():
        signal.signal(number, handler)


def summary(trainer: Trainer, before: int | None, work: Path, out: Path) -> str:
    """What a run that began after `before` steps wrote where; None: the budget had been spent."""
    plan = trainer.plan
    option, budget = ("steps", f"{plan.steps} steps") if plan.steps else ("minutes", f"{plan.minutes:g} minutes")
    if before is None:
        made = f"the budget of {budget} was spent before: give more --{option}"
    else:
        made = f"{trainer.steps_done - before} steps in this run, of a budget of {budget}"
    spent = f"{trainer.steps_done} steps in {trainer.spent_s / 60:.1f} minutes"
    return f"{out}: language model after {spent} ({made}); its state and log are in {work}"


def from_shards(
    folders: Sequence[Path],
    texts: Sequence[Path],
    family: Path,
    plan: Plan,
    context: int,
    spans: SpanPlan,
    shares: Mapping[str, float] | None = None,
) -> tuple[ShardDocuments, Start]:
    """Documents of shards and text files for a family, in `shares` of tokens by kind (see `shard_documents`); by
    default in equal ones of the paper's kinds that there are.

    Raises ValueError where a shard was made by other tokenizers than the family's, for unknown kinds, and for kinds
    that there is nothing to make of.
    """
    checkpoint = find(str(family))
    rows = checkpoint.part("lm").config["vocab_size"] if "lm" in checkpoint.parts else ROWS
    tokenizer = Tokenizer(checkpoint.tokenizer or checkpoint.folder, rows)
    versions = tokenizer_versions(checkpoint, ("St", "Pi", "Hu") if tokenizer.vocabulary.expressive else ("Hu",))
    shards = [Shard(folder, versions) for folder in folders]
    there = {
        "speech": True, "text": bool(texts), "interleaved": any(len(shard.with_words()) for shard in shards),
    }  # fmt: skip
    kinds = [kind for kind in PAPER if there[kind]]
    chosen = {kind: 1 / len(kinds) for kind in kinds} if shares is None else dict(shares)
    mix = TokenMix(shares=chosen, context=context, spans=spans)
    documents = ShardDocuments(shards, tokenizer, mix, plan.seed, read_text(texts))
    return documents, Start.of(checkpoint, plan, rows)


def share_of(given: str) -> tuple[str, float]:
    """A kind and its share, of `kind=share`. Raises ArgumentTypeError for anything else."""
    kind, _, share = given.partition("=")
    try:
        return kind, float(share)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"write kind=number, such as speech=0.5, not {given!r}") from error


def refuse_idle(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """A usage error for options that have no effect: those of shards without any, those of nano's own corpus with."""
    idle, why = (OF_UNITS, "no effect with --shards") if args.shards else (OF_SHARDS, "no effect without --shards")
    if given := [f"--{name.replace('_', '-')}" for name in idle if getattr(args, name) is not None]:
        parser.error(f"{', '.join(given)}: {why}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Train the nano language model; a second run continues the first.",
        epilog="example: python -m spiritrt.training.lm --minutes 60 --threads 1",
    )
    parser.add_argument("--units", type=Path, help="without --shards: build/nano/units.jsonl by default")
    parser.add_argument(
        "--heard", type=Path, nargs="+", help="JSON lines of units that an encoder emits; the last file wins"
    )
    parser.add_argument("--prose", type=Path, help="without --shards: sentences to read and to say as well, one a line")
    parser.add_argument("--work", type=Path, default=Path("build/nano"), help="folder of lm.pt and lm.log")
    parser.add_argument(
        "--out", type=Path, default=Path("build/nano/model"), help="folder with the tokenizer; gets the lm part"
    )
    parser.add_argument("--export-minutes", type=float, default=10.0)
    parser.add_argument("--save-minutes", type=float, default=4.0)
    parser.add_argument("--shards", type=Path, nargs="+", default=[], help="train on these, and go on from --out's lm")
    parser.add_argument("--text", type=Path, nargs="+", help="with --shards: files of text")
    parser.add_argument(
        "--shares", type=share_of, nargs="+", metavar="KIND=SHARE",
        help=f"with --shards: shares of tokens of {', '.join(KINDS)} (equal ones of the first three that there are)",
    )  # fmt: skip
    parser.add_argument("--context", type=int, help="with --shards: most tokens of a document (512)")
    parser.add_argument(
        "--text-words", type=int, nargs=2, help="with --shards: of a text span (3 10; the paper: 10 30)"
    )
    parser.add_argument(
        "--speech-words", type=int, nargs=2, help="with --shards: of a speech span (3 8; the paper: 5 15)"
    )
    parser.add_argument(
        "--mix", choices=sorted(MIXES), help="without --shards: which documents, in which shares (nano)"
    )
    parser.add_argument("--begin", help="without --shards: a family whose language model the first run begins with")
    parser.add_argument("--packed", action="store_true", help="several documents a row, none seeing another")
    add_settings(parser, Plan())
    args = parse(parser, "lm")
    refuse_idle(parser, args)
    plan = settings(Plan, args)
    documents: Documents | ShardDocuments
    start: Start | None = Start.of_units(find(args.begin), args.out, plan) if args.begin else None
    if args.shards:
        spans = SpanPlan(tuple(args.text_words or (3, 10)), tuple(args.speech_words or (3, 8)))
        context = 512 if args.context is None else args.context
        shares = None if args.shares is None else dict(args.shares)
        if shares is not None and len(shares) < len(args.shares):
            parser.error(f"--shares: one share a kind, got {', '.join(kind for kind, _ in args.shares)}")
        documents, start = from_shards(args.shards, args.text or [], args.out, plan, context, spans, shares)
    else:
        units, mix = args.units or Path("build/nano/units.jsonl"), MIXES[args.mix or "nano"]
        documents = load_documents(units, NanoTokenizer(args.out), mix, plan.seed, args.heard or (), args.prose)
    trainer = Trainer(plan, BatchStream(documents, plan.batch_tokens, packed=args.packed), start, args.device)
    args.work.mkdir(parents=True, exist_ok=True)
    if (args.work / "lm.pt").exists():
        trainer.load(args.work / "lm.pt")
    before = trainer.steps_done if trainer.progress < 1 else None
    run(trainer, args.work, args.out, args.export_minutes, args.save_minutes)
    print(summary(trainer, before, args.work, args.out))


if __name__ == "__main__":
    launch(main)
