#include "cached_conv.h"

#include <ATen/ops/addmm.h>
#include <ATen/ops/baddbmm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/conv1d.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include "slots.h"

namespace spiritrt {

namespace {

constexpr int64_t kMatrixRows = 4;

// A valid convolution. On a CPU the few positions of a few slots go through a matrix product: at::conv1d takes 4 times as
// long for one slot where it is dilated. From 8 slots on the unfolded input leaves the cache, and at::conv1d is faster.
at::Tensor convolve(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, int64_t dilation) {
  const int64_t batch = x.size(0), in = x.size(1), length = x.size(2), out = weight.size(0), taps = weight.size(2);
  if (!x.device().is_cpu() || batch > kMatrixRows) {
    constexpr int64_t stride = 1, padding = 0;
    return at::conv1d(x, weight, bias, at::IntArrayRef(stride), at::IntArrayRef(padding), at::IntArrayRef(dilation));
  }
  const int64_t positions = length - (taps - 1) * dilation;
  const at::Tensor columns = x.contiguous()
                                 .as_strided({batch, in, taps, positions}, {in * length, length, dilation, 1})
                                 .reshape({batch, in * taps, positions});
  const at::Tensor matrix = weight.view({out, in * taps});
  if (batch == 1) return at::addmm(bias.unsqueeze(1), matrix, columns.select(0, 0)).unsqueeze(0);
  return at::baddbmm(bias.view({1, out, 1}), matrix.expand({batch, out, in * taps}), columns);
}

}  // namespace

at::Tensor take_weight(const Weights& weights, const std::string& name, at::IntArrayRef shape, at::ScalarType dtype) {
  const auto found = weights.find(name);
  TORCH_CHECK_VALUE(found != weights.end(), "the weights have no ", name);
  TORCH_CHECK_VALUE(found->second.sizes() == shape, "weight ", name, " must have shape ", shape, ", got ",
                    found->second.sizes());
  return found->second.detach().to(dtype).contiguous();
}

SlotRows::SlotRows(std::vector<int64_t> slots, const at::Device& device) : slots_(std::move(slots)) {
  if (slots_.size() > 1) index_ = at::tensor(slots_, at::kLong).to(device);
}

at::Tensor SlotRows::load(const at::Tensor& state) const {
  return slots_.size() == 1 ? state.narrow(0, slots_[0], 1) : state.index_select(0, index_);
}

void SlotRows::store(at::Tensor& state, const at::Tensor& rows) const {
  if (slots_.size() == 1) {
    state.narrow(0, slots_[0], 1).copy_(rows);
  } else {
    state.index_copy_(0, index_, rows);
  }
}

History::History(int64_t slots, int64_t channels, int64_t length_, const at::TensorOptions& options)
    : state(at::zeros({slots, channels, length_}, options)), length(length_) {}

at::Tensor History::join(const SlotRows& rows, const at::Tensor& x, int64_t keep) {
  if (length == 0) return x;
  at::Tensor joined = at::cat({rows.load(state), x}, 2);
  rows.store(state, joined.narrow(2, keep, length));
  return joined;
}

void History::reset(int64_t slot) {
  if (length) state.select(0, slot).zero_();
}

CachedConv::CachedConv(const Weights& weights, const std::string& name, int64_t in, int64_t out, int64_t kernel,
                       int64_t dilation_, int64_t slots, const at::TensorOptions& options)
    : dilation(dilation_), history(slots, in, (kernel - 1) * dilation_, options) {
  const auto dtype = options.dtype().toScalarType();
  weight = take_weight(weights, name + ".weight", {out, in, kernel}, dtype);
  bias = take_weight(weights, name + ".bias", {out}, dtype);
}

at::Tensor CachedConv::operator()(const at::Tensor& joined) const {
  return convolve(joined, weight, bias, dilation);
}

CachedUpConv::CachedUpConv(const Weights& weights, const std::string& name, int64_t in, int64_t out, int64_t kernel,
                           int64_t rate_, int64_t slots, const at::TensorOptions& options)
    : rate(rate_), padding((kernel - rate_) / 2), channels(out) {
  const auto dtype = options.dtype().toScalarType();
  const int64_t taps = ceil_div(kernel, rate);
  history = History(slots, in, taps - 1, options);
  at::Tensor whole = take_weight(weights, name + ".weight", {in, out, kernel}, dtype);
  whole = at::constant_pad_nd(whole, {0, taps * rate - kernel});
  // output q * rate + phase sums weight[phase + j * rate] * input[q - j]: taps in reverse order
  weight = whole.view({in, out, taps, rate}).flip({2}).permute({3, 1, 0, 2}).reshape({rate * out, in, taps});
  bias = take_weight(weights, name + ".bias", {out}, dtype).repeat({rate});
}

at::Tensor CachedUpConv::operator()(const at::Tensor& joined) const {
  const at::Tensor phases = convolve(joined, weight, bias, 1);  // [B, rate * C_out, n]
  return phases.view({phases.size(0), rate, channels, -1}).permute({0, 2, 3, 1}).reshape(
      {phases.size(0), channels, -1});
}

}  // namespace spiritrt
