"""The little models that engines are tested with."""

import pytest
from engine_models import SHAPES, Pair, packed, random_llama


@pytest.fixture(scope="session", params=SHAPES)
def pair(request) -> Pair:
    llama = random_llama(**SHAPES[request.param])
    return Pair(llama, packed(llama))


@pytest.fixture(scope="session")
def gqa() -> Pair:
    llama = random_llama(**SHAPES["gqa"])
    return Pair(llama, packed(llama))
