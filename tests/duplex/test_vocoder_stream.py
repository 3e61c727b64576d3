"""VocoderStream against the offline vocoder: any split, any mix of slots, any pattern of resets."""

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import spiritrt
from spiritrt.duplex.streams import VocoderStream
from spiritrt.models.vocoder import Vocoder, VocoderConfig, vocode_expanded, vocode_units, vocoder_from_official

GOLDEN = Path(__file__).parents[1] / "data/golden/checkpoints/speech_tokenizer"
PLAIN = VocoderConfig(
    upsample_rates=(5, 4, 4, 4, 2),
    upsample_kernel_sizes=(11, 8, 8, 8, 4),
    upsample_initial_channel=32,
    resblock_kernel_sizes=(3, 7, 11),
    resblock_dilation_sizes=((1, 3, 5),) * 3,
    num_embeddings=21,
    embedding_dim=4,
    num_speakers=4,
    var_pred_hidden_dim=6,
)
# odd where the public ones are even: kernel equal to its rate, two blocks, a duration kernel of 5, no speakers
ODD = VocoderConfig(
    upsample_rates=(3, 2, 5),
    upsample_kernel_sizes=(3, 6, 9),
    upsample_initial_channel=16,
    resblock_kernel_sizes=(5, 3),
    resblock_dilation_sizes=((2,), (1, 4)),
    num_embeddings=21,
    embedding_dim=4,
    var_pred_hidden_dim=6,
    var_pred_kernel_size=5,
)


def _tiny(config: VocoderConfig) -> Vocoder:
    """Weights large enough to hear every input, and a last layer that does not drive the tanh."""
    torch.manual_seed(0)
    vocoder = Vocoder(config).eval()
    for name, parameter in vocoder.named_parameters():
        if parameter.dim() == 3 and "dur_predictor" not in name:
            fan_in = parameter.shape[0 if name.startswith("ups") else 1] * parameter.shape[2]
            nn.init.normal_(parameter, std=(2 / fan_in) ** 0.5 * (0.1 if name.startswith("conv_post") else 1))
    return vocoder


def _golden(name: str) -> Vocoder:
    config = json.loads((GOLDEN / name / "config.json").read_text())
    weights = torch.load(GOLDEN / name / "generator.pt", weights_only=True)["generator"]
    return vocoder_from_official(config, weights)


@pytest.fixture(scope="module")
def vocoders(nano: spiritrt.SpiritLM) -> dict[str, Vocoder]:
    torch.set_num_threads(1)
    return {
        "base": _golden("hifigan_spiritlm_base"),
        "expressive": _golden("hifigan_spiritlm_expressive_w2v2"),
        "plain": _tiny(PLAIN),
        "odd": _tiny(ODD),
        "nano": nano.family.vocoder,
    }


KINDS = st.sampled_from(["base", "expressive", "plain", "odd", "nano"])


@dataclass
class Turn:
    """What went into a slot since its reset, and what came out."""

    units: list[int] = field(default_factory=list)
    pitch: list[int] = field(default_factory=list)
    style: list[int] = field(default_factory=list)
    frames: list[int] = field(default_factory=list)
    packets: list[Tensor] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)
    final: bool = False

    @property
    def samples(self) -> Tensor:
        return torch.cat(self.packets) if self.packets else torch.zeros(0)


class Rig:
    """A stream whose slots are compared with offline when they are flushed."""

    def __init__(self, vocoder: Vocoder, slots: int, seed: int = 0, given: bool = False, **options: int) -> None:
        self.vocoder, self.given = vocoder, given
        self.stream = VocoderStream(vocoder, slots, **options)  # type: ignore[arg-type]
        self.turns = {self.stream.open(): Turn() for _ in range(slots)}
        self.draw = torch.Generator().manual_seed(seed)

    def codes(self, count: int, kinds: int) -> list[int]:
        return torch.randint(0, kinds, (count,), generator=self.draw).tolist()

    def accept(self, slot: int, count: int) -> None:
        config, turn = self.vocoder.config, self.turns[slot]
        units = self.codes(count, config.num_embeddings)
        pitch = self.codes(count, config.num_f0_tokens) if config.num_f0_tokens else None
        style = self.codes(count, config.num_style_tokens) if config.num_style_tokens else None
        frames = [1 + n for n in self.codes(count, 4)] if self.given else None
        self.stream.accept(slot, units, pitch, style, frames)
        turn.units += units
        turn.pitch += pitch or []
        turn.style += style or []
        turn.frames += frames or []

    def step(self) -> None:
        for packet in self.stream.step():
            turn = self.turns[packet.slot]
            assert not turn.final
            assert packet.start == len(turn.samples)
            assert sum(samples for _, samples in packet.units) == len(packet.samples)
            turn.packets.append(packet.samples)
            turn.spans += packet.units
            turn.final = packet.final

    def reset(self, slot: int) -> None:
        self.stream.reset(slot)
        self.turns[slot] = Turn()

    def finish(self, slot: int) -> Turn:
        self.stream.flush(slot)
        while not self.turns[slot].final:
            assert slot in self.stream.ready()
            self.step()
        assert slot not in self.stream.ready()
        turn = self.turns[slot]
        self.reset(slot)
        return turn

    def offline(self, turn: Turn) -> tuple[Tensor, list[int]]:
        """Waveform, and samples of each unit."""
        codes = {name: torch.tensor(getattr(turn, name)) for name in ("units", "pitch", "style")}
        codes = {name: code.long() if len(turn.units) else code[:0].long() for name, code in codes.items()}
        config = self.vocoder.config
        extra = {
            n: codes[n] for n, kinds in (("pitch", config.num_f0_tokens), ("style", config.num_style_tokens)) if kinds
        }
        hop = config.hop_samples
        if self.given:
            frames = torch.tensor(turn.frames, dtype=torch.long)
            extra = {name: code.repeat_interleave(frames) for name, code in extra.items()}
            sound = vocode_expanded(self.vocoder, codes["units"].repeat_interleave(frames), **extra)
            return sound, [n * hop for n in turn.frames]
        with torch.no_grad():
            frames = self.vocoder.durations(codes["units"][None])[0] if turn.units else torch.zeros(0).long()
        return vocode_units(self.vocoder, codes["units"], **extra), [n * hop for n in frames.tolist()]

    def check(self, turn: Turn) -> None:
        offline, lengths = self.offline(turn)
        assert turn.samples.shape == offline.shape
        if len(offline):
            assert (turn.samples - offline).abs().max() <= 1e-5
        assert _totals(turn.spans, len(turn.units)) == lengths
        assert [unit for unit, _ in turn.spans] == sorted(unit for unit, _ in turn.spans)


def _totals(spans: Sequence[tuple[int, int]], units: int) -> list[int]:
    totals = [0] * units
    for unit, samples in spans:
        totals[unit] += samples
    return totals


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
    rig = Rig(vocoders[kind], 1, given=given_frames, chunk_frames=chunk)
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
    rig = Rig(vocoders[kind], 3, seed)
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


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("plain", ([3, 21],), "units 21 at position 1 is out of range: this vocoder knows 0..20"),
        ("plain", ([-1],), "units -1 at position 0 is out of range"),
        ("plain", ([1], [2]), "takes no pitch codes"),
        ("plain", ([1], None, [2]), "takes no style codes"),
        ("expressive", ([1],), "needs pitch codes"),
        ("expressive", ([1], [64], [0]), "pitch 64 at position 0 is out of range"),
        ("expressive", ([1, 2], [1], [0, 0]), "pitch has 1 codes for 2 units"),
        ("plain", ([1] * 33,), "slot 0 would hold 33 units: its limit is 32"),
        ("plain", ([1], None, None, [0]), "a unit lasts from 1 to 1000000 frames, got 0"),
        ("plain", ([1], None, None, [1, 1]), "frames has 2 durations for 1 units"),
    ],
)
def test_bad_input_is_named_and_touches_no_slot(
    vocoders: dict[str, Vocoder], kind: str, arguments: tuple, message: str
) -> None:
    rig = Rig(vocoders[kind], 2, max_units=32)
    rig.accept(1, 5)
    with pytest.raises(ValueError, match=message):
        rig.stream.accept(0, *arguments)
    rig.accept(0, 3)
    rig.check(rig.finish(1))
    rig.check(rig.finish(0))


def test_misuse_of_slots_is_named(vocoders: dict[str, Vocoder]) -> None:
    stream = VocoderStream(vocoders["plain"], 2)
    slot = stream.open()
    for call in (stream.flush, stream.reset, stream.close):
        with pytest.raises(ValueError, match="slot 1 is not open"):
            call(1)
    with pytest.raises(ValueError, match=r"slot 7 does not exist: this stream has slots 0..1"):
        stream.accept(7, [1])
    with pytest.raises(ValueError, match="speaker 4 is out of range"):
        stream.open(speaker=4)
    stream.open()
    with pytest.raises(ValueError, match="all 2 slots are open"):
        stream.open()
    stream.accept(slot, [1], frames=[2])
    with pytest.raises(ValueError, match="slot 0 began with given durations"):
        stream.accept(slot, [1])
    stream.flush(slot)
    with pytest.raises(ValueError, match="slot 0 was flushed"):
        stream.accept(slot, [1], frames=[2])
    with pytest.raises(ValueError, match="speaker 9 is out of range: this vocoder has 4"):
        stream.set_speaker(slot, 9)


def test_settings_are_checked(vocoders: dict[str, Vocoder]) -> None:
    for options, message in (
        ({"slots": 0}, "slots must be from 1 to 4096, got 0"),
        ({"chunk_frames": 0}, "chunk_frames must be at least 1"),
        ({"max_units": 0}, "max_units must be at least 1, got 0"),
        ({"look_ahead_frames": -1}, "look_ahead_frames must not be negative, got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            VocoderStream(vocoders["plain"], **options)  # type: ignore[arg-type]


def test_a_second_thread_inside_a_stream_gets_an_error_and_the_first_goes_on(vocoders: dict[str, Vocoder]) -> None:
    rig = Rig(vocoders["nano"], 1)
    rig.accept(0, 400)
    refusals: list[str] = []
    stop = threading.Event()

    def intrude() -> None:
        while not stop.is_set():
            try:
                rig.stream.ready()
            except RuntimeError as error:
                refusals.append(str(error))

    intruder = threading.Thread(target=intrude)
    intruder.start()
    try:
        for _ in range(2000):
            try:
                rig.step()
            except RuntimeError as error:
                refusals.append(str(error))
            if refusals and len(rig.turns[0].samples) > 16000:
                break
    finally:
        stop.set()
        intruder.join()
    assert refusals
    assert set(refusals) == {
        "another thread is inside this VocoderStream: one stream is driven by one thread at a time"
    }
    rig.check(rig.finish(0))


def test_two_threads_drive_two_streams(vocoders: dict[str, Vocoder]) -> None:
    rigs = [Rig(vocoders["plain"], 2, seed) for seed in range(2)]
    failures: list[BaseException] = []

    def drive(rig: Rig) -> None:
        try:
            for count in (3, 1, 8, 5):
                for slot in rig.turns:
                    rig.accept(slot, count)
                    rig.step()
            for slot in list(rig.turns):
                rig.check(rig.finish(slot))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=drive, args=(rig,)) for rig in rigs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


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
            rig = Rig(vocoders["plain"], 2, look_ahead_frames=frames)
            for _ in range(10):
                rig.accept(0, 4)
                rig.accept(1, 1)
                rig.step()
            turn = rig.finish(0)
            offline, lengths = rig.offline(turn)
            assert turn.samples.shape == offline.shape and torch.isfinite(turn.samples).all()
            assert _totals(turn.spans, len(turn.units)) == lengths
            errors.append((turn.samples - offline).square().mean().item())
        assert errors[0] > errors[1] > errors[2] > errors[3]
        assert errors[3] < 1e-10

    def test_packets_join_without_clicks(self, vocoders: dict[str, Vocoder]) -> None:
        """Spectral flux where packets meet is no larger than elsewhere."""
        rig = Rig(vocoders["nano"], 1, look_ahead_frames=2, chunk_frames=2)
        for _ in range(60):
            rig.accept(0, 1)
            rig.step()
        sound = rig.finish(0).samples
        window, hop = 256, 64
        spectrum = torch.stft(sound, window, hop, window=torch.hann_window(window), return_complex=True).abs()
        flux = (spectrum[:, 1:] - spectrum[:, :-1]).clamp(min=0).sum(0)
        centre = torch.arange(1, spectrum.shape[1]) * hop
        edge = torch.minimum(centre % 1280, 1280 - centre % 1280) <= window // 2
        assert flux[edge].mean() <= 1.25 * flux[~edge].mean()


def test_half_precision_is_close(vocoders: dict[str, Vocoder]) -> None:
    vocoder = vocoders["nano"]
    units = [7, 80, 211, 34, 350, 96] * 6
    stream = VocoderStream(vocoder, dtype=torch.bfloat16)
    slot = stream.open()
    stream.accept(slot, units, frames=[2] * len(units))
    stream.flush(slot)
    packets = []
    while stream.ready():
        packets += [packet.samples for packet in stream.step()]
    sound = torch.cat(packets)
    offline = vocode_expanded(vocoder, torch.tensor(units).repeat_interleave(2))
    assert sound.dtype == torch.float32 and sound.shape == offline.shape
    assert (sound - offline).square().sum() <= 0.01 * offline.square().sum()
