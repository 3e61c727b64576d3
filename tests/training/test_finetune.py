"""LoRA: the forms of the tasks, a change that is merged exactly, a stopped run that goes on."""

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_shards import CONFIG, make_shard
from typer.testing import CliRunner

import spiritrt
from spiritrt.cli import app
from spiritrt.models.checkpoints import find, save_part
from spiritrt.models.llama import Llama, LlamaConfig
from spiritrt.tokens.text import Tokenizer
from spiritrt.training.batches import Batch, BatchStream
from spiritrt.training.checkpoint import Budget, file_digest
from spiritrt.training.curves import read_log
from spiritrt.training.finetune import (
    FinetunePlan,
    FinetuneTrainer,
    TaskDocuments,
    add_lora,
    finetune,
    load_frozen,
    merged,
)
from spiritrt.training.interleave import SpanPlan
from spiritrt.training.lm import initialise, loss_of
from spiritrt.training.shards import Shard

pytest.importorskip("peft")
PLAN = FinetunePlan(rank=2, alpha=4.0, rate=1e-2, steps=4, batch_tokens=512, context=256, warmup_steps=1)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("finetune")
    shutil.copytree(find("nano").folder, root / "family")
    torch.manual_seed(0)
    model = Llama(LlamaConfig.from_official(CONFIG))
    initialise(model)
    save_part(root / "family", "lm", CONFIG, model.state_dict())
    make_shard(root / "shard", root / "family", text="what color is it")
    shutil.copytree(root / "family", root / "bf16")
    save_part(root / "bf16", "lm", CONFIG, {name: value.bfloat16() for name, value in model.state_dict().items()})
    return root


@pytest.mark.parametrize("task", ["asr", "tts", "interleaved"])
def test_the_forms_of_the_tasks(source: Path, task: str):
    tokenizer = Tokenizer(source / "family", 1536)
    plan = FinetunePlan(task=task, spans=SpanPlan((2, 3), (2, 3)), context=256, batch_tokens=512)
    documents = TaskDocuments([Shard(source / "shard")], tokenizer, plan)
    ids, weights = documents.document(0, 0)
    assert documents.document(0, 0) == (ids, weights)
    string = tokenizer.decode(ids)
    learnt = tokenizer.decode([i for i, w in zip(ids, weights, strict=True) if w])
    if task == "asr":
        assert string.startswith("[Speech][Hu") and string.endswith("[Text]<START Transcript>what color is it<END>")
        assert learnt.startswith("[Text]<START") and ids[-1] == 2
    elif task == "tts":
        assert (
            string.startswith("[Text]what color is it[Speech][Hu") and learnt.startswith("[Speech][Hu") and ids[-1] == 2
        )
    else:
        assert string.count("[Text]") >= 1 and string.count("[Speech]") >= 1 and all(weights[1:])


def test_documents_of_short_lines_change_their_modality(source: Path):
    tokenizer = Tokenizer(source / "family", 1536)

    def switching(**spans: SpanPlan) -> int:
        plan = FinetunePlan(task="interleaved", context=256, batch_tokens=512, **spans)
        documents = TaskDocuments([Shard(source / "shard")], tokenizer, plan)
        strings = [tokenizer.decode(documents.document(0, index)[0]) for index in range(60)]
        return sum("[Text]" in string and "[Speech]" in string for string in strings)

    # lines of eight words: text of 3-10 and speech of 3-8 leave some for the other in 5 of 8 and 5 of 6
    assert switching() > 30 > switching(spans=SpanPlan((10, 30), (5, 15)))


def test_merging_changes_nothing_that_the_model_says(source: Path):
    torch.manual_seed(1)
    part = find(str(source / "family")).part("lm")
    model = Llama(LlamaConfig.from_official(CONFIG)).float()
    model.load_state_dict({name: value.float() for name, value in part.load().items()})
    names = set(model.state_dict())
    trained = add_lora(model, PLAN)
    assert len(trained) == 2 * 7 * 2 and sum(p.requires_grad for p in model.parameters()) == len(trained)
    with torch.no_grad():
        for p in trained:
            p.normal_(std=0.1)
    ids = torch.arange(1, 30)[None]
    with torch.inference_mode():
        adapted = model.eval()(ids)
    whole = merged(model)
    assert set(whole) == names
    plain = Llama(LlamaConfig.from_official(CONFIG)).float()
    plain.load_state_dict(whole)
    with torch.inference_mode():
        torch.testing.assert_close(plain.eval()(ids), adapted, atol=1e-5, rtol=1e-4)


def test_a_stopped_run_goes_on_and_the_result_loads(source: Path, tmp_path: Path):
    whole = finetune(str(source / "family"), [source / "shard"], tmp_path / "whole", PLAN, minutes=5)
    assert len(whole) == 4 and whole[-1] < whole[0]
    with pytest.raises(ValueError, match="must be positive"):
        finetune("no such family", [], tmp_path / "none", PLAN, minutes=-1)  # before anything is loaded
    # a budget that is spent at once stops after a checkpoint; the same command then goes on
    part = finetune(str(source / "family"), [source / "shard"], tmp_path / "cut", PLAN, minutes=1e-9)
    rest = finetune(str(source / "family"), [source / "shard"], tmp_path / "cut", PLAN, minutes=5)
    assert part == [] and rest == whole
    lm = spiritrt.load(str(tmp_path / "cut"))
    before = spiritrt.load(str(source / "family"))
    assert not torch.equal(
        lm.family.llama.model.layers[0].mlp.up_proj.weight, before.family.llama.model.layers[0].mlp.up_proj.weight
    )
    assert torch.equal(lm.family.llama.lm_head.weight, before.family.llama.lm_head.weight)
    assert (tmp_path / "cut" / "adapter.safetensors").stat().st_mode & 0o777 == 0o644
    with pytest.raises(ValueError, match="holds a model already"):
        finetune(str(source / "family"), [source / "shard"], source / "family", PLAN, minutes=5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_stopped_in_the_middle_has_the_losses_of_an_unbroken_one(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
):
    plan = replace(PLAN, precision=precision)
    whole = finetune(str(source / "bf16"), [source / "shard"], tmp_path / "whole", plan, minutes=5)
    seen: list[int] = []

    def counted(model: Llama, batch: Batch) -> torch.Tensor:
        seen.append(1)
        return loss_of(model, batch)

    with monkeypatch.context() as patch:
        patch.setattr("spiritrt.training.finetune.loss_of", counted)
        patch.setattr(Budget, "spent", lambda budget: len(seen) >= 2)
        assert finetune(str(source / "bf16"), [source / "shard"], tmp_path / "cut", plan, minutes=5) == whole[:2]
    assert finetune(str(source / "bf16"), [source / "shard"], tmp_path / "cut", plan, minutes=5) == whole[2:]
    adapters = [(tmp_path / name / "adapter.safetensors").read_bytes() for name in ("whole", "cut")]
    assert adapters[0] == adapters[1]
    # as the curves are drawn from
    means = {name: read_log(tmp_path / name / "finetune.log")["loss"] for name in ("whole", "cut")}
    assert means["whole"] == [(4, pytest.approx(sum(whole) / 4, abs=1e-4))]
    assert means["cut"] == [
        (2, pytest.approx(sum(whole[:2]) / 2, abs=1e-4)),
        (4, pytest.approx(sum(whole[2:]) / 2, abs=1e-4)),
    ]


def test_the_log_has_a_line_every_ten_steps(source: Path, tmp_path: Path):
    plan = replace(PLAN, steps=11, batch_tokens=256)
    losses = finetune(str(source / "family"), [source / "shard"], tmp_path, plan, minutes=5)
    log = read_log(tmp_path / "finetune.log")
    assert log["loss"] == [(10, pytest.approx(sum(losses[:10]) / 10, abs=1e-4)), (11, round(losses[10], 4))]
    assert log.keys() == {"loss", "s_a_step"}


def test_in_bf16_the_frozen_weights_stay_as_they_are_stored(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seen: list[dict[bool, set[torch.dtype]]] = []

    def watched(model: Llama, batch: Batch) -> torch.Tensor:
        seen.append(
            {frozen: {p.dtype for p in model.parameters() if p.requires_grad != frozen} for frozen in (True, False)}
        )
        assert torch.is_autocast_enabled("cpu") == (len(seen) <= 4)
        loss = loss_of(model, batch)
        assert loss.dtype == torch.float32
        return loss

    monkeypatch.setattr("spiritrt.training.finetune.loss_of", watched)
    weights = source / "bf16" / "lm.safetensors"
    before = file_digest(weights)
    losses = {
        precision: finetune(
            str(source / "bf16"), [source / "shard"], tmp_path / precision, replace(PLAN, precision=precision), 5
        )
        for precision in ("bf16", "fp32")
    }
    assert seen[:4] == [{True: {torch.bfloat16}, False: {torch.float32}}] * 4
    assert seen[4:] == [{True: {torch.float32}, False: {torch.float32}}] * 4
    assert losses["bf16"] != losses["fp32"] and losses["bf16"] == pytest.approx(losses["fp32"], rel=0.01)
    assert file_digest(weights) == before  # they are mapped, and the change is added in place
    stored, made = (find(str(folder)).part("lm").load() for folder in (source / "bf16", tmp_path / "bf16"))
    adapter = load_file(tmp_path / "bf16" / "adapter.safetensors")
    name = "model.layers.0.mlp.up_proj"
    a, b = (adapter[f"{name}.lora_{letter}.default.weight"] for letter in "AB")
    expected = stored[f"{name}.weight"].float() + b @ a * PLAN.alpha / PLAN.rank
    torch.testing.assert_close(made[f"{name}.weight"], expected.bfloat16(), rtol=2**-7, atol=1e-5)
    assert not torch.equal(made[f"{name}.weight"], stored[f"{name}.weight"])
    assert {value.dtype for value in made.values()} == {torch.bfloat16}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_of_two_batches_has_the_mean_of_their_gradients(source: Path, precision: str):
    def fresh(accumulate: int) -> FinetuneTrainer:
        torch.manual_seed(0)
        plan = replace(PLAN, accumulate=accumulate, precision=precision)
        part = find(str(source / "bf16")).part("lm")
        documents = TaskDocuments([Shard(source / "shard")], Tokenizer(source / "bf16", 1536), plan)
        llama = load_frozen(part.config, part.load(), precision)
        return FinetuneTrainer(llama, BatchStream(documents, plan.batch_tokens), plan, {})

    def gradients(trainer: FinetuneTrainer) -> torch.Tensor:
        """Of a matrix, after every batch of a step."""
        seen: list[torch.Tensor] = []
        weight = trainer.adapters["model.layers.1.mlp.down_proj.lora_B.default.weight"]
        handle = weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))
        trainer.step()
        handle.remove()
        return seen[-1]

    one = fresh(1)
    begun = {name: p.detach().clone() for name, p in one.adapters.items()}
    alone = [gradients(one)]
    with torch.no_grad():
        for name, value in begun.items():
            one.adapters[name].copy_(value)
    alone.append(gradients(one))
    both = fresh(2)
    torch.testing.assert_close(gradients(both), (alone[0] + alone[1]) / 2, rtol=1e-3, atol=1e-6)
    assert not torch.equal(alone[0], alone[1])
    assert both.losses == pytest.approx([sum(one.losses) / 2]) and both.stream.state == one.stream.state


def test_batches_go_where_the_model_is(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """On a device without memory, up to the first loss."""
    seen: list[str] = []

    def loss_of(model: Llama, batch: Batch) -> torch.Tensor:
        seen.extend({place.device.type for place in (batch.ids, batch.weights, *model.parameters())})
        raise InterruptedError

    # there is no autocast without memory
    monkeypatch.setattr("spiritrt.training.finetune.autocast", lambda device, precision: nullcontext())
    monkeypatch.setattr("spiritrt.training.finetune.loss_of", loss_of)
    with pytest.raises(InterruptedError):
        finetune(str(source / "family"), [source / "shard"], tmp_path, PLAN, minutes=5, device="meta")
    assert seen == ["meta"]


def test_a_state_of_another_run_is_refused(source: Path, tmp_path: Path):
    family, shard, out = source / "family", source / "shard", tmp_path / "out"
    finetune(str(family), [shard], out, PLAN, minutes=1e-9)
    # another shard under the same name, and another base model of the same shape
    (tmp_path / "other").mkdir()
    make_shard(tmp_path / "other" / "shard", family, text="a longer text than that of the other")
    shutil.copytree(family, tmp_path / "base")
    part = find(str(family)).part("lm")
    weights = {name: value + (name == "model.norm.weight") * 0.01 for name, value in part.load().items()}
    save_part(tmp_path / "base", "lm", CONFIG, weights)
    refused: list[tuple[Path, list[Path], FinetunePlan, str]] = [
        (family, [shard], replace(PLAN, task="tts"), "task asr, not tts"),
        (family, [shard], replace(PLAN, rank=4), "rank 2, not 4"),
        (family, [shard], replace(PLAN, seed=1), "seed 0, not 1"),
        (family, [shard], replace(PLAN, spans=SpanPlan()), "text_words 3 10, not 10 30; speech_words 3 8, not 5 15"),
        (family, [tmp_path / "other" / "shard"], PLAN, r"shards shard \(\w+\), not shard \(\w+\):"),
        (family, [shard, tmp_path / "other" / "shard"], PLAN, r"shards shard \(\w+\), not shard \(\w+\) shard"),
        (tmp_path / "base", [shard], PLAN, r"model \w{12}, not \w{12}:"),
    ]
    for model, shards, plan, message in refused:
        with pytest.raises(ValueError, match=message) as raised:
            finetune(str(model), shards, out, plan, minutes=5)
        assert str(out / "finetune.ckpt") in str(raised.value) and "choose another folder" in str(raised.value)
    # what only says how long and how fast may change
    assert len(finetune(str(family), [shard], out, replace(PLAN, steps=1, rate=1e-3), minutes=5)) == 1


def test_the_command(source: Path, tmp_path: Path):
    arguments = ["finetune", str(source / "shard"), "--model", str(source / "family"), "--out", str(tmp_path / "out")]
    arguments += ["--steps", "1", "--batch-tokens", "512", "--context", "256", "--json", "--task", "interleaved"]
    result = CliRunner().invoke(app, [*arguments, "--text-words", "2", "3"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout.splitlines()[-1])["steps"] == 1
    state = torch.load(tmp_path / "out" / "finetune.ckpt", weights_only=True)
    assert state["made_of"]["text_words"] == [2, 3] and state["made_of"]["speech_words"] == [3, 8]
    again = CliRunner().invoke(app, [*arguments, "--text-words", "2", "4"])
    assert again.exit_code != 0 and "text_words 2 3, not 2 4" in str(again.exception or again.output)


@pytest.mark.parametrize(
    ("given", "precision"),
    [
        ([], "fp32"),
        (["--precision", "bf16"], "bf16"),
        (["--device", "cuda:1"], "bf16"),
        (["--device", "cuda", "--precision", "fp32"], "fp32"),
    ],
)
def test_the_precision_of_the_command_is_that_of_the_device(
    monkeypatch: pytest.MonkeyPatch, given: list[str], precision: str
):
    plans: list[FinetunePlan] = []

    def train(
        model: str, shards: list[Path], out: Path, plan: FinetunePlan, minutes: float, device: str
    ) -> list[float]:
        plans.append(plan)
        return []

    monkeypatch.setattr("spiritrt.training.finetune.finetune", train)
    result = CliRunner().invoke(app, ["finetune", "shard", "--out", "out", "--accumulate", "3", *given])
    assert result.exit_code == 0, result.output
    assert [(plan.precision, plan.accumulate) for plan in plans] == [(precision, 3)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "song"}, "task must be one of"),
        ({"rank": 0}, "above 0"),
        ({"context": 9000}, "context must lie"),
        ({"precision": "fp8"}, "precision must be one of fp32, bf16, got 'fp8'"),
        ({"accumulate": 0}, "accumulate must be at least 1, got 0"),
    ],
)
def test_bad_plans_are_named(changes: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        FinetunePlan(**changes)
