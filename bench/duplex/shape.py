"""A language model of a published size with random weights, between nano's ears and voice: times alone mean something.

Its replies are drawn from all units, so they babble until `max_reply_s`; what it costs to hear, decode, vocode and
schedule them is what a trained model of the size costs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from spiritrt.bench.shapes import Preset, preset
from spiritrt.duplex.reply_tokens import Language, Mask
from spiritrt.duplex.stages import Stages
from spiritrt.engine.engine import Engine
from spiritrt.engine.weights import pack, random_tensors, unpack
from spiritrt.models.family import Family
from spiritrt.tokens.vocabulary import BOS

TINY_CONTEXT = 1024  # a conversation needs some room


def random_stages(
    family: Family,
    shape: str,
    sessions: int,
    *,
    weights: str = "auto",
    cache: str = "auto",
    kernels: Mapping[str, str] | None = None,
    tokens: int | None = None,
) -> Stages:
    """Stages of `family` but for its language model, which has `shape` (see `bench.shapes`) and random weights.

    `weights` "auto" is bf16 on CUDA and fp32 on a CPU. Raises ValueError for an unknown shape and what `Engine` raises.
    """
    of = fitting(preset(shape), family)
    cuda = family.device.type == "cuda"
    dtype = torch.bfloat16 if cuda else torch.float32
    stored = ("bf16" if cuda else "fp32") if weights == "auto" else weights
    packed = pack(of.config, random_tensors(of.config, dtype, str(family.device)), stored, family.device)
    engine = Engine(
        unpack(of.config, packed, dtype), 2 * sessions + 2, tokens, cache=cache, kernels=kernels, progress=False
    )
    language = Language(of.vocabulary, _no_text, False, engine.context, (BOS,))
    speech = torch.zeros(of.config.vocab_size, dtype=torch.bool)
    sounding = min(of.vocabulary.units, family.vocoder.dict.num_embeddings)
    speech[of.vocabulary.first_unit : of.vocabulary.first_unit + sounding] = True
    mask = engine.mask(speech)
    masks: dict[Mask, int] = {"speech": mask, "text": mask, "text_end": mask}
    return Stages.around(family, language, engine, masks, sessions, alone=not cuda)


def fitting(of: Preset, family: Family) -> Preset:
    """The shape with room for the family's units, and for a conversation: what the tests' tiny one lacks."""
    vocabulary, config = of.vocabulary, of.config
    if vocabulary.units < family.vocabulary.units:
        vocabulary = replace(
            vocabulary, units=family.vocabulary.units, rows=vocabulary.rows + family.vocabulary.units
        )  # fmt: skip
        config = replace(config, vocab_size=vocabulary.rows)
    context = max(config.max_position_embeddings, TINY_CONTEXT)
    return Preset(of.name, replace(config, max_position_embeddings=context), vocabulary)


def _no_text(ids: Sequence[int]) -> str:
    raise ValueError(f"a model with random weights has no text, and was asked for that of {len(ids)} ids")
