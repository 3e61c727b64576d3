// HuBERT and its quantizer: a front end that keeps the end of its input, and the transformer over a window. Parameter
// names are the official ones; without a cache the same ATen calls as runtime/models/hubert.py, so the same bits.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cached_conv.h"

namespace spiritrt {

// `HubertConfig` of runtime/models/hubert.py, checked there.
struct HubertShape {
  std::vector<std::array<int64_t, 3>> conv_layers;  // channels, kernel, stride
  bool layer_norm_extractor = false, conv_bias = false, layer_norm_first = false, conv_pos_batch_norm = false;
  bool normalize = false, relu = false;
  int64_t encoder_embed_dim = 0, encoder_ffn_embed_dim = 0, encoder_attention_heads = 0;
  int64_t conv_pos = 0, conv_pos_groups = 0, required_seq_len_multiple = 1, output_layer = 0, sample_rate = 16000;

  int64_t hop_samples() const;
  int64_t receptive_samples() const;
  // Frames that `samples` give.
  int64_t frames(int64_t samples) const;
};

struct Affine {
  at::Tensor weight, bias;

  Affine() = default;
  Affine(const Weights& weights, const std::string& name, at::IntArrayRef shape, const at::TensorOptions& options);
};

// Mean and variance of each channel of the first convolution, where GroupNorm would take them over all time.
enum class Norm { window, running, calibrated };

struct Calibration {
  at::Tensor mean, variance;  // [C]
};

class FrontEnd {
 public:
  FrontEnd(const HubertShape& shape, const Weights& weights, Norm norm, std::optional<Calibration> calibration,
           int64_t freeze_frames, int64_t slots, const at::TensorOptions& options);

  // Frames [B, T, D] of waveforms [B, N] on their own.
  at::Tensor whole(at::Tensor waveform) const;

  // Frames of the next n * hop samples [B, n * hop] of each row. A turn begins with `lead_samples()` zeros, and its
  // first `lead_frames()` frames mean nothing. `fed` is how many frames each row was fed before.
  at::Tensor next(const SlotRows& rows, const std::vector<int64_t>& fed, const at::Tensor& samples);

  int64_t lead_frames() const { return lead_frames_; }
  int64_t lead_samples() const { return lead_samples_; }
  void reset(int64_t slot);

 private:
  struct Layer {
    at::Tensor weight, bias;
    int64_t stride = 1;
    Affine norm;  // undefined where there is none
    History history;
  };

  at::Tensor activate(const Layer& layer, const at::Tensor& x) const;
  at::Tensor project(const at::Tensor& x) const;
  at::Tensor normalize_first(const SlotRows& rows, const std::vector<int64_t>& fed, const at::Tensor& x);

  HubertShape shape_;
  std::vector<Layer> layers_;
  Affine norm_, projection_;
  Norm policy_;
  Calibration calibration_;
  at::Tensor sums_;             // [slots, 3, C], double: count, sum and sum of squares of the turn so far
  int64_t freeze_frames_;       // statistics stand still from then on; 0: never
  int64_t lead_frames_ = 0, lead_samples_ = 0;
  int64_t first_per_frame_ = 1;  // outputs of the first convolution a frame
  int64_t first_lead_ = 0;       // its outputs that mean nothing
};

class Encoder {
 public:
  Encoder(const HubertShape& shape, const Weights& weights, const at::TensorOptions& options);

  // Features [B, T - first, D] of frames [B, T, D], from number `first` on: the last layer is computed for those alone.
  at::Tensor operator()(at::Tensor x, int64_t first = 0) const;

 private:
  struct Layer {
    Affine query, key, value, out, attention_norm, first, second, norm;
  };

  at::Tensor attend(const Layer& layer, const at::Tensor& x, int64_t first,
                    const std::optional<at::Tensor>& mask) const;
  at::Tensor feed_forward(const Layer& layer, const at::Tensor& x) const;
  at::Tensor layer_norm(const at::Tensor& x, const Affine& norm) const;

  HubertShape shape_;
  Affine position_, batch_norm_, norm_;
  at::Tensor batch_mean_, batch_variance_;
  std::vector<Layer> layers_;
};

class Quantizer {
 public:
  Quantizer(const Weights& weights, const at::TensorOptions& options);

  int64_t blank() const { return blank_; }  // -1: none
  // Best classes [B, T, 2] of features [B, T, D], int64: of all, and of those that are not the blank.
  at::Tensor operator()(const at::Tensor& features) const;

 private:
  std::array<Affine, 3> layers_;
  at::Tensor centers_;
  int64_t blank_ = -1;
};

}  // namespace spiritrt
