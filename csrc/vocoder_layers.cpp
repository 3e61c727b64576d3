#include "vocoder_layers.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/layer_norm.h>
#include <ATen/ops/leaky_relu.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "slots.h"

namespace spiritrt {

namespace {

constexpr double kSlope = 0.1, kLastSlope = 0.01;
constexpr int64_t kLongestUnitFrames = 500;  // as in runtime/models/vocoder.py

at::Tensor table(const Weights& weights, const std::string& name, int64_t count, int64_t width, at::ScalarType dtype) {
  return count ? take_weight(weights, name + ".weight", {count, width}, dtype) : at::Tensor();
}

}  // namespace

int64_t VocoderShape::hop_samples() const {
  int64_t hop = 1;
  for (int64_t rate : upsample_rates) hop *= rate;
  return hop;
}

void zero_outside(at::Tensor& x, const std::vector<Span>& spans, int64_t rate, int64_t delay) {
  const int64_t length = x.size(2);
  for (size_t row = 0; row < spans.size(); ++row) {
    const int64_t first = spans[row].fed * rate - delay;
    const int64_t before = std::clamp<int64_t>(-first, 0, length);
    const int64_t end = std::clamp<int64_t>(spans[row].total * rate - first, before, length);
    if (before > 0) x.select(0, row).narrow(1, 0, before).zero_();
    if (end < length) x.select(0, row).narrow(1, end, length - end).zero_();
  }
}

int64_t ResidualBlock::delay() const {
  int64_t positions = 0;
  for (size_t i = 0; i < dilated.size(); ++i) positions += dilated[i].delay() + plain[i].delay();
  return positions;
}

Generator::Generator(const VocoderShape& shape, const Weights& weights, int64_t slots,
                     const at::TensorOptions& options) {
  const auto dtype = options.dtype().toScalarType();
  const int64_t width = shape.embedding_dim;
  unit_table_ = table(weights, "dict", shape.num_embeddings, width, dtype);
  pitch_table_ = table(weights, "f0_dict", shape.num_f0_tokens, width, dtype);
  style_table_ = table(weights, "style_dict", shape.num_style_tokens, width, dtype);
  speaker_table_ = table(weights, "spkr", shape.num_speakers, width, dtype);
  named_style_table_ = table(weights, "style", shape.num_styles, width, dtype);
  const int64_t kinds = 1 + (shape.num_f0_tokens > 0) + (shape.num_style_tokens > 0) + (shape.num_speakers > 0) +
                        (shape.num_styles > 0);
  int64_t channels = shape.upsample_initial_channel, rate = 1;
  pre_ = CachedConv(weights, "conv_pre", width * kinds, channels, 7, 1, slots, options);
  int64_t delay = pre_.delay();
  const size_t per_stage = shape.resblock_kernel_sizes.size();
  for (size_t i = 0; i < shape.upsample_rates.size(); ++i) {
    Stage stage;
    stage.rate_in = rate;
    stage.delay_in = delay;
    stage.up = CachedUpConv(weights, "ups." + std::to_string(i), channels, channels / 2,
                            shape.upsample_kernel_sizes[i], shape.upsample_rates[i], slots, options);
    channels /= 2;
    rate *= stage.up.rate;
    stage.rate_out = rate;
    stage.delay_up = delay * stage.up.rate + stage.up.padding;
    int64_t longest = 0;
    for (size_t j = 0; j < per_stage; ++j) {
      const std::string name = "resblocks." + std::to_string(i * per_stage + j);
      const int64_t kernel = shape.resblock_kernel_sizes[j];
      ResidualBlock block;
      for (size_t d = 0; d < shape.resblock_dilation_sizes[j].size(); ++d) {
        const std::string at_d = "." + std::to_string(d);
        block.dilated.emplace_back(weights, name + ".convs1" + at_d, channels, channels, kernel,
                                   shape.resblock_dilation_sizes[j][d], slots, options);
        block.plain.emplace_back(weights, name + ".convs2" + at_d, channels, channels, kernel, 1, slots, options);
      }
      longest = std::max(longest, block.delay());
      stage.blocks.push_back(std::move(block));
    }
    for (ResidualBlock& block : stage.blocks) {
      block.lag = History(slots, channels, longest - block.delay(), options);
    }
    delay = stage.delay_out = stage.delay_up + longest;
    stages_.push_back(std::move(stage));
  }
  post_ = CachedConv(weights, "conv_post", channels, 1, 7, 1, slots, options);
  delay_samples_ = delay + post_.delay();
}

at::Tensor Generator::embed(const std::vector<Codes>& codes, int64_t rows) const {
  std::vector<at::Tensor> parts;
  const auto add = [&](const at::Tensor& table, int64_t Codes::*field) {
    if (!table.defined()) return;
    std::vector<int64_t> ids;
    ids.reserve(codes.size());
    for (const Codes& frame : codes) ids.push_back(frame.*field);
    parts.push_back(at::embedding(table, at::tensor(ids, at::kLong).view({rows, -1}).to(table.device())));
  };
  add(unit_table_, &Codes::unit);
  add(pitch_table_, &Codes::pitch);
  add(style_table_, &Codes::style);
  add(speaker_table_, &Codes::speaker);
  add(named_style_table_, &Codes::named_style);
  return at::cat(parts, 2).transpose(1, 2).contiguous();  // [B, C, n]
}

at::Tensor Generator::run(const SlotRows& rows, const std::vector<Span>& spans, const std::vector<Codes>& codes,
                          int64_t keep) {
  const int64_t batch = rows.size(), frames = static_cast<int64_t>(codes.size()) / batch;
  at::Tensor x = embed(codes, batch);
  zero_outside(x, spans, 1, 0);
  x = pre_(pre_.history.join(rows, x, keep));
  zero_outside(x, spans, 1, pre_.delay());

  std::vector<int64_t> present(batch);
  std::iota(present.begin(), present.end(), 0);
  // A layer has no work for a row whose beginning has not reached its input, or whose end has left its output: takes
  // the rows that are left, and says where they are.
  const auto narrow_to_active = [&](int64_t rate_in, int64_t delay_in, int64_t rate_out, int64_t delay_out,
                                    std::vector<Span>& some) {
    std::vector<int64_t> active, slots;
    for (int64_t row = 0; row < batch; ++row) {
      const bool begun = (spans[row].fed + frames) * rate_in > delay_in;
      const bool over = (spans[row].fed - spans[row].total) * rate_out >= delay_out;
      if (!begun || over) continue;
      active.push_back(row);
      slots.push_back(rows.slots()[row]);
      some.push_back(spans[row]);
    }
    if (active != present) {
      at::Tensor chosen = at::zeros({static_cast<int64_t>(active.size()), x.size(1), x.size(2)}, x.options());
      for (size_t i = 0; i < active.size(); ++i) {
        const auto found = std::find(present.begin(), present.end(), active[i]);
        if (found != present.end()) chosen.select(0, i).copy_(x.select(0, found - present.begin()));
      }
      x = chosen;
      present = active;
    }
    return SlotRows(slots, x.device());
  };
  for (Stage& stage : stages_) {
    std::vector<Span> some;
    const SlotRows active =
        narrow_to_active(stage.rate_in, stage.delay_in, stage.rate_out, stage.delay_out, some);
    x = active.size() ? run_stage(stage, active, some, x, keep * stage.rate_in)
                      : at::zeros({0, stage.up.channels, frames * stage.rate_out}, x.options());
  }
  std::vector<Span> some;
  const int64_t rate = stages_.back().rate_out;
  const SlotRows active = narrow_to_active(rate, stages_.back().delay_out, rate, delay_samples_, some);
  at::Tensor sound = at::zeros({batch, frames * rate}, x.options().dtype(at::kFloat));
  if (!active.size()) return sound;
  x = post_(post_.history.join(active, at::leaky_relu(x, kLastSlope), keep * rate)).tanh_().select(1, 0);
  for (size_t i = 0; i < present.size(); ++i) sound.select(0, present[i]).copy_(x.select(0, i));
  return sound;
}

at::Tensor Generator::run_stage(Stage& stage, const SlotRows& rows, const std::vector<Span>& spans,
                                const at::Tensor& input, int64_t keep) {
  at::Tensor x = stage.up(stage.up.history.join(rows, at::leaky_relu(input, kSlope), keep));
  keep *= stage.up.rate;
  zero_outside(x, spans, stage.rate_out, stage.delay_up);
  const int64_t length = x.size(2);
  at::Tensor total;
  for (ResidualBlock& block : stage.blocks) {
    at::Tensor y = x;
    int64_t delay = stage.delay_up;
    for (size_t i = 0; i < block.dilated.size(); ++i) {
      CachedConv &dilated = block.dilated[i], &plain = block.plain[i];
      const at::Tensor joined = dilated.history.join(rows, y, keep);
      at::Tensor inner = dilated(at::leaky_relu(joined, kSlope));
      at::leaky_relu_(inner, kSlope);
      delay += dilated.delay();
      zero_outside(inner, spans, stage.rate_out, delay);
      inner = plain(plain.history.join(rows, inner, keep));
      delay += plain.delay();
      const int64_t lag = dilated.delay() + plain.delay();
      y = inner.add_(joined.narrow(2, dilated.history.length - lag, length));
      zero_outside(y, spans, stage.rate_out, delay);
    }
    y = block.lag.join(rows, y, keep).narrow(2, 0, length);
    total = total.defined() ? total.add_(y) : y.clone();
  }
  return total.div_(static_cast<double>(stage.blocks.size()));
}

void Generator::reset(int64_t slot) {
  pre_.history.reset(slot);
  post_.history.reset(slot);
  for (Stage& stage : stages_) {
    stage.up.history.reset(slot);
    for (ResidualBlock& block : stage.blocks) {
      for (CachedConv& conv : block.dilated) conv.history.reset(slot);
      for (CachedConv& conv : block.plain) conv.history.reset(slot);
      block.lag.reset(slot);
    }
  }
}

DurationPredictor::DurationPredictor(const VocoderShape& shape, const Weights& weights, int64_t slots,
                                     const at::TensorOptions& options)
    : width_(shape.var_pred_hidden_dim) {
  const auto dtype = options.dtype().toScalarType();
  const int64_t kernel = shape.var_pred_kernel_size;
  table_ = table(weights, "dict", shape.num_embeddings, shape.embedding_dim, dtype);
  first_ = CachedConv(weights, "dur_predictor.conv1.0", shape.embedding_dim, width_, kernel, 1, slots, options);
  second_ = CachedConv(weights, "dur_predictor.conv2.0", width_, width_, kernel, 1, slots, options);
  first_scale_ = take_weight(weights, "dur_predictor.ln1.weight", {width_}, dtype);
  first_shift_ = take_weight(weights, "dur_predictor.ln1.bias", {width_}, dtype);
  second_scale_ = take_weight(weights, "dur_predictor.ln2.weight", {width_}, dtype);
  second_shift_ = take_weight(weights, "dur_predictor.ln2.bias", {width_}, dtype);
  weight_ = take_weight(weights, "dur_predictor.proj.weight", {1, width_}, dtype);
  bias_ = take_weight(weights, "dur_predictor.proj.bias", {1}, dtype);
}

std::vector<int64_t> DurationPredictor::run(const SlotRows& rows, const std::vector<Span>& spans,
                                            const std::vector<int64_t>& units) {
  const int64_t batch = rows.size(), count = static_cast<int64_t>(units.size()) / batch;
  at::Tensor x = at::embedding(table_, at::tensor(units, at::kLong).view({batch, count}).to(table_.device()));
  x = x.transpose(1, 2).contiguous();
  zero_outside(x, spans, 1, 0);
  x = at::relu(first_(first_.history.join(rows, x, count)));
  x = at::layer_norm(x.transpose(1, 2), {width_}, first_scale_, first_shift_).transpose(1, 2).contiguous();
  zero_outside(x, spans, 1, first_.delay());
  x = at::relu(second_(second_.history.join(rows, x, count)));
  x = at::layer_norm(x.transpose(1, 2), {width_}, second_scale_, second_shift_);
  x = at::linear(x, weight_, bias_).to(at::kFloat);
  x = x.exp_().sub_(1).round_().clamp_(1, kLongestUnitFrames).to(at::kLong).to(at::kCPU).contiguous();
  return {x.const_data_ptr<int64_t>(), x.const_data_ptr<int64_t>() + x.numel()};
}

void DurationPredictor::reset(int64_t slot) {
  first_.history.reset(slot);
  second_.history.reset(slot);
}

}  // namespace spiritrt
