"""What is measured: a call of an op with its inputs, the bytes it cannot avoid, and how its results are judged."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from spiritrt.bench.shapes import Preset
from spiritrt.kernels.attention_batch import AttentionBatch
from spiritrt.kernels.registry import Case

PAGE_TOKENS = 16  # as the engine's pools have
NAMES = {
    torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.int8: "int8", torch.float8_e4m3fn: "fp8"
}  # fmt: skip
# of ||result - reference|| / ||reference||, by the type of the activations
TOLERANCES = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 1e-2}
FP8_CACHE_TOLERANCE = 3e-2  # an fp8 key that falls between two numbers may be rounded to either

Argument = Tensor | AttentionBatch | tuple | int | float | bool | object | None


@dataclass(frozen=True, slots=True)
class Problem:
    """Arguments of one call and what it writes: all of it is compared, and `kept` where not all of it has a meaning."""

    arguments: tuple[Argument, ...]
    written: tuple[Tensor, ...] = ()
    kept: Callable[[Tensor], Tensor] | None = None  # of the first tensor that is returned

    def results(self, returned: object) -> list[Tensor]:
        """Everything to compare, after the call returned `returned`."""
        found = [tensor for tensor in _tensors(returned)]
        if self.kept is not None:
            found[0] = self.kept(found[0])
        return [tensor.clone() for tensor in (*found, *self.written)]


@dataclass(frozen=True, slots=True)
class BenchCase:
    """One shape of an op.

    make        the same inputs at every call, for one variant's eyes only
    bytes       that must be moved at least: what is read once and what is written once
    flops       multiplications and additions, where they could be the limit; else 0
    importance  what is measured first where time is short: 0 before 1 before 2
    """

    op: str
    shape: str
    dtype: str
    case: Case
    make: Callable[[], Problem]
    bytes: int
    flops: int = 0
    tolerance: float = 0.0
    importance: int = 1

    def __post_init__(self) -> None:
        if self.bytes < 1:
            raise ValueError(f"{self.op} {self.shape}: bytes must be at least 1, got {self.bytes}")

    @property
    def name(self) -> str:
        return f"{self.op} {self.shape} {self.dtype}"


@dataclass(frozen=True, slots=True)
class Setting:
    """Where and on which model's shape the cases are."""

    preset: Preset
    device: torch.device
    activations: torch.dtype
    weights: tuple[torch.dtype, ...]
    caches: tuple[torch.dtype, ...]
    rows: tuple[int, ...]
    contexts: tuple[int, ...]

    @property
    def capability(self) -> tuple[int, int] | None:
        return torch.cuda.get_device_capability(self.device) if self.device.type == "cuda" else None

    @property
    def tolerance(self) -> float:
        return TOLERANCES[self.activations]

    def case(self, weights: torch.dtype | None = None, cache: torch.dtype | None = None, rows: int = 0) -> Case:
        """The registry's case of a call in this setting."""
        return Case(
            self.device.type, self.activations, self.capability, weights, cache,
            self.preset.config.head_dim, rows, PAGE_TOKENS,
        )  # fmt: skip

    def generator(self, seed: int = 0) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(seed)

    def random(self, *shape: int, generator: torch.Generator, dtype: torch.dtype | None = None) -> Tensor:
        """Normal numbers, on the device."""
        made = torch.randn(shape, generator=generator, device=self.device)
        return made.to(dtype or self.activations)


def setting(preset: Preset, device: torch.device) -> Setting:
    """Types and sizes that are worth measuring: bf16 on CUDA, and on a CPU float32 with the rows of a few sessions."""
    if device.type == "cpu":
        context = preset.config.max_position_embeddings
        return Setting(
            preset, device, torch.float32, (torch.float32, torch.bfloat16, torch.int8),
            (torch.float32, torch.bfloat16), (1, 4, 16), tuple(c for c in (64, 256, 1024) if c < context),
        )  # fmt: skip
    fp8 = (torch.float8_e4m3fn,) if torch.cuda.get_device_capability(device) >= (8, 9) else ()
    return Setting(
        preset, device, torch.bfloat16, (torch.bfloat16, torch.int8, *fp8), (torch.bfloat16, *fp8),
        (1, 4, 16, 64, 128), (256, 1024, 4096),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Pages:
    """One layer's pages with rows of equal context in them, and the batch that continues them."""

    qkv: Tensor
    cos_sin: Tensor
    keys: Tensor
    values: Tensor
    batch: AttentionBatch
    scales: Tensor | None

    def problem(self, heads: int) -> Problem:
        arguments = (self.qkv, self.cos_sin, self.keys, self.values, self.batch, heads, self.scales)
        return Problem(arguments, (self.keys, self.values))


def pages(here: Setting, cache: torch.dtype, rows: int, held: int, new: int) -> Pages:
    """Rows that hold `held` tokens and bring `new` ones, on pages that lie in no order, as after many sessions."""
    config, generator = here.preset.config, here.generator(rows * 7 + held)
    per_row = -(-(held + new) // PAGE_TOKENS)
    count = rows * per_row
    shape = (count + 1, PAGE_TOKENS, config.num_key_value_heads, config.head_dim)
    scales = None
    if cache == torch.float8_e4m3fn:
        scales = torch.full((2, config.num_key_value_heads), 4.0 / 448.0, device=here.device)
    keys, values = (here.random(*shape, generator=generator, dtype=torch.bfloat16) for _ in range(2))
    if scales is not None:
        keys, values = (tensor.float() / float(scales[0, 0]) for tensor in (keys, values))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).to(torch.int32) + 1
    width = (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
    angles = torch.arange(held + new, device=here.device)[:, None] / config.rope_theta ** (
        torch.arange(0, config.head_dim, 2, device=here.device) / config.head_dim
    )
    batch = AttentionBatch(
        torch.arange(rows, dtype=torch.int32, device=here.device),
        torch.full((rows,), held, dtype=torch.int32, device=here.device),
        torch.arange(0, rows * new + 1, new, dtype=torch.int32, device=here.device),
        order.view(rows, per_row).to(here.device),
        longest=new,
        reach=held + new,
    )
    return Pages(
        here.random(rows * new, width, generator=generator),
        torch.cat((angles.cos(), angles.sin()), dim=-1),
        keys.to(cache), values.to(cache), batch, scales,
    )  # fmt: skip


def pages_bytes(here: Setting, cache: torch.dtype, rows: int, held: int, new: int) -> int:
    """Keys and values read and appended, queries in and results out."""
    config = here.preset.config
    token = 2 * config.num_key_value_heads * config.head_dim * cache.itemsize
    activations = 2 * (config.num_attention_heads + config.num_key_value_heads) * config.head_dim
    return rows * ((held + new) * token + new * activations * here.activations.itemsize)


def _tensors(returned: object) -> list[Tensor]:
    if isinstance(returned, Tensor):
        return [returned]
    if isinstance(returned, tuple):
        return [tensor for part in returned for tensor in _tensors(part)]
    if returned is None:
        return []
    fields = getattr(returned, "__dataclass_fields__", None)
    assert fields is not None, f"a result of type {type(returned)}"
    return [tensor for name in fields for tensor in _tensors(getattr(returned, name))]
