"""VocoderStream against the offline vocoder: any split, any mix of slots, any pattern of resets."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_rigs import VocoderRig, totals

from spiritrt.bench.vocoder import spectral_flux
from spiritrt.duplex.streams import VocoderStream
from spiritrt.models.vocoder import Vocoder, vocode_expanded, vocode_units

KINDS = st.sampled_from(["base", "expressive", "plain", "odd", "nano"])


@settings(max_examples=25, deadline=None)
@given(
    kind=KINDS,
    cuts=st.lists(st.sampled_from([1, 2, 3, 5, 7, 13, 40]), max_size=8),
    chunk=st.sampled_from([1, 2, 5]),
    given_frames=st.booleans(),
)
def test_any_split_is_the_offline_waveform(
    vocoders: dict[str, Vocoder], kind: str, cuts: list[int], chunk: int, given_frames: bool
) -> None:
    rig = VocoderRig(vocoders[kind], 1, given=given_frames, chunk_frames=chunk)
    (slot,) = rig.turns
    for count in cuts:
        rig.accept(slot, count)
        while rig.stream.ready():
            rig.step()
    rig.check(rig.finish(slot))


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["accept", "accept", "accept", "step", "step", "finish", "reset"]),
        st.integers(0, 2),
        st.integers(1, 12),
    ),
    max_size=30,
)


@settings(max_examples=30, deadline=None)
@given(kind=KINDS, operations=OPERATIONS, seed=st.integers(0, 99))
def test_slots_are_independent_whatever_is_done_to_the_others(
    vocoders: dict[str, Vocoder], kind: str, operations: list[tuple[str, int, int]], seed: int
) -> None:
    rig = VocoderRig(vocoders[kind], 3, seed)
    for name, slot, count in operations:
        if name == "accept":
            rig.accept(slot, count)
        elif name == "step":
            rig.step()
        elif name == "reset":
            rig.reset(slot)
        else:
            rig.check(rig.finish(slot))
    for slot in list(rig.turns):
        rig.check(rig.finish(slot))


@pytest.mark.parametrize("kind", ["base", "plain", "odd"])
def test_sound_comes_as_soon_as_it_is_certain(vocoders: dict[str, Vocoder], kind: str) -> None:
    """The delay is the true dependency: the first sample held back changes with the next frame."""
    vocoder = vocoders[kind]
    config = vocoder.config
    units = [1, 5, 9, 2] * 20
    sounds = []
    for last in (3, 7):
        stream = VocoderStream(vocoder, chunk_frames=1, max_frames=1)
        slot = stream.open()
        stream.accept(slot, units, frames=[1] * len(units))
        count = 0
        while stream.ready():
            count += sum(len(packet.samples) for packet in stream.step())
        assert count == len(units) * config.hop_samples - stream.delay_samples
        with torch.no_grad():
            sounds.append(vocode_expanded(vocoder, torch.tensor([*units, last])))
    assert (
        stream.delay_samples
        <= config.context_frames[1] * config.hop_samples
        < stream.delay_samples + config.hop_samples
    )
    differ = (sounds[0] - sounds[1])[: len(units) * config.hop_samples].abs().double()
    assert differ[:count].max() <= 1e-5
    # float32 hides the faintest influence of the last tap; it is a few samples away at most
    assert differ[count : count + config.hop_samples].max() > 0


def test_a_slot_can_be_closed_and_opened_again_with_another_voice(vocoders: dict[str, Vocoder]) -> None:
    vocoder = vocoders["plain"]
    stream = VocoderStream(vocoder, 2)
    first, second = stream.open(), stream.open(speaker=3)
    stream.accept(first, [1, 2, 3])
    stream.close(first)
    assert stream.open(speaker=1) == first
    sounds = {}
    for slot, speaker in ((first, 1), (second, 3)):
        stream.accept(slot, [4, 5, 6, 7])
        stream.flush(slot)
        sounds[slot] = (vocode_units(vocoder, torch.tensor([4, 5, 6, 7]), speaker=speaker), [])
    while stream.ready():
        for packet in stream.step():
            sounds[packet.slot][1].append(packet.samples)
    for offline, packets in sounds.values():
        torch.testing.assert_close(torch.cat(packets), offline, atol=1e-5, rtol=0)


def test_set_speaker_changes_the_units_after_it(vocoders: dict[str, Vocoder]) -> None:
    vocoder = vocoders["plain"]
    units = [3, 1, 4, 1, 5, 9] * 10
    stream = VocoderStream(vocoder)
    slot = stream.open()
    stream.accept(slot, units, frames=[1] * 60)
    stream.set_speaker(slot, 0)
    stream.accept(slot, units, frames=[1] * 60)
    stream.flush(slot)
    packets = []
    while stream.ready():
        packets += [packet.samples for packet in stream.step()]
    sound = torch.cat(packets)
    before, after = (vocode_expanded(vocoder, torch.tensor(units * 2), speaker=speaker) for speaker in (2, 0))
    change, reach = 60 * 640, 21 * 640
    torch.testing.assert_close(sound[: change - reach], before[: change - reach], atol=1e-5, rtol=0)
    torch.testing.assert_close(sound[change + reach :], after[change + reach :], atol=1e-5, rtol=0)


class TestLowLatency:
    def test_packets_are_small_and_the_look_ahead_is_kept(self, vocoders: dict[str, Vocoder]) -> None:
        for frames in (0, 2, 8):
            stream = VocoderStream(vocoders["plain"], look_ahead_frames=frames, chunk_frames=1)
            slot = stream.open()
            assert stream.delay_samples == frames * 640
            for count in range(1, 15):
                stream.accept(slot, [count], frames=[1])
                made = sum(len(packet.samples) for packet in stream.step())
                assert made == (640 if count > frames else 0)

    def test_more_look_ahead_is_closer_to_offline_and_enough_is_exact(self, vocoders: dict[str, Vocoder]) -> None:
        errors = []
        for frames in (0, 2, 8, 20):
            rig = VocoderRig(vocoders["plain"], 2, look_ahead_frames=frames)
            for _ in range(10):
                rig.accept(0, 4)
                rig.accept(1, 1)
                rig.step()
            turn = rig.finish(0)
            offline, lengths = rig.offline(turn)
            assert turn.samples.shape == offline.shape and torch.isfinite(turn.samples).all()
            assert totals(turn.spans, len(turn.units)) == lengths
            errors.append((turn.samples - offline).square().mean().item())
        assert errors[0] > errors[1] > errors[2] > errors[3]
        assert errors[3] < 1e-10

    def test_packets_join_without_clicks(self, vocoders: dict[str, Vocoder]) -> None:
        """Spectral flux where packets meet is no larger than elsewhere, which it would be with faint clicks."""
        rig = VocoderRig(vocoders["nano"], 1, look_ahead_frames=2, chunk_frames=2)
        for _ in range(60):
            rig.accept(0, 1)
            rig.step()
        sound = rig.finish(0).samples
        clicking = sound.clone()
        clicking[:: 2 * 640] += sound.square().mean().sqrt() / 3
        for heard, clicks in ((sound, False), (clicking, True)):
            flux, edge = spectral_flux(heard, 2 * 640)
            assert (flux[edge].mean() > 1.2 * flux[~edge].mean()) == clicks
