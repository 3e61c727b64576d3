"""What sampling knows of each slot, in device tensors, so that a captured graph needs no new arguments."""

from dataclasses import dataclass

import torch
from torch import Tensor

WORD = 32  # ids in one int32 of a bit set
SMALLEST_TEMPERATURE = 1e-30  # below, float32 divides by nothing


@dataclass(frozen=True, slots=True, eq=False)
class SamplingState:
    """Sampling of S slots over V ids. `new` makes one; `set_slot` and `set_mask` fill it.

    mask         [S] int32: the row of `masks` that says what a slot may draw
    masks        [M, ceil(V / 32)] int32: bit sets of allowed ids, id i in bit i % 32 of word i // 32
    seed         [S] int64: the 64 bits of an unsigned seed
    temperature  [S] float32: 0 is greedy
    top_k        [S] int32: 0 is off
    top_p        [S] float32: 1 is off
    min_p        [S] float32: 0 is off
    penalty      [S] float32: of the ids in `seen`; 1 is off
    seen         [S, ceil(V / 32)] int32: bit sets of ids drawn in a slot
    last_ids     [S] int64: the id drawn last in a slot
    full         [S] bool: whether log-probabilities are over all V ids, or else over the allowed ones
    """

    mask: Tensor
    masks: Tensor
    seed: Tensor
    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    penalty: Tensor
    seen: Tensor
    last_ids: Tensor
    full: Tensor

    def __post_init__(self) -> None:
        slots, words = len(self.mask), self.masks.shape[-1]
        shapes = {
            "mask": (torch.int32, (slots,)), "masks": (torch.int32, (len(self.masks), words)),
            "seed": (torch.int64, (slots,)), "temperature": (torch.float32, (slots,)),
            "top_k": (torch.int32, (slots,)), "top_p": (torch.float32, (slots,)), "min_p": (torch.float32, (slots,)),
            "penalty": (torch.float32, (slots,)), "seen": (torch.int32, (slots, words)),
            "last_ids": (torch.int64, (slots,)), "full": (torch.bool, (slots,)),
        }  # fmt: skip
        for name, (dtype, shape) in shapes.items():
            tensor: Tensor = getattr(self, name)
            if tensor.dtype != dtype or tuple(tensor.shape) != shape or not tensor.is_contiguous():
                raise ValueError(
                    f"{name} must be contiguous {dtype} of shape {list(shape)}, got {tensor.dtype} {list(tensor.shape)}"
                )
            if tensor.device != self.mask.device:
                raise ValueError(f"{name} is on {tensor.device}, and mask on {self.mask.device}")

    @classmethod
    def new(cls, slots: int, vocab: int, masks: int = 8, device: torch.device | str = "cpu") -> "SamplingState":
        """A state for `slots` slots, `vocab` ids and up to `masks` masks; slots are greedy and every id is allowed."""
        if min(slots, vocab, masks) < 1:
            raise ValueError(f"slots, vocab and masks must be at least 1, got {slots}, {vocab} and {masks}")
        words = -(-vocab // WORD)
        everything = pack(torch.ones(vocab, dtype=torch.bool)).to(device)

        def full(value: float, dtype: torch.dtype) -> Tensor:
            return torch.full((slots,), value, dtype=dtype, device=device)

        return cls(
            mask=full(0, torch.int32), masks=everything.repeat(masks, 1), seed=full(0, torch.int64),
            temperature=full(0, torch.float32), top_k=full(0, torch.int32), top_p=full(1, torch.float32),
            min_p=full(0, torch.float32), penalty=full(1, torch.float32),
            seen=torch.zeros(slots, words, dtype=torch.int32, device=device), last_ids=full(0, torch.int64),
            full=full(0, torch.bool),
        )  # fmt: skip

    def set_mask(self, index: int, allowed: Tensor) -> None:
        """Makes mask `index` the ids that `allowed` [V] bool marks. Raises ValueError where it marks none."""
        if not bool(allowed.any()):
            raise ValueError("a mask must allow at least one id")
        if -(-len(allowed) // WORD) != self.masks.shape[1]:
            raise ValueError(f"a mask of {len(allowed)} ids does not fit {self.masks.shape[1]} words of {WORD}")
        # from memory that is not pinned: taken at once, without waiting for the device
        self.masks[index].copy_(pack(allowed), non_blocking=True)

    def set_slot(
        self,
        slot: int,
        mask: int = 0,
        seed: int = 0,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        penalty: float = 1.0,
        full: bool = False,
    ) -> None:
        """Sets how a slot is sampled. `seen` and `last_ids` stay. Raises ValueError for a mask that does not exist."""
        if not 0 <= mask < len(self.masks):
            raise ValueError(f"there is no mask {mask}: there are {len(self.masks)}")
        # filled, not assigned: on CUDA a number that is assigned is copied there, and the copy is waited for
        for tensor, value in (
            (self.mask, mask), (self.seed, signed(seed)), (self.temperature, temperature),
            (self.top_k, min(top_k, 2**31 - 1)), (self.top_p, top_p), (self.min_p, min_p), (self.penalty, penalty),
            (self.full, full),
        ):  # fmt: skip
            tensor[slot].fill_(value)


def signed(seed: int) -> int:
    """The int64 of the same 64 bits as an unsigned seed."""
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must be from 0 to 2**64 - 1, got {seed}")
    return seed - 2**64 if seed >= 2**63 else seed


def pack(marked: Tensor) -> Tensor:
    """The bit set [..., ceil(V / 32)] int32 of `marked` [..., V] bool."""
    spare = -marked.shape[-1] % WORD
    bits = torch.nn.functional.pad(marked, (0, spare)).unflatten(-1, (-1, WORD))
    return (bits.long() << torch.arange(WORD, device=marked.device)).sum(-1).to(torch.int32)


def unpack(words: Tensor, vocab: int) -> Tensor:
    """`marked` [..., V] bool of a bit set [..., ceil(V / 32)] int32."""
    bits = words[..., None] >> torch.arange(WORD, dtype=torch.int32, device=words.device) & 1
    return bits.flatten(-2)[..., :vocab].bool()
