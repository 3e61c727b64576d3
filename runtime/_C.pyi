"""Types of the native module (csrc/)."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

def build_info() -> dict[str, str | int]: ...
def cpu_targets() -> list[str]: ...
def set_cpu_target(name: str) -> None: ...
def cpu_linear(
    x: Tensor,
    data: Tensor,
    scales: Tensor | None,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    epsilon: float,
    gated: bool,
    residual: Tensor | None,
    needed: Tensor | None,
) -> Tensor: ...
def cpu_rms_norm(x: Tensor, weight: Tensor, epsilon: float, residual: Tensor | None) -> tuple[Tensor, Tensor]: ...
def cpu_embed(ids: Tensor, table: Tensor, slots: Tensor | None, last_ids: Tensor | None) -> Tensor: ...
def cpu_rotary_attention(
    qkv: Tensor,
    cos_sin: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    starts: Tensor,
    offsets: Tensor,
    page_table: Tensor,
    heads: int,
) -> Tensor: ...
def cpu_shift_rotary(
    keys: Tensor, values: Tensor, source: Tensor, target: Tensor, delta: int, inv_freq: Tensor
) -> None: ...
def cpu_sampling(
    logits: Tensor,
    slots: Tensor,
    positions: Tensor,
    mask: Tensor,
    masks: Tensor,
    seed: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    penalty: Tensor,
    seen: Tensor,
    last_ids: Tensor,
    full: Tensor,
) -> tuple[Tensor, Tensor]: ...

class VocoderShape:
    upsample_rates: Sequence[int]
    upsample_kernel_sizes: Sequence[int]
    resblock_kernel_sizes: Sequence[int]
    resblock_dilation_sizes: Sequence[Sequence[int]]
    upsample_initial_channel: int
    num_embeddings: int
    embedding_dim: int
    num_speakers: int
    num_styles: int
    num_f0_tokens: int
    num_style_tokens: int
    default_speaker: int
    default_named_style: int
    var_pred_hidden_dim: int
    var_pred_kernel_size: int

class VocoderPacket:
    @property
    def slot(self) -> int: ...
    @property
    def start(self) -> int: ...
    @property
    def samples(self) -> Tensor: ...
    @property
    def units(self) -> list[tuple[int, int]]: ...
    @property
    def final(self) -> bool: ...

class VocoderBatch:
    slots: Tensor
    fed: Tensor
    total: Tensor
    codes: Tensor
    @property
    def frames(self) -> int: ...
    @property
    def inside(self) -> bool: ...

class VocoderStream:
    def __init__(
        self,
        shape: VocoderShape,
        weights: Mapping[str, Tensor],
        *,
        slots: int,
        dtype: torch.dtype,
        chunk_frames: int,
        max_frames: int,
        max_units: int,
        look_ahead_frames: int | None,
    ) -> None: ...
    def open(self) -> int: ...
    def close(self, slot: int) -> None: ...
    def accept(
        self,
        slot: int,
        units: Sequence[int],
        pitch: Sequence[int] | None = None,
        style: Sequence[int] | None = None,
        frames: Sequence[int] | None = None,
    ) -> None: ...
    def ready(self) -> list[int]: ...
    def step(self) -> list[VocoderPacket]: ...
    def step_with(self, compute: Callable[[VocoderBatch], Tensor]) -> list[VocoderPacket]: ...
    def run(self, batch: VocoderBatch) -> Tensor: ...
    def spare_batch(self, rows: int, frames: int, inside: bool) -> VocoderBatch: ...
    def flush(self, slot: int) -> None: ...
    def reset(self, slot: int) -> None: ...
    def set_speaker(self, slot: int, speaker: int) -> None: ...
    def set_named_style(self, slot: int, named_style: int) -> None: ...
    @property
    def hop_samples(self) -> int: ...
    @property
    def delay_samples(self) -> int: ...
    @property
    def delay_units(self) -> int: ...

class HubertShape:
    conv_layers: Sequence[tuple[int, int, int]]
    layer_norm_extractor: bool
    conv_bias: bool
    layer_norm_first: bool
    conv_pos_batch_norm: bool
    normalize: bool
    relu: bool
    encoder_embed_dim: int
    encoder_ffn_embed_dim: int
    encoder_attention_heads: int
    conv_pos: int
    conv_pos_groups: int
    required_seq_len_multiple: int
    output_layer: int

class Revision:
    @property
    def changed(self) -> int: ...
    @property
    def first(self) -> int: ...
    @property
    def tail(self) -> list[int]: ...

class HubertPacket:
    @property
    def slot(self) -> int: ...
    @property
    def start(self) -> int: ...
    @property
    def units(self) -> list[int]: ...
    @property
    def provisional(self) -> list[int]: ...
    @property
    def final(self) -> bool: ...
    @property
    def revision(self) -> Revision | None: ...

class HubertBatch:
    @property
    def input(self) -> Tensor: ...
    @property
    def first(self) -> int: ...
    @property
    def full(self) -> bool: ...

class HubertStream:
    def __init__(
        self,
        shape: HubertShape,
        hubert: Mapping[str, Tensor],
        quantizer: Mapping[str, Tensor],
        *,
        slots: int,
        dtype: torch.dtype,
        left_frames: int | None,
        chunk_frames: int,
        look_ahead_frames: int | None,
        norm: str,
        calibration: tuple[Tensor, Tensor] | None,
        freeze_frames: int,
        provisional: bool,
        revise: bool,
        buffer_samples: int,
    ) -> None: ...
    def open(self) -> int: ...
    def close(self, slot: int) -> None: ...
    def accept(self, slot: int, samples: Tensor) -> None: ...
    def ready(self) -> list[int]: ...
    def step(self) -> list[HubertPacket]: ...
    def step_with(self, compute: Callable[[HubertBatch], Tensor]) -> list[HubertPacket]: ...
    def classify(self, input: Tensor, first: int) -> Tensor: ...
    def flush(self, slot: int, end: int | None = None) -> None: ...
    def reset(self, slot: int) -> None: ...
    def accepted(self, slot: int) -> int: ...
    @property
    def hop_samples(self) -> int: ...
