// Linear layers, RMSNorm and the embedding on the CPU: float32 activations, weights in float32, bf16 or int8.
//
// A row's result has the same bits whatever rows are beside it and however many there are, prefill or decode, and on
// any number of threads: sums run in one fixed order, and threads share out outputs, never a sum.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <utility>

namespace spiritrt {

constexpr int64_t kLinearBlock = 64;  // output columns that `needed` has a flag for

struct LinearCall {
  const float* x;      // [rows, inner]
  const void* weight;  // [columns, inner], gate rows and then up rows where `gated`
  const float* scales;
  const float* bias;
  const float* residual;  // [rows, columns]
  float* out;             // [rows, columns]
  int64_t rows, inner, columns;
  bool gated;
};

// x [T, K] times data [N, K], transposed; where `gated`, data is [2 N, K] and the result silu(gate) * up. Scales and
// bias have one number an output row of data; `norm` (weight [K], epsilon) is applied to x before, `residual` [T, N]
// added after. Column blocks whose flag in `needed` [ceil(N / 64)] is 0 are left as they are in memory.
at::Tensor cpu_linear(const at::Tensor& x, const at::Tensor& data, const std::optional<at::Tensor>& scales,
                      const std::optional<at::Tensor>& bias, const std::optional<at::Tensor>& norm_weight,
                      double epsilon, bool gated, const std::optional<at::Tensor>& residual,
                      const std::optional<at::Tensor>& needed);

// (normed, summed) of x [T, C]: summed is x + residual, or x itself where there is none.
std::pair<at::Tensor, at::Tensor> cpu_rms_norm(const at::Tensor& x, const at::Tensor& weight, double epsilon,
                                               const std::optional<at::Tensor>& residual);

// Rows of `table` [V, C] (float32, bf16 or fp16) as float32 [T, C]. A negative id t stands for last_ids[slots[t]].
at::Tensor cpu_embed(const at::Tensor& ids, const at::Tensor& table, const std::optional<at::Tensor>& slots,
                     const std::optional<at::Tensor>& last_ids);

}  // namespace spiritrt
