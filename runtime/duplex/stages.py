"""The models in the form in which all sessions of a runtime share them: encoder, language model, vocoder."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from spiritrt import audio
from spiritrt.duplex.config import ReplyPolicy
from spiritrt.duplex.reply_tokens import MASKS, Language, Mask
from spiritrt.duplex.token_streams import ReplyVoices, TurnEncoder
from spiritrt.engine.engine import Engine
from spiritrt.engine.steps import Row
from spiritrt.models.family import Family
from spiritrt.tokens.units import merge
from spiritrt.tokens.vocabulary import BOS, EOS, SpeechToken

CPU_TOKENS_A_SESSION = 3072  # pages of the pool: a context, and what its draft writes anew


@dataclass(frozen=True, slots=True)
class Stages:
    """What a scheduler works with; `load` makes it. `prefix` is the engine's slot that every context begins with.

    `weights` and `cache` are the choices that the engine was made with.
    """

    family: Family
    language: Language
    encoder: TurnEncoder
    engine: Engine
    voices: ReplyVoices
    masks: Mapping[Mask, int]
    prefix: int
    sessions: int
    alone: bool
    weights: str = "auto"
    cache: str = "auto"

    @property
    def running(self) -> dict[str, str | int | float | bool]:
        """What makes the results: model, versions, kernels."""
        files = [file for part in self.family.checkpoint.parts.values() for file in part.files]
        kernels = self.engine.kernels.names
        return {
            "spiritrt": version("spiritrt"),
            "torch": torch.__version__,
            "silero_vad": _version("silero_vad"),
            "onnxruntime": _version("onnxruntime"),
            "model": self.family.name,
            "bytes": sum(file.stat().st_size for file in files),
            "device": str(self.family.device),
            "weights": self.engine.weights.stored.__repr__().removeprefix("torch."),
            "kernels": " ".join(f"{op}={name}" for op, name in sorted(kernels.items())),
            "weights_choice": self.weights,
            "cache_choice": self.cache,
            "prefix": len(self.language.prefix),
            "prefix_digest": blake2b(repr(self.language.prefix).encode(), digest_size=8).hexdigest(),
            "alone": self.alone,
            "threads": torch.get_num_threads(),
        }

    @classmethod
    def load(
        cls,
        family: Family,
        sessions: int,
        *,
        prefix: Path | None = None,
        weights: str = "auto",
        cache: str = "auto",
        kernels: Mapping[str, str] | None = None,
        tokens: int | None = None,
        alone: bool | None = None,
        threads: int = 1,
        progress: bool = False,
    ) -> "Stages":
        """Makes room for `sessions` conversations with a family.

        Args:
            prefix: few-shot examples that every context begins with, see `read_prefix`.
            weights, cache, kernels, tokens: of the `Engine`.
            alone: whether encoder and vocoder step sessions one after the other, so that their bits do not depend on
                the batch; by default on a CPU.
            threads: of torch on a CPU, in the whole process.

        Raises ValueError for a prefix that is not one, and what `Engine` raises.
        """
        if sessions < 1:
            raise ValueError(f"sessions must be at least 1, got {sessions}")
        on_cpu = family.device.type == "cpu"
        if on_cpu:  # threads inside every operation meet hundreds of times a step: slower, under load by far
            torch.set_num_threads(threads)
        alone = on_cpu if alone is None else alone
        ids = (BOS, *(read_prefix(prefix, family) if prefix else ()))
        if tokens is None and on_cpu:
            tokens = CPU_TOKENS_A_SESSION * sessions + len(ids)
        # a context and a draft of each, the prefix, and a spare one to measure with
        engine = Engine(
            family, 2 * sessions + 2, tokens, weights=weights, cache=cache, kernels=kernels, progress=progress
        )
        language = language_of(family, ids, engine.context)
        masks = {name: engine.mask(allowed(name, family)) for name in MASKS}
        return cls.around(family, language, engine, masks, sessions, alone, weights, cache)

    @classmethod
    def around(
        cls,
        family: Family,
        language: Language,
        engine: Engine,
        masks: Mapping[Mask, int],
        sessions: int,
        alone: bool,
        weights: str = "auto",
        cache: str = "auto",
    ) -> "Stages":
        """Stages about an engine with room for `2 * sessions + 2` contexts; the prefix is read here, once for all."""
        slot = engine.open()
        engine.step([Row(slot, language.prefix, draw=False)])
        encoder, voices = TurnEncoder(family, sessions + 1, alone), ReplyVoices(family, sessions + 1, alone)
        return cls(family, language, encoder, engine, voices, masks, slot, sessions, alone, weights, cache)


def _version(package: str) -> str:
    """Of a package that may be absent."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def language_of(family: Family, prefix: tuple[int, ...], window: int) -> Language:
    """What a session has to know of a family."""
    config = family.vocoder.config
    kinds = ("Pi",) * (config.num_f0_tokens > 0) + ("St",) * (config.num_style_tokens > 0)
    chain = family.checkpoint.reply == "chain"
    return Language(family.vocabulary, family.tokenizer.decode, chain, window, prefix, family.silence, kinds)


def default_policy(family: Family) -> ReplyPolicy:
    """The reply policy that a family is trained for."""
    return "chain" if family.checkpoint.reply == "chain" else "continuation"


def allowed(mask: Mask, family: Family) -> torch.Tensor:
    """The ids [V] that a mask lets through; see `reply_tokens.py` for when each is used."""
    vocabulary = family.vocabulary
    if mask in ("speech", "speech_end"):
        ids = vocabulary.allowed("speech")
        ids[EOS] = mask == "speech_end"
        return ids
    ids = vocabulary.allowed("text")
    ids[EOS] = mask == "text_end"
    ids[vocabulary.speech_marker] = mask == "text_end"
    if family.checkpoint.reply == "chain":
        ids[family.transcript_ids] = False
    return ids


def read_prefix(file: Path, family: Family) -> list[int]:
    """The ids of a few-shot prefix, without BOS.

    A `.jsonl` file holds one exchange a line: {"audio": FILE, "text": WORDS, "reply": FILE}, any of which may be left
    out; files are relative to it, and an exchange is closed by an end token where the model is trained so. Any other
    file holds a prompt string, such as `[Speech][Hu12]...[Text]...`. Raises ValueError naming what cannot be read.
    """
    text = file.read_text(encoding="utf-8")
    if file.suffix != ".jsonl":
        if file.suffix == ".json" or text.lstrip().startswith("{"):
            raise ValueError(f"{file}: exchanges go into a .jsonl file, one a line")
        try:
            family.vocabulary.check_prompt(text)
            return family.tokenizer.encode(text.strip(), bos=False)
        except ValueError as error:
            raise ValueError(f"{file}: not a prompt string: {error}") from error
    ids: list[int] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            if not isinstance(entry, dict) or not entry or set(entry) - {"audio", "text", "reply"}:
                raise ValueError("expected audio, text and reply")
            for key in ("audio", "text", "reply"):
                if key in entry:
                    ids += _text(entry[key], family) if key == "text" else _speech(file.parent / entry[key], family)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{file}:{number}: not an exchange of a few-shot prefix: {error}") from error
        if family.checkpoint.reply == "chain":
            ids.append(EOS)
    return ids


def _text(words: str, family: Family) -> list[int]:
    return [family.vocabulary.text_marker, *family.tokenizer.encode(words, bos=False)]


def _speech(file: Path, family: Family) -> list[int]:
    tokens: list[SpeechToken] = merge(family.encode(audio.load(file)))
    return [family.vocabulary.speech_marker, *map(family.vocabulary.id_of, tokens)]
