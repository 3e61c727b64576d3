// Rotary attention over paged keys and values on the CPU: float32 queries, keys and values in float32 or bf16.
//
// A token's result has the same bits whether it comes alone, in a prefill of any length or beside other rows: scores,
// maximum and sums run over the slot's tokens in one fixed order, and threads share out (row, head) pairs.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace spiritrt {

struct AttentionCall {
  const float* qkv;      // [T, (H + 2 KV) * D]
  const float* cos_sin;  // [positions, D]
  void* keys;            // [P, page, KV, D]
  void* values;
  const int32_t* slots;    // [R]
  const int32_t* starts;   // [R]
  const int32_t* offsets;  // [R + 1]
  const int32_t* table;    // [S, max_pages]
  float* queries;          // [T, H, D], rotated and divided by the square root of D
  float* out;              // [T, H * D]
  int64_t max_pages, page_size, heads, kv_heads, head_dim;
};

// Rotates queries and keys of qkv [T, (H + 2 KV) * D], appends keys and values to the pages, and attends causally: see
// AttentionBatch in kernels/attention_batch.py for the rows. Returns [T, H * D]. Nothing is written where a row does
// not fit its pages or the rotations.
at::Tensor cpu_rotary_attention(const at::Tensor& qkv, const at::Tensor& cos_sin, at::Tensor& keys, at::Tensor& values,
                                const at::Tensor& slots, const at::Tensor& starts, const at::Tensor& offsets,
                                const at::Tensor& page_table, int64_t heads);

// Moves keys and values [L, P, page, KV, D] of tokens `source` [M] to `target` [M] (page * page_size + offset) and
// rotates the keys by `delta` positions; inv_freq [D / 2] in radians a position.
void cpu_shift_rotary(at::Tensor& keys, at::Tensor& values, const at::Tensor& source, const at::Tensor& target,
                      int64_t delta, const at::Tensor& inv_freq);

}  // namespace spiritrt
