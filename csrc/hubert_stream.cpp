#include "hubert_stream.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/stack.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <cmath>
#include <map>

namespace spiritrt {

namespace {

constexpr int64_t kShortestTurn = 1280;     // samples; offline drops what is shorter
constexpr int64_t kMostHeld = 2500;         // leading blanks (100 s) that wait for a unit
constexpr int64_t kFramesAtOnce = 64;       // most that one run of the cached front end makes of a slot

at::TensorOptions options_of(const Weights& weights, at::ScalarType dtype) {
  const auto found = weights.find("layer_norm.weight");
  TORCH_CHECK_VALUE(found != weights.end(), "the weights have no layer_norm.weight");
  return found->second.options().dtype(dtype).requires_grad(false);
}

// Where the statistics of a whole window are wanted, or the window is the whole turn, there is nothing to keep.
bool keeps_front_end(const HubertShape& shape, const HubertStreamOptions& options) {
  if (!options.look_ahead_frames) return false;
  return options.norm != Norm::window || (shape.layer_norm_extractor && !shape.normalize);
}

}  // namespace

HubertStream::HubertStream(const HubertShape& shape, const Weights& hubert, const Weights& quantizer,
                           const HubertStreamOptions& options)
    : shape_(shape),
      options_(options),
      hop_(shape.hop_samples()),
      device_(options_of(hubert, options.dtype).device()),
      table_(options.slots),
      front_([&] {
        c10::InferenceMode guard;
        return FrontEnd(shape, hubert, shape.layer_norm_extractor ? Norm::window : options.norm, options.calibration,
                        options.freeze_frames, options.slots, options_of(hubert, options.dtype));
      }()),
      encoder_(shape, hubert, options_of(hubert, options.dtype)),
      quantizer_(quantizer, options_of(hubert, options.dtype)),
      cached_(keeps_front_end(shape, options)),
      slots_(options.slots) {
  TORCH_CHECK_VALUE(!shape.normalize || options.norm == Norm::window,
                    "this HuBERT normalizes the waveform: its norm must be 'window'");
  TORCH_CHECK_VALUE(options.chunk_frames >= 1, "chunk_frames must be at least 1, got ", options.chunk_frames);
  TORCH_CHECK_VALUE(options.left_frames.value_or(0) >= 0, "left_frames must not be negative, got ",
                    options.left_frames.value_or(0));
  TORCH_CHECK_VALUE(options.look_ahead_frames.value_or(0) >= 0, "look_ahead_frames must not be negative, got ",
                    options.look_ahead_frames.value_or(0));
  TORCH_CHECK_VALUE(options.freeze_frames >= 0, "freeze_frames must not be negative, got ", options.freeze_frames);
  const int64_t window = options.left_frames.value_or(0) + options.chunk_frames + options.look_ahead_frames.value_or(0);
  const int64_t least = (window + 1) * hop_ + shape.receptive_samples();
  TORCH_CHECK_VALUE(options.buffer_samples >= least, "a buffer of ", options.buffer_samples,
                    " samples cannot hold a window, which needs ", least);
}

int64_t HubertStream::open() {
  OneThread driver(busy_, "HubertStream");
  c10::InferenceMode guard;
  const int64_t slot = table_.open();
  clear(slot);
  return slot;
}

void HubertStream::close(int64_t slot) {
  OneThread driver(busy_, "HubertStream");
  table_.close(slot);
  slots_[slot] = Slot();
}

void HubertStream::accept(int64_t index, const at::Tensor& samples) {
  OneThread driver(busy_, "HubertStream");
  table_.check(index);
  Slot& slot = slots_[index];
  TORCH_CHECK_VALUE(!slot.flushed, "slot ", index, " was flushed: reset it before it takes more samples");
  TORCH_CHECK_VALUE(samples.dim() == 1 && samples.scalar_type() == at::kFloat && samples.device().is_cpu(),
                    "samples must be float32 [N] on the CPU, got ", samples.scalar_type(), " ", samples.sizes(),
                    " on ", samples.device());
  const at::Tensor dense = samples.contiguous();
  const float* data = dense.const_data_ptr<float>();
  const int64_t count = dense.numel();
  for (int64_t i = 0; i < count; ++i) {
    TORCH_CHECK_VALUE(std::isfinite(data[i]), "samples hold ", data[i], " at position ", i);
  }
  const int64_t waiting = static_cast<int64_t>(slot.samples.size()) + count;
  TORCH_CHECK_VALUE(waiting <= options_.buffer_samples, "slot ", index, " would hold ", waiting,
                    " samples: its limit is ", options_.buffer_samples);
  slot.samples.insert(slot.samples.end(), data, data + count);
  slot.accepted += count;
}

void HubertStream::flush(int64_t index, std::optional<int64_t> end) {
  OneThread driver(busy_, "HubertStream");
  table_.check(index);
  Slot& slot = slots_[index];
  TORCH_CHECK_VALUE(!end || *end >= 0, "a turn cannot end at sample ", end.value_or(0));
  slot.flushed = true;
  if (!end || *end >= slot.accepted) return;
  slot.accepted = *end;
  slot.samples.resize(std::max<int64_t>(*end - slot.first_sample, 0));
}

void HubertStream::reset(int64_t index) {
  OneThread driver(busy_, "HubertStream");
  c10::InferenceMode guard;
  table_.check(index);
  clear(index);
}

int64_t HubertStream::accepted(int64_t index) {
  OneThread driver(busy_, "HubertStream");
  table_.check(index);
  return slots_[index].accepted;
}

std::vector<int64_t> HubertStream::ready() {
  OneThread driver(busy_, "HubertStream");
  std::vector<int64_t> slots;
  for (int64_t i = 0; i < table_.size(); ++i) {
    if (table_.is_open(i) && due(i)) slots.push_back(i);
  }
  return slots;
}

std::vector<HubertPacket> HubertStream::step() {
  OneThread driver(busy_, "HubertStream");
  c10::InferenceMode guard;
  std::vector<HubertPacket> packets;
  for (const Group& group : due_groups()) {
    const int64_t rows = static_cast<int64_t>(group.windows.size());
    at::Tensor classes;
    if (group.frames) {
      classes = at::empty({rows, group.frames - group.first, 2}, at::kLong);
      for_each_part(rows, device_.is_cpu(), [&](int64_t begin, int64_t count) {
        classes.narrow(0, begin, count).copy_(classify(gather(group, begin, count), group.first));
      });
    }
    for (HubertPacket& packet : commit(group, classes)) packets.push_back(std::move(packet));
  }
  return packets;
}

std::vector<HubertPacket> HubertStream::step_with(const Compute& compute) {
  OneThread driver(busy_, "HubertStream");
  c10::InferenceMode guard;
  const std::vector<Group> groups = due_groups();
  std::vector<at::Tensor> classes(groups.size());
  for (size_t i = 0; i < groups.size(); ++i) {
    const Group& group = groups[i];
    if (!group.frames) continue;
    const bool full =
        options_.left_frames && options_.look_ahead_frames &&
        group.frames == *options_.left_frames + options_.chunk_frames + *options_.look_ahead_frames &&
        (cached_ || group.samples == (group.frames - 1) * hop_ + shape_.receptive_samples());
    const int64_t rows = static_cast<int64_t>(group.windows.size());
    classes[i] = compute({gather(group, 0, rows), group.first, full});
  }
  std::vector<HubertPacket> packets;
  for (size_t i = 0; i < groups.size(); ++i) {  // only now is the device waited for
    const at::Tensor known = classes[i].defined() ? classes[i].to(at::kCPU).contiguous() : at::Tensor();
    for (HubertPacket& packet : commit(groups[i], known)) packets.push_back(std::move(packet));
  }
  return packets;
}

at::Tensor HubertStream::classify(const at::Tensor& input, int64_t first) const {
  c10::InferenceMode guard;
  return quantizer_(encoder_(cached_ ? input : front_.whole(input), first));
}

std::vector<HubertStream::Group> HubertStream::due_groups() {
  std::vector<Window> windows;
  for (int64_t i = 0; i < table_.size(); ++i) {
    if (!table_.is_open(i)) continue;
    if (const auto window = due(i)) windows.push_back(*window);
  }
  if (cached_) feed(windows);
  std::map<std::pair<int64_t, int64_t>, Group> groups;
  for (const Window& window : windows) {
    const int64_t frames = window.end - window.begin, samples = cached_ ? 0 : window_samples(window);
    Group& group = groups.try_emplace({frames, samples}, Group{{}, frames, samples, frames}).first->second;
    group.windows.push_back(window);
    group.first = std::min(group.first, slots_[window.slot].committed - window.begin);
  }
  std::vector<Group> list;
  for (auto& [key, group] : groups) list.push_back(std::move(group));
  return list;
}

int64_t HubertStream::frames_of(const Slot& slot) const {
  return slot.accepted < kShortestTurn ? 0 : shape_.frames(slot.accepted);
}

std::optional<HubertStream::Window> HubertStream::due(int64_t index) const {
  const Slot& slot = slots_[index];
  if (slot.done) return std::nullopt;
  const int64_t frames = frames_of(slot), fresh = frames - slot.committed;
  const int64_t begin = options_.left_frames ? std::max<int64_t>(slot.committed - *options_.left_frames, 0) : 0;
  if (options_.look_ahead_frames && fresh >= options_.chunk_frames + *options_.look_ahead_frames) {
    const int64_t commit = slot.committed + options_.chunk_frames;
    return Window{index, begin, commit + *options_.look_ahead_frames, commit};
  }
  if (!slot.flushed) return std::nullopt;
  if (fresh <= 0) return Window{index, slot.committed, slot.committed, slot.committed};
  return Window{index, begin, frames, frames};
}

// Brings the cached front end of each slot up to the end of its window. What it is fed depends on the windows alone,
// so running statistics do not depend on how the sound was split.
void HubertStream::feed(const std::vector<Window>& windows) {
  while (true) {
    std::map<int64_t, std::vector<int64_t>> groups;  // frames -> slots
    for (const Window& window : windows) {
      const int64_t count = window.end + front_.lead_frames() - slots_[window.slot].fed;
      if (window.end > window.begin && count > 0) groups[std::min(count, kFramesAtOnce)].push_back(window.slot);
    }
    if (groups.empty()) return;
    for (const auto& [count, indices] : groups) {
      for_each_part(static_cast<int64_t>(indices.size()), device_.is_cpu(),
                    [&, frames = count, &slots = indices](int64_t first, int64_t rows) {
                      feed({slots.begin() + first, slots.begin() + first + rows}, frames);
                    });
    }
  }
}

void HubertStream::feed(const std::vector<int64_t>& indices, int64_t count) {
  const int64_t rows = static_cast<int64_t>(indices.size()), length = count * hop_;
  at::Tensor samples = at::empty({rows, length}, at::kFloat);
  std::vector<int64_t> fed;
  for (int64_t row = 0; row < rows; ++row) {
    const Slot& slot = slots_[indices[row]];
    fed.push_back(slot.fed);
    float* out = samples.mutable_data_ptr<float>() + row * length;
    const int64_t begin = slot.fed * hop_ - front_.lead_samples();
    const int64_t before = std::clamp<int64_t>(-begin, 0, length);  // zeros that lead the turn in
    std::fill_n(out, before, 0.0f);
    std::copy_n(slot.samples.data() + (begin + before - slot.first_sample), length - before, out + before);
  }
  const at::Tensor frames = front_.next(SlotRows(indices, device_), fed, samples.to(device_));
  for (int64_t row = 0; row < rows; ++row) {
    Slot& slot = slots_[indices[row]];
    const int64_t skipped = std::clamp<int64_t>(front_.lead_frames() - slot.fed, 0, count);
    const at::Tensor fresh = frames.select(0, row).narrow(0, skipped, count - skipped);
    slot.frames = slot.frames.defined() ? at::cat({slot.frames, fresh}) : fresh.clone();
    slot.fed += count;
  }
}

int64_t HubertStream::window_samples(const Window& window) const {
  const Slot& slot = slots_[window.slot];
  // a window that ends the turn takes the samples after its last frame too, as offline does
  const bool last = slot.flushed && window.commit == window.end && window.end == frames_of(slot);
  const int64_t end = last ? slot.accepted : (window.end - 1) * hop_ + shape_.receptive_samples();
  return end - window.begin * hop_;
}

at::Tensor HubertStream::gather(const Group& group, int64_t begin, int64_t count) {
  std::vector<at::Tensor> rows;
  for (int64_t row = begin; row < begin + count; ++row) {
    const Window& window = group.windows[row];
    Slot& slot = slots_[window.slot];
    if (cached_) {
      rows.push_back(slot.frames.narrow(0, window.begin - slot.first_frame, group.frames));
    } else {
      float* samples = slot.samples.data() + (window.begin * hop_ - slot.first_sample);
      rows.push_back(at::from_blob(samples, {group.samples}, at::kFloat));
    }
  }
  return at::stack(rows).to(device_);
}

std::vector<HubertPacket> HubertStream::commit(const Group& group, const at::Tensor& classes) {
  std::vector<HubertPacket> packets;
  for (size_t row = 0; row < group.windows.size(); ++row) {
    packets.push_back(commit(group.windows[row], classes.defined() ? classes[row] : at::Tensor(), group.first));
  }
  return packets;
}

HubertPacket HubertStream::commit(const Window& window, const at::Tensor& classes, int64_t first) {
  Slot& slot = slots_[window.slot];
  const int64_t begin = window.begin + first, length = window.end - begin, blank = quantizer_.blank();
  const int64_t* pairs = classes.defined() ? classes.const_data_ptr<int64_t>() : nullptr;
  const auto best = [&](int64_t frame) { return pairs[2 * frame]; };
  const auto spoken = [&](int64_t frame) { return pairs[2 * frame + 1]; };
  HubertPacket packet;
  packet.slot = window.slot;
  packet.start = slot.handed_out;
  const bool ends = slot.flushed && window.commit >= frames_of(slot);
  if (ends && slot.committed == 0) {
    // the whole turn is here, so blanks at its start can take its last unit as they do offline
    for (int64_t i = 0; i < length; ++i) slot.last = best(i) == blank ? slot.last : best(i);
  }
  for (int64_t i = slot.committed - begin; i < window.commit - begin; ++i) {
    hand_out(slot, packet.units, best(i), spoken(i));
  }
  slot.committed = window.commit;
  if (options_.provisional) {
    int64_t last = slot.last;
    for (int64_t i = window.commit - begin; i < length; ++i) {
      last = best(i) != blank ? best(i) : last;
      packet.provisional.push_back(last < 0 ? spoken(i) : last);
    }
  }
  if (ends) {
    packet.units.insert(packet.units.end(), slot.held.begin(), slot.held.end());
    slot.held.clear();
    packet.final = slot.done = true;
  }
  slot.handed_out += static_cast<int64_t>(packet.units.size());
  if (options_.revise) {
    slot.history.insert(slot.history.end(), packet.units.begin(), packet.units.end());
    if (ends) packet.revision = revise(slot);
  }
  forget(slot);
  return packet;
}

void HubertStream::hand_out(Slot& slot, std::vector<int64_t>& units, int64_t best, int64_t spoken) {
  if (best == quantizer_.blank() && slot.last < 0) {
    slot.held.push_back(spoken);
    if (static_cast<int64_t>(slot.held.size()) < kMostHeld) return;
    units.insert(units.end(), slot.held.begin(), slot.held.end());
    slot.last = slot.held.back();
    slot.held.clear();
    return;
  }
  if (best != quantizer_.blank()) slot.last = best;
  units.insert(units.end(), slot.held.size() + 1, slot.last);
  slot.held.clear();
}

Revision HubertStream::revise(const Slot& slot) {
  Revision revision;
  std::vector<int64_t> offline;
  if (frames_of(slot)) {
    const at::Tensor waveform = at::from_blob(const_cast<float*>(slot.samples.data()), {1, slot.accepted}, at::kFloat);
    const at::Tensor classes = quantizer_(encoder_(front_.whole(waveform.to(device_)))).to(at::kCPU).contiguous();
    const int64_t* pairs = classes.const_data_ptr<int64_t>();
    const int64_t* end = pairs + classes.numel();
    Slot fresh;
    for (const int64_t* best = pairs; best < end; best += 2) {
      fresh.last = *best == quantizer_.blank() ? fresh.last : *best;
    }
    for (const int64_t* best = pairs; best < end; best += 2) hand_out(fresh, offline, best[0], best[1]);
    offline.insert(offline.end(), fresh.held.begin(), fresh.held.end());
  }
  const size_t common = std::min(offline.size(), slot.history.size());
  revision.first = static_cast<int64_t>(common);
  for (size_t i = common; i-- > 0;) {
    if (offline[i] == slot.history[i]) continue;
    ++revision.changed;
    revision.first = static_cast<int64_t>(i);
  }
  revision.changed += static_cast<int64_t>(std::max(offline.size(), slot.history.size()) - common);
  revision.tail.assign(offline.begin() + revision.first, offline.end());
  return revision;
}

// Drops the samples and frames that no window will need again.
void HubertStream::forget(Slot& slot) {
  const int64_t begin = options_.left_frames ? std::max<int64_t>(slot.committed - *options_.left_frames, 0) : 0;
  if (slot.frames.defined() && begin > slot.first_frame) {
    const int64_t dropped = std::min(begin - slot.first_frame, slot.frames.size(0));
    slot.frames = slot.frames.narrow(0, dropped, slot.frames.size(0) - dropped);
    slot.first_frame += dropped;
  }
  if (options_.revise) return;
  const int64_t needed = cached_ ? slot.fed * hop_ - front_.lead_samples() : begin * hop_;
  const int64_t dropped = std::clamp<int64_t>(needed - slot.first_sample, 0, slot.samples.size());
  slot.samples.erase(slot.samples.begin(), slot.samples.begin() + dropped);
  slot.first_sample += dropped;
}

void HubertStream::clear(int64_t index) {
  slots_[index] = Slot();
  if (cached_) front_.reset(index);
}

}  // namespace spiritrt
