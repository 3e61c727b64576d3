"""One sequence on the language model: append tokens, draw the next one, take tokens back."""

from collections.abc import Sequence

import torch
from torch import Tensor

from spiritrt.models.family import Family
from spiritrt.sampling import Sampling, sample

PREFILL_TOKENS = 512  # tokens of one prefill pass


class Decoder:
    """A token sequence with its key-value cache. Not for two threads at once.

    `ids` are the tokens held. A row is computed by itself, so what is drawn depends on nothing but the sequence, how it
    was appended, and the sampling.
    """

    def __init__(self, family: Family, capacity: int | None = None) -> None:
        """An empty sequence of up to `capacity` tokens (default and limit: the model's context)."""
        self.context = family.llama.config.max_position_embeddings
        self.ids: list[int] = []
        self._llama = family.llama
        self._rows = family.llama.config.vocab_size
        self._cache = family.llama.new_cache(min(capacity or self.context, self.context))
        self._logits: Tensor | None = None

    @property
    def room(self) -> int:
        """Tokens that can still be appended."""
        return self._cache.capacity - len(self.ids)

    @torch.inference_mode()
    def append(self, ids: Sequence[int]) -> None:
        """Appends tokens and computes what comes after the last. Raises ValueError where they do not fit or exist."""
        if len(ids) > self.room:
            raise ValueError(
                f"{len(self.ids)} + {len(ids)} tokens do not fit: the context is {self._cache.capacity} tokens"
            )
        bad = [i for i in ids if not 0 <= i < self._rows]
        if bad:
            raise ValueError(f"token id {bad[0]} is outside the model's {self._rows} rows")
        for start in range(0, len(ids), PREFILL_TOKENS):
            chunk = torch.tensor([ids[start : start + PREFILL_TOKENS]], device=self._cache.keys.device)
            self._logits = self._llama(chunk, self._cache, last_only=True)[0, -1].float()
        self.ids += ids

    @torch.inference_mode()
    def draw(self, allowed: Tensor, sampling: Sampling, used: Sequence[int] = ()) -> tuple[int, float]:
        """Draws the next token without appending it: (id, log-probability over the full vocabulary).

        `allowed` [rows] marks ids that may be drawn, `used` those that the repetition penalty applies to.
        """
        if self._logits is None:
            raise ValueError("nothing to continue: append at least one token (BOS) first")
        ids = torch.tensor(sorted(set(used)), dtype=torch.long, device=self._logits.device)
        token = sample(self._logits, allowed, sampling, len(self.ids), ids)
        return token, float(torch.log_softmax(self._logits, dim=-1)[token])

    @torch.inference_mode()
    def score(self, ids: Sequence[int]) -> list[float]:
        """Log-probabilities over the full vocabulary of `ids` as the continuation, which is not kept."""
        if self._logits is None:
            raise ValueError("nothing to continue: append at least one token (BOS) first")
        if len(ids) > self.room + 1:
            raise ValueError(f"{len(self.ids)} + {len(ids)} tokens exceed the context of {self._cache.capacity}")
        held = self._cache.length
        rows = [self._logits[None]]
        if len(ids) > 1:
            chunk = torch.tensor([ids[:-1]], device=self._cache.keys.device)
            rows.append(self._llama(chunk, self._cache)[0].float())
            self._cache.truncate(held)
        logprobs = torch.log_softmax(torch.cat(rows), dim=-1)
        return logprobs[torch.arange(len(ids)), torch.tensor(ids, dtype=torch.long, device=logprobs.device)].tolist()

    def truncate(self, length: int) -> None:
        """Keeps the first `length` tokens. What comes next is known again after an append."""
        self._cache.truncate(length)
        del self.ids[length:]
        self._logits = None
