// The unit HiFi-GAN and its duration predictor over cached convolutions; parameter names are the official ones.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "cached_conv.h"

namespace spiritrt {

// `VocoderConfig` of runtime/models/vocoder.py, checked there.
struct VocoderShape {
  std::vector<int64_t> upsample_rates, upsample_kernel_sizes, resblock_kernel_sizes;
  std::vector<std::vector<int64_t>> resblock_dilation_sizes;
  int64_t upsample_initial_channel = 0, num_embeddings = 0, embedding_dim = 0;
  int64_t num_speakers = 0, num_styles = 0, num_f0_tokens = 0, num_style_tokens = 0;
  int64_t default_speaker = 0, default_named_style = 0;
  int64_t var_pred_hidden_dim = 0, var_pred_kernel_size = 3;

  int64_t hop_samples() const;
};

constexpr int64_t kUnknown = std::numeric_limits<int64_t>::max() / (1 << 20);

// Where one row of a batch is: frames (or units) that went in before this call, and how many there are in all.
struct Span {
  int64_t fed = 0;
  int64_t total = kUnknown;
};

// Rows of a batch: their slots, and where each is. Either the host knows (`spans`), and rows are left out of layers
// that have no work for them; or tensors say it, as a recorded CUDA graph needs, whose host code runs only once.
struct Rows {
  SlotRows slots;
  std::vector<Span> spans;
  at::Tensor fed, total;  // [B, 1, 1], int64, on the device
  bool inside = false;    // all positions of all layers lie inside their turns

  bool on_host() const { return !fed.defined(); }
};

// Zeroes what lies before the beginning or after the end of each row of x [B, C, n], whose first position is `delay`
// positions behind frame `fed` at `rate` positions a frame: the zero padding of the offline convolution.
void zero_outside(at::Tensor& x, const Rows& rows, int64_t rate, int64_t delay);

struct ResidualBlock {
  std::vector<CachedConv> dilated, plain;
  History lag;  // makes all blocks of a stage equally late

  int64_t delay() const;
};

struct Stage {
  CachedUpConv up;
  std::vector<ResidualBlock> blocks;
  int64_t delay_in = 0, rate_in = 1;    // of its input
  int64_t delay_up = 0, delay_out = 0;  // after the transposed convolution, and at its end
  int64_t rate_out = 1;
};

// Codes of one frame, in the order of the embedding tables.
struct Codes {
  int64_t unit = 0, pitch = 0, style = 0, speaker = 0, named_style = 0;
};

class Generator {
 public:
  Generator(const VocoderShape& shape, const Weights& weights, int64_t slots, const at::TensorOptions& options);

  // Samples that output lags behind: what the last sample handed out needs of the future.
  int64_t delay_samples() const { return delay_samples_; }

  // Codes [kinds, rows, n], int64, on the CPU, of frames given row by row: what `run` takes.
  at::Tensor pack(const std::vector<Codes>& codes, int64_t rows) const;

  // Sound [B, n * hop], float32, of n frames of `codes` [kinds, B, n]; the state moves on by `keep` of them.
  // Its first sample is at time fed * hop - delay_samples().
  at::Tensor run(const Rows& rows, const at::Tensor& codes, int64_t keep);

  void reset(int64_t slot);

 private:
  struct Table {
    at::Tensor weight;
    int64_t Codes::*field;
  };

  at::Tensor run_stage(Stage& stage, const Rows& rows, const at::Tensor& input, int64_t keep);

  std::vector<Table> tables_;  // of the kinds of codes that this vocoder has
  CachedConv pre_, post_;
  std::vector<Stage> stages_;
  int64_t delay_samples_ = 0;
};

// Always on the CPU in float32: what to compute next waits for durations, and they shall not depend on the precision.
class DurationPredictor {
 public:
  DurationPredictor(const VocoderShape& shape, const Weights& weights, int64_t slots);

  int64_t delay_units() const { return first_.delay() + second_.delay(); }

  // Frames [B * n], row by row, of units `delay_units()` before those given ([B * n]); meaningless outside a row.
  std::vector<int64_t> run(const Rows& rows, const std::vector<int64_t>& units);

  void reset(int64_t slot);

 private:
  at::Tensor table_, first_scale_, first_shift_, second_scale_, second_shift_, weight_, bias_;
  CachedConv first_, second_;
  int64_t width_ = 0;
};

}  // namespace spiritrt
