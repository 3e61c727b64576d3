"""Strings to ids and back: SentencePiece for text, exact spellings for markers and speech tokens."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import sentencepiece

from spiritrt.tokens.vocabulary import BOS, KINDS, SPEECH_MARKER, TEXT_MARKER, Vocabulary

_EXPRESSIVE = re.compile(r"\[(?:Pi(?:[0-9]|[1-5][0-9]|6[0-3])|St(?:[0-9]|[1-9][0-9]))\]")


class Tokenizer:
    """A Spirit LM tokenizer. Prompts are encoded with BOS in front and no EOS.

    The extra tokens may be user-defined pieces of `tokenizer.model` (SentencePiece then sees the whole string), or
    stand in `added_tokens_decoder` of `tokenizer_config.json` (each text run between them is then encoded by itself, as
    the slow Llama tokenizer of transformers does).
    """

    def __init__(self, folder: str | Path, rows: int) -> None:
        """Loads the tokenizer files of `folder` for a model whose embedding has `rows` rows.

        Raises ValueError for an unreadable `tokenizer.model`, or extra tokens that are missing or not in one run.
        """
        folder = Path(folder)
        model = folder / "tokenizer.model"
        try:
            self._pieces = sentencepiece.SentencePieceProcessor(model_file=str(model))
        except (OSError, RuntimeError) as error:
            raise ValueError(f"{model}: not a SentencePiece model: {error}") from error
        added = _added_tokens(folder / "tokenizer_config.json")
        self._embedded = TEXT_MARKER not in added
        if self._embedded:
            size = self._pieces.get_piece_size()
            added = {self._pieces.id_to_piece(i): i for i in range(size) if self._pieces.id_to_piece(i)[:1] == "["}
        self.vocabulary = _vocabulary(added, rows, folder)

    def encode(self, string: str, bos: bool = True) -> list[int]:
        """Ids of a prompt string; with `bos` they begin with 1.

        Exact spellings become tokens; `[Hu9999]` or `[Hux]` is text. Raises ValueError for pitch or style tokens that
        this model does not have (`[Pi3]` in a prompt for Base is a mistake, not text), and for half surrogates.
        """
        ids = [BOS] if bos else []
        string.encode()  # what has no UTF-8 is named here; SentencePiece would fail without saying where
        if not self.vocabulary.expressive and (found := _EXPRESSIVE.search(string)):
            raise ValueError(f"unknown token {found[0]}: this is a Base model, it has no pitch and style tokens")
        if self._embedded:
            return ids + list(self._pieces.encode(string))
        for piece in self.vocabulary.split(string):
            ids += [piece] if isinstance(piece, int) else self._pieces.encode(piece)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The string of ids, control tokens left out."""
        size = self.vocabulary.size
        bad = [i for i in ids if not 0 <= i < size]
        if bad:
            raise ValueError(f"id {bad[0]} is outside this vocabulary of {size} ids")
        if self._embedded:
            return self._pieces.decode(list(ids))
        parts: list[str] = []
        run: list[int] = []
        for token_id in ids:
            spelling = self.vocabulary.spelling(token_id)
            if spelling is None:
                run.append(token_id)
                continue
            parts += [self._pieces.decode(run), spelling]
            run = []
        return "".join([*parts, self._pieces.decode(run)])

    def ids_with(self, character: str) -> list[int]:
        """Text ids whose string holds `character`."""
        return [i for i in range(self.vocabulary.text_size) if character in self._pieces.decode([i])]

    def decode_continuation(self, prompt: Sequence[int], new: Sequence[int]) -> str:
        """The string that `new` ids add to `prompt`, with the space that a word piece brings at its start."""
        before = self.decode(prompt)
        whole = self.decode([*prompt, *new])
        # half a character at the prompt's end may change when its bytes are completed
        common = len(before) if whole.startswith(before) else len(before.rstrip("\N{REPLACEMENT CHARACTER}"))
        return whole[common:]


def _added_tokens(config: Path) -> dict[str, int]:
    if not config.is_file():
        return {}
    try:
        decoder = json.loads(config.read_text(encoding="utf-8")).get("added_tokens_decoder", {})
        return {entry["content"]: int(token_id) for token_id, entry in decoder.items()}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{config}: its added_tokens_decoder cannot be read: {error!r}") from error


def _vocabulary(added: dict[str, int], rows: int, folder: Path) -> Vocabulary:
    """The layout that the extra tokens of a tokenizer imply; a model's rows decide which kinds it has."""
    if TEXT_MARKER not in added:
        raise ValueError(f"{folder}: the tokenizer has no {TEXT_MARKER} token; is this a Spirit LM tokenizer?")
    counts = {}
    for kind in KINDS:
        count = 0
        while added.get(f"[{kind}{count}]", rows) < rows:
            count += 1
        counts[kind] = count
    if any(not counts[kind] or f"[{kind}{counts[kind]}]" in added for kind in ("Pi", "St")):
        counts["Pi"] = counts["St"] = 0
    vocabulary = Vocabulary(added[TEXT_MARKER], counts["Hu"], counts["Pi"], counts["St"], rows)
    spellings = [TEXT_MARKER, SPEECH_MARKER, *(f"[{kind}{i}]" for kind in KINDS for i in range(counts[kind]))]
    for spelling in spellings:
        if added.get(spelling) != vocabulary.lookup(spelling):
            raise ValueError(
                f"{folder}: {spelling} has id {added.get(spelling)}, expected {vocabulary.lookup(spelling)} after "
                f"{vocabulary.text_size} text ids"
            )
    return vocabulary
