"""HubertStream against the offline encoder: exact where the window is the turn, deterministic whatever the split."""

import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import spiritrt
from spiritrt.duplex.streams import HubertStream
from spiritrt.duplex.talk import shipped_lines
from spiritrt.models.hubert import (
    Hubert,
    HubertConfig,
    KMeansQuantizer,
    LinearQuantizer,
    encode_units,
    hubert_from_official,
    quantizer_from_official,
)

GOLDEN = Path(__file__).parents[1] / "data/golden"
WHOLE_GOLDEN = Path(__file__).parents[3] / "shared" / "golden"
Quantizer = LinearQuantizer | KMeansQuantizer
UNLIMITED = {"left_ms": None, "look_ahead_ms": None}


def tiny(seed: int = 0, **changes: object) -> tuple[Hubert, Quantizer]:
    """A tiny HuBERT in which every weight matters, and a quantizer that gives blanks."""
    torch.manual_seed(seed)
    config = {
        "conv_layers": ((8, 10, 5), *((8, 3, 2),) * 4, *((8, 2, 2),) * 3),
        "extractor_mode": "layer_norm",
        "conv_bias": True,
        "encoder_layers": 2,
        "encoder_embed_dim": 12,
        "encoder_ffn_embed_dim": 16,
        "encoder_attention_heads": 3,
        "conv_pos": 6,
        "conv_pos_groups": 3,
        "output_layer": 2,
    }
    hubert = Hubert(HubertConfig(**config | changes)).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for name, value in hubert.state_dict().items():
            if value.is_floating_point() and value.dim() == 1:
                positive = torch.rand_like(value) + 0.5
                value.copy_(positive if "running_var" in name else value + torch.randn_like(value) / 4)
    quantizer = LinearQuantizer(dim=12, upstream_dim=8, vocab_size=9)
    with torch.no_grad():
        quantizer[4].bias[9] += 0.05
    return hubert, quantizer.eval()


VARIANTS: dict[str, dict[str, object]] = {
    "layer_norm": {},
    "group_norm": {"extractor_mode": "default", "conv_bias": False},
    "batch_norm": {"extractor_mode": "default", "conv_pos_batch_norm": True, "conv_pos": 7},
    "norm_first": {"layer_norm_first": True, "required_seq_len_multiple": 1, "activation_fn": "relu"},
    "normalize": {"normalize": True, "required_seq_len_multiple": 4},
    "same_width": {"conv_layers": ((12, 12, 4), (12, 3, 2), (12, 4, 2)), "encoder_embed_dim": 12},
}


@pytest.fixture(scope="module")
def golden() -> tuple[Hubert, Quantizer]:
    torch.set_num_threads(1)
    folder = GOLDEN / "checkpoints/speech_tokenizer/hubert_25hz"
    hubert = torch.load(folder / "mhubert_base_25hz.pt", weights_only=True)
    quantizer = torch.load(folder / "L11_quantizer_500.pt", weights_only=True)
    return hubert_from_official(hubert, hubert["model_weight"]), quantizer_from_official(
        quantizer, quantizer["model_weight"]
    )


def noise(samples: int, seed: int = 0) -> Tensor:
    return torch.randn(samples, generator=torch.Generator().manual_seed(seed)) * 0.1


@dataclass
class Turn:
    """What went into a slot since its reset, and what came out."""

    sound: list[Tensor] = field(default_factory=list)
    units: list[int] = field(default_factory=list)
    final: bool = False


class Rig:
    """A stream with several slots, and what went through it."""

    def __init__(self, parts: tuple[Hubert, Quantizer], slots: int = 1, **options: object) -> None:
        self.parts = parts
        self.stream = HubertStream(*parts, slots, **options)  # type: ignore[arg-type]
        self.turns = {self.stream.open(): Turn() for _ in range(slots)}

    def accept(self, slot: int, samples: Tensor) -> None:
        self.stream.accept(slot, samples)
        self.turns[slot].sound.append(samples)

    def step(self) -> None:
        for packet in self.stream.step():
            turn = self.turns[packet.slot]
            assert not turn.final and packet.start == len(turn.units)
            turn.units += packet.units
            turn.final = packet.final

    def drain(self) -> None:
        while self.stream.ready():
            self.step()

    def reset(self, slot: int) -> None:
        self.stream.reset(slot)
        self.turns[slot] = Turn()

    def finish(self, slot: int) -> list[int]:
        self.stream.flush(slot)
        while not self.turns[slot].final:
            assert slot in self.stream.ready()
            self.step()
        assert slot not in self.stream.ready()
        units = self.turns[slot].units
        self.reset(slot)
        return units

    def turn_of(self, sound: Tensor, packet: int) -> list[int]:
        """Units of one turn in slot 0, given in equal packets."""
        for part in sound.split(packet):
            self.accept(0, part)
            self.drain()
        return self.finish(0)


def offline(parts: tuple[Hubert, Quantizer], sound: Tensor) -> list[int]:
    return encode_units(*parts, sound).tolist() if len(sound) >= 1280 else []


class TestUnlimitedWindow:
    @pytest.mark.parametrize("clip", ["leading_blank", "odd_length", "7143-88743-0029"])
    def test_golden_units_are_offline_s(self, golden: tuple[Hubert, Quantizer], clip: str) -> None:
        root = GOLDEN if (GOLDEN / f"audio/{clip}.flac").exists() else WHOLE_GOLDEN
        if not root.is_dir():
            pytest.skip(f"the long golden clip is not in the repository, and {root} does not exist")
        sound = torch.from_numpy(soundfile.read(root / f"audio/{clip}.flac", dtype="float32")[0])
        assert Rig(golden, **UNLIMITED).turn_of(sound, 4567) == offline(golden, sound)

    def test_nano_units_are_offline_s(self, nano: spiritrt.SpiritLM) -> None:
        sound = torch.from_numpy(shipped_lines()[0].samples[:70000])
        parts = nano.family.hubert, nano.family.quantizer
        assert Rig(parts, **UNLIMITED).turn_of(sound, 320) == offline(parts, sound)

    @settings(max_examples=30, deadline=None)
    @given(
        variant=st.sampled_from(list(VARIANTS)),
        lengths=st.lists(st.integers(0, 9000), min_size=2, max_size=2),
        cuts=st.lists(st.tuples(st.integers(0, 1), st.integers(1, 4000)), max_size=8),
        seed=st.integers(0, 20),
    )
    def test_any_split_over_two_slots_is_offline(
        self, variant: str, lengths: list[int], cuts: list[tuple[int, int]], seed: int
    ) -> None:
        parts = tiny(seed % 3, **VARIANTS[variant])
        rig = Rig(parts, 2, **UNLIMITED)
        sounds = [noise(length, seed + i) for i, length in enumerate(lengths)]
        at = [0, 0]
        for slot, count in cuts:
            rig.accept(slot, sounds[slot][at[slot] : at[slot] + count])
            at[slot] += count
            rig.drain()
        for slot in (0, 1):
            rig.accept(slot, sounds[slot][at[slot] :])
            assert rig.finish(slot) == offline(parts, sounds[slot])

    def test_k_means_units_are_offline_s(self) -> None:
        hubert, _ = tiny()
        quantizer = KMeansQuantizer(12, 5).eval()
        torch.nn.init.normal_(quantizer.cluster_centers)
        sound = noise(20000)
        assert Rig((hubert, quantizer), **UNLIMITED).turn_of(sound, 999) == offline((hubert, quantizer), sound)


ROLLING = {"left_ms": 400, "chunk_ms": 80, "look_ahead_ms": 120}
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
        variant=st.sampled_from(["layer_norm", "group_norm", "norm_first", "same_width"]),
        norm=st.sampled_from(["window", "running"]),
        operations=OPERATIONS,
        seed=st.integers(0, 99),
    )
    def test_units_depend_on_nothing_but_the_turn(
        self, variant: str, norm: str, operations: list[tuple[str, int, int]], seed: int
    ) -> None:
        """Any split, slots, and resets: the units of each turn are those of the turn alone, given at once."""
        parts = tiny(seed % 3, **VARIANTS[variant])
        rig = Rig(parts, 3, norm=norm, **ROLLING)

        def check(slot: int) -> None:
            sound = torch.cat([*rig.turns[slot].sound, torch.zeros(0)])
            units = rig.finish(slot)
            assert len(units) == len(offline(parts, sound))
            assert units == Rig(parts, norm=norm, **ROLLING).turn_of(sound, len(sound) + 1)

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
        parts = tiny(**VARIANTS[variant])
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
        stream = HubertStream(*tiny(), **ROLLING)  # type: ignore[arg-type]
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
        hubert, quantizer = tiny(**VARIANTS["group_norm"])
        sound = noise(16000)
        with torch.no_grad():
            first = hubert.feature_extractor.conv_layers[0][0](sound[None, None])[0]
        statistics = first.mean(1), first.var(1, unbiased=False)
        options = {"left_ms": None, "chunk_ms": 40, "look_ahead_ms": 880}  # 23 of the 24 frames
        rig = Rig((hubert, quantizer), norm="calibrated", calibration=statistics, **options)
        agreeing = np.mean(np.array(rig.turn_of(sound, 700)) == np.array(offline((hubert, quantizer), sound)))
        assert agreeing >= 0.95

    def test_running_statistics_can_be_frozen(self) -> None:
        parts = tiny(**VARIANTS["group_norm"])
        quiet_then_loud = torch.cat([noise(16000), 20 * noise(16000, 1)])
        running = Rig(parts, norm="running", **ROLLING).turn_of(quiet_then_loud, 500)
        frozen = Rig(parts, norm="running", freeze_s=0.4, **ROLLING).turn_of(quiet_then_loud, 500)
        assert running[:5] == frozen[:5] and running != frozen

    def test_nano_units_are_those_of_its_windows(self, nano: spiritrt.SpiritLM) -> None:
        hubert, quantizer = nano.family.hubert, nano.family.quantizer
        sound = torch.from_numpy(shipped_lines()[0].samples[:80000])
        frames = (len(sound) - 720) // 640 + 1
        expected: list[int] = []
        for start in range(0, frames, 4):
            first, end = max(0, start - 25), start + 4 + 8
            ends = end > frames
            with torch.no_grad():
                logits = quantizer(hubert(sound[None, first * 640 : None if ends else (end - 1) * 640 + 720]))[0]
            expected += logits.argmax(-1).tolist()[start - first : None if ends else start - first + 4]
            if ends:
                break
        options = {"left_ms": 1000, "chunk_ms": 160, "look_ahead_ms": 320}
        assert Rig((hubert, quantizer), **options).turn_of(sound, 320) == expected

    def test_nano_agrees_better_with_more_to_see(self, nano: spiritrt.SpiritLM) -> None:
        parts = nano.family.hubert, nano.family.quantizer
        sound = torch.from_numpy(shipped_lines()[0].samples[:80000])
        expected = np.array(offline(parts, sound))
        agreement = [
            np.mean(
                np.array(Rig(parts, left_ms=left, chunk_ms=160, look_ahead_ms=ahead).turn_of(sound, 320)) == expected
            )
            for left, ahead in ((520, 0), (2000, 320), (4000, 640))
        ]
        assert agreement[0] < agreement[1] <= agreement[2]
        assert agreement[1] >= 0.6


def _plain_units(parts: tuple[Hubert, Quantizer], sound: Tensor) -> list[int]:
    """Offline units with the stream's rule for blanks: before them goes on, or the first to come."""
    hubert, quantizer = parts
    with torch.no_grad():
        best = quantizer(hubert(sound[None]))[0].argmax(-1).tolist()
    last = next(unit for unit in best if unit != quantizer.blank)
    return [last := unit if unit != quantizer.blank else last for unit in best]


class TestBlanks:
    def test_leading_blanks_take_the_first_unit_to_come(self) -> None:
        hubert, quantizer = tiny()
        loud = next(seed for seed in range(200) if self.leading(hubert, quantizer, noise(16000, seed)) >= 5)
        sound = noise(16000, loud)
        blanks = self.leading(hubert, quantizer, sound)
        options = {"left_ms": None, "chunk_ms": 40, "look_ahead_ms": 760}  # the window is nearly the turn
        rig = Rig((hubert, quantizer), **options)
        units = rig.turn_of(sound, 640)
        assert units[:blanks] == [units[blanks]] * blanks
        assert 9 not in units

    @staticmethod
    def leading(hubert: Hubert, quantizer: Quantizer, sound: Tensor) -> int:
        with torch.no_grad():
            best = quantizer(hubert(sound[None]))[0].argmax(-1).tolist()
        return next((i for i, unit in enumerate(best) if unit != 9), 0)

    def test_a_turn_of_blanks_alone_takes_the_next_best_classes(self) -> None:
        hubert, quantizer = tiny()
        with torch.no_grad():
            quantizer[4].bias[9] = 1e6
        sound = noise(8000)
        expected = offline((hubert, quantizer), sound)
        assert 9 not in expected
        assert Rig((hubert, quantizer), **UNLIMITED).turn_of(sound, 640) == expected
        rolling = Rig((hubert, quantizer), **ROLLING).turn_of(sound, 640)
        assert len(rolling) == len(expected) and 9 not in rolling


class TestEndOfTurn:
    def test_flush_leaves_out_what_comes_after_the_end(self) -> None:
        parts = tiny()
        sound = noise(16000)
        for end in (0, 1279, 1280, 9000, 15999):
            rig = Rig(parts, **UNLIMITED)
            rig.accept(0, sound)
            rig.stream.flush(0, end)
            rig.drain()
            assert rig.turns[0].final and rig.turns[0].units == offline(parts, sound[:end])
        rolling = Rig(parts, **ROLLING)
        rolling.accept(0, sound)
        rolling.drain()
        rolling.stream.flush(0, 9000)
        rolling.drain()
        assert rolling.turns[0].final and len(rolling.turns[0].units) == (16000 - 720) // 640 + 1 - 3 - (24 - 3) % 2

    @pytest.mark.parametrize("variant", ["layer_norm", "group_norm"])
    def test_revision_turns_what_was_handed_out_into_offline(self, variant: str) -> None:
        parts = tiny(**VARIANTS[variant])
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
            expected = offline(parts, sound)
            assert revision is not None
            assert units[: revision.first] + revision.tail == expected
            assert revision.changed == sum(a != b for a, b in zip(units, expected, strict=True))

    def test_nothing_changes_where_the_window_was_the_turn(self) -> None:
        stream = HubertStream(*tiny(), revise=True, **UNLIMITED)  # type: ignore[arg-type]
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
        parts = tiny()
        rig = Rig(parts, 2, buffer_s=2.0, **UNLIMITED)
        rig.accept(1, noise(2000))
        with pytest.raises(ValueError, match=message):
            rig.stream.accept(0, samples)
        rig.accept(0, noise(3000))
        for slot, length in ((0, 3000), (1, 2000)):
            assert rig.finish(slot) == offline(parts, noise(length))

    def test_slots_and_settings_are_checked(self) -> None:
        parts = tiny(**VARIANTS["group_norm"])
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
            HubertStream(*tiny(**VARIANTS["normalize"]), norm="running")


def test_two_threads_drive_two_streams() -> None:
    parts = tiny()
    sound = noise(48000)
    expected = Rig(parts, **ROLLING).turn_of(sound, 48000)
    units: dict[int, list[int]] = {}

    def drive(number: int) -> None:
        units[number] = Rig(parts, **ROLLING).turn_of(sound, 320 * (number + 1))

    threads = [threading.Thread(target=drive, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert units == {0: expected, 1: expected}


def test_silence_and_one_value_give_units_and_no_nan() -> None:
    for variant in ("layer_norm", "group_norm"):
        for norm in ("window", "running"):
            rig = Rig(tiny(**VARIANTS[variant]), norm=norm, **ROLLING)
            for level in (0.0, 1.0):
                assert all(0 <= unit < 9 for unit in rig.turn_of(torch.full((8000,), level), 1000))


@pytest.mark.parametrize("variant", ["layer_norm", "group_norm"])
def test_half_precision_is_close(variant: str) -> None:
    parts = tiny(**VARIANTS[variant])
    sound = noise(32000)
    expected = np.array(Rig(parts, norm="running", **ROLLING).turn_of(sound, 640))
    units = Rig(parts, norm="running", dtype=torch.bfloat16, **ROLLING).turn_of(sound, 640)
    assert np.mean(np.array(units) == expected) >= 0.7
