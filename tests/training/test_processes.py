"""Two processes that share the batches of a step train as one does, and time spent before counts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from spiritrt.training.checkpoint import Budget, load_checkpoint
from spiritrt.training.corpora.manifest import AudioStore, Clip
from spiritrt.training.encoder import N_UNITS, EncoderTrainer
from spiritrt.training.encoder_data import EncoderData, EncoderTraining, Targets
from spiritrt.training.hubert import Data, MaskedTrainer, MaskedTraining
from spiritrt.training.loop import resume, train
from spiritrt.training.processes import Place
from spiritrt.training.vocoder import OFFICIAL_CONFIG, VocoderTrainer, with_speakers
from spiritrt.training.vocoder_data import VocoderData, VocoderTraining

STEPS = 3
SCRIPT = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_processes
from spiritrt.training.processes import Place
place = Place.take()
made = test_processes.run(Path(sys.argv[2]), place)
place.leave()
Path(sys.argv[2], f"made-{place.rank}.json").write_text(json.dumps(made))
"""


def encoder(folder: Path, place: Place) -> EncoderTrainer:
    training = EncoderTraining(batch_frames=20, crop_frames=(20,), dropout=0.0, accumulate=3, steps=100)
    store = AudioStore(folder)
    units = np.random.default_rng(3).integers(0, N_UNITS, (49, 1))
    targets = {"x": Targets(units, np.ones((49, 1), np.float32))}
    return EncoderTrainer(
        EncoderData(store, targets, [str(n // 10) for n in range(N_UNITS)], 9, training), training, place=place
    )


def vocoder(folder: Path, place: Place) -> VocoderTrainer:
    training = VocoderTraining(batch=1, frames=8, gan_frames=4, gan_from=0, accumulate=2, speakers=("af_heart",))
    units = np.random.default_rng(3).integers(0, N_UNITS, 49)
    data = VocoderData(AudioStore(folder), {"x": units}, [], [str(n // 10) for n in range(N_UNITS)], training)
    return VocoderTrainer(data, training, with_speakers(OFFICIAL_CONFIG, ("af_heart",)), place=place)


def hubert(folder: Path, place: Place) -> MaskedTrainer:
    training = MaskedTraining(batch=2, frames=20, dropout=0.0, accumulate=2)
    units = np.random.default_rng(3).integers(0, 8, 49)
    return MaskedTrainer(Data(AudioStore(folder), {"x": units}, training), training, 8, place)


def run(folder: Path, place: Place) -> dict[str, list[dict[str, float]]]:
    """The figures of a few steps of both trainers."""
    torch.set_num_threads(1)
    trainers = {
        "encoder": encoder(folder, place), "vocoder": vocoder(folder, place), "hubert": hubert(folder, place),
    }  # fmt: skip
    return {name: [trainer.step() for _ in range(STEPS)] for name, trainer in trainers.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    sound = np.random.default_rng(1).standard_normal(32000).astype(np.float32) * 0.1
    AudioStore.write(tmp_path, [(Clip("x", 0, 0, "af_heart", "neutral", "train"), sound)])
    return tmp_path


@pytest.mark.skipif(sys.platform != "linux", reason="two gloo processes are started with torchrun's launcher")
def test_two_processes_train_as_one(folder: Path):
    script = folder / "two.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script),
         str(Path(__file__).parent), str(folder)],
        capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = (json.loads((folder / f"made-{rank}.json").read_text()) for rank in (0, 1))
    alone = run(folder, Place())
    assert first == second
    for name, steps in alone.items():
        for one, both in zip(steps, first[name], strict=True):
            assert both == pytest.approx(one, rel=2e-3), name


def test_more_processes_than_batches_are_refused():
    with pytest.raises(ValueError, match="4 processes need as many batches a step: give --accumulate 4"):
        Place(1, 4).share(0, 3)
    assert [list(Place(rank, 2).share(5, 3)) for rank in (0, 1)] == [[15, 17], [16]]


def test_minutes_are_those_of_all_runs_together(folder: Path, capsys: pytest.CaptureFixture[str]):
    trainer = encoder(folder, Place())
    path, log = folder / "e.ckpt", folder / "e.log"
    train(trainer, 2, path, log, Budget(10, before_s=300.0))
    spent_s = resume(trainer, path)
    assert 300 < spent_s < 360
    train(trainer, 4, path, log, Budget(5, before_s=spent_s))
    assert trainer.step_index == 2
    assert "the budget of minutes was spent before: give more --minutes" in capsys.readouterr().err
    train(trainer, 4, path, log, Budget(10, before_s=spent_s))
    state = load_checkpoint(path)
    assert state is not None and state["step"] == 4
    assert resume(encoder(folder, Place()), folder / "nothing.ckpt") == 0.0
