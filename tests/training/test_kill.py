"""Kill -9 at any moment, in a step or while it saves: the next run goes on, and nothing of the result changes."""

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from small_shards import CONFIG, make_shard

from spiritrt.models.checkpoints import find, save_part
from spiritrt.models.llama import Llama, LlamaConfig
from spiritrt.training import lm, pretrain
from spiritrt.training.augment import Augmentation
from spiritrt.training.checkpoint import Budget
from spiritrt.training.corpora.manifest import AudioStore, Clip
from spiritrt.training.encoder import N_UNITS, EncoderTrainer
from spiritrt.training.encoder_data import EncoderData, EncoderTraining, Targets
from spiritrt.training.hubert import Data, MaskedTrainer, MaskedTraining
from spiritrt.training.loop import Steps, resume, train
from spiritrt.training.pitch import PitchData, PitchTrainer, PitchTraining
from spiritrt.training.style import StyleData, StyleTrainer, StyleTraining
from spiritrt.training.vocoder import VocoderTrainer
from spiritrt.training.vocoder_data import OFFICIAL_CONFIG, VocoderData, VocoderTraining, with_speakers

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")


def in_child(work: Callable[[], None]) -> int:
    """Process id of a child that does `work` and ends; forked, so that nothing is imported again."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        work()
        status = 0
    finally:
        os._exit(status)


def killed(child: int, file: Path, saves: int, delay_s: float) -> bool:
    """Kills a child `delay_s` after it wrote `file` for the `saves`-th time; False where it had come to its end."""
    seen: set[int] = set()
    due = float("inf")
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            assert os.waitstatus_to_exitcode(status) == 0
            return False
        if time.monotonic() > due:
            os.kill(child, signal.SIGKILL)
            return os.WIFSIGNALED(os.waitpid(child, 0)[1])
        # a checkpoint takes the place of the one before: every one has its own time
        if due == float("inf") and file.is_file():
            seen.add(file.stat().st_mtime_ns)
            if len(seen) > saves:
                due = time.monotonic() + delay_s
        time.sleep(0.0005)


def pitch_trainer(folder: Path) -> PitchTrainer:
    rng = np.random.default_rng(0)
    features = [np.stack([rng.normal(size=200) * 20, rng.random(200) > 0.3]).astype(np.float32) for _ in range(4)]
    training = PitchTraining(steps=25, batch=4, frames=64)
    return PitchTrainer(PitchData(features, training), training)


def two_seconds(folder: Path) -> tuple[AudioStore, np.ndarray, list[str]]:
    """Of noise, with units [49] and what phones they are of."""
    if not (folder / "audio.json").is_file():
        sound = (0.1 * np.random.default_rng(0).standard_normal(32000)).astype(np.float32)
        AudioStore.write(folder, [(Clip("x", 0, 0, "x", "neutral", "train"), sound)])
    units = np.random.default_rng(1).integers(0, N_UNITS, 49)
    return AudioStore(folder), units, [str(unit // 10) for unit in range(N_UNITS)]


def encoder_trainer(folder: Path) -> EncoderTrainer:
    """With augmentation: what is random in a step must be so again after a kill."""
    store, units, inventory = two_seconds(folder)
    training = EncoderTraining(
        steps=10, batch_frames=20, crop_frames=(20,), augmentation=Augmentation(), dropout=0.1, clean_steps=1
    )
    targets = {"x": Targets(units[:, None], np.ones((len(units), 1), np.float32))}
    return EncoderTrainer(EncoderData(store, targets, inventory, 9, training), training)


def vocoder_trainer(folder: Path) -> VocoderTrainer:
    """With discriminators from its third step on."""
    store, units, inventory = two_seconds(folder)
    training = VocoderTraining(steps=10, gan_from=2, batch=1, frames=8, gan_frames=4, speakers=("x",))
    config = with_speakers(OFFICIAL_CONFIG, training.voices) | {"upsample_initial_channel": 64}
    return VocoderTrainer(VocoderData(store, {"x": units}, [], inventory, training), training, config)


def hubert_trainer(folder: Path) -> MaskedTrainer:
    """With augmentation and dropout."""
    store, units, _ = two_seconds(folder)
    training = MaskedTraining(steps=10, batch=2, frames=20, augmented_share=1.0)
    return MaskedTrainer(Data(store, {"x": units % 8}, training), training, 8)


def style_trainer(folder: Path) -> StyleTrainer:
    rng = np.random.default_rng(0)
    clips = [(style, (0.1 * rng.standard_normal(20000)).astype(np.float32)) for style in ("lively", "subdued")]
    training = StyleTraining(steps=15, batch=2, seconds=1)
    return StyleTrainer(StyleData(clips, training), training)


@pytest.mark.parametrize(
    ("make", "steps", "seed"),
    [
        (pitch_trainer, 25, 0),
        (encoder_trainer, 10, 2),
        (vocoder_trainer, 10, 4),
        (hubert_trainer, 10, 6),
        (style_trainer, 15, 8),
    ],
)
def test_a_killed_run_has_the_result_of_an_unbroken_one(
    tmp_path: Path, make: Callable[[Path], Steps], steps: int, seed: int
):
    """The loop that the trainings of the speech parts share, with a checkpoint after every step."""

    def train_in(folder: Path) -> None:
        trainer = make(tmp_path)
        resume(trainer, folder / "state.ckpt")
        train(trainer, steps, folder / "state.ckpt", folder / "log", Budget(5, save_every_s=0.0), every=1)

    for name in ("unbroken", "killed"):
        (tmp_path / name).mkdir()
    train_in(tmp_path / "unbroken")
    rng = random.Random(seed)
    kills, checkpoint = 0, tmp_path / "killed" / "state.ckpt"
    for _ in range(3):
        kills += killed(
            in_child(lambda: train_in(tmp_path / "killed")), checkpoint, rng.randint(1, 4), rng.random() / 9
        )
    assert kills, "the run was over before it could be killed"
    assert os.waitpid(in_child(lambda: train_in(tmp_path / "killed")), 0)[1] == 0
    whole, again = ({}, {})
    for name, found in (("unbroken", whole), ("killed", again)):
        for text in (tmp_path / name / "log").read_text().splitlines():
            line = json.loads(text) | {"s_a_step": 0}
            # a step that was made and not saved is made again, and is the same
            assert found.setdefault(line["step"], line) == line
    assert again == whole and set(whole) == set(range(1, steps + 1))
    states = [torch.load(tmp_path / name / "state.ckpt", weights_only=True) for name in ("unbroken", "killed")]
    for state in states:
        assert state.pop("spent_s") > 0  # by the clock
    assert_equal(*states)


def assert_equal(a: object, b: object) -> None:
    """Of states: every tensor bit for bit."""
    if isinstance(a, torch.Tensor):
        assert isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    elif isinstance(a, dict):
        assert isinstance(b, dict) and a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert isinstance(b, list | tuple) and len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_equal(one, other)
    else:
        assert a == b


def make_families(folder: Path) -> None:
    """Two families `whole` and `cut` with the same thin language model, and a `shard` for them."""
    shutil.copytree(find("nano").folder, folder / "whole")
    torch.manual_seed(0)
    model = Llama(LlamaConfig.from_official(CONFIG))
    lm.initialise(model)
    save_part(folder / "whole", "lm", CONFIG, model.state_dict())
    make_shard(folder / "shard", folder / "whole")
    shutil.copytree(folder / "whole", folder / "cut")


def spawned(module: str, arguments: list[str], errors: Path) -> int:
    """Process id of `python -m module arguments`."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    to_file = [(os.POSIX_SPAWN_OPEN, 2, str(errors), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)]
    program = [sys.executable, "-m", module, *arguments]
    return os.posix_spawn(sys.executable, program, environment, file_actions=to_file)


def test_a_killed_language_model_has_the_weights_of_an_unbroken_one(tmp_path: Path):
    """`python -m spiritrt.training.lm`, killed while it trains and saves, and given once more."""
    make_families(tmp_path)

    def arguments(name: str) -> list[str]:
        return [
            "--shards", str(tmp_path / "shard"), "--out", str(tmp_path / name), "--work", f"{tmp_path / name}-work",
            "--steps", "30", "--batch-tokens", "512", "--context", "256", "--warmup-steps", "2", "--packed",
        ]  # fmt: skip

    def command() -> None:
        sys.argv = ["lm", *arguments("whole")]
        lm.main()

    def started(*more: str) -> int:
        return spawned("spiritrt.training.lm", [*arguments("cut"), *more], tmp_path / "errors")

    assert os.waitpid(in_child(command), 0)[1] == 0
    rng = random.Random(5)
    state = tmp_path / "cut-work" / "lm.pt"
    often = started("--save-minutes", "0", "--export-minutes", "0")
    assert killed(often, state, rng.randint(1, 20), rng.random() / 50)
    assert 0 < torch.load(state, weights_only=True)["steps_done"] < 30
    status = os.waitpid(started(), 0)[1]
    assert status == 0, (tmp_path / "errors").read_text()[-2000:]
    whole, cut = (torch.load(tmp_path / f"{name}-work" / "lm.pt", weights_only=True) for name in ("whole", "cut"))
    for saved in (whole, cut):
        del saved["spent_s"], saved["known"]
    assert whole["steps_done"] == 30
    assert_equal(whole, cut)
    assert_equal(*(load_file(tmp_path / name / "lm.safetensors") for name in ("whole", "cut")))


def test_a_killed_pretraining_has_the_weights_of_an_unbroken_one(tmp_path: Path):
    """`python -m spiritrt.training.pretrain` in one process, which saves and exports after every step."""
    make_families(tmp_path)
    steps = 12

    def config(name: str, minutes: float) -> str:
        settings = {
            "family": str(tmp_path / name), "work": f"{tmp_path / name}-work", "shards": [str(tmp_path / "shard")],
            "shares": {"speech": 0.5, "interleaved": 0.5}, "text_words": [2, 3], "speech_words": [2, 3],
            "context": 128, "tokens_a_step": 512, "tokens_a_batch": 256, "rate": 1e-3, "warmup_steps": 2,
            "steps": steps, "precision": "fp32", "save_minutes": minutes, "export_minutes": minutes,
        }  # fmt: skip
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(settings))
        return str(tmp_path / f"{name}.yaml")

    def forked(file: str) -> int:
        def command() -> None:
            sys.argv = ["pretrain", "--config", file]
            pretrain.main()

        return in_child(command)

    assert os.waitpid(forked(config("whole", 5.0)), 0)[1] == 0
    rng = random.Random(3)
    latest = tmp_path / "cut-work" / "latest"
    often = config("cut", 0.0)
    # every step writes `latest` twice: with the checkpoint, and with what is exported
    for child in (spawned("spiritrt.training.pretrain", ["--config", often], tmp_path / "errors"), None):
        assert killed(child or forked(often), latest, rng.randint(1, 6), rng.random() / 20)
        assert 0 < json.loads(latest.read_text())["steps_done"] < steps
    assert os.waitpid(forked(often), 0)[1] == 0
    whole, cut = (json.loads((tmp_path / f"{name}-work" / "latest").read_text()) for name in ("whole", "cut"))
    for saved in (whole, cut):
        del saved["made_of"]["model"], saved["known"][1]  # the family's folder, and what was exported on the way
    assert whole["steps_done"] == steps and cut == whole
    assert_equal(*(load_file(tmp_path / name / "lm.safetensors") for name in ("whole", "cut")))
    assert [path.name for path in (tmp_path / "cut-work").glob("step-*")] == [f"step-{steps}"]
