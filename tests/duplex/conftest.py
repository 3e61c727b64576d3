"""The shipped family, which converses; the models that streams are tested with."""

from pathlib import Path

import pytest
import torch
from stream_rigs import ODD, PLAIN, VARIANTS, Parts, golden_hubert, golden_vocoder, tiny_hubert, tiny_vocoder
from torch import Tensor

import spiritrt
from spiritrt import audio
from spiritrt.models.vocoder import Vocoder

RECORDINGS = Path(spiritrt.__file__).parent / "duplex" / "recordings"


@pytest.fixture(scope="session")
def nano() -> spiritrt.SpiritLM:
    return spiritrt.load("nano")


@pytest.fixture(scope="session")
def vocoders(nano: spiritrt.SpiritLM) -> dict[str, Vocoder]:
    return {
        "base": golden_vocoder("hifigan_spiritlm_base"),
        "expressive": golden_vocoder("hifigan_spiritlm_expressive_w2v2"),
        "plain": tiny_vocoder(PLAIN),
        "odd": tiny_vocoder(ODD),
        "nano": nano.family.vocoder,
    }


@pytest.fixture(scope="session")
def huberts(nano: spiritrt.SpiritLM) -> dict[str, Parts]:
    tiny = {name: tiny_hubert(seed % 3, **changes) for seed, (name, changes) in enumerate(VARIANTS.items())}
    return tiny | {"golden": golden_hubert(), "nano": (nano.family.hubert, nano.family.quantizer)}


@pytest.fixture(scope="session")
def speech() -> Tensor:
    """5 s of a human reader."""
    return torch.from_numpy(audio.load(RECORDINGS / "7143-88743-0029.flac")[:80000])
