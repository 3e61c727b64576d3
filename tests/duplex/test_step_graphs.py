"""Steps that are recorded for their shapes and replayed: CUDA graphs where there is a GPU, plain calls on a CPU.

Beside them the rest that depends on the device: precisions, and slots spread over threads.
"""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_rigs import DEVICES, HubertRig, Parts, VocoderRig, noise, on, totals
from torch import Tensor

from spiritrt.duplex.step_graphs import StepGraphs
from spiritrt.duplex.streams import VocoderStream
from spiritrt.models.vocoder import Vocoder, vocode_expanded

ON_GPU = [torch.float16, torch.bfloat16]
EXAMPLES = 12 if DEVICES == ["cpu"] else 4  # every stream captures its graphs anew


@pytest.fixture(autouse=True)
def no_tf32() -> Iterator[None]:
    """Float32 convolutions in full on a GPU, so that streams can equal offline to 1e-5."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture
def two_threads() -> Iterator[None]:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=EXAMPLES, deadline=None)
@given(
    kind=st.sampled_from(["base", "expressive", "plain", "nano"]),
    cuts=st.lists(st.tuples(st.integers(0, 2), st.sampled_from([1, 2, 7, 40])), max_size=8),
    seed=st.integers(0, 99),
)
def test_recorded_steps_are_the_offline_waveform(
    vocoders: dict[str, Vocoder], device: str, kind: str, cuts: list[tuple[int, int]], seed: int
) -> None:
    rig = VocoderRig(vocoders[kind], 3, seed, device=device, graphs=True)
    for slot, count in cuts:
        rig.accept(slot, count)
        rig.step()
    for slot in list(rig.turns):
        rig.check(rig.finish(slot))


@pytest.mark.parametrize("device", DEVICES)
def test_low_latency_steps_are_the_same_recorded(vocoders: dict[str, Vocoder], device: str) -> None:
    sounds = []
    for graphs in (False, True):
        rig = VocoderRig(vocoders["plain"], 2, device=device, look_ahead_frames=2, graphs=graphs)
        for _ in range(12):
            rig.accept(0, 3)
            rig.accept(1, 1)
            rig.step()
        sounds.append(rig.finish(0).samples)
    torch.testing.assert_close(sounds[1], sounds[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["layer_norm", "group_norm", "golden", "nano"])
def test_recorded_windows_give_the_same_units(
    huberts: dict[str, Parts], speech: Tensor, device: str, kind: str
) -> None:
    hubert, quantizer = (on(device, part) for part in huberts[kind])
    sounds = [speech[:40000], noise(30000), speech[20000:60000]]
    options = {"left_ms": 400, "chunk_ms": 160, "look_ahead_ms": 160}
    units = []
    for graphs in (False, True):
        rig = HubertRig((hubert, quantizer), 3, graphs=graphs, **options)
        for slot, sound in enumerate(sounds):
            rig.accept(slot, sound)
        rig.drain()
        units.append([rig.finish(slot) for slot in range(3)])
        if graphs:
            assert len(rig.stream._graphs) > 0  # full windows there were, and they were recorded
    assert units[0] == units[1]


def test_steps_can_be_recorded_ahead(vocoders: dict[str, Vocoder]) -> None:
    rig = VocoderRig(vocoders["plain"], 3, graphs=True)
    rig.stream.record()
    recorded = len(rig.stream._graphs)
    assert recorded == 6  # 1, 2 and 4 rows, within a turn and at its edges
    for _ in range(4):
        for slot in rig.turns:
            rig.accept(slot, 1)
        rig.step()
    assert len(rig.stream._graphs) == recorded
    for slot in list(rig.turns):
        rig.check(rig.finish(slot))


@pytest.mark.parametrize("device", DEVICES)
def test_a_function_is_recorded_once_and_reads_what_it_is_given(device: str) -> None:
    graphs = StepGraphs(torch.device(device))
    graphs.record("double", (torch.zeros(4),), lambda inputs: 2 * inputs[0])
    assert "double" in graphs and "half" not in graphs
    assert graphs("double", (torch.tensor([1.0, 2.0]),))[:2].tolist() == [2.0, 4.0]
    assert graphs("double", (torch.tensor([5.0, 6.0, 7.0, 8.0]),)).tolist() == [10.0, 12.0, 14.0, 16.0]


def test_slots_on_two_threads_are_the_offline_waveform(vocoders: dict[str, Vocoder], two_threads: None) -> None:
    stream = VocoderStream(vocoders["plain"], 4)
    turns: dict[int, list[int]] = {stream.open(): [slot, 7, 1, 12, 5, 20, 3] * 2 for slot in range(4)}
    packets: dict[int, list[Tensor]] = {slot: [] for slot in turns}
    for slot, units in turns.items():  # equally long, so that every step has all four
        stream.accept(slot, units, frames=[2] * len(units))
        stream.flush(slot)
    while stream.ready():
        for packet in stream.step():
            packets[packet.slot].append(packet.samples)
    for slot, units in turns.items():
        offline = vocode_expanded(vocoders["plain"], torch.tensor(units).repeat_interleave(2))
        torch.testing.assert_close(torch.cat(packets[slot]), offline, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("kind", "norm"), [("layer_norm", "window"), ("group_norm", "window"), ("group_norm", "running")]
)
def test_slots_on_two_threads_give_the_same_units(
    huberts: dict[str, Parts], speech: Tensor, two_threads: None, kind: str, norm: str
) -> None:
    sounds = [speech[:20000], speech[20000:40000]]
    rig = HubertRig(huberts[kind], 2, norm=norm, left_ms=400)
    for slot, sound in enumerate(sounds):
        rig.accept(slot, sound)
        rig.stream.flush(slot)
    rig.drain()
    torch.set_num_threads(1)
    alone = HubertRig(huberts[kind], norm=norm, left_ms=400)
    for slot, sound in enumerate(sounds):
        assert rig.turns[slot].units == alone.turn_of(sound, 5000)


@pytest.mark.parametrize(
    ("device", "dtype"),
    [("cpu", torch.bfloat16), *(("cuda", dtype) for dtype in ON_GPU if "cuda" in DEVICES)],
)
def test_half_precision_sound_is_close_and_as_long(
    vocoders: dict[str, Vocoder], device: str, dtype: torch.dtype
) -> None:
    rig = VocoderRig(vocoders["nano"], 1, device=device, dtype=dtype)
    rig.accept(0, 40)
    turn = rig.finish(0)
    offline, lengths = rig.offline(turn)
    assert turn.samples.dtype == torch.float32 and turn.samples.shape == offline.shape
    assert totals(turn.spans, 40) == lengths
    assert (turn.samples - offline).square().sum() <= 0.01 * offline.square().sum()


@pytest.mark.parametrize(
    ("device", "dtype"),
    [("cpu", torch.bfloat16), *(("cuda", dtype) for dtype in ON_GPU if "cuda" in DEVICES)],
)
@pytest.mark.parametrize("kind", ["layer_norm", "group_norm", "nano"])
def test_half_precision_units_are_close(
    huberts: dict[str, Parts], speech: Tensor, device: str, dtype: torch.dtype, kind: str
) -> None:
    hubert, quantizer = (on(device, part) for part in huberts[kind])
    options = {"left_ms": 800, "chunk_ms": 160, "look_ahead_ms": 160, "norm": "running"}
    expected, units = (
        HubertRig((hubert, quantizer), dtype=precision, **options).turn_of(speech, 640)
        for precision in (torch.float32, dtype)
    )
    assert np.mean(np.array(units) == np.array(expected)) >= 0.7
