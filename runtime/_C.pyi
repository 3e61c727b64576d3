"""Types of the native module (csrc/)."""

from collections.abc import Mapping, Sequence

from torch import Tensor

def build_info() -> dict[str, str | int]: ...

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

class VocoderStream:
    def __init__(
        self,
        shape: VocoderShape,
        weights: Mapping[str, Tensor],
        *,
        slots: int,
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

class HubertStream:
    def __init__(
        self,
        shape: HubertShape,
        hubert: Mapping[str, Tensor],
        quantizer: Mapping[str, Tensor],
        *,
        slots: int,
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
    def flush(self, slot: int, end: int | None = None) -> None: ...
    def reset(self, slot: int) -> None: ...
    def accepted(self, slot: int) -> int: ...
    @property
    def hop_samples(self) -> int: ...
