"""HubertStream against the offline encoder: exact where the window is the turn, deterministic whatever the split."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_rigs import ROLLING, UNLIMITED, VARIANTS, HubertRig, Parts, noise, offline_units, tiny_hubert
from torch import Tensor

from spiritrt.duplex.streams import HubertStream
from spiritrt.models.hubert import KMeansQuantizer

GOLDEN = Path(__file__).parents[1] / "data/golden"
WHOLE_GOLDEN = Path(__file__).parents[3] / "shared" / "golden"


class TestUnlimitedWindow:
    @pytest.mark.parametrize("clip", ["leading_blank", "odd_length", "7143-88743-0029"])
    def test_golden_units_are_offline_s(self, huberts: dict[str, Parts], clip: str) -> None:
        golden = huberts["golden"]
        root = GOLDEN if (GOLDEN / f"audio/{clip}.flac").exists() else WHOLE_GOLDEN
        if not root.is_dir():
            pytest.skip(f"the long golden clip is not in the repository, and {root} does not exist")
        sound = torch.from_numpy(soundfile.read(root / f"audio/{clip}.flac", dtype="float32")[0])
        assert HubertRig(golden, **UNLIMITED).turn_of(sound, 4567) == offline_units(golden, sound)

    def test_nano_units_are_offline_s(self, huberts: dict[str, Parts], speech: Tensor) -> None:
        assert HubertRig(huberts["nano"], **UNLIMITED).turn_of(speech[:70000], 320) == offline_units(
            huberts["nano"], speech[:70000]
        )

    @settings(max_examples=30, deadline=None)
    @given(
        kind=st.sampled_from([*VARIANTS, "golden", "nano"]),
        lengths=st.lists(st.integers(0, 9000), min_size=2, max_size=2),
        cuts=st.lists(st.tuples(st.integers(0, 1), st.integers(1, 4000)), max_size=8),
        seed=st.integers(0, 20),
    )
    def test_any_split_over_two_slots_is_offline(
        self, huberts: dict[str, Parts], kind: str, lengths: list[int], cuts: list[tuple[int, int]], seed: int
    ) -> None:
        parts = huberts[kind]
        rig = HubertRig(parts, 2, **UNLIMITED)
        sounds = [noise(length, seed + i) for i, length in enumerate(lengths)]
        at = [0, 0]
        for slot, count in cuts:
            rig.accept(slot, sounds[slot][at[slot] : at[slot] + count])
            at[slot] += count
            rig.drain()
        for slot in (0, 1):
            rig.accept(slot, sounds[slot][at[slot] :])
            assert rig.finish(slot) == offline_units(parts, sounds[slot])

    def test_k_means_units_are_offline_s(self) -> None:
        hubert, _ = tiny_hubert()
        quantizer = KMeansQuantizer(12, 5).eval()
        torch.nn.init.normal_(quantizer.cluster_centers)
        sound = noise(20000)
        assert HubertRig((hubert, quantizer), **UNLIMITED).turn_of(sound, 999) == offline_units(
            (hubert, quantizer), sound
        )


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["accept", "accept", "accept", "step", "finish", "reset"]),
        st.integers(0, 2),
        st.sampled_from([1, 160, 719, 720, 1280, 3001, 9000]),
    ),
    max_size=25,
)


class TestRollingWindow:
    @settings(max_examples=40, deadline=None)
    @given(
        kind=st.sampled_from(["layer_norm", "group_norm", "norm_first", "same_width", "golden", "nano"]),
        norm=st.sampled_from(["window", "running", "calibrated"]),
        operations=OPERATIONS,
        seed=st.integers(0, 99),
    )
    def test_units_depend_on_nothing_but_the_turn(
        self, huberts: dict[str, Parts], kind: str, norm: str, operations: list[tuple[str, int, int]], seed: int
    ) -> None:
        """Any split, slots, and resets: the units of each turn are those of the turn alone, given at once."""
        parts = huberts[kind]
        channels = parts[0].config.conv_layers[0][0]
        options = ROLLING | {"norm": norm, "calibration": (torch.zeros(channels), torch.full((channels,), 0.01))}
        rig = HubertRig(parts, 3, **options)

        def check(slot: int) -> None:
            sound = torch.cat([*rig.turns[slot].sound, torch.zeros(0)])
            units = rig.finish(slot)
            assert len(units) == len(offline_units(parts, sound))
            assert units == HubertRig(parts, **options).turn_of(sound, len(sound) + 1)

        for name, slot, count in operations:
            if name == "accept":
                rig.accept(slot, noise(count, seed + count))
            elif name == "step":
                rig.step()
            elif name == "reset":
                rig.reset(slot)
            else:
                check(slot)
        for slot in list(rig.turns):
            check(slot)

    @pytest.mark.parametrize("variant", ["layer_norm", "norm_first", "same_width"])
    def test_kept_convolutions_are_exact(self, variant: str) -> None:
        """A window from the turn's beginning to its end, with its frames made bit by bit, gives the offline units."""
        parts = tiny_hubert(**VARIANTS[variant])
        hop = parts[0].config.hop_samples
        sound = noise(40 * hop + 720)
        window = {"left_ms": None, "chunk_ms": 40, "look_ahead_ms": 40 * 20}
        stream = HubertStream(*parts, provisional=True, **window)  # type: ignore[arg-type]
        slot = stream.open()
        for part in sound.split(hop):
            stream.accept(slot, part)
            for packet in stream.step():
                end = packet.start + len(packet.units) + len(packet.provisional)
                if packet.start == 0:
                    continue
                # frames of the window so far, encoded from scratch
                samples = (end - 1) * hop + parts[0].config.receptive_samples
                expected = _plain_units(parts, sound[:samples])
                newest = expected[packet.start :]
                assert packet.units + packet.provisional == newest

    def test_units_come_when_their_window_is_full(self) -> None:
        stream = HubertStream(*tiny_hubert(), **ROLLING)  # type: ignore[arg-type]
        slot = stream.open()
        needed = 5 * 640 + 80  # chunk and look-ahead, and what the last frame sees beyond them
        stream.accept(slot, noise(needed - 1))
        assert stream.ready() == [] and stream.step() == []
        stream.accept(slot, noise(1))
        assert stream.ready() == [slot]
        stream.accept(slot, noise(2 * 640 - 1))
        stream.step()
        assert stream.ready() == []

    def test_calibrated_statistics_of_the_turn_are_offline_s(self) -> None:
        hubert, quantizer = tiny_hubert(**VARIANTS["group_norm"])
        sound = noise(16000)
        with torch.no_grad():
            first = hubert.feature_extractor.conv_layers[0][0](sound[None, None])[0]
        statistics = first.mean(1), first.var(1, unbiased=False)
        options = {"left_ms": None, "chunk_ms": 40, "look_ahead_ms": 880}  # 23 of the 24 frames
        rig = HubertRig((hubert, quantizer), norm="calibrated", calibration=statistics, **options)
        agreeing = np.mean(np.array(rig.turn_of(sound, 700)) == np.array(offline_units((hubert, quantizer), sound)))
        assert agreeing >= 0.95

    def test_running_statistics_can_be_frozen(self) -> None:
        parts = tiny_hubert(**VARIANTS["group_norm"])
        quiet_then_loud = torch.cat([noise(16000), 20 * noise(16000, 1)])
        running = HubertRig(parts, norm="running", **ROLLING).turn_of(quiet_then_loud, 500)
        frozen = HubertRig(parts, norm="running", freeze_s=0.4, **ROLLING).turn_of(quiet_then_loud, 500)
        assert running[:5] == frozen[:5] and running != frozen

    def test_nano_units_are_those_of_its_windows(self, huberts: dict[str, Parts], speech: Tensor) -> None:
        hubert, quantizer = huberts["nano"]
        frames = (len(speech) - 720) // 640 + 1
        expected: list[int] = []
        for start in range(0, frames, 4):
            first, end = max(0, start - 25), start + 4 + 8
            ends = end > frames
            with torch.no_grad():
                logits = quantizer(hubert(speech[None, first * 640 : None if ends else (end - 1) * 640 + 720]))[0]
            expected += logits.argmax(-1).tolist()[start - first : None if ends else start - first + 4]
            if ends:
                break
        options = {"left_ms": 1000, "chunk_ms": 160, "look_ahead_ms": 320}
        assert HubertRig((hubert, quantizer), **options).turn_of(speech, 320) == expected

    def test_nano_agrees_better_with_more_to_see(self, huberts: dict[str, Parts], speech: Tensor) -> None:
        expected = np.array(offline_units(huberts["nano"], speech))
        agreement = []
        for left, ahead in ((520, 0), (2000, 320), (4000, 640)):
            rig = HubertRig(huberts["nano"], left_ms=left, chunk_ms=160, look_ahead_ms=ahead)
            agreement.append(np.mean(np.array(rig.turn_of(speech, 320)) == expected))
        assert agreement[0] < agreement[1] <= agreement[2]
        assert agreement[1] >= 0.6


def _plain_units(parts: Parts, sound: Tensor) -> list[int]:
    """Offline units with the stream's rule for blanks: before them goes on, or the first to come."""
    hubert, quantizer = parts
    with torch.no_grad():
        best = quantizer(hubert(sound[None]))[0].argmax(-1).tolist()
    last = next(unit for unit in best if unit != quantizer.blank)
    return [last := unit if unit != quantizer.blank else last for unit in best]
