// Convolutions that remember the end of their input, for a batch of slots.
//
// Each layer maps n new positions to n output positions (times the rate of a transposed convolution), whatever the
// phase of a slot: what a "same" convolution would take from the future becomes a delay, counted by the caller. So
// slots at different times have equal shapes and go through one call.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

namespace spiritrt {

using Weights = std::unordered_map<std::string, at::Tensor>;

// The tensor `name` of `weights`, on the device and in the type of `options`, or an error that says what is missing or
// of another shape.
at::Tensor take_weight(const Weights& weights, const std::string& name, at::IntArrayRef shape,
                       const at::TensorOptions& options);

// A convolution [B, C_out, n] of x [B, C_in, N] without padding; `bias` may be undefined.
at::Tensor convolve(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, int64_t stride,
                    int64_t dilation);

// Rows of a state tensor [slots, ...] that take part in a call.
class SlotRows {
 public:
  SlotRows() = default;
  SlotRows(std::vector<int64_t> slots, const at::Device& device);
  explicit SlotRows(at::Tensor index) : index_(std::move(index)) {}  // [B], int64, on the device

  // Numbers of the slots; none where only the device knows them.
  const std::vector<int64_t>& slots() const { return slots_; }
  int64_t size() const { return index_.defined() ? index_.size(0) : static_cast<int64_t>(slots_.size()); }
  at::Tensor load(const at::Tensor& state) const;
  void store(at::Tensor& state, const at::Tensor& rows) const;

 private:
  std::vector<int64_t> slots_;
  at::Tensor index_;  // empty where one slot is a view
};

// The last `length` positions of a signal [slots, channels, length]; zeros before it began.
struct History {
  at::Tensor state;
  int64_t length = 0;

  History() = default;
  History(int64_t slots, int64_t channels, int64_t length, const at::TensorOptions& options);

  // [B, C, length + n] of x [B, C, n]; afterwards the history ends at position `keep` of x.
  at::Tensor join(const SlotRows& rows, const at::Tensor& x, int64_t keep);
  void reset(int64_t slot);
};

struct CachedConv {
  at::Tensor weight, bias;  // [C_out, C_in, kernel], [C_out]
  int64_t dilation = 1;
  History history;

  CachedConv() = default;
  CachedConv(const Weights& weights, const std::string& name, int64_t in, int64_t out, int64_t kernel,
             int64_t dilation, int64_t slots, const at::TensorOptions& options);

  int64_t delay() const { return history.length / 2; }
  // Of an input already joined to the history, and activated.
  at::Tensor operator()(const at::Tensor& joined) const;
};

// A transposed convolution as the plain one it is on its input's grid: each position gives `rate` outputs.
struct CachedUpConv {
  at::Tensor weight, bias;  // [rate * C_out, C_in, ceil(kernel / rate)]
  int64_t rate = 1, padding = 0, channels = 0;
  History history;

  CachedUpConv() = default;
  CachedUpConv(const Weights& weights, const std::string& name, int64_t in, int64_t out, int64_t kernel,
               int64_t rate, int64_t slots, const at::TensorOptions& options);

  // [B, C_out, n * rate] of joined input; late by `padding` outputs.
  at::Tensor operator()(const at::Tensor& joined) const;
};

}  // namespace spiritrt
