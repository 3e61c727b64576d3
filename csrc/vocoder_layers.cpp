#include "vocoder_layers.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/empty.h>
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

}  // namespace

int64_t VocoderShape::hop_samples() const {
  int64_t hop = 1;
  for (int64_t rate : upsample_rates) hop *= rate;
  return hop;
}

void zero_outside(at::Tensor& x, const Rows& rows, int64_t rate, int64_t delay) {
  if (rows.inside) return;
  const int64_t length = x.size(2);
  if (!rows.on_host()) {
    const at::Tensor position = at::arange(length, rows.fed.options()) + (rows.fed * rate - delay);  // [B, 1, n]
    x.masked_fill_(position.lt(0).logical_or_(position.ge(rows.total * rate)), 0);
    return;
  }
  for (size_t row = 0; row < rows.spans.size(); ++row) {
    const int64_t first = rows.spans[row].fed * rate - delay;
    const int64_t before = std::clamp<int64_t>(-first, 0, length);
    const int64_t end = std::clamp<int64_t>(rows.spans[row].total * rate - first, before, length);
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
  const int64_t width = shape.embedding_dim;
  const auto add_table = [&](const std::string& name, int64_t count, int64_t Codes::*field) {
    if (count) tables_.push_back({take_weight(weights, name + ".weight", {count, width}, options), field});
  };
  add_table("dict", shape.num_embeddings, &Codes::unit);
  add_table("f0_dict", shape.num_f0_tokens, &Codes::pitch);
  add_table("style_dict", shape.num_style_tokens, &Codes::style);
  add_table("spkr", shape.num_speakers, &Codes::speaker);
  add_table("style", shape.num_styles, &Codes::named_style);
  const int64_t kinds = static_cast<int64_t>(tables_.size());
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

at::Tensor Generator::pack(const std::vector<Codes>& codes, int64_t rows) const {
  at::Tensor packed = at::empty({static_cast<int64_t>(tables_.size()), static_cast<int64_t>(codes.size())}, at::kLong);
  int64_t* out = packed.mutable_data_ptr<int64_t>();
  for (const Table& table : tables_) {
    for (const Codes& frame : codes) *out++ = frame.*table.field;
  }
  return packed.view({packed.size(0), rows, -1});
}

at::Tensor Generator::run(const Rows& rows, const at::Tensor& codes, int64_t keep) {
  const int64_t batch = codes.size(1), frames = codes.size(2);
  std::vector<at::Tensor> parts;
  for (size_t kind = 0; kind < tables_.size(); ++kind) {
    parts.push_back(at::embedding(tables_[kind].weight, codes.select(0, kind)));
  }
  at::Tensor x = at::cat(parts, 2).transpose(1, 2).contiguous();  // [B, C, n]
  zero_outside(x, rows, 1, 0);
  x = pre_(pre_.history.join(rows.slots, x, keep));
  zero_outside(x, rows, 1, pre_.delay());

  std::vector<int64_t> present(batch);
  std::iota(present.begin(), present.end(), 0);
  // A layer has no work for a row whose beginning has not reached its input, or whose end has left its output: takes
  // the rows that are left, and says where they are.
  const auto narrow_to_active = [&](int64_t rate_in, int64_t delay_in, int64_t rate_out, int64_t delay_out) {
    if (rows.inside || !rows.on_host()) return rows;
    std::vector<int64_t> active, slots;
    Rows some;
    for (int64_t row = 0; row < batch; ++row) {
      const Span& span = rows.spans[row];
      const bool begun = (span.fed + frames) * rate_in > delay_in;
      const bool over = (span.fed - span.total) * rate_out >= delay_out;
      if (!begun || over) continue;
      active.push_back(row);
      slots.push_back(rows.slots.slots()[row]);
      some.spans.push_back(span);
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
    some.slots = SlotRows(slots, x.device());
    return some;
  };
  for (Stage& stage : stages_) {
    const Rows active = narrow_to_active(stage.rate_in, stage.delay_in, stage.rate_out, stage.delay_out);
    x = active.slots.size() ? run_stage(stage, active, x, keep * stage.rate_in)
                            : at::zeros({0, stage.up.channels, frames * stage.rate_out}, x.options());
  }
  const int64_t rate = stages_.back().rate_out;
  const Rows active = narrow_to_active(rate, stages_.back().delay_out, rate, delay_samples_);
  at::Tensor sound = at::zeros({batch, frames * rate}, x.options().dtype(at::kFloat));
  if (!active.slots.size()) return sound;
  x = post_(post_.history.join(active.slots, at::leaky_relu(x, kLastSlope), keep * rate)).tanh_().select(1, 0);
  if (static_cast<int64_t>(present.size()) == batch) return sound.copy_(x);
  for (size_t i = 0; i < present.size(); ++i) sound.select(0, present[i]).copy_(x.select(0, i));
  return sound;
}

at::Tensor Generator::run_stage(Stage& stage, const Rows& rows, const at::Tensor& input, int64_t keep) {
  at::Tensor x = stage.up(stage.up.history.join(rows.slots, at::leaky_relu(input, kSlope), keep));
  keep *= stage.up.rate;
  zero_outside(x, rows, stage.rate_out, stage.delay_up);
  const int64_t length = x.size(2);
  at::Tensor total;
  for (ResidualBlock& block : stage.blocks) {
    at::Tensor y = x;
    int64_t delay = stage.delay_up;
    for (size_t i = 0; i < block.dilated.size(); ++i) {
      CachedConv &dilated = block.dilated[i], &plain = block.plain[i];
      const at::Tensor joined = dilated.history.join(rows.slots, y, keep);
      at::Tensor inner = dilated(at::leaky_relu(joined, kSlope));
      at::leaky_relu_(inner, kSlope);
      delay += dilated.delay();
      zero_outside(inner, rows, stage.rate_out, delay);
      inner = plain(plain.history.join(rows.slots, inner, keep));
      delay += plain.delay();
      const int64_t lag = dilated.delay() + plain.delay();
      y = inner.add_(joined.narrow(2, dilated.history.length - lag, length));
      zero_outside(y, rows, stage.rate_out, delay);
    }
    y = block.lag.join(rows.slots, y, keep).narrow(2, 0, length);
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

DurationPredictor::DurationPredictor(const VocoderShape& shape, const Weights& weights, int64_t slots)
    : width_(shape.var_pred_hidden_dim) {
  const at::TensorOptions options = at::TensorOptions().dtype(at::kFloat);
  const int64_t kernel = shape.var_pred_kernel_size;
  const auto take = [&](const char* name, at::IntArrayRef sizes) {
    return take_weight(weights, std::string("dur_predictor.") + name, sizes, options);
  };
  table_ = take_weight(weights, "dict.weight", {shape.num_embeddings, shape.embedding_dim}, options);
  first_ = CachedConv(weights, "dur_predictor.conv1.0", shape.embedding_dim, width_, kernel, 1, slots, options);
  second_ = CachedConv(weights, "dur_predictor.conv2.0", width_, width_, kernel, 1, slots, options);
  first_scale_ = take("ln1.weight", {width_});
  first_shift_ = take("ln1.bias", {width_});
  second_scale_ = take("ln2.weight", {width_});
  second_shift_ = take("ln2.bias", {width_});
  weight_ = take("proj.weight", {1, width_});
  bias_ = take("proj.bias", {1});
}

std::vector<int64_t> DurationPredictor::run(const Rows& rows, const std::vector<int64_t>& units) {
  const int64_t batch = rows.slots.size(), count = static_cast<int64_t>(units.size()) / batch;
  at::Tensor x = at::embedding(table_, at::tensor(units, at::kLong).view({batch, count}));
  x = x.transpose(1, 2).contiguous();
  zero_outside(x, rows, 1, 0);
  x = at::relu(first_(first_.history.join(rows.slots, x, count)));
  x = at::layer_norm(x.transpose(1, 2), {width_}, first_scale_, first_shift_).transpose(1, 2).contiguous();
  zero_outside(x, rows, 1, first_.delay());
  x = at::relu(second_(second_.history.join(rows.slots, x, count)));
  x = at::layer_norm(x.transpose(1, 2), {width_}, second_scale_, second_shift_);
  x = at::linear(x, weight_, bias_).exp_().sub_(1).round_().clamp_(1, kLongestUnitFrames).to(at::kLong).contiguous();
  return {x.const_data_ptr<int64_t>(), x.const_data_ptr<int64_t>() + x.numel()};
}

void DurationPredictor::reset(int64_t slot) {
  first_.history.reset(slot);
  second_.history.reset(slot);
}

}  // namespace spiritrt
