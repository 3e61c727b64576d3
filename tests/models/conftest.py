"""Golden data: checkpoints in the official layout, and what the public Spirit LM code computes from them.

`tests/data/golden` holds the speech parts and two short clips. Where the whole golden folder lies beside the
repository, its long clip is compared too.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from spiritrt.models.hubert import (
    Hubert,
    KMeansQuantizer,
    LinearQuantizer,
    hubert_from_official,
    quantizer_from_official,
)

REPOSITORY = Path(__file__).parents[2]
GOLDEN = REPOSITORY / "tests" / "data" / "golden"
WHOLE_GOLDEN = REPOSITORY.parent / "shared" / "golden"
CLIPS = {"leading_blank": GOLDEN, "odd_length": GOLDEN, "7143-88743-0029": WHOLE_GOLDEN}


@dataclass(frozen=True, slots=True)
class Clip:
    """One golden recording, its units, token strings and arrays."""

    waveform: Tensor
    arrays: dict[str, Tensor]
    units_base: dict[str, Tensor]
    units_expressive: dict[str, Tensor]
    string_base: str
    string_expressive: str


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def speech_parts() -> Path:
    """The official `speech_tokenizer` folder of small random checkpoints."""
    return GOLDEN / "checkpoints" / "speech_tokenizer"


@pytest.fixture(scope="session", params=CLIPS)
def clip(request: pytest.FixtureRequest) -> Clip:
    root = CLIPS[request.param]
    if not root.is_dir():
        pytest.skip(f"the long golden clip is not in the repository, and {root} does not exist")
    samples, rate = soundfile.read(root / "audio" / f"{request.param}.flac", dtype="float32")
    assert rate == 16000
    units = json.loads((root / "expected" / "units.json").read_text())[request.param]
    arrays = np.load(root / "expected" / f"{request.param}.npz")
    return Clip(
        waveform=torch.from_numpy(samples),
        arrays={name: torch.from_numpy(arrays[name]) for name in arrays.files},
        units_base=_codes(units["units_base"]),
        units_expressive=_codes(units["units_expressive"]),
        string_base=units["string_base"],
        string_expressive=units["string_expressive"],
    )


@pytest.fixture(scope="session")
def hubert(speech_parts: Path) -> Hubert:
    checkpoint = torch.load(speech_parts / "hubert_25hz" / "mhubert_base_25hz.pt", weights_only=True)
    return hubert_from_official(checkpoint, checkpoint["model_weight"])


@pytest.fixture(scope="session")
def quantizer(speech_parts: Path) -> LinearQuantizer | KMeansQuantizer:
    checkpoint = torch.load(speech_parts / "hubert_25hz" / "L11_quantizer_500.pt", weights_only=True)
    return quantizer_from_official(checkpoint, checkpoint["model_weight"])


def _codes(strings: dict[str, str]) -> dict[str, Tensor]:
    return {kind: torch.tensor([int(code) for code in string.split()]) for kind, string in strings.items()}
