"""Kill -9 at any moment, in a step or while it saves: the next run goes on, and nothing of the result changes."""

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from spiritrt.training.checkpoint import load_checkpoint, save_checkpoint
from spiritrt.training.pitch import PitchData, PitchTrainer, PitchTraining

STEPS = 25
TRAINING = PitchTraining(steps=STEPS, batch=4, frames=64)


def make_trainer() -> PitchTrainer:
    rng = np.random.default_rng(0)
    features = [np.stack([rng.normal(size=200) * 20, rng.random(200) > 0.3]).astype(np.float32) for _ in range(4)]
    return PitchTrainer(PitchData(features, TRAINING), TRAINING)


def train_on(folder: Path) -> None:
    """What a run does: go on from the checkpoint, and save after every step."""
    trainer = make_trainer()
    state = load_checkpoint(folder / "state.ckpt")
    if state is not None:
        trainer.resume(state)
    while trainer.step_index < STEPS:
        loss = trainer.step()["loss"]
        with (folder / "log").open("a") as log:
            log.write(json.dumps([trainer.step_index, loss]) + "\n")
        save_checkpoint(folder / "state.ckpt", trainer.state())


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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("seed", [0, 1])
def test_a_killed_run_has_the_result_of_an_unbroken_one(tmp_path: Path, seed: int):
    unbroken = make_trainer()
    losses = [unbroken.step()["loss"] for _ in range(STEPS)]
    rng = random.Random(seed)
    killed = 0
    for _ in range(30):
        child = in_child(lambda: train_on(tmp_path))
        deadline = time.monotonic() + rng.uniform(0.02, 0.25)
        status = 0
        ended = 0
        while not ended:
            ended, status = os.waitpid(child, os.WNOHANG)
            if not ended and time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
                ended, status = os.waitpid(child, 0)
        killed += os.WIFSIGNALED(status)
        if not os.WIFSIGNALED(status):
            assert os.waitstatus_to_exitcode(status) == 0
            break
    else:
        assert os.waitpid(in_child(lambda: train_on(tmp_path)), 0)[1] == 0
    assert killed, "the run was over before it could be killed"
    lines = []
    for line in (tmp_path / "log").read_text().splitlines():
        lines.append(json.loads(line))
    assert {step for step, _ in lines} == set(range(1, STEPS + 1))
    for step, loss in lines:
        assert loss == losses[step - 1], f"step {step}"
    state = load_checkpoint(tmp_path / "state.ckpt")
    for name, value in unbroken.quantizer.state_dict().items():
        assert (value == state["quantizer"][name]).all()
