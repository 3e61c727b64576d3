"""The style classifier learns what distinguishes its classes, resumes exactly, and ships in the official layout."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from spiritrt.models.checkpoints import find, save_part
from spiritrt.models.style import encode_style, style_classifier_from_official
from spiritrt.training.augment import Augmentation
from spiritrt.training.checkpoint import rounded
from spiritrt.training.style import StyleData, StyleTrainer, StyleTraining, evaluate, gender_of

QUIET = Augmentation(speed_share=0, channel_share=0, room_share=0, noise_share=1.0, snr_range_db=(20, 40))
TRAINING = StyleTraining(steps=60, batch=4, seconds=1, lr=2e-3, augmentation=QUIET)


def clips(count: int, seed: int) -> list[tuple[str, np.ndarray]]:
    """Buzzes of a fast and of a slow pulse, of different pitch."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        t = np.arange(20000) / 16000
        pulse = np.sin(2 * np.pi * (9.0 if number % 2 else 2.0) * t) > 0
        made.append(
            ("fast" if number % 2 else "slow", (0.3 * pulse * np.sin(t * rng.uniform(900, 2500))).astype(np.float32))
        )
    return made


@pytest.fixture(scope="module")
def trained() -> StyleTrainer:
    trainer = StyleTrainer(StyleData(clips(12, 0), TRAINING), TRAINING)
    for _ in range(TRAINING.steps):
        trainer.step()
    return trainer


def test_it_names_styles_of_others_and_ships(trained: StyleTrainer, tmp_path: Path):
    shipped = trained.shipped()
    figures = evaluate(shipped, trained.data.styles, clips(8, 1))
    assert figures["accuracy"] > 0.8 and {"accuracy, fast", "accuracy, slow"} <= set(figures)
    save_part(tmp_path / "model", "style", trained.config, rounded(shipped.state_dict()))
    part = find(str(tmp_path / "model")).part("style")
    loaded = style_classifier_from_official(part.config, part.load())
    sound = torch.from_numpy(clips(1, 3)[0][1])
    assert torch.equal(encode_style(loaded, sound), encode_style(shipped, sound))
    assert part.config["id2label"] == {"0": "fast", "1": "slow"} and loaded.config.num_labels == 2


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_of_two_batches_has_the_mean_of_their_gradients(precision: str):
    training = replace(TRAINING, precision=precision, accumulate=2)
    trainer = StyleTrainer(StyleData(clips(12, 0), training), training)
    trainer.model.train()
    weight = trainer.model.projector.weight
    alone = [torch.autograd.grad(trainer.loss(index)[0], weight)[0] for index in (0, 1)]
    seen: list[torch.Tensor] = []
    weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))
    figures = trainer.step()
    torch.testing.assert_close(seen[-1], (alone[0] + alone[1]) / 2, rtol=1e-3, atol=1e-6)
    assert trainer.step_index == 1 and figures["loss"] > 0
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())


def test_bf16_learns_the_same_losses_within_its_precision():
    losses = []
    for precision in ("fp32", "bf16"):
        training = replace(TRAINING, precision=precision)
        trainer = StyleTrainer(StyleData(clips(12, 0), training), training)
        losses.append([trainer.step()["loss"] for _ in range(4)])
    assert losses[0] != losses[1]
    np.testing.assert_allclose(losses[0], losses[1], rtol=0.03)


def test_a_resumed_run_repeats_and_other_styles_are_refused(tmp_path: Path):
    def fresh(styles: int = 12) -> StyleTrainer:
        return StyleTrainer(StyleData(clips(styles, 0), TRAINING), TRAINING)

    whole = fresh()
    losses = [whole.step()["loss"] for _ in range(4)]
    first = fresh()
    assert [first.step()["loss"] for _ in range(2)] == losses[:2]
    torch.save(first.state(), tmp_path / "state")
    state = torch.load(tmp_path / "state", weights_only=True)
    second = fresh()
    second.resume(state)
    assert [second.step()["loss"] for _ in range(2)] == losses[2:]
    with pytest.raises(ValueError, match="is of the styles"):
        second.resume(state | {"styles": ["a", "b"]})


@pytest.mark.parametrize(
    ("speaker", "gender"),
    [
        ("af_bella", "f"),
        ("bm_lewis", "m"),
        ("af_sky:40+bf_emma:60", "f"),
        ("af_sky:40+bm_lewis:60", None),
        ("84", None),
        ("Emma", None),
        ("af_sky+Emma", None),
    ],
)
def test_the_gender_of_a_voice(speaker: str, gender: str | None):
    assert gender_of(speaker) == gender


def test_every_style_is_as_often_and_too_few_are_named():
    data = StyleData(clips(3, 0), StyleTraining(batch=64, seconds=1, augmented_share=0))
    _, labels = data.batch(0)
    assert 16 < int(labels.sum()) < 48 and torch.equal(labels, data.batch(0)[1])
    with pytest.raises(ValueError, match="two styles or more"):
        StyleData(clips(1, 0), TRAINING)
    with pytest.raises(ValueError, match="two styles or more"):
        StyleData(clips(4, 0), StyleTraining(seconds=2))
    for bad in ({"seconds": 0}, {"accumulate": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            StyleTraining(**bad)
    with pytest.raises(ValueError, match="precision must be one of"):
        StyleTraining(precision="fp8")
