// Units in, sound out, for many slots at once: scheduling, durations and the map from samples to units.
#pragma once

#include <atomic>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "slots.h"
#include "vocoder_layers.h"

namespace spiritrt {

struct VocoderStreamOptions {
  int64_t slots = 1;
  at::ScalarType dtype = at::kFloat;
  int64_t chunk_frames = 2;             // least frames a step takes from a slot
  int64_t max_frames = 16;              // most
  int64_t max_units = 4096;             // units that may wait in a slot
  std::optional<int64_t> look_ahead_frames;  // none: exact
};

// What a step hands out for one slot.
struct VocoderPacket {
  int64_t slot = 0;
  int64_t start = 0;                                // first sample, counted from the slot's reset
  at::Tensor samples;                               // [N], float32
  std::vector<std::pair<int64_t, int64_t>> units;   // (index of the unit, samples of this packet it made), in order
  bool final = false;                               // nothing comes after it until `reset`
};

// Slots that make equally many frames in a step, as tensors on the CPU: what one run of the generator takes. The number
// of rows is rounded up to a power of two, so that few shapes occur; the rows added are the stream's spare slot's.
struct VocoderBatch {
  at::Tensor slots;       // [R], int64
  at::Tensor fed, total;  // [R, 1, 1], int64: see `Rows`
  at::Tensor codes;       // [kinds, R, n], int64
  int64_t frames = 0;     // frames by which the state moves on
  bool inside = false;
};

class VocoderStream {
 public:
  // Sound [R, n * hop] of a batch: calls `run`, or replays what was recorded of it.
  using Compute = std::function<at::Tensor(const VocoderBatch&)>;

  VocoderStream(const VocoderShape& shape, const Weights& weights, const VocoderStreamOptions& options);

  int64_t open();
  void close(int64_t slot);
  void accept(int64_t slot, const std::vector<int64_t>& units, const std::optional<std::vector<int64_t>>& pitch,
              const std::optional<std::vector<int64_t>>& style, const std::optional<std::vector<int64_t>>& frames);
  std::vector<int64_t> ready();
  std::vector<VocoderPacket> step();
  // A step whose batches are computed by `compute`.
  std::vector<VocoderPacket> step_with(const Compute& compute);
  // Sound of a batch whose tensors are on the device; makes no decision on their values and never waits for them. For
  // `compute` alone: it is not checked that one thread drives the stream.
  at::Tensor run(const VocoderBatch& batch);
  // A batch of `rows` rows of the spare slot: what a graph is recorded with.
  VocoderBatch spare_batch(int64_t rows, int64_t frames, bool inside);
  void flush(int64_t slot);
  void reset(int64_t slot);
  void set_speaker(int64_t slot, int64_t speaker);
  void set_named_style(int64_t slot, int64_t named_style);

  int64_t hop_samples() const { return hop_; }
  // Samples of the future that the last sample handed out depends on.
  int64_t delay_samples() const { return exact_ ? generator_.delay_samples() : look_ahead_ * hop_; }
  int64_t delay_units() const { return predictor_ ? predictor_->delay_units() : 0; }

 private:
  struct Unit {
    Codes codes;
    int64_t frames = 0;  // 0: not predicted yet
  };

  struct Slot {
    std::deque<Unit> units;      // from the first that has frames left to feed
    int64_t front_fed = 0;       // frames of units.front() that were fed
    int64_t accepted = 0;        // units
    int64_t in_predictor = 0;    // units, and zeros after the last
    int64_t resolved = 0;        // units whose frames are known
    int64_t known = 0;           // frames
    int64_t fed = 0;             // frames
    int64_t emitted = 0;         // samples
    int64_t speaker = 0, named_style = 0;
    bool flushed = false, done = false, predicts = false;
    std::deque<std::pair<int64_t, int64_t>> sounding;  // (unit, samples it has still to make)
    at::Tensor fade;             // what the step before would have gone on with

    int64_t first_unit() const { return accepted - static_cast<int64_t>(units.size()); }
    bool all_known() const { return flushed && resolved == accepted; }
  };

  bool must_predict(const Slot& slot) const;
  int64_t due_frames(const Slot& slot) const;
  void predict();
  void resolve(Slot& slot, int64_t unit, int64_t frames);
  void append_codes(const Slot& slot, int64_t frames, std::vector<Codes>& codes) const;
  void feed(Slot& slot, int64_t frames);
  std::map<int64_t, std::vector<int64_t>> due();  // frames of the step -> slots
  Rows rows_of(const std::vector<int64_t>& slots, int64_t frames) const;
  VocoderBatch pack(const std::vector<int64_t>& slots, int64_t frames) const;
  std::vector<VocoderPacket> hand_out(const std::vector<int64_t>& slots, int64_t frames, const at::Tensor& sound);
  VocoderPacket emit(int64_t index, const at::Tensor& sound, int64_t first_sample);
  void clear(int64_t slot);

  VocoderShape shape_;
  VocoderStreamOptions options_;
  int64_t hop_;
  at::Device device_;
  SlotTable table_;
  Generator generator_;
  std::unique_ptr<DurationPredictor> predictor_;
  bool exact_ = true;
  int64_t look_ahead_ = 0;  // frames
  int64_t guess_ = 0;       // frames run ahead of what is known, in low-latency mode
  std::vector<Slot> slots_;
  std::atomic<bool> busy_{false};
};

}  // namespace spiritrt
