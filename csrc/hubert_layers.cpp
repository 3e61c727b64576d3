#include "hubert_layers.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/batch_norm.h>
#include <ATen/ops/cdist.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/conv1d.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/group_norm.h>
#include <ATen/ops/layer_norm.h>
#include <ATen/ops/leaky_relu.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/rsqrt.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "slots.h"

namespace spiritrt {

namespace {

constexpr double kEpsilon = 1e-5;

at::Tensor fp32_layer_norm(const at::Tensor& x, const Affine& norm) {
  return at::layer_norm(x.to(at::kFloat), norm.weight.sizes(), norm.weight, norm.bias, kEpsilon).to(x.scalar_type());
}

}  // namespace

int64_t HubertShape::hop_samples() const {
  int64_t hop = 1;
  for (const auto& layer : conv_layers) hop *= layer[2];
  return hop;
}

int64_t HubertShape::receptive_samples() const {
  int64_t samples = 1;
  for (auto layer = conv_layers.rbegin(); layer != conv_layers.rend(); ++layer) {
    samples = (samples - 1) * (*layer)[2] + (*layer)[1];
  }
  return samples;
}

int64_t HubertShape::frames(int64_t samples) const {
  return samples < receptive_samples() ? 0 : (samples - receptive_samples()) / hop_samples() + 1;
}

Affine::Affine(const Weights& weights, const std::string& name, at::IntArrayRef shape,
               const at::TensorOptions& options)
    : weight(take_weight(weights, name + ".weight", shape, options)),
      bias(take_weight(weights, name + ".bias", {shape[0]}, options)) {}

FrontEnd::FrontEnd(const HubertShape& shape, const Weights& weights, Norm norm,
                   std::optional<Calibration> calibration, int64_t freeze_frames, int64_t slots,
                   const at::TensorOptions& options)
    : shape_(shape), policy_(norm), freeze_frames_(freeze_frames) {
  const at::TensorOptions fp32 = options.dtype(at::kFloat);
  int64_t in = 1;
  for (size_t i = 0; i < shape.conv_layers.size(); ++i) {
    const auto [channels, kernel, stride] = shape.conv_layers[i];
    TORCH_CHECK_VALUE(kernel >= stride, "a convolution of kernel ", kernel, " and stride ", stride,
                      " leaves samples out, which a stream does not support");
    const std::string name = "feature_extractor.conv_layers." + std::to_string(i);
    Layer layer;
    layer.weight = take_weight(weights, name + ".0.weight", {channels, in, kernel}, options);
    if (shape.conv_bias) layer.bias = take_weight(weights, name + ".0.bias", {channels}, options);
    layer.stride = stride;
    layer.history = History(slots, in, kernel - stride, options);
    if (shape.layer_norm_extractor) {
      layer.norm = Affine(weights, name + ".2.1", {channels}, fp32);
    } else if (i == 0) {
      layer.norm = Affine(weights, name + ".2", {channels}, fp32);
    }
    layers_.push_back(std::move(layer));
    in = channels;
  }
  norm_ = Affine(weights, "layer_norm", {in}, options);
  if (in != shape.encoder_embed_dim) {
    projection_ = Affine(weights, "post_extract_proj", {shape.encoder_embed_dim, in}, options);
  }
  const int64_t hop = shape.hop_samples(), overlap = shape.receptive_samples() - hop;
  lead_frames_ = ceil_div(overlap, hop);
  lead_samples_ = lead_frames_ * hop - overlap;
  const auto [channels, kernel, stride] = shape.conv_layers[0];
  first_per_frame_ = hop / stride;
  // its first output of real samples alone begins at padded sample `lead_samples_`, kernel - stride after the history
  first_lead_ = ceil_div(lead_samples_ + kernel - stride, stride);
  if (norm == Norm::running) sums_ = at::zeros({slots, 3, channels}, options.dtype(at::kDouble));
  if (norm == Norm::calibrated) {
    TORCH_CHECK_VALUE(calibration, "norm 'calibrated' needs the mean and variance of each channel");
    calibration_ = *calibration;
    for (const at::Tensor& statistic : {calibration_.mean, calibration_.variance}) {
      TORCH_CHECK_VALUE(statistic.sizes() == at::IntArrayRef({channels}), "calibrated statistics must have shape [",
                        channels, "], got ", statistic.sizes());
    }
    calibration_.mean = calibration_.mean.to(options.device(), at::kFloat);
    calibration_.variance = calibration_.variance.to(options.device(), at::kFloat);
  }
}

at::Tensor FrontEnd::activate(const Layer& layer, const at::Tensor& x) const {
  if (!shape_.layer_norm_extractor) return at::gelu(x);
  return at::gelu(fp32_layer_norm(x.transpose(1, 2), layer.norm).transpose(1, 2));
}

at::Tensor FrontEnd::project(const at::Tensor& x) const {
  const at::Tensor frames =
      at::layer_norm(x.transpose(1, 2), norm_.weight.sizes(), norm_.weight, norm_.bias, kEpsilon);
  return projection_.weight.defined() ? at::linear(frames, projection_.weight, projection_.bias) : frames;
}

at::Tensor FrontEnd::whole(at::Tensor waveform) const {
  if (shape_.normalize) waveform = at::layer_norm(waveform, {waveform.size(1)});
  constexpr int64_t padding = 0, dilation = 1;
  at::Tensor x = waveform.to(layers_[0].weight.scalar_type()).unsqueeze(1);
  for (const Layer& layer : layers_) {
    x = at::conv1d(x, layer.weight, layer.bias, at::IntArrayRef(layer.stride), at::IntArrayRef(padding),
                   at::IntArrayRef(dilation));
    if (&layer == &layers_[0] && !shape_.layer_norm_extractor) {
      x = at::group_norm(x.to(at::kFloat), x.size(1), layer.norm.weight, layer.norm.bias, kEpsilon).to(x.scalar_type());
    }
    x = activate(layer, x);
  }
  return project(x);
}

at::Tensor FrontEnd::next(const SlotRows& rows, const std::vector<int64_t>& fed, const at::Tensor& samples) {
  at::Tensor x = samples.to(layers_[0].weight.scalar_type()).unsqueeze(1);
  for (Layer& layer : layers_) {
    x = convolve(layer.history.join(rows, x, x.size(2)), layer.weight, layer.bias, layer.stride, 1);
    if (&layer == &layers_[0] && !shape_.layer_norm_extractor) x = normalize_first(rows, fed, x);
    x = activate(layer, x);
  }
  return project(x);
}

at::Tensor FrontEnd::normalize_first(const SlotRows& rows, const std::vector<int64_t>& fed, const at::Tensor& x) {
  const Affine& norm = layers_[0].norm;
  at::Tensor mean, variance;  // [B or 1, C, 1]
  if (policy_ == Norm::calibrated) {
    mean = calibration_.mean.view({1, -1, 1});
    variance = calibration_.variance.view({1, -1, 1});
  } else {
    at::Tensor sums = rows.load(sums_).clone();
    for (int64_t row = 0; row < rows.size(); ++row) {
      if (freeze_frames_ && fed[row] - lead_frames_ >= freeze_frames_) continue;
      const int64_t skipped = std::clamp<int64_t>(first_lead_ - fed[row] * first_per_frame_, 0, x.size(2));
      const at::Tensor fresh = x.select(0, row).narrow(1, skipped, x.size(2) - skipped).to(at::kDouble);  // [C, n]
      sums.select(0, row).select(0, 0).add_(fresh.size(1));
      sums.select(0, row).select(0, 1).add_(fresh.sum(1));
      sums.select(0, row).select(0, 2).add_(fresh.square().sum(1));
    }
    rows.store(sums_, sums);
    const at::Tensor count = sums.select(1, 0);
    const at::Tensor exact_mean = sums.select(1, 1) / count;
    variance = (sums.select(1, 2) / count - exact_mean.square()).clamp_min_(0).to(at::kFloat).unsqueeze(2);
    mean = exact_mean.to(at::kFloat).unsqueeze(2);
  }
  const at::Tensor scale = at::rsqrt(variance + kEpsilon) * norm.weight.view({1, -1, 1});
  return ((x.to(at::kFloat) - mean) * scale + norm.bias.view({1, -1, 1})).to(x.scalar_type());
}

void FrontEnd::reset(int64_t slot) {
  for (Layer& layer : layers_) layer.history.reset(slot);
  if (sums_.defined()) sums_.select(0, slot).zero_();
}

Encoder::Encoder(const HubertShape& shape, const Weights& weights, const at::TensorOptions& options) : shape_(shape) {
  const int64_t width = shape.encoder_embed_dim, inner = shape.encoder_ffn_embed_dim;
  const std::string pos = "encoder.pos_conv.";
  if (shape.conv_pos_batch_norm) {
    batch_norm_ = Affine(weights, pos + "0", {width}, options);
    batch_mean_ = take_weight(weights, pos + "0.running_mean", {width}, options);
    batch_variance_ = take_weight(weights, pos + "0.running_var", {width}, options);
  }
  position_ = Affine(weights, pos + (shape.conv_pos_batch_norm ? "1" : "0"),
                     {width, width / shape.conv_pos_groups, shape.conv_pos}, options);
  norm_ = Affine(weights, "encoder.layer_norm", {width}, options);
  for (int64_t i = 0; i < shape.output_layer; ++i) {
    const std::string name = "encoder.layers." + std::to_string(i) + ".";
    Layer layer;
    layer.query = Affine(weights, name + "self_attn.q_proj", {width, width}, options);
    layer.key = Affine(weights, name + "self_attn.k_proj", {width, width}, options);
    layer.value = Affine(weights, name + "self_attn.v_proj", {width, width}, options);
    layer.out = Affine(weights, name + "self_attn.out_proj", {width, width}, options);
    layer.attention_norm = Affine(weights, name + "self_attn_layer_norm", {width}, options);
    layer.first = Affine(weights, name + "fc1", {inner, width}, options);
    layer.second = Affine(weights, name + "fc2", {width, inner}, options);
    layer.norm = Affine(weights, name + "final_layer_norm", {width}, options);
    layers_.push_back(std::move(layer));
  }
}

at::Tensor Encoder::operator()(at::Tensor x, int64_t first) const {
  const int64_t frames = x.size(1), stride = 1, padding = shape_.conv_pos / 2, dilation = 1;
  at::Tensor position = x.transpose(1, 2);
  if (shape_.conv_pos_batch_norm) {
    position = at::batch_norm(position, batch_norm_.weight, batch_norm_.bias, batch_mean_, batch_variance_,
                              /*training=*/false, /*momentum=*/0.1, kEpsilon, /*cudnn_enabled=*/true);
  }
  position = at::conv1d(position, position_.weight, position_.bias, at::IntArrayRef(stride), at::IntArrayRef(padding),
                        at::IntArrayRef(dilation), shape_.conv_pos_groups);
  x = x + at::gelu(position.narrow(2, 0, frames)).transpose(1, 2);
  if (!shape_.layer_norm_first) x = layer_norm(x, norm_);
  const int64_t extra = (shape_.required_seq_len_multiple - frames % shape_.required_seq_len_multiple) %
                        shape_.required_seq_len_multiple;
  std::optional<at::Tensor> mask;
  if (extra) {
    x = at::constant_pad_nd(x, {0, 0, 0, extra});
    mask = at::arange(frames + extra, x.options().dtype(at::kLong)).lt(frames).view({1, 1, 1, -1});
  }
  for (const Layer& layer : layers_) {
    const int64_t skipped = &layer == &layers_.back() ? first : 0;
    const at::Tensor rest = x.narrow(1, skipped, x.size(1) - skipped);
    if (shape_.layer_norm_first) {
      x = rest + attend(layer, layer_norm(x, layer.attention_norm), skipped, mask);
      x = x + feed_forward(layer, layer_norm(x, layer.norm));
    } else {
      x = layer_norm(rest + attend(layer, x, skipped, mask), layer.attention_norm);
      x = layer_norm(x + feed_forward(layer, x), layer.norm);
    }
  }
  return x.narrow(1, 0, frames - first);
}

at::Tensor Encoder::layer_norm(const at::Tensor& x, const Affine& norm) const {
  return at::layer_norm(x, norm.weight.sizes(), norm.weight, norm.bias, kEpsilon);
}

at::Tensor Encoder::attend(const Layer& layer, const at::Tensor& x, int64_t first,
                           const std::optional<at::Tensor>& mask) const {
  const int64_t batch = x.size(0), heads = shape_.encoder_attention_heads, asked = x.size(1) - first;
  const auto project = [&](const at::Tensor& input, const Affine& affine) {
    return at::linear(input, affine.weight, affine.bias)
        .view({batch, input.size(1), heads, -1})
        .transpose(1, 2);  // [B, H, T, D]
  };
  const at::Tensor query = project(x.narrow(1, first, asked), layer.query);
  const at::Tensor key = project(x, layer.key), value = project(x, layer.value);
  const at::Tensor out = at::scaled_dot_product_attention(query, key, value, mask);
  return at::linear(out.transpose(1, 2).reshape({batch, asked, -1}), layer.out.weight, layer.out.bias);
}

at::Tensor Encoder::feed_forward(const Layer& layer, const at::Tensor& x) const {
  const at::Tensor inner = at::linear(x, layer.first.weight, layer.first.bias);
  return at::linear(shape_.relu ? at::relu(inner) : at::gelu(inner), layer.second.weight, layer.second.bias);
}

Quantizer::Quantizer(const Weights& weights, const at::TensorOptions& options) {
  if (const auto found = weights.find("cluster_centers"); found != weights.end()) {
    centers_ = found->second.detach().to(options.device(), at::kFloat).contiguous();
    return;
  }
  for (size_t i = 0; i < layers_.size(); ++i) {
    const std::string name = std::to_string(2 * i);
    const auto found = weights.find(name + ".weight");
    TORCH_CHECK_VALUE(found != weights.end(), "the quantizer has neither cluster_centers nor ", name, ".weight");
    layers_[i] = Affine(weights, name, found->second.sizes(), options);
  }
  blank_ = layers_.back().weight.size(0) - 1;
}

at::Tensor Quantizer::operator()(const at::Tensor& features) const {
  if (centers_.defined()) {
    constexpr int64_t without_matrix_product = 2;
    const at::Tensor flat = features.reshape({-1, features.size(-1)}).to(at::kFloat);
    const at::Tensor distance = at::cdist(flat, centers_, 2, without_matrix_product);
    const at::Tensor best = distance.square().neg().argmax(-1).view({features.size(0), features.size(1)});
    return at::stack({best, best}, 2);
  }
  at::Tensor x = at::leaky_relu(at::linear(features, layers_[0].weight, layers_[0].bias));
  x = at::leaky_relu(at::linear(x, layers_[1].weight, layers_[1].bias));
  x = at::linear(x, layers_[2].weight, layers_[2].bias);
  return at::stack({x.argmax(-1), x.narrow(-1, 0, blank_).argmax(-1)}, 2);
}

}  // namespace spiritrt
