"""Shots give way to the context: as many of them are kept as leave room for the question and its answer."""

from collections.abc import Callable, Sequence

from spiritrt import SpiritLM


def fitting(lm: SpiritLM, prompt: Callable[[int], str], shots: int, room: int, what: str) -> int:
    """How many of `shots` fit into the context, where `prompt(kept)` holds the last `kept` of them.

    `room` tokens are left for what follows; a prompt without shots may take all but one. Raises ValueError naming
    `what` where not even that fits.
    """
    context = lm.family.lm_config.max_position_embeddings
    for kept in range(shots, -1, -1):
        if len(lm.family.tokenizer.encode(prompt(kept))) + (room if kept else 1) <= context:
            return kept
    raise ValueError(f"{what} alone is longer than the context of {context} tokens")


def left_out_note(left_out: Sequence[int], shots: int) -> tuple[str, ...]:
    """A note on the shots that were left out of each prompt, none where all fitted."""
    short = sum(count > 0 for count in left_out)
    if not short:
        return ()
    return (f"{short} of {len(left_out)} prompts lack up to {max(left_out)} of {shots} shots: the context was full",)
