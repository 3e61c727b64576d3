"""A loaded Spirit LM: language model, tokenizer, speech encoder and vocoder, shared by everything that uses them."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from spiritrt.audio import RATE_HZ, Samples
from spiritrt.models import checkpoints
from spiritrt.models.checkpoints import Checkpoint, CheckpointError
from spiritrt.models.hubert import Hubert, KMeansQuantizer, LinearQuantizer, encode_units, hubert_from_official
from spiritrt.models.hubert import quantizer_from_official
from spiritrt.models.llama import Llama, LlamaConfig
from spiritrt.models.pitch import FcpeTracker, PitchQuantizer, PitchTracker, encode_pitch, pitch_quantizer_from_official
from spiritrt.models.style import StyleClassifier, encode_style, style_classifier_from_official
from spiritrt.models.vocoder import Vocoder, vocode_frames, vocode_units, vocoder_from_official
from spiritrt.models.weights import load_weights
from spiritrt.tokens.text import Tokenizer
from spiritrt.tokens.units import Units, expand
from spiritrt.tokens.vocabulary import SpeechToken, Vocabulary

SMALL_BYTES = 1 << 30  # a language model below this runs in float32 on a CPU


class Family:
    """The parts of one Spirit LM. Each is loaded when it is first used; `load` loads all of them.

    `dtype` is the language model's ("auto": as stored, or float32 for a model under 1 GiB on a CPU). The speech parts
    run in float32.
    """

    def __init__(self, checkpoint: Checkpoint, device: str = "cpu", dtype: str = "auto", progress: bool = True) -> None:
        choices = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
        if dtype not in choices:
            raise ValueError(f"dtype must be one of {', '.join(choices)}, got {dtype!r}")
        try:
            self.device = torch.device(device)
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}") from error
        self.checkpoint = checkpoint
        self.name = checkpoint.name
        self.pitch_tracker: PitchTracker | None = None
        self._dtype = choices[dtype]
        self._progress = progress

    @classmethod
    def load(cls, name_or_folder: str, device: str = "cpu", dtype: str = "auto", progress: bool = True) -> "Family":
        """Finds a model (see `checkpoints.find`) and loads every part of it now."""
        family = cls(checkpoints.find(name_or_folder), device, dtype, progress)
        for part in ("tokenizer", "llama", "hubert", "quantizer", "vocoder"):
            getattr(family, part)
        if family.expressive:
            _ = family.pitch_quantizer, family.style_classifier
        return family

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
        return Tokenizer(self.checkpoint.tokenizer, LlamaConfig.from_official(self._config("lm")).vocab_size)

    @cached_property
    def llama(self) -> Llama:
        """The language model, its weights memory-mapped one by one, so that loading needs little beyond their size."""
        part = self.checkpoint.part("lm")
        config = LlamaConfig.from_official(part.config)
        with torch.device("meta"):
            llama = Llama(config)
        small = sum(f.stat().st_size for f in part.files) < SMALL_BYTES
        dtype = self._dtype or (torch.float32 if small and self.device.type == "cpu" else None)
        title = f"loading {self.name}" if self._progress else None
        tensors = {name: tensor.to(self.device, dtype) for name, tensor in part.tensors(title)}
        if config.tie_word_embeddings and "model.embed_tokens.weight" in tensors:
            tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
        load_weights(llama, tensors, ignore=("*.rotary_emb.inv_freq",), assign=True)
        return llama.eval().requires_grad_(False)

    @cached_property
    def hubert(self) -> Hubert:
        return hubert_from_official(self._config("hubert"), self._tensors("hubert")).to(self.device)

    @cached_property
    def quantizer(self) -> LinearQuantizer | KMeansQuantizer:
        return quantizer_from_official(self._config("quantizer"), self._tensors("quantizer")).to(self.device)

    @cached_property
    def vocoder(self) -> Vocoder:
        return vocoder_from_official(self._config("vocoder"), self._tensors("vocoder")).to(self.device)

    @cached_property
    def pitch_quantizer(self) -> PitchQuantizer:
        return pitch_quantizer_from_official(self._config("pitch"), self._tensors("pitch")).to(self.device)

    @cached_property
    def style_classifier(self) -> StyleClassifier:
        return style_classifier_from_official(self._config("style"), self._tensors("style")).to(self.device)

    @cached_property
    def silence(self) -> frozenset[int]:
        """Units that the encoder gives for two seconds of digital silence and of faint noise."""
        noise = np.random.default_rng(0).standard_normal(2 * RATE_HZ).astype(np.float32)
        units: set[int] = set()
        for level in (0.0, 1e-4):
            units.update(self.encode(level * noise).hubert)
        return frozenset(units)

    def encode(self, samples: Samples) -> Units:
        """Raw unit frames of mono `samples` [N] at 16 kHz: HuBERT 25 Hz and, in Expressive, pitch 12.5, style 1 Hz.

        Raises ValueError for sound under 80 ms, or with NaN or infinite samples.
        """
        waveform = torch.from_numpy(samples).to(self.device)
        hubert = encode_units(self.hubert, self.quantizer, waveform).tolist()
        if not self.expressive:
            return Units(hubert)
        if self.pitch_tracker is None:
            self.pitch_tracker = FcpeTracker(str(self.device))
        pitch = encode_pitch(self.pitch_tracker, self.pitch_quantizer, waveform).tolist()
        return Units(hubert, pitch, encode_style(self.style_classifier, waveform).tolist())

    def vocode(
        self, tokens: Sequence[SpeechToken], speaker: int | None = None, style: int | None = None, seed: int = 0
    ) -> tuple[Samples, list[int]]:
        """Sound [N] at 16 kHz of speech tokens, with predicted durations, and the samples that each unit lasts.

        `speaker` defaults to 2 (as far as there are so many), `style` is a named style of Base vocoders; `seed` draws
        a style where Expressive tokens have pitch and no style. Pitch and style tokens are left out where the vocoder
        has none. Raises ValueError for ids out of range.
        """
        units = expand(tokens, seed=seed)
        if not units.hubert:
            return np.zeros(0, np.float32), []
        codes = self._codes(units)
        samples = vocode_units(self.vocoder, **codes, speaker=speaker, named_style=style)
        hop = self.vocoder.config.hop_samples
        lengths = (self.vocoder.durations(codes["units"][None])[0] * hop).tolist()
        return samples.cpu().numpy(), lengths

    def vocode_frames(self, units: Units, speaker: int | None = None, style: int | None = None) -> Samples:
        """Sound [640 * T] at 16 kHz of raw unit frames, exactly as long as they are."""
        codes = self._codes(units)
        return vocode_frames(self.vocoder, **codes, speaker=speaker, named_style=style).cpu().numpy()

    def _codes(self, units: Units) -> dict[str, Tensor]:
        config = self.vocoder.config
        codes = {"units": units.hubert}
        for name, values, count in (
            ("pitch", units.pitch, config.num_f0_tokens),
            ("style", units.style, config.num_style_tokens),
        ):
            if count and values is None:
                raise ValueError(f"{self.name} needs {name} codes to make speech, and these units have none")
            if count and values is not None:
                codes[name] = values
        return {name: torch.tensor(values, device=self.device) for name, values in codes.items()}

    def _config(self, part: str) -> dict:
        return self.checkpoint.part(part).config

    def _tensors(self, part: str) -> dict[str, Tensor]:
        return self.checkpoint.part(part).load()
