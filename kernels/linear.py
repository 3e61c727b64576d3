"""Linear layers of a decode step: products of a few rows with a weight that is read once.

Bytes it must move: the weight, N * K * (2 or 1) bytes: 33.5 MB for a 4096 x 4096 layer in bf16, 7.8 us at 4.3 TB/s; the
7B shape's 13.2 GB a step are all here. 64 rows and their results are 3% of that, so what counts is that loads of the
weight never pause. That decides the shape:

- The weight is the left operand, `out^T = W x^T`: its rows fill the tensor core's 16 or 64, and the few rows of x,
  padded to 16, its narrow side. A quantized weight is widened to x's dtype in registers on its way there, and its
  scales, one an output, multiply the sum.
- A program owns BLOCK_N outputs for the whole of K and streams them through STAGES buffers; blocks are small, so that a
  4096-wide layer has about one for each of 132 multiprocessors. There is no split of K to put together.
- RMSNorm is linear but for its factor: the weight of the norm multiplies x on the way in, squares are summed beside the
  product, and the factor multiplies the sum. Beyond 16 rows that work, done again by every program, would keep it from
  loading: a launch of its own does it once, to the same bits. SiLU(gate) * up, bias and residual follow in registers:
  the gate's and the up projection's rows of an output go through one program.
- A head program whose columns no row needs returns at once; the flags are read on the device, so a graph stays right.

A row's bits do not depend on the rows beside it nor on how many there are: block sizes follow from the weight's shape
alone but for BLOCK_M (16, 32 or 64 rows), which changes no order of a sum; squares are added up in a fixed tree.
`triton_gemv` keeps products in plain registers and is for one row. Its sums run in another order: who chooses it
for steps of one row and another variant for more gives that property up, which is why "auto" does not.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from spiritrt.kernels import reference
from spiritrt.kernels.aot_case import NO_GPU, STORED, AotCase, tuned_cases
from spiritrt.kernels.language import INSTALLED, INTERPRETED, tl, triton, triton_supports
from spiritrt.kernels.linear_weight import HEAD_BLOCK, LARGEST, LinearWeight, check_linear, quantize
from spiritrt.kernels.registry import PRIORITIES, Case, Variant, anywhere, register, tuned
from spiritrt.kernels.rms_norm import rms_norm_torch

__all__ = ["HEAD_BLOCK", "LinearWeight", "linear", "quantize"]

FLAG_BLOCK = tl.constexpr(HEAD_BLOCK)
FLOAT8 = torch.float8_e4m3fn
FLOAT8_CAPABILITY = (8, 9)
DEFAULTS = {"block_n": 32, "block_k": 128, "warps": 4, "stages": 0}
DEFAULTS_MANY = DEFAULTS | {"block_n": 64}
MANY_OUTPUTS = 8192  # programs enough, with twice the rows each
GATED = {"block_k": 64}  # two weights at a time
# widened to Hopper's warp-group product a weight would be loaded 4 bytes at a time; the smaller product takes 16
QUANTIZED = {"block_n": 32, "block_k": 128}
FUSED_NORM_ROWS = 16
# bytes of the weight that a program keeps on their way: latency times bandwidth is 3 MB on an H200, 23 KiB for each of
# its multiprocessors; and bytes of shared memory that may take, with those of x
IN_FLIGHT = 56 << 10
BUFFERS = 120 << 10
GEMV = {"block_n": 8, "block_k": 512, "warps": 4, "stages": 3}


@triton.jit
def weight_tile(p_w, o_n, o_k, rows, inner, EVEN_K: tl.constexpr):
    """[N, K] of the weight; `p_w` points at the program's first row, so that offsets stay small."""
    inside = (o_n < rows)[:, None]
    if not EVEN_K:
        inside = inside & (o_k < inner)[None, :]
    return tl.load(
        p_w + o_n[:, None] * inner + o_k[None, :], mask=inside, other=0.0, eviction_policy="evict_first"
    )  # fmt: skip


@triton.jit
def fixed_tree_sum(b_x, ROWS: tl.constexpr, WIDTH: tl.constexpr, LEVELS: tl.constexpr):
    """Sums of b_x [ROWS, WIDTH], neighbours first: `tl.sum` would order them by how threads hold the block."""
    for level in tl.static_range(LEVELS):
        low, high = tl.split(tl.reshape(b_x, [ROWS, WIDTH >> (level + 1), 2]))
        b_x = low + high
    return tl.reshape(b_x, [ROWS])


@triton.jit
def scale_kernel(p_x, p_norm, p_scaled, p_factor, inner, eps, BLOCK_K: tl.constexpr, LEVELS: tl.constexpr):
    """The norm's part of `linear_kernel` for one row: x times the norm's weight, and 1 / rms(x)."""
    i_t = tl.program_id(0).to(tl.int64)
    squares = tl.zeros([1, BLOCK_K], tl.float32)
    for start in range(0, inner, BLOCK_K):
        o_k = start + tl.arange(0, BLOCK_K)
        in_k = (o_k < inner)[None, :]
        wide = tl.load(p_x + i_t * inner + o_k[None, :], mask=in_k, other=0.0).to(tl.float32)
        squares += wide * wide
        b_scaled = wide * tl.load(p_norm + o_k[None, :], mask=in_k, other=0.0).to(tl.float32)
        tl.store(p_scaled + i_t * inner + o_k[None, :], b_scaled.to(p_scaled.dtype.element_ty), mask=in_k)
    factor = tl.rsqrt(fixed_tree_sum(squares, 1, BLOCK_K, LEVELS) / inner + eps)
    tl.store(p_factor + i_t + tl.arange(0, 1), factor)


@triton.jit(do_not_specialize=["tokens"])
def linear_kernel(
    p_x, p_w, p_scales, p_bias, p_norm, p_factor, p_residual, p_needed, p_out, tokens, columns, inner, eps,
    GATED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, LEVELS: tl.constexpr,
    EVEN_K: tl.constexpr, UPCAST: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    i_n, i_m = tl.program_id(0), tl.program_id(1).to(tl.int64)
    if p_needed is not None:  # noqa: SIM102 (one is known when it compiles, the other when it runs)
        if tl.load(p_needed + i_n * BLOCK_N // FLAG_BLOCK) == 0:
            return
    DOT: tl.constexpr = tl.float32 if UPCAST else p_x.dtype.element_ty
    o_n, o_m = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_M)
    rows = columns - i_n * BLOCK_N
    p_first = p_w + (i_n * BLOCK_N).to(tl.int64) * inner
    p_up = p_first + tl.cast(columns, tl.int64) * inner
    p_rows = p_x + i_m * BLOCK_M * inner
    in_m = o_m < tokens - i_m * BLOCK_M
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    acc_up = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    squares = tl.zeros([BLOCK_M, BLOCK_K], tl.float32)
    for start in tl.range(0, inner, BLOCK_K, num_stages=STAGES):
        o_k = start + tl.arange(0, BLOCK_K)
        inside = in_m[:, None]
        if not EVEN_K:
            inside = inside & (o_k < inner)[None, :]
        b_x = tl.load(p_rows + o_m[:, None] * inner + o_k[None, :], mask=inside, other=0.0)
        if p_norm is not None:
            wide = b_x.to(tl.float32)
            squares += wide * wide
            in_k = o_k < inner
            b_x = (wide * tl.load(p_norm + o_k, mask=in_k, other=0.0).to(tl.float32)[None, :]).to(p_x.dtype.element_ty)
        b_x = tl.trans(b_x.to(DOT))
        b_w = weight_tile(p_first, o_n, o_k, rows, inner, EVEN_K).to(DOT)
        acc = tl.dot(b_w, b_x, acc, input_precision="ieee")
        if GATED:
            b_up = weight_tile(p_up, o_n, o_k, rows, inner, EVEN_K).to(DOT)
            acc_up = tl.dot(b_up, b_x, acc_up, input_precision="ieee")
    c_n = i_n * BLOCK_N + o_n
    in_n = c_n < columns
    if p_norm is not None:
        factor = tl.rsqrt(fixed_tree_sum(squares, BLOCK_M, BLOCK_K, LEVELS) / inner + eps)[None, :]
        acc *= factor
        acc_up *= factor
    if p_factor is not None:
        factor = tl.load(p_factor + i_m * BLOCK_M + o_m, mask=in_m, other=0.0)[None, :]
        acc *= factor
        acc_up *= factor
    acc = scaled(acc, p_scales, p_bias, c_n, in_n)
    if GATED:
        acc = acc * tl.sigmoid(acc) * scaled(acc_up, p_scales, p_bias, columns + c_n, in_n)
    b_out = tl.trans(acc)
    o_out = (i_m * BLOCK_M + o_m)[:, None] * columns + c_n[None, :]
    inside = in_m[:, None] & in_n[None, :]
    if p_residual is not None:
        b_out += tl.load(p_residual + o_out, mask=inside, other=0.0).to(tl.float32)
    tl.store(p_out + o_out, b_out.to(p_out.dtype.element_ty), mask=inside)


@triton.jit
def scaled(acc, p_scales, p_bias, c_n, in_n):
    """acc [N, M] times the scales, plus the bias, of outputs c_n."""
    if p_scales is not None:
        acc *= tl.load(p_scales + c_n, mask=in_n, other=0.0)[:, None]
    if p_bias is not None:
        acc += tl.load(p_bias + c_n, mask=in_n, other=0.0)[:, None]
    return acc


@triton.jit
def gemv_kernel(
    p_x, p_w, p_scales, p_bias, p_norm, p_residual, p_needed, p_out, columns, inner, eps,
    GATED: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    i_n, i_t = tl.program_id(0), tl.program_id(1).to(tl.int64)
    if p_needed is not None:  # noqa: SIM102 (one is known when it compiles, the other when it runs)
        if tl.load(p_needed + i_n * BLOCK_N // FLAG_BLOCK) == 0:
            return
    o_n = tl.arange(0, BLOCK_N)
    rows = columns - i_n * BLOCK_N
    p_first = p_w + (i_n * BLOCK_N).to(tl.int64) * inner
    p_up = p_first + tl.cast(columns, tl.int64) * inner
    acc = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    acc_up = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    squares = tl.zeros([BLOCK_K], tl.float32)
    for start in tl.range(0, inner, BLOCK_K, num_stages=STAGES):
        o_k = start + tl.arange(0, BLOCK_K)
        in_k = o_k < inner
        b_x = tl.load(p_x + i_t * inner + o_k, mask=in_k, other=0.0).to(tl.float32)
        if p_norm is not None:
            squares += b_x * b_x
            b_x *= tl.load(p_norm + o_k, mask=in_k, other=0.0).to(tl.float32)
        acc += weight_tile(p_first, o_n, o_k, rows, inner, EVEN_K).to(tl.float32) * b_x[None, :]
        if GATED:
            acc_up += weight_tile(p_up, o_n, o_k, rows, inner, EVEN_K).to(tl.float32) * b_x[None, :]
    c_n = i_n * BLOCK_N + o_n
    in_n = c_n < columns
    b_out = tl.sum(acc, 1)[:, None]
    b_up = tl.sum(acc_up, 1)[:, None]
    if p_norm is not None:
        factor = tl.rsqrt(tl.sum(squares) / inner + eps)
        b_out *= factor
        b_up *= factor
    b_out = scaled(b_out, p_scales, p_bias, c_n, in_n)
    if GATED:
        b_out = b_out * tl.sigmoid(b_out) * scaled(b_up, p_scales, p_bias, columns + c_n, in_n)
    o_out = i_t * columns + c_n[:, None]
    if p_residual is not None:
        b_out += tl.load(p_residual + o_out, mask=in_n[:, None], other=0.0).to(tl.float32)
    tl.store(p_out + o_out, b_out.to(p_out.dtype.element_ty), mask=in_n[:, None])


def linear(x: Tensor, weight: LinearWeight, norm: tuple[Tensor, float] | None = None, gated: bool = False,
           residual: Tensor | None = None, needed: Tensor | None = None) -> Tensor:  # fmt: skip
    """x [T, K] times the weight, in Triton on tensor cores; returns [T, N] like x, N / 2 where `gated`.

    norm      (weight [K], epsilon) of an RMSNorm of x before the product
    gated     silu(gate) * up, of a weight that holds the gate's rows and then the up projection's
    residual  [T, N] like x, added at the end
    needed    [ceil(N / 64)] uint8: blocks of 64 columns whose flag is 0 are neither read nor written

    Raises ValueError for shapes or types that do not fit together.
    """
    columns = check_linear(x, weight, norm, gated, residual, needed)
    tokens, inner = x.shape
    out = torch.empty((tokens, columns), dtype=x.dtype, device=x.device)
    if not tokens:
        return out
    block_m = min(64, max(16, triton.next_power_of_2(tokens)))
    set_to = settings(columns, inner, weight.data.dtype, gated)
    block_k, levels = set_to["block_k"], set_to["block_k"].bit_length() - 1
    gain, eps = (None, 0.0) if norm is None else norm
    factor = None
    if gain is not None and tokens > FUSED_NORM_ROWS:
        rows, x, factor = x, torch.empty_like(x), torch.empty(tokens, dtype=torch.float32, device=x.device)
        scale_kernel[(tokens,)](rows, gain, x, factor, inner, eps, block_k, levels, num_warps=1)
        gain = None
    linear_kernel[(triton.cdiv(columns, set_to["block_n"]), triton.cdiv(tokens, block_m))](
        x, weight.data, weight.scales, weight.bias, gain, factor, residual, needed, out, tokens, columns, inner, eps,
        gated, block_m, set_to["block_n"], block_k, levels, inner % block_k == 0, INTERPRETED,
        stages(set_to, block_m, gated, weight.data.element_size(), x.element_size()), num_warps=set_to["warps"],
    )  # fmt: skip
    return out


def linear_gemv(x: Tensor, weight: LinearWeight, norm: tuple[Tensor, float] | None = None, gated: bool = False,
                residual: Tensor | None = None, needed: Tensor | None = None) -> Tensor:  # fmt: skip
    """`linear` without tensor cores, for one row: each row of x reads the weight again."""
    columns = check_linear(x, weight, norm, gated, residual, needed)
    tokens, inner = x.shape
    out = torch.empty((tokens, columns), dtype=x.dtype, device=x.device)
    if not tokens:
        return out
    set_to = gemv_settings(columns, inner, weight.data.dtype)
    gain, eps = (None, 0.0) if norm is None else norm
    gemv_kernel[(triton.cdiv(columns, set_to["block_n"]), tokens)](
        x, weight.data, weight.scales, weight.bias, gain, residual, needed, out, columns, inner, eps,
        gated, set_to["block_n"], set_to["block_k"], inner % set_to["block_k"] == 0, set_to["stages"],
        num_warps=set_to["warps"],
    )  # fmt: skip
    return out


def linear_torch(x: Tensor, weight: LinearWeight, norm: tuple[Tensor, float] | None = None, gated: bool = False,
                 residual: Tensor | None = None, needed: Tensor | None = None) -> Tensor:  # fmt: skip
    """The same with torch's matrix product (cuBLAS); a quantized weight is widened to x's dtype in memory first."""
    check_linear(x, weight, norm, gated, residual, needed)
    if norm is not None:
        x = rms_norm_torch(x, *norm)[0]
    out = F.linear(x, weight.data.to(x.dtype))
    if weight.scales is not None:
        out = (out.float() * weight.scales).to(x.dtype)
    if weight.bias is not None:
        out = (out.float() + weight.bias).to(x.dtype)
    if gated:
        gate, up = out.chunk(2, dim=-1)
        out = F.silu(gate) * up
    return out if residual is None else out + residual


def shape_key(columns: int, inner: int, weights: torch.dtype) -> str:
    """Key of a weight's shape in the tuned files: outputs (of the gate where gated), inputs, storage."""
    return f"{columns}x{inner}_{str(weights).removeprefix('torch.')}"


@lru_cache
def settings(columns: int, inner: int, weights: torch.dtype, gated: bool, gpu: str | None = None) -> dict[str, int]:
    """Block sizes for a weight's shape: those tuned for the GPU over the defaults. They must not depend on the rows."""
    chosen = DEFAULTS_MANY if columns >= MANY_OUTPUTS else DEFAULTS
    chosen = chosen | (GATED if gated else {}) | (QUANTIZED if weights in LARGEST else {})
    chosen = chosen | tuned("linear", shape_key(columns, inner, weights), gpu)
    if HEAD_BLOCK % chosen["block_n"]:
        raise ValueError(f"block_n must divide {HEAD_BLOCK}, got {chosen['block_n']}")
    # the interpreter takes longer to start a program than to run it
    return chosen | {"block_n": HEAD_BLOCK, "block_k": 64} if INTERPRETED else chosen


@lru_cache
def gemv_settings(columns: int, inner: int, weights: torch.dtype, gpu: str | None = None) -> dict[str, int]:
    """The same for `triton_gemv`, which the tuned files name linear_gemv."""
    chosen = GEMV | tuned("linear_gemv", shape_key(columns, inner, weights), gpu)
    return chosen | {"block_n": HEAD_BLOCK, "block_k": 64} if INTERPRETED else chosen


def stages(set_to: dict[str, int], block_m: int, gated: bool, weight_bytes: int, x_bytes: int) -> int:
    """Buffers of the pipeline, where no number was tuned: what `IN_FLIGHT` takes and `BUFFERS` holds."""
    if set_to["stages"]:
        return set_to["stages"]
    weight = set_to["block_n"] * set_to["block_k"] * weight_bytes * (2 if gated else 1)
    x = block_m * set_to["block_k"] * x_bytes
    return min(9, max(3, 1 + min(IN_FLIGHT // weight, BUFFERS // (weight + x))))


def linear_supports(case: Case) -> str | None:
    if case.weights == FLOAT8 and case.capability is not None and case.capability < FLOAT8_CAPABILITY:
        return f"fp8 weights need compute capability 8.9, got {case.capability[0]}.{case.capability[1]}"
    return triton_supports(case)


def gemv_supports(case: Case) -> str | None:
    if case.rows > 1:
        return f"reads the weight again for each of {case.rows} rows"
    return linear_supports(case)


_TYPES = {"bf16": "*bf16", "fp16": "*fp16", "fp32": "*fp32", "int8": "*i8", "fp8": "*fp8e4nv"}


def _aot(gpu: str | None, kind: str, x: str, weights: str, columns: int, inner: int, rows: int = 1, gated: bool = False,
         norm: bool = False, residual: bool = False, needed: bool = False) -> AotCase:  # fmt: skip
    """One kernel ("linear" or "gemv") as it is launched for a layer of the 7B shape."""
    apart = norm and rows > FUSED_NORM_ROWS and kind == "linear"
    optional = {
        "p_scales": "*fp32" if weights in ("int8", "fp8") else None,
        "p_bias": None,
        "p_norm": _TYPES[x] if norm and not apart else None,
        "p_residual": _TYPES[x] if residual else None,
        "p_needed": "*u8" if needed else None,
    }
    signature = {"p_x": _TYPES[x], "p_w": _TYPES[weights], "p_out": _TYPES[x], "columns": "i32", "inner": "i32",
                 "eps": "fp32"}  # fmt: skip
    if kind == "linear":
        kernel, set_to = linear_kernel, settings(columns, inner, STORED[weights], gated, gpu or NO_GPU)
        block_m = min(64, max(16, triton.next_power_of_2(rows)))
        signature["tokens"] = "i32"
        optional["p_factor"] = "*fp32" if apart else None
        constexprs = {"BLOCK_M": block_m, "LEVELS": set_to["block_k"].bit_length() - 1, "UPCAST": False,
                      "STAGES": stages(set_to, block_m, gated, STORED[weights].itemsize, 2)}  # fmt: skip
    else:
        kernel, set_to = gemv_kernel, gemv_settings(columns, inner, STORED[weights], gpu or NO_GPU)
        constexprs = {"STAGES": set_to["stages"]}
    constexprs |= {"GATED": gated, "BLOCK_N": set_to["block_n"], "BLOCK_K": set_to["block_k"],
                   "EVEN_K": inner % set_to["block_k"] == 0}  # fmt: skip
    parts = {"gated": gated, "norm": norm, "residual": residual, "needed": needed}
    return AotCase(
        "_".join([kind, x, weights, f"{columns}x{inner}", f"{rows}", *(part for part, used in parts.items() if used)]),
        kernel,
        signature | {name: made for name, made in optional.items() if made is not None},
        constexprs | {name: None for name, made in optional.items() if made is None},
        num_warps=set_to["warps"],
        aligned=("columns", "inner"),
    )


def _aot_cases(gpu: str | None) -> list[AotCase]:
    made = []
    for kind, rows in (("linear", 1), ("linear", 32), ("linear", 64), ("gemv", 1)):
        for weights in ("bf16", "int8", "fp8"):
            made += [
                _aot(gpu, kind, "bf16", weights, 12288, 4096, rows, norm=True),
                _aot(gpu, kind, "bf16", weights, 11008, 4096, rows, gated=True, norm=True),
                _aot(gpu, kind, "bf16", weights, 4096, 11008, rows, residual=True),
            ]
    made.append(_aot(gpu, "linear", "bf16", "bf16", 32768, 4096, 1, norm=True, needed=True))
    made.append(_aot(gpu, "linear", "fp16", "fp16", 4096, 4096))
    made.append(_aot(gpu, "linear", "fp32", "fp32", 768, 256))
    scale = {"p_x": "*bf16", "p_norm": "*bf16", "p_scaled": "*bf16", "p_factor": "*fp32", "inner": "i32", "eps": "fp32"}
    made.append(
        AotCase("scale_bf16", scale_kernel, scale, {"BLOCK_K": 128, "LEVELS": 7}, num_warps=1, aligned=("inner",))
    )
    return made


AOT = tuned_cases(_aot_cases) if INSTALLED else []

for _variant in (
    Variant("linear", "triton", linear, linear_supports, PRIORITIES["triton"]),
    Variant("linear", "torch", linear_torch, anywhere, PRIORITIES["torch"]),
    # never "auto": see the bits of a row at the top
    Variant("linear", "triton_gemv", linear_gemv, gemv_supports, 5),
    Variant("linear", "reference", reference.linear, anywhere, PRIORITIES["reference"]),
):
    register(_variant)
