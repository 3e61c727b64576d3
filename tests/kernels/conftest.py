"""For the tests of all kernels: the device they run on, and memory that is not zero by chance.

`tests/conftest.py` has Triton interpreted where there is no CUDA device; then the fixture `device` is the CPU, and the
same tests run there at the same shapes. A program takes milliseconds under the interpreter, and one of `sampling` a
tenth of a second: keep shapes tiny, and odd.
"""

import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from spiritrt.kernels import Case, case_of, variants
from spiritrt.kernels.attention_batch import AttentionBatch
from spiritrt.kernels.language import INTERPRETED

POISON = {torch.bool: True, torch.uint8: 0xA5, torch.int8: -91, torch.int16: -23131, torch.int32: -(2**30) - 7,
          torch.int64: -(2**40) - 7}  # fmt: skip


def poisoned(empty: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`torch.empty` or its like, filled with NaN or with a wild number."""

    def make(*args, **kwargs) -> Tensor:
        made = empty(*args, **kwargs)
        if made.dtype.is_floating_point:
            return made.view(torch.uint8).fill_(0x7F).view(made.dtype) if made.itemsize == 1 else made.fill_(torch.nan)
        return made.fill_(POISON[made.dtype])

    return make


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel leaves unwritten of its outputs shows up in its results."""
    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, poisoned(getattr(torch, name)))
    monkeypatch.setattr(Tensor, "new_empty", poisoned(Tensor.new_empty))


@pytest.fixture(scope="session")
def device() -> str:
    """Where kernels are tested: "cuda", or else "cpu" under the interpreter."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def exact_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the interpreter round float32 to fp8 and bfloat16 as hardware does; itself it loses carries or truncates."""
    if not INTERPRETED:
        return
    from triton.runtime import interpreter

    rounded = {"fp8e4nv": (torch.float8_e4m3fn, np.uint8), "bf16": (torch.bfloat16, np.uint16)}
    convert = interpreter._convert_float

    def convert_exactly(data, source, target, rounding_mode):
        if source.name != "fp32" or target.name not in rounded:
            return convert(data, source, target, rounding_mode)
        dtype, raw = rounded[target.name]
        values = torch.frombuffer(bytearray(data.tobytes()), dtype=torch.float32).to(dtype)
        return np.frombuffer(values.view(torch.uint8).numpy().tobytes(), dtype=raw).reshape(data.shape)

    monkeypatch.setattr(interpreter, "_convert_float", convert_exactly)


@pytest.fixture
def variant_for() -> Callable[[str, str, Case], Callable[..., Tensor]]:
    """Gives an op's variant by name; the test is skipped, with the reason, where the variant says that it cannot."""

    def find(op: str, name: str, case: Case) -> Callable[..., Tensor]:
        variant = next(variant for variant in variants(op) if variant.name == name)
        if (reason := variant.supports(case)) is not None:
            pytest.skip(f"{name}: {reason}")
        return variant.fn

    return find


@dataclass(frozen=True, slots=True)
class PagedStep:
    """Arguments of the attention ops: rows whose slots hold `starts` tokens already and bring `counts` more."""

    qkv: Tensor
    cos_sin: Tensor
    keys: Tensor
    values: Tensor
    batch: AttentionBatch
    heads: int
    scales: Tensor | None

    def run(self, op: Callable[..., Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """What an op returns, and the keys and values after it; this step's own stay as they are."""
        keys, values = self.keys.clone(), self.values.clone()
        out = op(self.qkv, self.cos_sin, keys, values, self.batch, self.heads, self.scales)
        return out, keys, values

    def case(self) -> Case:
        return case_of(self.qkv, cache=self.keys.dtype, head_dim=self.keys.shape[3], page_size=self.keys.shape[1])

    def alone(self, row: int) -> "PagedStep":
        """The same step with only one of its rows."""
        first, last = self.batch.offsets[row : row + 2].tolist()
        batch = AttentionBatch(
            self.batch.slots[row : row + 1], self.batch.starts[row : row + 1],
            torch.tensor([0, last - first], dtype=torch.int32, device=self.qkv.device), self.batch.page_table,
            longest=last - first, reach=int(self.batch.starts[row]) + last - first,
        )  # fmt: skip
        return replace(self, qkv=self.qkv[first:last], batch=batch)


@pytest.fixture
def paged_step(device: str) -> Callable[..., PagedStep]:
    """Builds a step at random: pages in any order, NaN in every place that no token has written, and page tables with
    wild numbers behind their last page. Slots that no row names have one page."""

    def build(starts: Sequence[int], counts: Sequence[int], kv_heads: int, group: int, head_dim: int,
              dtype: torch.dtype = torch.float32, cache: torch.dtype = torch.float32, page: int = 16,
              spare: int = 2) -> PagedStep:  # fmt: skip
        random = torch.Generator().manual_seed(0)
        lengths = [start + count for start, count in zip(starts, counts, strict=True)]
        slots, max_pages = len(starts) + spare, -(-max(lengths) // page) + 1
        order = torch.randperm(slots, generator=random)[: len(starts)].int()
        pages = torch.randperm(slots * max_pages, generator=random).int()
        table = torch.full((slots, max_pages), 2**30, dtype=torch.int32)
        scales = torch.rand(2, kv_heads, generator=random) * 0.02 + 0.01 if cache == torch.float8_e4m3fn else None
        keys = torch.full((len(pages), page, kv_heads, head_dim), torch.nan).to(cache)
        values, used = keys.clone(), spare
        table[[slot for slot in range(slots) if slot not in order], 0] = pages[:spare]
        for slot, start, length in zip(order.tolist(), starts, lengths, strict=True):
            own = pages[used : used + -(-length // page)]
            table[slot, : len(own)], used = own, used + len(own)
            for index, held in enumerate((keys, values)):
                x = torch.randn(len(own) * page, kv_heads, head_dim, generator=random)
                x[start:] = torch.nan
                x = x if scales is None else (x / scales[index, :, None]).clamp(-448, 448)
                held[own.long()] = x.view(-1, page, kv_heads, head_dim).to(cache)
        angles = torch.arange(max(lengths) + 3)[:, None] / 1e4 ** (torch.arange(head_dim // 2) / (head_dim / 2))
        offsets = torch.tensor([0, *counts]).cumsum(0).int()
        width = (group + 2) * kv_heads * head_dim
        moved = (tensor.to(device) for tensor in (order, torch.tensor(starts).int(), offsets, table))
        return PagedStep(
            torch.randn(sum(counts), width, generator=random).to(device, dtype),
            torch.cat((angles.cos(), angles.sin()), dim=1).to(device), keys.to(device), values.to(device),
            AttentionBatch(*moved, longest=max(counts), reach=max(lengths)), kv_heads * group,
            None if scales is None else scales.to(device),
        )  # fmt: skip

    return build


@pytest.fixture
def flash_attn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for flash-attn where it is not installed: the two functions we call, by their documentation."""
    if importlib.util.find_spec("flash_attn") is not None and torch.cuda.is_available():
        return

    def with_cache(q, k_cache, v_cache, k=None, v=None, *, cache_seqlens, block_table, causal):
        rows = [flash_row(*row, k_cache, v_cache) for row in zip(q, cache_seqlens.tolist(), block_table, strict=True)]
        assert causal and k is None and v is None
        return torch.stack(rows)

    def varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, *, causal, block_table):
        counts, lengths = cu_seqlens_q.diff(), cu_seqlens_k.diff()
        assert causal and max_seqlen_q >= counts.max() and max_seqlen_k >= lengths.max()
        assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
        rows = zip(q.split(counts.tolist()), lengths.tolist(), block_table, strict=True)
        return torch.cat([flash_row(*row, k, v) for row in rows])

    def flash_row(q: Tensor, length: int, table: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        assert keys.shape[1] % 256 == 0
        pages = table[: -(-length // keys.shape[1])].long()
        held = [part[pages].flatten(0, 1)[:length].transpose(0, 1).float() for part in (keys, values)]
        # causal is aligned to the bottom right: the last query sees all keys
        seen = torch.ones(len(q), length, dtype=torch.bool, device=q.device).tril(length - len(q))
        out = torch.nn.functional.scaled_dot_product_attention(
            q.transpose(0, 1).float()[None], held[0][None], held[1][None], attn_mask=seen, enable_gqa=True
        )
        return out[0].transpose(0, 1).to(q.dtype)

    module = types.ModuleType("flash_attn")
    module.__spec__ = importlib.machinery.ModuleSpec("flash_attn", None)
    module.flash_attn_with_kvcache, module.flash_attn_varlen_func = with_cache, varlen
    monkeypatch.setitem(sys.modules, "flash_attn", module)
