// Sound in, units out, for many turns at once: windows of frames, blanks, provisional units, revision at the endpoint.
#pragma once

#include <atomic>
#include <functional>
#include <optional>
#include <vector>

#include "hubert_layers.h"
#include "slots.h"

namespace spiritrt {

struct HubertStreamOptions {
  int64_t slots = 1;
  at::ScalarType dtype = at::kFloat;
  std::optional<int64_t> left_frames;        // none: from the beginning of the turn
  int64_t chunk_frames = 1;
  std::optional<int64_t> look_ahead_frames;  // none: the whole turn, so nothing before it is flushed
  Norm norm = Norm::window;
  std::optional<Calibration> calibration;
  int64_t freeze_frames = 0;
  bool provisional = false;
  bool revise = false;
  int64_t buffer_samples = 1'600'000;  // most that may wait in a slot; where a whole turn is kept, most of a turn
};

// The whole turn encoded offline, against what was handed out of it.
struct Revision {
  int64_t changed = 0;        // units that differ
  int64_t first = 0;          // index of the first of them; the number of units where none does
  std::vector<int64_t> tail;  // offline units from `first` on
};

struct HubertPacket {
  int64_t slot = 0;
  int64_t start = 0;                 // index of the first unit in the turn
  std::vector<int64_t> units;
  std::vector<int64_t> provisional;  // of the frames after them that are in the window; they may change
  bool final = false;
  std::optional<Revision> revision;
};

// Windows of equal length.
struct HubertBatch {
  at::Tensor input;   // frames [R, T, D] on the device, or sound [R, N] where nothing of the front end is kept
  int64_t first = 0;  // frame of a window that some row commits first: what is before it gets no class
  bool full = false;  // the windows are as long as they get, so this shape comes again
};

class HubertStream {
 public:
  // Classes [R, T - first, 2] of a batch, int64, on the device: calls `classify`, or replays what was recorded of it.
  using Compute = std::function<at::Tensor(const HubertBatch&)>;

  HubertStream(const HubertShape& shape, const Weights& hubert, const Weights& quantizer,
               const HubertStreamOptions& options);

  int64_t open();
  void close(int64_t slot);
  void accept(int64_t slot, const at::Tensor& samples);
  std::vector<int64_t> ready();
  std::vector<HubertPacket> step();
  // A step whose batches are classified by `compute`.
  std::vector<HubertPacket> step_with(const Compute& compute);
  // What `compute` must give. Keeps nothing, decides nothing on values, and never waits for the device.
  at::Tensor classify(const at::Tensor& input, int64_t first) const;
  void flush(int64_t slot, std::optional<int64_t> end);
  void reset(int64_t slot);
  int64_t accepted(int64_t slot);

  int64_t hop_samples() const { return hop_; }

 private:
  struct Slot {
    std::vector<float> samples;  // from sample `first_sample` of the turn
    int64_t first_sample = 0;
    int64_t accepted = 0;        // samples
    int64_t fed = 0;             // frames that went through the front end, its lead included
    at::Tensor frames;           // [n, D] from frame `first_frame`
    int64_t first_frame = 0;
    int64_t committed = 0;       // frames
    int64_t handed_out = 0;      // units
    int64_t last = -1;           // unit that a blank takes
    std::vector<int64_t> held;   // leading blanks: what each is where no unit comes
    std::vector<int64_t> history;  // units handed out, where they are revised
    bool flushed = false, done = false;
  };

  struct Window {
    int64_t slot = 0, begin = 0, end = 0, commit = 0;  // frames; the first `commit` of the turn become final
  };

  // Windows of one batch have equally many frames and, without a cache, equally many samples.
  struct Group {
    std::vector<Window> windows;
    int64_t frames = 0, samples = 0, first = 0;
  };

  int64_t frames_of(const Slot& slot) const;
  std::optional<Window> due(int64_t index) const;
  std::vector<Group> due_groups();
  void feed(const std::vector<Window>& windows);
  void feed(const std::vector<int64_t>& slots, int64_t count);
  at::Tensor gather(const Group& group, int64_t begin, int64_t count);
  std::vector<HubertPacket> commit(const Group& group, const at::Tensor& classes);
  int64_t window_samples(const Window& window) const;
  // `classes` [T - first, 2] are those of the window's frames from number `first` on.
  HubertPacket commit(const Window& window, const at::Tensor& classes, int64_t first);
  void hand_out(Slot& slot, std::vector<int64_t>& units, int64_t best, int64_t spoken);
  Revision revise(const Slot& slot);
  void forget(Slot& slot);
  void clear(int64_t index);

  HubertShape shape_;
  HubertStreamOptions options_;
  int64_t hop_;
  at::Device device_;
  SlotTable table_;
  FrontEnd front_;
  Encoder encoder_;
  Quantizer quantizer_;
  bool cached_;
  std::vector<Slot> slots_;
  std::atomic<bool> busy_{false};
};

}  // namespace spiritrt
