"""Model shapes that are measured, of which no checkpoint is needed."""

from dataclasses import dataclass

from spiritrt.models.llama import LlamaConfig
from spiritrt.tokens.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class Preset:
    """A shape by name, with the id layout that says which rows of the head speech needs."""

    name: str
    config: LlamaConfig
    vocabulary: Vocabulary

    @property
    def speech(self) -> range:
        """Ids that a step of speech alone may draw."""
        return range(self.vocabulary.first_unit, self.vocabulary.size)


def _preset(name: str, vocabulary: Vocabulary, width: int, inner: int, layers: int, heads: int, context: int) -> Preset:
    config = LlamaConfig(
        vocabulary.rows, width, inner, layers, heads, heads, width // heads, context, rope_theta=100_000.0
    )
    return Preset(name, config, vocabulary)


PRESETS = {
    preset.name: preset
    for preset in (
        _preset("7b", Vocabulary(), 4096, 11008, 32, 32, 4096),  # Spirit LM Base
        _preset("nano", Vocabulary(text_size=1024, rows=1536), 256, 704, 6, 4, 2048),  # the model that is shipped
        _preset("tiny", Vocabulary(text_size=64, units=60, rows=128), 64, 96, 2, 2, 256),  # for tests
    )
}


def preset(name: str) -> Preset:
    """A shape by name. Raises ValueError for one that there is not."""
    if name not in PRESETS:
        raise ValueError(f"shape must be one of {', '.join(PRESETS)}, got {name!r}")
    return PRESETS[name]
