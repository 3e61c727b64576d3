"""The microphone's buffer, by sample number."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from spiritrt.duplex.microphone import Microphone


@given(steps=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 60)), max_size=60))
def test_what_is_held_is_what_was_given_by_its_number(steps: list[tuple[int, int]]) -> None:
    microphone = Microphone(capacity=50)
    end = 0
    for given_, kept in steps:
        count = min(given_, microphone.room)
        microphone.append(np.arange(end, end + count, dtype=np.float32))
        end += count
        microphone.forget(end - kept)
        assert microphone.held <= 50 and microphone.start + microphone.held == end
        assert microphone.held >= min(kept, microphone.held)
        np.testing.assert_array_equal(microphone.between(microphone.start, end), np.arange(microphone.start, end))
