"""A loaded Spirit LM: language model, tokenizer, speech encoder and vocoder, shared by everything that uses them."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from spiritrt.audio import RATE_HZ, Samples
from spiritrt.models import checkpoints
from spiritrt.models.checkpoints import Checkpoint, CheckpointError
from spiritrt.models.hubert import (
    Hubert,
    KMeansQuantizer,
    LinearQuantizer,
    encode_units,
    hubert_from_official,
    quantizer_from_official,
)
from spiritrt.models.llama import Llama, LlamaConfig
from spiritrt.models.pitch import (
    FcpeTracker,
    PitchQuantizer,
    PitchTracker,
    YaaptTracker,
    encode_pitch,
    pitch_quantizer_from_official,
)
from spiritrt.models.style import StyleClassifier, encode_style, style_classifier_from_official
from spiritrt.models.vocoder import Vocoder, vocode_expanded, vocode_frames, vocoder_from_official
from spiritrt.models.weights import load_weights
from spiritrt.tokens.text import Tokenizer
from spiritrt.tokens.units import STYLES_WHERE_NONE, Units, expand
from spiritrt.tokens.vocabulary import SpeechToken, Vocabulary

M = TypeVar("M", bound=nn.Module)
SMALL_BYTES = 1 << 30  # a language model below this runs in float32 on a CPU
PITCH_WHERE_NONE, STYLE_WHERE_NONE = 0, STYLES_WHERE_NONE[0]  # for output of Expressive that holds neither token


class Family:
    """The parts of one Spirit LM. Each is loaded when it is first used; `load_all` loads all but the language model.

    `pitch_tracker` is "fcpe" or "yaapt". `dtype` is the language model's ("auto": as stored, or float32 for a model
    under 1 GiB on a CPU). The speech parts run in float32.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: str = "cpu",
        dtype: str = "auto",
        progress: bool = True,
        pitch_tracker: str = "fcpe",
    ) -> None:
        if pitch_tracker not in ("fcpe", "yaapt"):
            raise ValueError(f"pitch_tracker must be 'fcpe' or 'yaapt', got {pitch_tracker!r}")
        choices = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
        if dtype not in choices:
            raise ValueError(f"dtype must be one of {', '.join(choices)}, got {dtype!r}")
        self.device = usable_device(device)
        self.checkpoint = checkpoint
        self.name = checkpoint.name
        self._pitch_tracker = pitch_tracker
        self._dtype = choices[dtype]
        self.progress = progress

    @classmethod
    def load(cls, name_or_folder: str, device: str = "cpu", dtype: str = "auto", progress: bool = True) -> "Family":
        """Finds a model (see `checkpoints.find`) and loads every part now but the language model: engines load it."""
        return cls(checkpoints.find(name_or_folder), device, dtype, progress).load_all()

    def load_all(self) -> "Family":
        """Loads every part but the language model, which an engine loads, and returns the family itself."""
        for part in ("tokenizer", "hubert", "quantizer", "vocoder"):
            getattr(self, part)
        if self.expressive:
            _ = self.pitch_quantizer, self.style_classifier
        return self

    @property
    def vocabulary(self) -> Vocabulary:
        return self.tokenizer.vocabulary

    @cached_property
    def expressive(self) -> bool:
        """Whether speech has pitch and style tokens."""
        return self.vocabulary.expressive

    @cached_property
    def tokenizer(self) -> Tokenizer:
        if self.checkpoint.tokenizer is None:
            raise CheckpointError(f"{self.name} has no tokenizer.model in {self.checkpoint.folder}")
        return Tokenizer(self.checkpoint.tokenizer, self.lm_config.vocab_size)

    @cached_property
    def lm_config(self) -> LlamaConfig:
        """Shape of the language model."""
        return LlamaConfig.from_official(self._config("lm"))

    @property
    def lm_dtype(self) -> torch.dtype | None:
        """Number format of the language model's weights, None where it is to be as they are stored."""
        small = sum(f.stat().st_size for f in self.checkpoint.part("lm").files) < SMALL_BYTES
        return self._dtype or (torch.float32 if small and self.device.type == "cpu" else None)

    @cached_property
    def llama(self) -> Llama:
        """The language model in plain PyTorch, the truth for tests; an engine does not need it.

        Weights are memory-mapped one by one, so that loading needs little beyond their size.
        """
        part, config = self.checkpoint.part("lm"), self.lm_config
        with torch.device("meta"):
            llama = Llama(config)
        title = f"loading {self.name}" if self.progress else None
        tensors = {name: tensor.to(self.device, self.lm_dtype) for name, tensor in part.tensors(title)}
        if config.tie_word_embeddings and "model.embed_tokens.weight" in tensors:
            tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
        with part.named_in_errors():
            load_weights(llama, tensors, ignore=("*.rotary_emb.inv_freq",), assign=True)
        return llama.eval().requires_grad_(False)

    @cached_property
    def hubert(self) -> Hubert:
        return self._build("hubert", hubert_from_official)

    @cached_property
    def quantizer(self) -> LinearQuantizer | KMeansQuantizer:
        return self._build("quantizer", quantizer_from_official)

    @cached_property
    def vocoder(self) -> Vocoder:
        return self._build("vocoder", vocoder_from_official)

    @cached_property
    def pitch_quantizer(self) -> PitchQuantizer:
        return self._build("pitch", pitch_quantizer_from_official)

    @cached_property
    def style_classifier(self) -> StyleClassifier:
        return self._build("style", style_classifier_from_official)

    @cached_property
    def transcript_ids(self) -> list[int]:
        """Text ids that `<START Transcript>` needs: nano knows that form after speech too, and must answer instead."""
        return self.tokenizer.ids_with("<")

    @cached_property
    def silence(self) -> frozenset[int]:
        """Units that the encoder gives for two seconds of digital silence and of faint noise."""
        noise = np.random.default_rng(0).standard_normal(2 * RATE_HZ).astype(np.float32)
        units: set[int] = set()
        for level in (0.0, 1e-4):
            units.update(self.encode(level * noise).hubert)
        return frozenset(units)

    @cached_property
    def pitch_tracker(self) -> PitchTracker:
        return YaaptTracker() if self._pitch_tracker == "yaapt" else FcpeTracker(str(self.device))

    def trailing_silence_s(self, tokens: Sequence[SpeechToken]) -> float:
        """Predicted seconds of silence at the end of speech tokens, 0 where nothing sounded before it."""
        hubert = [token.code for token in tokens if token.kind == "Hu"]
        silent = 0
        while silent < len(hubert) and hubert[-1 - silent] in self.silence:
            silent += 1
        if silent in (0, len(hubert)):
            return 0.0
        lengths = self.durations(expand(tokens[-4 * (silent + 2) :]))
        return sum(lengths[-silent:]) * self.vocoder.config.hop_samples / RATE_HZ

    def check_voice(self, speaker: int | None, style: int | None) -> None:
        """Raises ValueError where the vocoder has no such speaker or named style."""
        if speaker is None and style is None:
            return  # text alone needs no vocoder
        config = self.vocoder.config
        for name, value, count in (("speaker", speaker, config.num_speakers), ("style", style, config.num_styles)):
            if value is not None and not 0 <= value < count:
                has = f"{count}, numbered from 0" if count else "none"
                raise ValueError(f"{name} {value} is out of range: {self.name} has {has}")

    def encode(self, samples: Samples) -> Units:
        """Raw unit frames of mono `samples` [N] at 16 kHz: HuBERT 25 Hz and, in Expressive, pitch 12.5, style 1 Hz.

        Raises ValueError for sound under 80 ms, or with NaN or infinite samples.
        """
        waveform = torch.from_numpy(samples).to(self.device)
        hubert = encode_units(self.hubert, self.quantizer, waveform).tolist()
        if not self.expressive:
            return Units(hubert)
        pitch = encode_pitch(self.pitch_tracker, self.pitch_quantizer, waveform).tolist()
        return Units(hubert, pitch, encode_style(self.style_classifier, waveform).tolist())

    def vocode(
        self, tokens: Sequence[SpeechToken], speaker: int | None = None, style: int | None = None, seed: int = 0
    ) -> tuple[Samples, list[int]]:
        """Sound [N] at 16 kHz of speech tokens, with predicted durations, and the samples that each unit lasts.

        `speaker` defaults to 2 (as far as there are so many), `style` is a named style of Base vocoders; `seed` draws
        a style where Expressive tokens have pitch and no style. Without any pitch they sound at pitch code 0, without
        either in style 71. Pitch and style tokens are left out where the vocoder has none. Raises ValueError for ids
        out of range.
        """
        units = expand(tokens, seed=seed)
        lengths = self.durations(units)
        samples = self.vocode_expanded(units.repeat(lengths), speaker, style)
        return samples, [frames * self.vocoder.config.hop_samples for frames in lengths]

    def durations(self, units: Units) -> list[int]:
        """Predicted frames (25 Hz) of each of deduplicated `units`."""
        if not units.hubert:
            return []
        with torch.no_grad():
            return self.vocoder.durations(torch.tensor([units.hubert], device=self.device))[0].tolist()

    def vocode_expanded(self, units: Units, speaker: int | None = None, style: int | None = None) -> Samples:
        """Sound [640 * T] at 16 kHz of codes that all have one entry a frame (25 Hz); no pitch or style as `vocode`."""
        codes = self._codes(units, complete=True)
        return vocode_expanded(self.vocoder, **codes, speaker=speaker, named_style=style).cpu().numpy()

    def vocode_frames(self, units: Units, speaker: int | None = None, style: int | None = None) -> Samples:
        """Sound [640 * T] at 16 kHz of raw frames as `encode` gives them, exactly as long as they are."""
        codes = self._codes(units)
        return vocode_frames(self.vocoder, **codes, speaker=speaker, named_style=style).cpu().numpy()

    def _codes(self, units: Units, complete: bool = False) -> dict[str, Tensor]:
        config = self.vocoder.config
        codes = {"units": units.hubert}
        for name, values, count, absent in (
            ("pitch", units.pitch, config.num_f0_tokens, PITCH_WHERE_NONE),
            ("style", units.style, config.num_style_tokens, STYLE_WHERE_NONE),
        ):
            if count and values is None and units.hubert:
                if not complete:
                    raise ValueError(f"{self.name} needs {name} codes to make speech, and these units have none")
                values = (min(absent, count - 1),) * len(units.hubert)
            if count:
                codes[name] = values or ()
        return {name: torch.tensor(values, dtype=torch.long, device=self.device) for name, values in codes.items()}

    def _config(self, part: str) -> dict:
        return self.checkpoint.part(part).config

    def _build(self, name: str, make: Callable[[dict, dict[str, Tensor]], M]) -> M:
        part = self.checkpoint.part(name)
        with part.named_in_errors():
            return make(part.config, part.load()).to(self.device)


def usable_device(name: str) -> torch.device:
    """The device of that name. Raises ValueError with the reason where this machine or this torch cannot use it."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device {name!r} cannot be used here: it must be cpu, cuda or cuda:N") from error
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return device
