"""Golden models, whole: the small official checkpoints put together in one folder, and both families loaded from it.

Where there is no CUDA device, Triton kernels run under the interpreter in the whole test process: whether they do is
decided when they are decorated, which is when `spiritrt` is imported, so it is said here, before. On a CPU no variant
of Triton is chosen but by name. A test that compiles kernels starts a process of its own without `TRITON_INTERPRET`.
"""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

import spiritrt
from spiritrt import SpiritLM
from spiritrt.bench.gpu_check import golden_tensors
from spiritrt.models.checkpoints import convert, save_part

REPOSITORY = Path(__file__).parents[1]
GOLDEN = REPOSITORY / "tests" / "data" / "golden"
WHOLE_GOLDEN = REPOSITORY.parent / "shared" / "golden"

# the same examples every time; a slow machine is no failure
settings.register_profile("spiritrt", derandomize=True, deadline=None)
settings.load_profile("spiritrt")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def golden() -> Path:
    """The part of the golden data that lies in the repository."""
    return GOLDEN


@pytest.fixture(scope="session")
def whole_golden() -> Path:
    """All of the golden data, which lies beside the repository on some machines; where it does not, a skip says so."""
    if not WHOLE_GOLDEN.is_dir():
        pytest.skip(f"the whole golden data is not in the repository, and {WHOLE_GOLDEN} does not exist")
    return WHOLE_GOLDEN


@pytest.fixture(scope="session")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the official layout with both golden families. Not to be written to."""
    root = tmp_path_factory.mktemp("official")
    (root / "speech_tokenizer").symlink_to(GOLDEN / "checkpoints" / "speech_tokenizer")
    for source in sorted((GOLDEN / "checkpoints" / "spiritlm_model").iterdir()):
        folder = root / "spiritlm_model" / source.name
        folder.mkdir(parents=True)
        for file in source.iterdir():
            if file.suffix != ".npz":
                (folder / file.name).symlink_to(file)
        torch.save(golden_tensors(source), folder / "pytorch_model.bin")
    return root


@pytest.fixture(scope="session")
def base_lm(official: Path) -> SpiritLM:
    return spiritrt.load(str(official / "spiritlm_model" / "spirit-lm-base-7b"))


@pytest.fixture(scope="session")
def expressive_lm(official: Path) -> SpiritLM:
    return spiritrt.load(str(official / "spiritlm_model" / "spirit-lm-expressive-7b"))


@pytest.fixture(scope="session")
def stuck_lm(official: Path, tmp_path_factory: pytest.TempPathFactory) -> SpiritLM:
    """A Base model to which all tokens are equally likely, so that greedily it says the first forever; context 64."""
    folder = tmp_path_factory.mktemp("stuck") / "stuck"
    part = convert(official / "spiritlm_model" / "spirit-lm-base-7b", folder).part("lm")
    tensors = part.load()
    tensors["lm_head.weight"] = torch.zeros_like(tensors["lm_head.weight"])
    save_part(folder, "lm", part.config | {"max_position_embeddings": 64}, tensors)
    return spiritrt.load(str(folder), lazy=True)
