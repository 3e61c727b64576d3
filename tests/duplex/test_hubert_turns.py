"""HubertStream over whole turns: blanks, the end of a turn, bad input, threads."""

import threading

import numpy as np
import pytest
import torch
from stream_rigs import ROLLING, UNLIMITED, VARIANTS, HubertRig, Quantizer, noise, offline_units, tiny_hubert
from torch import Tensor

from spiritrt.duplex.streams import HubertStream
from spiritrt.models.hubert import Hubert


class TestBlanks:
    def test_leading_blanks_take_the_first_unit_to_come(self) -> None:
        hubert, quantizer = tiny_hubert()
        loud = next(seed for seed in range(200) if self.leading(hubert, quantizer, noise(16000, seed)) >= 5)
        sound = noise(16000, loud)
        blanks = self.leading(hubert, quantizer, sound)
        options = {"left_ms": None, "chunk_ms": 40, "look_ahead_ms": 760}  # the window is nearly the turn
        rig = HubertRig((hubert, quantizer), **options)
        units = rig.turn_of(sound, 640)
        assert units[:blanks] == [units[blanks]] * blanks
        assert 9 not in units

    @staticmethod
    def leading(hubert: Hubert, quantizer: Quantizer, sound: Tensor) -> int:
        with torch.no_grad():
            best = quantizer(hubert(sound[None]))[0].argmax(-1).tolist()
        return next((i for i, unit in enumerate(best) if unit != 9), 0)

    def test_a_turn_of_blanks_alone_takes_the_next_best_classes(self) -> None:
        hubert, quantizer = tiny_hubert()
        with torch.no_grad():
            quantizer[4].bias[9] = 1e6
        sound = noise(8000)
        expected = offline_units((hubert, quantizer), sound)
        assert 9 not in expected
        assert HubertRig((hubert, quantizer), **UNLIMITED).turn_of(sound, 640) == expected
        rolling = HubertRig((hubert, quantizer), **ROLLING).turn_of(sound, 640)
        assert len(rolling) == len(expected) and 9 not in rolling


class TestEndOfTurn:
    def test_flush_leaves_out_what_comes_after_the_end(self) -> None:
        parts = tiny_hubert()
        sound = noise(16000)
        for end in (0, 1279, 1280, 9000, 15999):
            rig = HubertRig(parts, **UNLIMITED)
            rig.accept(0, sound)
            rig.stream.flush(0, end)
            rig.drain()
            assert rig.turns[0].final and rig.turns[0].units == offline_units(parts, sound[:end])
        rolling = HubertRig(parts, **ROLLING)
        rolling.accept(0, sound)
        rolling.drain()
        rolling.stream.flush(0, 9000)
        rolling.drain()
        assert rolling.turns[0].final and len(rolling.turns[0].units) == (16000 - 720) // 640 + 1 - 3 - (24 - 3) % 2

    @pytest.mark.parametrize("variant", ["layer_norm", "group_norm"])
    def test_revision_turns_what_was_handed_out_into_offline(self, variant: str) -> None:
        parts = tiny_hubert(**VARIANTS[variant])
        for seed in range(4):
            sound = noise(16000 + 500 * seed, seed)
            stream = HubertStream(*parts, revise=True, left_ms=80, chunk_ms=40, look_ahead_ms=0)
            slot = stream.open()
            stream.accept(slot, sound)
            stream.flush(slot)
            units: list[int] = []
            revision = None
            while stream.ready():
                for packet in stream.step():
                    assert revision is None
                    units += packet.units
                    revision = packet.revision
            expected = offline_units(parts, sound)
            assert revision is not None
            assert units[: revision.first] + revision.tail == expected
            assert revision.changed == sum(a != b for a, b in zip(units, expected, strict=True))

    def test_nothing_changes_where_the_window_was_the_turn(self) -> None:
        stream = HubertStream(*tiny_hubert(), revise=True, **UNLIMITED)  # type: ignore[arg-type]
        slot = stream.open()
        stream.accept(slot, noise(8000))
        stream.flush(slot)
        (packet,) = stream.step()
        assert packet.revision is not None
        assert (packet.revision.changed, packet.revision.first, packet.revision.tail) == (0, 12, [])


class TestBadInput:
    @pytest.mark.parametrize(
        ("samples", "message"),
        [
            (torch.tensor([0.0, float("nan")]), "samples hold nan at position 1"),
            (torch.tensor([float("inf")]), "samples hold inf at position 0"),
            (torch.zeros(4, dtype=torch.float64), "samples must be float32 .*got Double"),
            (torch.zeros(4, dtype=torch.int16), "samples must be float32 .*got Short"),
            (torch.zeros(2, 4), r"samples must be float32 \[N\] .*\[2, 4\]"),
            (torch.zeros(32001), "slot 0 would hold 32001 samples: its limit is 32000"),
        ],
    )
    def test_is_named_and_touches_no_slot(self, samples: Tensor, message: str) -> None:
        parts = tiny_hubert()
        rig = HubertRig(parts, 2, buffer_s=2.0, **UNLIMITED)
        rig.accept(1, noise(2000))
        with pytest.raises(ValueError, match=message):
            rig.stream.accept(0, samples)
        rig.accept(0, noise(3000))
        for slot, length in ((0, 3000), (1, 2000)):
            assert rig.finish(slot) == offline_units(parts, noise(length))

    @pytest.mark.filterwarnings("error")
    def test_arrays_of_any_layout_are_taken(self) -> None:
        parts = tiny_hubert()
        sound = noise(6000)
        rig = HubertRig(parts, **UNLIMITED)
        received = np.frombuffer(sound[:3000].numpy().tobytes(), np.float32)
        assert not received.flags.writeable
        rig.stream.accept(0, received)
        rig.stream.accept(0, np.flip(np.flip(sound[3000:].numpy()).copy()))
        assert rig.finish(0) == offline_units(parts, sound)

    def test_slots_and_settings_are_checked(self) -> None:
        parts = tiny_hubert(**VARIANTS["group_norm"])
        stream = HubertStream(*parts)
        with pytest.raises(ValueError, match="slot 0 is not open"):
            stream.accept(0, noise(4))
        slot = stream.open()
        stream.flush(slot)
        with pytest.raises(ValueError, match="slot 0 was flushed"):
            stream.accept(slot, noise(4))
        for options, message in (
            ({"chunk_ms": 50}, "chunk_ms must be a multiple of 40"),
            ({"chunk_ms": 0}, "chunk_frames must be at least 1, got 0"),
            ({"look_ahead_ms": -40}, "look_ahead_ms must be a multiple of 40"),
            ({"norm": "none"}, "norm must be 'window', 'running' or 'calibrated', got 'none'"),
            ({"norm": "calibrated"}, "needs the mean and variance"),
            ({"norm": "calibrated", "calibration": (torch.zeros(7), torch.ones(8))}, r"shape \[8\], got \[7\]"),
            ({"buffer_s": 1.0}, "cannot hold a window"),
        ):
            with pytest.raises(ValueError, match=message):
                HubertStream(*parts, **options)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="its norm must be 'window'"):
            HubertStream(*tiny_hubert(**VARIANTS["normalize"]), norm="running")


def test_two_threads_drive_two_streams() -> None:
    parts = tiny_hubert()
    sound = noise(48000)
    expected = HubertRig(parts, **ROLLING).turn_of(sound, 48000)
    units: dict[int, list[int]] = {}

    def drive(number: int) -> None:
        units[number] = HubertRig(parts, **ROLLING).turn_of(sound, 320 * (number + 1))

    threads = [threading.Thread(target=drive, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert units == {0: expected, 1: expected}


def test_silence_and_one_value_give_units_and_no_nan() -> None:
    for variant in ("layer_norm", "group_norm"):
        for norm in ("window", "running"):
            rig = HubertRig(tiny_hubert(**VARIANTS[variant]), norm=norm, **ROLLING)
            for level in (0.0, 1.0):
                assert all(0 <= unit < 9 for unit in rig.turn_of(torch.full((8000,), level), 1000))
