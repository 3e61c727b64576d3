"""The style classifier learns what distinguishes its classes, resumes exactly, and ships in the official layout."""

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
    with pytest.raises(ValueError, match="at least 1"):
        StyleTraining(seconds=0)
