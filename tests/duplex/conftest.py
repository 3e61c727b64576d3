"""The shipped family, which converses."""

import pytest

import spiritrt


@pytest.fixture(scope="session")
def nano() -> spiritrt.SpiritLM:
    return spiritrt.load("nano")
