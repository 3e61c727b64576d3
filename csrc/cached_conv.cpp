#include "cached_conv.h"

#include <ATen/ops/addmm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/conv1d.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include "slots.h"

namespace spiritrt {

namespace {

constexpr int64_t kColumns = 320 * 1024;  // most floats of unfolded input at once: what stays in a core's cache

}  // namespace

at::Tensor take_weight(const Weights& weights, const std::string& name, at::IntArrayRef shape,
                       const at::TensorOptions& options) {
  const auto found = weights.find(name);
  TORCH_CHECK_VALUE(found != weights.end(), "the weights have no ", name);
  TORCH_CHECK_VALUE(found->second.sizes() == shape, "weight ", name, " must have shape ", shape, ", got ",
                    found->second.sizes());
  return found->second.detach().to(options.device(), options.dtype().toScalarType()).contiguous();
}

// On a CPU a matrix product over the unfolded input, of all rows at once where that stays in the cache: at::conv1d
// takes 1.5 to 2.5 times as long for the few positions of a stream, and 4 times where it is dilated (float32, AVX-512).
at::Tensor convolve(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, int64_t stride,
                    int64_t dilation) {
  const int64_t batch = x.size(0), in = x.size(1), out = weight.size(0), taps = weight.size(2);
  if (!x.device().is_cpu()) {
    constexpr int64_t padding = 0;
    return at::conv1d(x, weight, bias, at::IntArrayRef(stride), at::IntArrayRef(padding), at::IntArrayRef(dilation));
  }
  const int64_t positions = (x.size(2) - (taps - 1) * dilation - 1) / stride + 1;
  const at::Tensor matrix = weight.view({out, in * taps});
  const at::Tensor shift = bias.defined() ? bias.unsqueeze(1) : at::zeros({1, 1}, weight.options());
  const auto columns = [&](const at::Tensor& rows) {  // [C_in * taps, rows * n]
    const at::IntArrayRef step = rows.strides();
    return rows
        .as_strided({in, taps, rows.size(0), positions}, {step[1], dilation * step[2], step[0], stride * step[2]})
        .reshape({in * taps, rows.size(0) * positions});
  };
  if (batch == 1 || batch * in * taps * positions <= kColumns) {
    return at::addmm(shift, matrix, columns(x)).view({out, batch, positions}).transpose(0, 1);
  }
  at::Tensor result = at::empty({batch, out, positions}, x.options());
  for (int64_t row = 0; row < batch; ++row) {
    at::Tensor into = result.select(0, row);
    at::addmm_out(into, shift, matrix, columns(x.narrow(0, row, 1)));
  }
  return result;
}

SlotRows::SlotRows(std::vector<int64_t> slots, const at::Device& device) : slots_(std::move(slots)) {
  if (slots_.size() > 1) index_ = at::tensor(slots_, at::kLong).to(device);
}

at::Tensor SlotRows::load(const at::Tensor& state) const {
  return index_.defined() ? state.index_select(0, index_) : state.narrow(0, slots_[0], 1);
}

void SlotRows::store(at::Tensor& state, const at::Tensor& rows) const {
  if (index_.defined()) {
    state.index_copy_(0, index_, rows);
  } else {
    state.narrow(0, slots_[0], 1).copy_(rows);
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
  weight = take_weight(weights, name + ".weight", {out, in, kernel}, options);
  bias = take_weight(weights, name + ".bias", {out}, options);
}

at::Tensor CachedConv::operator()(const at::Tensor& joined) const {
  return convolve(joined, weight, bias, 1, dilation);
}

CachedUpConv::CachedUpConv(const Weights& weights, const std::string& name, int64_t in, int64_t out, int64_t kernel,
                           int64_t rate_, int64_t slots, const at::TensorOptions& options)
    : rate(rate_), padding((kernel - rate_) / 2), channels(out) {
  const int64_t taps = ceil_div(kernel, rate);
  history = History(slots, in, taps - 1, options);
  at::Tensor whole = take_weight(weights, name + ".weight", {in, out, kernel}, options);
  whole = at::constant_pad_nd(whole, {0, taps * rate - kernel});
  // output q * rate + phase sums weight[phase + j * rate] * input[q - j]: taps in reverse order
  weight = whole.view({in, out, taps, rate}).flip({2}).permute({3, 1, 0, 2}).reshape({rate * out, in, taps});
  bias = take_weight(weights, name + ".bias", {out}, options).repeat({rate});
}

at::Tensor CachedUpConv::operator()(const at::Tensor& joined) const {
  const at::Tensor phases = convolve(joined, weight, bias, 1, 1);  // [B, rate * C_out, n]
  return phases.unflatten(1, {rate, channels}).permute({0, 2, 3, 1}).reshape({phases.size(0), channels, -1});
}

}  // namespace spiritrt
