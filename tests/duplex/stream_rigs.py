"""Streams under test: tiny models in which every input is heard, and rigs that remember what went through a stream."""

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from spiritrt.duplex.streams import HubertStream, VocoderStream
from spiritrt.models.hubert import (
    Hubert,
    HubertConfig,
    KMeansQuantizer,
    LinearQuantizer,
    encode_units,
    hubert_from_official,
    quantizer_from_official,
)
from spiritrt.models.vocoder import Vocoder, VocoderConfig, vocode_expanded, vocode_units, vocoder_from_official

SPEECH_TOKENIZER = Path(__file__).parents[1] / "data/golden/checkpoints/speech_tokenizer"
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
Quantizer = LinearQuantizer | KMeansQuantizer
Parts = tuple[Hubert, Quantizer]
Model = TypeVar("Model", bound=nn.Module)
UNLIMITED = {"left_ms": None, "look_ahead_ms": None}
ROLLING = {"left_ms": 400, "chunk_ms": 80, "look_ahead_ms": 120}

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


def on(device: str, model: Model) -> Model:
    return model if device == "cpu" else copy.deepcopy(model).to(device)


def tiny_vocoder(config: VocoderConfig) -> Vocoder:
    """Weights large enough to hear every input, and a last layer that does not drive the tanh."""
    torch.manual_seed(0)
    vocoder = Vocoder(config).eval()
    for name, parameter in vocoder.named_parameters():
        if parameter.dim() == 3 and "dur_predictor" not in name:
            fan_in = parameter.shape[0 if name.startswith("ups") else 1] * parameter.shape[2]
            nn.init.normal_(parameter, std=(2 / fan_in) ** 0.5 * (0.1 if name.startswith("conv_post") else 1))
    return vocoder


def golden_vocoder(name: str) -> Vocoder:
    config = json.loads((SPEECH_TOKENIZER / name / "config.json").read_text())
    weights = torch.load(SPEECH_TOKENIZER / name / "generator.pt", weights_only=True)["generator"]
    return vocoder_from_official(config, weights)


@dataclass
class SpokenTurn:
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


class VocoderRig:
    """A stream whose slots are compared with offline when they are flushed."""

    def __init__(
        self, vocoder: Vocoder, slots: int, seed: int = 0, given: bool = False, device: str = "cpu", **options: object
    ) -> None:
        self.vocoder, self.given = vocoder, given
        self.stream = VocoderStream(on(device, vocoder), slots, **options)  # type: ignore[arg-type]
        self.turns = {self.stream.open(): SpokenTurn() for _ in range(slots)}
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
        self.turns[slot] = SpokenTurn()

    def finish(self, slot: int) -> SpokenTurn:
        self.stream.flush(slot)
        while not self.turns[slot].final:
            assert slot in self.stream.ready()
            self.step()
        assert slot not in self.stream.ready()
        turn = self.turns[slot]
        self.reset(slot)
        return turn

    def offline(self, turn: SpokenTurn) -> tuple[Tensor, list[int]]:
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

    def check(self, turn: SpokenTurn) -> None:
        offline, lengths = self.offline(turn)
        assert turn.samples.shape == offline.shape
        if len(offline):
            assert (turn.samples - offline).abs().max() <= 1e-5
        assert totals(turn.spans, len(turn.units)) == lengths
        assert [unit for unit, _ in turn.spans] == sorted(unit for unit, _ in turn.spans)


def totals(spans: Sequence[tuple[int, int]], units: int) -> list[int]:
    totals = [0] * units
    for unit, samples in spans:
        totals[unit] += samples
    return totals


def tiny_hubert(seed: int = 0, **changes: object) -> Parts:
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


def golden_hubert() -> Parts:
    folder = SPEECH_TOKENIZER / "hubert_25hz"
    hubert = torch.load(folder / "mhubert_base_25hz.pt", weights_only=True)
    quantizer = torch.load(folder / "L11_quantizer_500.pt", weights_only=True)
    return hubert_from_official(hubert, hubert["model_weight"]), quantizer_from_official(
        quantizer, quantizer["model_weight"]
    )


def noise(samples: int, seed: int = 0) -> Tensor:
    return torch.randn(samples, generator=torch.Generator().manual_seed(seed)) * 0.1


@dataclass
class HeardTurn:
    """What went into a slot since its reset, and what came out."""

    sound: list[Tensor] = field(default_factory=list)
    units: list[int] = field(default_factory=list)
    final: bool = False


class HubertRig:
    """A stream with several slots, and what went through it."""

    def __init__(self, parts: Parts, slots: int = 1, **options: object) -> None:
        self.parts = parts
        self.stream = HubertStream(*parts, slots, **options)  # type: ignore[arg-type]
        self.turns = {self.stream.open(): HeardTurn() for _ in range(slots)}

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
        self.turns[slot] = HeardTurn()

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


def offline_units(parts: Parts, sound: Tensor) -> list[int]:
    return encode_units(*parts, sound).tolist() if len(sound) >= 1280 else []
