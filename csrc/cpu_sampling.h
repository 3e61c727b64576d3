// Drawing the next token on the CPU: the rule of `draw` in kernels/reference.py, with the same choice.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <utility>

namespace spiritrt {

// The fields of SamplingState (kernels/sampling_state.py), which says what they hold.
struct SamplingTensors {
  at::Tensor mask, masks, seed, temperature, top_k, top_p, min_p, penalty, seen, last_ids, full;
};

struct SamplingRow {
  const float* logits;      // [vocab]
  const int32_t* allowed;   // bit set
  int32_t* seen;            // bit set
  uint64_t seed;
  int64_t position, vocab, top_k;
  float temperature, top_p, min_p, penalty;
  bool full;
};

// Ids and log-probabilities of logits [R, V] for the slots [R] at positions [R]; feeds the ids back into `state`. Rows
// of a negative slot are left alone.
std::pair<at::Tensor, at::Tensor> cpu_sampling(const at::Tensor& logits, const SamplingTensors& state,
                                               const at::Tensor& slots, const at::Tensor& positions);

}  // namespace spiritrt
