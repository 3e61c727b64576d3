#include "vocoder_stream.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/zeros.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>

namespace spiritrt {

namespace {

constexpr int64_t kFadeSamples = 160;      // 10 ms over which packets of the low-latency mode are joined
constexpr int64_t kPredictorUnits = 64;    // most units a slot brings to one run of the predictor

at::TensorOptions state_options(const Weights& weights, at::ScalarType dtype) {
  const auto found = weights.find("dict.weight");
  TORCH_CHECK_VALUE(found != weights.end(), "the weights have no dict.weight");
  return found->second.options().dtype(dtype).requires_grad(false);
}

void check_codes(const char* name, const std::vector<int64_t>& codes, int64_t count, size_t units) {
  TORCH_CHECK_VALUE(codes.size() == units, name, " has ", codes.size(), " codes for ", units,
                    " units; it must have one a unit");
  for (size_t i = 0; i < codes.size(); ++i) {
    TORCH_CHECK_VALUE(codes[i] >= 0 && codes[i] < count, name, " ", codes[i], " at position ", i,
                      " is out of range: this vocoder knows 0..", count - 1);
  }
}

}  // namespace

VocoderStream::VocoderStream(const VocoderShape& shape, const Weights& weights, const VocoderStreamOptions& options)
    : shape_(shape),
      options_(options),
      hop_(shape.hop_samples()),
      device_(state_options(weights, options.dtype).device()),
      table_(options.slots),
      generator_([&] {
        c10::InferenceMode guard;
        return Generator(shape, weights, options.slots + 1, state_options(weights, options.dtype));
      }()),
      slots_(options.slots) {
  c10::InferenceMode guard;
  TORCH_CHECK_VALUE(options.chunk_frames >= 1 && options.max_frames >= options.chunk_frames,
                    "chunk_frames must be at least 1 and max_frames no smaller, got ", options.chunk_frames, " and ",
                    options.max_frames);
  TORCH_CHECK_VALUE(options.max_units >= 1, "max_units must be at least 1, got ", options.max_units);
  if (shape.var_pred_hidden_dim) {
    predictor_ = std::make_unique<DurationPredictor>(shape, weights, options.slots);
  }
  if (options.look_ahead_frames) {
    look_ahead_ = *options.look_ahead_frames;
    TORCH_CHECK_VALUE(look_ahead_ >= 0, "look_ahead_frames must not be negative, got ", look_ahead_);
    exact_ = look_ahead_ * hop_ >= generator_.delay_samples();
    guess_ = exact_ ? 0 : ceil_div(generator_.delay_samples() + kFadeSamples, hop_) - look_ahead_;
  }
}

int64_t VocoderStream::open() {
  OneThread driver(busy_, "VocoderStream");
  c10::InferenceMode guard;
  const int64_t slot = table_.open();
  slots_[slot].speaker = shape_.default_speaker;
  slots_[slot].named_style = shape_.default_named_style;
  clear(slot);
  return slot;
}

void VocoderStream::close(int64_t slot) {
  OneThread driver(busy_, "VocoderStream");
  table_.close(slot);
  slots_[slot] = Slot();
}

void VocoderStream::accept(int64_t index, const std::vector<int64_t>& units,
                           const std::optional<std::vector<int64_t>>& pitch,
                           const std::optional<std::vector<int64_t>>& style,
                           const std::optional<std::vector<int64_t>>& frames) {
  OneThread driver(busy_, "VocoderStream");
  table_.check(index);
  Slot& slot = slots_[index];
  TORCH_CHECK_VALUE(!slot.flushed, "slot ", index, " was flushed: reset it before it takes more units");
  check_codes("units", units, shape_.num_embeddings, units.size());
  TORCH_CHECK_VALUE(pitch.has_value() == (shape_.num_f0_tokens > 0), "this vocoder ",
                    pitch.has_value() ? "takes no" : "needs", " pitch codes");
  TORCH_CHECK_VALUE(style.has_value() == (shape_.num_style_tokens > 0), "this vocoder ",
                    style.has_value() ? "takes no" : "needs", " style codes");
  if (pitch) check_codes("pitch", *pitch, shape_.num_f0_tokens, units.size());
  if (style) check_codes("style", *style, shape_.num_style_tokens, units.size());
  TORCH_CHECK_VALUE(frames || predictor_, "this vocoder has no duration predictor: give the frames of each unit");
  TORCH_CHECK_VALUE(!slot.accepted || slot.predicts == !frames, "slot ", index, " began with ",
                    slot.predicts ? "predicted" : "given", " durations: a turn cannot mix the two");
  if (frames) {
    TORCH_CHECK_VALUE(frames->size() == units.size(), "frames has ", frames->size(), " durations for ", units.size(),
                      " units");
    for (size_t i = 0; i < frames->size(); ++i) {
      TORCH_CHECK_VALUE((*frames)[i] >= 1 && (*frames)[i] <= 1'000'000, "a unit lasts from 1 to 1000000 frames, got ",
                        (*frames)[i], " at position ", i);
    }
  }
  const int64_t waiting = static_cast<int64_t>(slot.units.size() + units.size());
  TORCH_CHECK_VALUE(waiting <= options_.max_units, "slot ", index, " would hold ", waiting,
                    " units: its limit is ", options_.max_units, "; step before accepting more");
  if (units.empty()) return;
  slot.predicts = !frames;
  for (size_t i = 0; i < units.size(); ++i) {
    Unit unit;
    unit.codes = {units[i], pitch ? (*pitch)[i] : 0, style ? (*style)[i] : 0, slot.speaker, slot.named_style};
    slot.units.push_back(unit);
    ++slot.accepted;
    if (frames) resolve(slot, slot.accepted - 1, (*frames)[i]);
  }
}

void VocoderStream::flush(int64_t index) {
  OneThread driver(busy_, "VocoderStream");
  table_.check(index);
  slots_[index].flushed = true;
}

void VocoderStream::reset(int64_t index) {
  OneThread driver(busy_, "VocoderStream");
  c10::InferenceMode guard;
  table_.check(index);
  clear(index);
}

void VocoderStream::set_speaker(int64_t index, int64_t speaker) {
  OneThread driver(busy_, "VocoderStream");
  table_.check(index);
  TORCH_CHECK_VALUE(speaker >= 0 && speaker < shape_.num_speakers, "speaker ", speaker,
                    " is out of range: this vocoder has ", shape_.num_speakers, ", numbered from 0");
  slots_[index].speaker = speaker;
}

void VocoderStream::set_named_style(int64_t index, int64_t named_style) {
  OneThread driver(busy_, "VocoderStream");
  table_.check(index);
  TORCH_CHECK_VALUE(named_style >= 0 && named_style < shape_.num_styles, "named_style ", named_style,
                    " is out of range: this vocoder has ", shape_.num_styles, ", numbered from 0");
  slots_[index].named_style = named_style;
}

std::vector<int64_t> VocoderStream::ready() {
  OneThread driver(busy_, "VocoderStream");
  std::vector<int64_t> due;
  for (int64_t i = 0; i < table_.size(); ++i) {
    if (table_.is_open(i) && (must_predict(slots_[i]) || due_frames(slots_[i]))) due.push_back(i);
  }
  return due;
}

std::vector<VocoderPacket> VocoderStream::step() {
  OneThread driver(busy_, "VocoderStream");
  c10::InferenceMode guard;
  std::vector<VocoderPacket> packets;
  for (const auto& [frames, slots] : due()) {
    const int64_t count = static_cast<int64_t>(slots.size());
    at::Tensor sound = at::empty({count, (frames + guess_) * hop_}, at::kFloat);
    for_each_part(count, device_.is_cpu(), [&](int64_t first, int64_t rows) {
      const std::vector<int64_t> some(slots.begin() + first, slots.begin() + first + rows);
      std::vector<Codes> codes;
      codes.reserve(some.size() * (frames + guess_));
      for (int64_t slot : some) append_codes(slots_[slot], frames + guess_, codes);
      const at::Tensor packed = generator_.pack(codes, rows).to(device_);
      sound.narrow(0, first, rows).copy_(generator_.run(rows_of(some, frames), packed, frames));
    });
    for (VocoderPacket& packet : hand_out(slots, frames, sound)) packets.push_back(std::move(packet));
  }
  return packets;
}

std::vector<VocoderPacket> VocoderStream::step_with(const Compute& compute) {
  OneThread driver(busy_, "VocoderStream");
  c10::InferenceMode guard;
  const auto groups = due();
  std::vector<at::Tensor> sounds;
  for (const auto& [frames, slots] : groups) sounds.push_back(compute(pack(slots, frames)));
  std::vector<VocoderPacket> packets;
  size_t group = 0;
  for (const auto& [frames, slots] : groups) {  // only now is the device waited for
    const at::Tensor sound = sounds[group++].to(at::kCPU);
    for (VocoderPacket& packet : hand_out(slots, frames, sound)) packets.push_back(std::move(packet));
  }
  return packets;
}

at::Tensor VocoderStream::run(const VocoderBatch& batch) {
  c10::InferenceMode guard;
  const Rows rows{SlotRows(batch.slots), {}, batch.fed, batch.total, batch.inside};
  return generator_.run(rows, batch.codes, batch.frames);
}

VocoderBatch VocoderStream::spare_batch(int64_t rows, int64_t frames, bool inside) {
  const std::vector<Codes> codes(rows * (frames + guess_));
  const at::Tensor fed = at::zeros({rows, 1, 1}, at::kLong);
  return {at::full({rows}, options_.slots, at::kLong), fed, at::full_like(fed, kUnknown), generator_.pack(codes, rows),
          frames, inside};
}

// Brings the predictor up to date; then the frames that each slot can make.
std::map<int64_t, std::vector<int64_t>> VocoderStream::due() {
  predict();
  std::map<int64_t, std::vector<int64_t>> groups;
  for (int64_t i = 0; i < table_.size(); ++i) {
    if (!table_.is_open(i)) continue;
    if (const int64_t frames = due_frames(slots_[i])) groups[frames].push_back(i);
  }
  return groups;
}

Rows VocoderStream::rows_of(const std::vector<int64_t>& indices, int64_t frames) const {
  Rows rows{SlotRows(indices, device_), {}, {}, {}, true};
  for (int64_t i : indices) {
    const Slot& slot = slots_[i];
    rows.spans.push_back({slot.fed, slot.all_known() ? slot.known : kUnknown});
    const Span& span = rows.spans.back();
    rows.inside &= span.fed * hop_ >= generator_.delay_samples() && span.fed + frames + guess_ <= span.total;
  }
  return rows;
}

VocoderBatch VocoderStream::pack(const std::vector<int64_t>& indices, int64_t frames) const {
  const Rows rows = rows_of(indices, frames);
  const int64_t count = static_cast<int64_t>(indices.size());
  int64_t padded = 1;
  while (padded < count) padded *= 2;
  at::Tensor place = at::zeros({3, padded}, at::kLong);
  auto at_row = place.accessor<int64_t, 2>();
  std::vector<Codes> codes;
  codes.reserve(padded * (frames + guess_));
  for (int64_t row = 0; row < padded; ++row) {
    at_row[0][row] = row < count ? indices[row] : options_.slots;
    at_row[1][row] = row < count ? rows.spans[row].fed : 0;
    at_row[2][row] = row < count ? rows.spans[row].total : kUnknown;
    if (row < count) append_codes(slots_[indices[row]], frames + guess_, codes);
  }
  codes.resize(padded * (frames + guess_));
  return {place[0], place[1].view({-1, 1, 1}), place[2].view({-1, 1, 1}), generator_.pack(codes, padded), frames,
          rows.inside};
}

bool VocoderStream::must_predict(const Slot& slot) const {
  if (!slot.predicts || slot.done) return false;
  return slot.in_predictor < slot.accepted || (slot.flushed && slot.resolved < slot.accepted);
}

// Frames that a step would take from a slot: chunk_frames times a power of two, or none. In low-latency mode always
// chunk_frames, so that packets stay small.
int64_t VocoderStream::due_frames(const Slot& slot) const {
  if (slot.done) return 0;
  int64_t available = slot.known - slot.fed;
  if (slot.all_known()) {
    const int64_t behind = exact_ ? ceil_div(generator_.delay_samples(), hop_) : look_ahead_;
    available = std::max(slot.known + behind - slot.fed, options_.chunk_frames);
  }
  if (available < options_.chunk_frames) return 0;
  int64_t frames = options_.chunk_frames;
  while (exact_ && frames * 2 <= std::min(available, options_.max_frames)) frames *= 2;
  return frames;
}

void VocoderStream::predict() {
  while (true) {
    std::map<int64_t, std::vector<int64_t>> groups;  // units of the run -> slots
    for (int64_t i = 0; i < table_.size(); ++i) {
      const Slot& slot = slots_[i];
      if (!table_.is_open(i) || !must_predict(slot)) continue;
      const int64_t end = slot.accepted + (slot.flushed ? predictor_->delay_units() : 0);
      groups[std::min(end - slot.in_predictor, kPredictorUnits)].push_back(i);
    }
    if (groups.empty()) return;
    for (const auto& [count, indices] : groups) {
      Rows rows{SlotRows(indices, at::kCPU), {}, {}, {}, false};
      std::vector<int64_t> units;
      for (int64_t i : indices) {
        const Slot& slot = slots_[i];
        rows.spans.push_back({slot.in_predictor, slot.flushed ? slot.accepted : kUnknown});
        for (int64_t j = 0; j < count; ++j) {
          const int64_t unit = slot.in_predictor + j;
          units.push_back(unit < slot.accepted ? slot.units[unit - slot.first_unit()].codes.unit : 0);
        }
      }
      const std::vector<int64_t> frames = predictor_->run(rows, units);
      for (size_t row = 0; row < indices.size(); ++row) {
        Slot& slot = slots_[indices[row]];
        for (int64_t j = 0; j < count; ++j) {
          const int64_t unit = slot.in_predictor - predictor_->delay_units() + j;
          if (unit >= 0 && unit < slot.accepted) resolve(slot, unit, frames[row * count + j]);
        }
        slot.in_predictor += count;
      }
    }
  }
}

void VocoderStream::resolve(Slot& slot, int64_t unit, int64_t frames) {
  slot.units[unit - slot.first_unit()].frames = frames;
  ++slot.resolved;
  slot.known += frames;
  slot.sounding.emplace_back(unit, frames * hop_);
}

// The next frames of a slot; beyond what is known the last one is held.
void VocoderStream::append_codes(const Slot& slot, int64_t frames, std::vector<Codes>& codes) const {
  Codes last;
  int64_t skip = slot.front_fed;
  for (const Unit& unit : slot.units) {
    if (unit.frames == 0) break;
    last = unit.codes;
    const int64_t count = std::min(unit.frames - skip, frames);
    codes.insert(codes.end(), count, last);
    skip = 0;
    frames -= count;
    if (frames == 0) return;
  }
  codes.insert(codes.end(), frames, last);
}

void VocoderStream::feed(Slot& slot, int64_t frames) {
  slot.fed += frames;
  while (frames > 0 && !slot.units.empty()) {
    const int64_t count = std::min(slot.units.front().frames - slot.front_fed, frames);
    frames -= count;
    slot.front_fed += count;
    if (slot.front_fed < slot.units.front().frames) return;
    slot.units.pop_front();
    slot.front_fed = 0;
  }
}

std::vector<VocoderPacket> VocoderStream::hand_out(const std::vector<int64_t>& indices, int64_t frames,
                                                   const at::Tensor& sound) {
  std::vector<VocoderPacket> packets;
  for (size_t row = 0; row < indices.size(); ++row) {
    Slot& slot = slots_[indices[row]];
    const int64_t first_sample = slot.fed * hop_ - generator_.delay_samples();
    feed(slot, frames);
    VocoderPacket packet = emit(indices[row], sound.select(0, row), first_sample);
    if (packet.samples.size(0) || packet.final) packets.push_back(std::move(packet));
  }
  return packets;
}

VocoderPacket VocoderStream::emit(int64_t index, const at::Tensor& sound, int64_t first_sample) {
  Slot& slot = slots_[index];
  int64_t end = slot.fed * hop_ - (exact_ ? generator_.delay_samples() : look_ahead_ * hop_);
  if (slot.all_known()) {
    end = std::clamp<int64_t>(end, slot.emitted, slot.known * hop_);
    slot.done = end == slot.known * hop_;
  }
  VocoderPacket packet;
  packet.slot = index;
  packet.start = slot.emitted;
  packet.final = slot.done;
  const int64_t count = std::max<int64_t>(end - slot.emitted, 0);
  packet.samples = sound.narrow(0, count ? slot.emitted - first_sample : 0, count).clone();
  if (!exact_ && count) {
    if (slot.fade.defined()) {
      const int64_t length = std::min(count, kFadeSamples);
      const at::Tensor weight = at::arange(1, length + 1, packet.samples.options()).div_(kFadeSamples + 1);
      packet.samples.narrow(0, 0, length).lerp_(slot.fade.narrow(0, 0, length), weight.neg_().add_(1));
    }
    slot.fade = sound.narrow(0, end - first_sample, kFadeSamples).clone();
  }
  for (int64_t left = count; left > 0;) {
    auto& [unit, samples] = slot.sounding.front();
    const int64_t taken = std::min(left, samples);
    packet.units.emplace_back(unit, taken);
    left -= taken;
    samples -= taken;
    if (samples == 0) slot.sounding.pop_front();
  }
  slot.emitted += count;
  return packet;
}

void VocoderStream::clear(int64_t index) {
  Slot fresh;
  fresh.speaker = slots_[index].speaker;
  fresh.named_style = slots_[index].named_style;
  slots_[index] = std::move(fresh);
  generator_.reset(index);
  if (predictor_) predictor_->reset(index);
}

}  // namespace spiritrt
