"""Pretraining on one process and on two gives the same losses, and goes on where it stopped."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from small_shards import CONFIG, make_shard

import spiritrt
from spiritrt.models.checkpoints import find, save_part
from spiritrt.models.llama import Llama, LlamaConfig
from spiritrt.training.lm import initialise
from spiritrt.training.pretrain import Place, Pretraining, PretrainPlan, run


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A family with nano's speech parts and a thin language model, and a shard."""
    root = tmp_path_factory.mktemp("pretrain")
    nano = find("nano").folder
    shutil.copytree(nano, root / "family")
    torch.manual_seed(0)
    model = Llama(LlamaConfig.from_official(CONFIG))
    initialise(model)
    save_part(root / "family", "lm", CONFIG, model.state_dict())
    make_shard(root / "shard", root / "family")
    return root


def plan(source: Path, folder: Path, **changes: object) -> Path:
    """A plan's YAML file in `folder`, with a copy of the family to be trained."""
    shutil.copytree(source / "family", folder / "family", dirs_exist_ok=True)
    settings = {
        "family": str(folder / "family"), "work": str(folder / "work"), "shards": [str(source / "shard")],
        "shares": {"speech": 0.5, "interleaved": 0.5}, "text_words": [2, 3], "speech_words": [2, 3], "context": 128,
        "tokens_a_step": 768, "tokens_a_batch": 256, "rate": 1e-3, "warmup_steps": 2, "steps": 4, "precision": "fp32",
    }  # fmt: skip
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(settings | changes))
    return path


@pytest.fixture(scope="module")
def losses(source: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Losses of four steps on one process."""
    folder = tmp_path_factory.mktemp("alone")
    training = Pretraining(PretrainPlan.read(plan(source, folder)), Place())
    (folder / "work").mkdir()
    made = list(run(training, folder / "work"))
    assert len(made) == 4 and made[-1] < made[0]
    return made


def test_a_stopped_run_goes_on_with_the_same_losses(source: Path, tmp_path: Path, losses: list[float]):
    work = tmp_path / "work"
    work.mkdir()
    first = Pretraining(PretrainPlan.read(plan(source, tmp_path, steps=2)), Place())
    assert list(run(first, work)) == losses[:2]
    second = Pretraining(PretrainPlan.read(plan(source, tmp_path)), Place())
    assert second.resume(work) and second.steps_done == 2
    assert list(run(second, work)) == pytest.approx(losses[2:], rel=1e-6)
    assert [path.name for path in work.glob("step-*")] == ["step-4"]
    second.export()
    lm = spiritrt.load(str(tmp_path / "family"))
    trained = dict(second.model.named_parameters())["lm_head.weight"].detach()
    torch.testing.assert_close(lm.family.llama.lm_head.weight, trained.bfloat16().float())


@pytest.mark.skipif(sys.platform != "linux", reason="two gloo processes are started with torchrun's launcher")
def test_two_processes_have_the_losses_of_one(source: Path, tmp_path: Path, losses: list[float]):
    """Three micro-batches for two processes; the second run is resumed from the sharded checkpoint by one process."""
    path = plan(source, tmp_path, steps=3, checkpoint_layers=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29519"]
    done = subprocess.run(
        [*command, "-m", "spiritrt.training.pretrain", "--config", str(path)],
        capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1])["processes"] == 2
    log = [json.loads(line) for line in (tmp_path / "work" / "pretrain.log").read_text().splitlines()]
    assert [line["loss"] for line in log] == pytest.approx(losses[:3], rel=1e-4)
    assert (
        find(str(tmp_path / "family")).part("lm").load().keys()
        == Llama(LlamaConfig.from_official(CONFIG)).state_dict().keys()
    )
    alone = Pretraining(PretrainPlan.read(plan(source, tmp_path, checkpoint_layers=True)), Place())
    assert alone.resume(tmp_path / "work") and alone.steps_done == 3
    assert alone.step() == pytest.approx(losses[3], rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "fp8"}, "precision"),
        ({"tokens_a_batch": 500}, "divide tokens_a_step"),
        ({"context": 512}, "must hold a context"),
        ({"rates": 1.0}, "unknown keys"),
        ({"steps": 0}, "above 0"),
        ({"rate": "fast"}, "plan.yaml"),
    ],
)
def test_bad_plans_are_named(source: Path, tmp_path: Path, changes: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        PretrainPlan.read(plan(source, tmp_path, **changes))


def test_shipped_plans_can_be_read():
    configs = Path(sys.modules[Pretraining.__module__].__file__).parent / "configs"
    plans = {path.name: PretrainPlan.read(path) for path in configs.glob("*.yaml")}
    assert plans["paper-7b.yaml"].rate == 3e-5 and plans["paper-7b.yaml"].batches_a_step == 128
    assert set(plans) == {"paper-7b.yaml", "nano.yaml"}
