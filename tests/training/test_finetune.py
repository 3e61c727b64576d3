"""LoRA: the forms of the tasks, a change that is merged exactly, a stopped run that goes on."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from small_shards import CONFIG, make_shard
from typer.testing import CliRunner

import spiritrt
from spiritrt.cli import app
from spiritrt.models.checkpoints import find, save_part
from spiritrt.models.llama import Llama, LlamaConfig
from spiritrt.tokens.text import Tokenizer
from spiritrt.training.finetune import FinetunePlan, TaskDocuments, add_lora, finetune, merged
from spiritrt.training.interleave import SpanPlan
from spiritrt.training.lm import initialise
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
        finetune(str(source / "family"), [source / "shard"], tmp_path / "none", PLAN, minutes=0)
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
    assert (tmp_path / "cut" / "adapter.safetensors").is_file()
    with pytest.raises(ValueError, match="holds a model already"):
        finetune(str(source / "family"), [source / "shard"], source / "family", PLAN, minutes=5)


def test_the_command(source: Path, tmp_path: Path):
    arguments = ["finetune", str(source / "shard"), "--model", str(source / "family"), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(
        app, [*arguments, "--steps", "1", "--batch-tokens", "512", "--context", "256", "--json"]
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout.splitlines()[-1])["steps"] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"task": "song"}, "task must be one of"), ({"rank": 0}, "above 0"), ({"context": 9000}, "context must lie")],
)
def test_bad_plans_are_named(changes: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        FinetunePlan(**changes)
