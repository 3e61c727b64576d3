// Slots of a batched stream and the rule that one thread drives it at a time.
#pragma once

#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <numeric>
#include <vector>

namespace spiritrt {

// Which slots are open. A slot is opened, used, reset any number of times, and closed.
class SlotTable {
 public:
  explicit SlotTable(int64_t slots) {
    TORCH_CHECK_VALUE(slots >= 1 && slots <= 4096, "slots must be from 1 to 4096, got ", slots);
    open_.assign(static_cast<size_t>(slots), false);
  }

  int64_t size() const { return static_cast<int64_t>(open_.size()); }

  int64_t open() {
    for (int64_t slot = 0; slot < size(); ++slot) {
      if (!open_[slot]) {
        open_[slot] = true;
        return slot;
      }
    }
    TORCH_CHECK_VALUE(false, "all ", size(), " slots are open: close one, or make the stream with more slots");
  }

  void close(int64_t slot) {
    check(slot);
    open_[slot] = false;
  }

  bool is_open(int64_t slot) const { return open_[slot]; }

  void check(int64_t slot) const {
    TORCH_CHECK_VALUE(slot >= 0 && slot < size(), "slot ", slot, " does not exist: this stream has slots 0..",
                      size() - 1);
    TORCH_CHECK_VALUE(open_[slot], "slot ", slot, " is not open");
  }

 private:
  std::vector<bool> open_;
};

// Held for the length of a call. A second thread gets an error instead of waiting: two drivers are a mistake.
class OneThread {
 public:
  OneThread(std::atomic<bool>& busy, const char* stream) : busy_(busy) {
    TORCH_CHECK(!busy_.exchange(true, std::memory_order_acquire), "another thread is inside this ", stream,
                ": one stream is driven by one thread at a time");
  }
  ~OneThread() { busy_.store(false, std::memory_order_release); }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  std::atomic<bool>& busy_;
};

// Calls work(first, count) for parts of `rows` rows, each on a thread of ATen's: one barrier a step, where threads
// inside every operation meet hundreds of times. A single row, or a GPU, takes all in one call.
template <typename Work>
void for_each_part(int64_t rows, bool on_cpu, const Work& work) {
  const int64_t parts = on_cpu && !at::in_parallel_region() ? std::min<int64_t>(at::get_num_threads(), rows) : 1;
  if (parts <= 1) return work(0, rows);
  at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    c10::InferenceMode guard;
    for (int64_t part = begin; part < end; ++part) {
      const int64_t first = rows * part / parts;
      work(first, rows * (part + 1) / parts - first);
    }
  });
}

inline int64_t ceil_div(int64_t a, int64_t b) { return a >= 0 ? (a + b - 1) / b : -(-a / b); }

}  // namespace spiritrt
