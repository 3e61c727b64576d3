"""Pretraining on one process and on two gives the same losses, and goes on where it stopped; fp32 and bf16."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import yaml
from small_shards import CONFIG, make_shard
from torch.testing._internal.distributed.fake_pg import FakeStore

import spiritrt
from spiritrt.models.checkpoints import find, save_part
from spiritrt.models.llama import Llama, LlamaConfig
from spiritrt.training import pretrain
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
def losses(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    """Losses of four steps on one process, by precision."""
    made = {}
    for precision in ("fp32", "bf16"):
        folder = tmp_path_factory.mktemp(precision)
        training = Pretraining(PretrainPlan.read(plan(source, folder, precision=precision)), Place())
        (folder / "work").mkdir()
        made[precision] = list(run(training, folder / "work"))
        assert len(made[precision]) == 4 and made[precision][-1] < made[precision][0]
    assert made["bf16"] == pytest.approx(made["fp32"], rel=1e-3)
    assert all(a != b for a, b in zip(made["bf16"], made["fp32"], strict=True)), "bf16 did as fp32 does"
    return made


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_stopped_run_goes_on_with_the_same_losses(
    source: Path, tmp_path: Path, losses: dict[str, list[float]], precision: str
):
    expected = losses[precision]
    work = tmp_path / "work"
    work.mkdir()
    first = Pretraining(PretrainPlan.read(plan(source, tmp_path, steps=2, precision=precision)), Place())
    assert list(run(first, work)) == expected[:2]
    second = Pretraining(PretrainPlan.read(plan(source, tmp_path, precision=precision)), Place())
    assert second.resume(work) and second.steps_done == 2
    assert list(run(second, work)) == pytest.approx(expected[2:], rel=1e-6)
    assert [path.name for path in work.glob("step-*")] == ["step-4"]
    assert {p.dtype for p in second.model.parameters()} == {torch.float32}
    second.export(work)
    lm = spiritrt.load(str(tmp_path / "family"))
    trained = dict(second.model.named_parameters())["lm_head.weight"].detach()
    torch.testing.assert_close(lm.family.llama.lm_head.weight, trained.bfloat16().float())


def test_a_finished_run_leaves_its_checkpoint_as_it_is(source: Path, tmp_path: Path):
    work = tmp_path / "work"
    work.mkdir()

    def files() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in work.glob("step-1/*")}

    settings = PretrainPlan.read(plan(source, tmp_path, steps=1))
    run(Pretraining(settings, Place()), work)
    before = files()
    again = Pretraining(settings, Place())
    assert before and again.resume(work) and run(again, work) == [] and files() == before
    again.export(work)
    assert files() == before


def test_a_checkpoint_of_another_family_or_other_data_is_refused(source: Path, tmp_path: Path):
    work, family = tmp_path / "work", tmp_path / "family"
    work.mkdir()
    shutil.copytree(source / "shard", tmp_path / "first")
    (tmp_path / "a.txt").write_text("what color is the moon")
    given: dict[str, object] = {"steps": 1, "shards": [str(tmp_path / "first")], "texts": [str(tmp_path / "a.txt")]}

    def training(**changes: object) -> Pretraining:
        return Pretraining(PretrainPlan.read(plan(source, tmp_path, **given | changes)), Place())

    first = training()
    run(first, work)
    first.export(work)
    shutil.copytree(family, tmp_path / "exported")
    shutil.copytree(source / "family", tmp_path / "other")
    part = find(str(tmp_path / "other")).part("lm")
    weights = {name: value + (name == "model.norm.weight") * 0.01 for name, value in part.load().items()}
    save_part(tmp_path / "other", "lm", CONFIG, weights)
    shutil.copytree(source / "shard", tmp_path / "second")
    header = json.loads((tmp_path / "second" / "shard.json").read_text())
    (tmp_path / "second" / "shard.json").write_text(json.dumps(header | {"model": "y"}))
    (tmp_path / "b.txt").write_text("another text")
    refused: list[tuple[dict[str, object], str]] = [
        ({"family": str(tmp_path / "other")}, rf"model {family} \(\w+\), not {tmp_path / 'other'} \(\w+\)"),
        ({"shards": [str(tmp_path / "second")]}, r"shards .*first \(\w+\).*, not .*second \(\w+\)"),
        ({"shards": [str(tmp_path / "first"), str(tmp_path / "second")]}, "shards .*first.*, not .*first.*second"),
        ({"texts": [str(tmp_path / "b.txt")]}, r"texts .*a\.txt.*, not .*b\.txt"),
        ({"seed": 1}, "seed 0, not 1"),
        ({"context": 64}, "context 128, not 64"),
        ({"shares": {"speech": 1.0}}, "shares .*, not "),
        ({"tokens_a_batch": 384}, "tokens_a_batch 256, not 384"),
        ({"speech_words": [2, 4]}, "speech_words .*, not "),
    ]
    for changes, message in refused:
        with pytest.raises(ValueError, match=message) as raised:
            training(**changes).resume(work)
        assert str(raised.value).startswith(str(work / "latest")) and "move it away" in str(raised.value)
    # what only says how long and how fast may change, and so may the place of the family and of the shards
    assert training(steps=5, minutes=3.0, rate=1e-4, warmup_steps=7).resume(work)
    shutil.copytree(source / "family", tmp_path / "moved")
    (tmp_path / "there").mkdir()
    (tmp_path / "first").rename(tmp_path / "there" / "first")
    moved = {"family": str(tmp_path / "moved"), "shards": [str(tmp_path / "there" / "first")]}
    assert training(**moved).resume(work)
    # what the run itself exported is its own, too
    exported = {"family": str(tmp_path / "exported"), "shards": moved["shards"]}
    assert training(**exported).resume(work)
    (work / "latest").write_text(json.dumps({"folder": "step-1", "steps_done": 1, "stream": [0, 3]}))
    with pytest.raises(ValueError, match="does not say what it was made of"):
        training(**moved).resume(work)


@pytest.mark.parametrize(("minutes", "exported"), [(0.0, True), (30.0, False)])
def test_the_family_gets_the_weights_on_the_way(source: Path, tmp_path: Path, minutes: float, exported: bool):
    (tmp_path / "work").mkdir()
    training = Pretraining(PretrainPlan.read(plan(source, tmp_path, steps=2, export_minutes=minutes)), Place())
    before = find(str(tmp_path / "family")).part("lm").load()["lm_head.weight"].clone()
    run(training, tmp_path / "work")
    after = find(str(tmp_path / "family")).part("lm").load()["lm_head.weight"]
    assert torch.equal(before, after) != exported
    if exported:
        assert torch.equal(after, training.model.lm_head.weight.detach().bfloat16())


@pytest.mark.parametrize("world", [2, 3])
def test_of_many_processes_each_takes_its_own_rows(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: int
):
    """32 rows for three processes are 11, 11 and 10; the model that they are rows of has no memory."""
    whole = find(str(source / "family")).part("lm").load()
    settings = PretrainPlan.read(plan(source, tmp_path, checkpoint_layers=True))
    made_on = []

    class Watched(Llama):
        def __init__(self, config: LlamaConfig) -> None:
            super().__init__(config)
            made_on.append({p.device.type for p in self.parameters()})

    monkeypatch.setattr(pretrain, "Llama", Watched)
    dist.init_process_group("fake", rank=world - 1, world_size=world, store=FakeStore())
    try:
        training = Pretraining(settings, Place(world - 1, world))
        rows = {name.replace(".layer.", "."): value.to_local() for name, value in training.model.state_dict().items()}
    finally:
        dist.destroy_process_group()
    assert made_on == [{"meta"}] and rows.keys() == whole.keys()
    for name, own in rows.items():
        assert torch.equal(own, whole[name].chunk(world)[-1].float()), name


@pytest.mark.skipif(sys.platform != "linux", reason="two gloo processes are started with torchrun's launcher")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_two_processes_have_the_losses_of_one(
    source: Path, tmp_path: Path, losses: dict[str, list[float]], precision: str
):
    """Three micro-batches for two processes; the second run is resumed from the sharded checkpoint by one process."""
    expected = losses[precision]
    path = plan(source, tmp_path, steps=3, checkpoint_layers=True, precision=precision, export_minutes=0.0)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "-m", "spiritrt.training.pretrain", "--config", str(path)],
        capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1])["processes"] == 2
    log = [json.loads(line) for line in (tmp_path / "work" / "pretrain.log").read_text().splitlines()]
    made = [line["loss"] for line in log]
    assert made == pytest.approx(expected[:3], rel=1e-4)
    # a hundred times what another order of fp32's sums makes
    assert (made == pytest.approx(losses["fp32"][:3], rel=1e-6)) == (precision == "fp32")
    assert (
        find(str(tmp_path / "family")).part("lm").load().keys()
        == Llama(LlamaConfig.from_official(CONFIG)).state_dict().keys()
    )
    alone = Pretraining(
        PretrainPlan.read(plan(source, tmp_path, checkpoint_layers=True, precision=precision)), Place()
    )  # fmt: skip
    assert alone.resume(tmp_path / "work") and alone.steps_done == 3
    assert alone.step() == pytest.approx(expected[3], rel=1e-4)


STOPPED = """
import os, signal, sys
from pathlib import Path
import torch.distributed as dist
from spiritrt.training.pretrain import Place, Pretraining, PretrainPlan, run
place = Place.take()
for path, steps in zip(sys.argv[1:], (4, 2)):
    training = Pretraining(PretrainPlan.read(Path(path)), place)
    step = training.step

    def stepped():
        loss = step()
        if training.steps_done == steps and place.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss

    training.step = stepped
    work = Path(training.plan.work)
    work.mkdir(exist_ok=True)
    run(training, work)
dist.destroy_process_group()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="two gloo processes are started with torchrun's launcher")
def test_two_processes_go_on_with_the_same_losses(source: Path, tmp_path: Path):
    """An unbroken run of four steps, and one that SIGTERM to one of its processes stops after two."""
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    paths = [str(plan(source, tmp_path / name, checkpoint_layers=True)) for name in ("whole", "cut")]
    (tmp_path / "stopped.py").write_text(STOPPED)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]

    def logged(name: str) -> list[float]:
        lines = (tmp_path / name / "work" / "pretrain.log").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines]

    for arguments in (
        [str(tmp_path / "stopped.py"), *paths], ["-m", "spiritrt.training.pretrain", "--config", paths[1]]
    ):  # fmt: skip
        done = subprocess.run(
            [*command, *arguments], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
            timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        assert len(logged("cut")) == (2 if "stopped.py" in arguments[0] else 4)
    assert json.loads(done.stdout.splitlines()[-1]) == {"processes": 2, "resumed_at": 2}
    assert len(logged("whole")) == 4 and logged("cut") == pytest.approx(logged("whole"), rel=1e-6)


def test_the_minutes_of_the_command_line_win(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = plan(source, tmp_path, minutes=60.0)
    monkeypatch.setattr(sys, "argv", ["pretrain", "--config", str(path), "--minutes", "1e-9"])
    pretrain.main()
    assert json.loads((tmp_path / "work" / "latest").read_text())["steps_done"] == 1
    monkeypatch.setattr(sys, "argv", ["pretrain", "--config", str(path), "--minutes", "-1"])
    with pytest.raises(ValueError, match="must not be below 0"):
        pretrain.main()


RESUMING = """
import sys
from pathlib import Path
import torch.distributed as dist
from spiritrt.training.pretrain import Place, Pretraining, PretrainPlan
place = Place.take()
training = Pretraining(PretrainPlan.read(Path(sys.argv[1])), place)
try:
    training.resume(Path(training.plan.work))
except ValueError as error:
    Path(sys.argv[2], f"refused-{place.rank}").write_text(str(error))
dist.destroy_process_group()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="two gloo processes are started with torchrun's launcher")
def test_all_processes_refuse_together(source: Path, tmp_path: Path):
    (tmp_path / "work").mkdir()
    Pretraining(PretrainPlan.read(plan(source, tmp_path)), Place()).save(tmp_path / "work")
    (tmp_path / "resuming.py").write_text(RESUMING)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(tmp_path / "resuming.py"), str(plan(source, tmp_path, seed=5)), str(tmp_path)],
        capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert all("seed 0, not 5" in (tmp_path / f"refused-{rank}").read_text() for rank in range(2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "fp8"}, "precision"),
        ({"tokens_a_batch": 500}, "divide tokens_a_step"),
        ({"context": 512}, "must hold a context"),
        ({"rates": 1.0}, "unknown keys"),
        ({"steps": 0}, "above 0"),
        ({"export_minutes": -1}, "must not be below 0"),
        ({"rate": "fast"}, "plan.yaml"),
    ],
)
def test_bad_plans_are_named(source: Path, tmp_path: Path, changes: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        PretrainPlan.read(plan(source, tmp_path, **changes))


def test_shipped_plans_can_be_read():
    configs = Path(sys.modules[Pretraining.__module__].__file__).parent / "configs"
    plans = {path.name: PretrainPlan.read(path) for path in configs.glob("*.yaml") if path.stem != "nano"}
    assert plans["paper-7b.yaml"].rate == 3e-5 and plans["paper-7b.yaml"].batches_a_step == 128
    assert set(plans) == {"paper-7b.yaml", "continue.yaml"}
