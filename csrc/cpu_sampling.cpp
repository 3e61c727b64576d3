#include "cpu_sampling.h"

#include <ATen/Parallel.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <vector>

#include "cpu_checks.h"
#include "cpu_targets.h"

namespace spiritrt {

namespace {

#define KERNELS "cpu_sampling_kernels.inc"
#include "cpu_targets.inc"

constexpr float kSmallestTemperature = 1e-30f;

struct Scratch {
  std::vector<float> scores, mass, ordered;
};

// The four words of Philox 4x32-10 (Salmon et al. 2011) for ids 4 * group to 4 * group + 3.
void philox(uint64_t seed, uint64_t position, uint32_t group, uint32_t* words) {
  uint32_t a = static_cast<uint32_t>(seed), b = static_cast<uint32_t>(seed >> 32);
  uint32_t x = static_cast<uint32_t>(position), y = static_cast<uint32_t>(position >> 32), z = group, w = 0;
  for (int round = 0; round < 10; round++) {
    const uint64_t first = uint64_t{0xD2511F53} * x, second = uint64_t{0xCD9E8D57} * z;
    x = static_cast<uint32_t>(second >> 32) ^ y ^ a;
    y = static_cast<uint32_t>(second);
    z = static_cast<uint32_t>(first >> 32) ^ w ^ b;
    w = static_cast<uint32_t>(first);
    a += 0x9E3779B9;
    b += 0xBB67AE85;
  }
  words[0] = x;
  words[1] = y;
  words[2] = z;
  words[3] = w;
}

double uniform(uint32_t word) { return ((word >> 8) + 0.5) * 0x1p-24; }

// Rounded to a multiple of 2^-18, so that no logarithm's last bit matters: see kernels/noise.py.
float gumbel(double u) { return static_cast<float>(std::nearbyint(-std::log(-std::log(u)) * 0x1p18) * 0x1p-18); }

// The lowest score that top-k and top-p leave; all that are not lower stay, ties among them.
float lowest_kept(const SamplingRow& row, Scratch& scratch) {
  const std::vector<float>&scores = scratch.scores, &mass = scratch.mass;
  float lowest = -INFINITY;
  auto& ordered = scratch.ordered;
  const auto collect = [&] {
    ordered.clear();
    for (int64_t i = 0; i < row.vocab; i++) {
      if (scores[i] >= lowest && scores[i] > -INFINITY) ordered.push_back(scores[i]);
    }
  };
  if (row.top_k > 0 && row.top_k < row.vocab) {
    collect();
    if (row.top_k < static_cast<int64_t>(ordered.size())) {
      std::nth_element(ordered.begin(), ordered.begin() + (row.top_k - 1), ordered.end(), std::greater<>());
      lowest = ordered[row.top_k - 1];
    }
  }
  if (row.top_p >= 1) return lowest;
  double total = 0;
  for (int64_t i = 0; i < row.vocab; i++) total += scores[i] >= lowest ? mass[i] : 0.0f;
  collect();
  // only the head of the order is needed: sort it in growing pieces
  const double wanted = row.top_p * total;
  double before = 0, tied = 0;
  size_t sorted = 0;
  for (size_t piece = 64; sorted < ordered.size(); piece *= 4) {
    const size_t end = std::min(ordered.size(), sorted + piece);
    if (end < ordered.size()) {
      std::nth_element(ordered.begin() + sorted, ordered.begin() + end, ordered.end(), std::greater<>());
    }
    std::sort(ordered.begin() + sorted, ordered.begin() + end, std::greater<>());
    for (; sorted < end; sorted++) {
      if (sorted > 0 && ordered[sorted] < ordered[sorted - 1]) {
        before += tied;
        tied = 0;
        if (before >= wanted) return ordered[sorted - 1];
      }
      tied += std::exp(ordered[sorted]);
    }
  }
  return lowest;
}

int64_t draw(const SamplingRow& row, Scratch& scratch) {
  const float best = PICK(penalised_scores)(row, scratch.scores.data());
  int64_t likeliest = 0;
  while (likeliest < row.vocab - 1 && scratch.scores[likeliest] != best) likeliest++;
  if (row.temperature == 0) return likeliest;
  const int64_t padded = static_cast<int64_t>(scratch.scores.size());
  PICK(scale_scores)(padded, best, std::max(row.temperature, kSmallestTemperature), scratch.scores.data(),
                     scratch.mass.data());
  const float lowest = lowest_kept(row, scratch);
  int64_t chosen = likeliest;
  uint32_t words[4];
  philox(row.seed, row.position, static_cast<uint32_t>(likeliest / 4), words);
  float highest = scratch.scores[likeliest] + gumbel(uniform(words[likeliest % 4]));
  double reach = std::exp(-static_cast<double>(highest));
  int64_t drawn = -1;
  for (int64_t i = 0; i < row.vocab; i++) {
    const float score = scratch.scores[i];
    if (!(score >= lowest) || score == -INFINITY || !(scratch.mass[i] >= row.min_p)) continue;
    if (i / 4 != drawn) {
      drawn = i / 4;
      philox(row.seed, row.position, static_cast<uint32_t>(drawn), words);
    }
    const double u = uniform(words[i % 4]);
    // noise above highest - score takes -log(u) < mass / e^highest, and -log(u) is at least 1 - u
    if (1 - u > 1.001 * reach * scratch.mass[i]) continue;
    const float value = score + gumbel(u);
    if (value > highest || (value == highest && i < chosen)) {
      chosen = i;
      highest = value;
      reach = std::exp(-static_cast<double>(highest));
    }
  }
  return chosen;
}

}  // namespace

std::pair<at::Tensor, at::Tensor> cpu_sampling(const at::Tensor& logits, const SamplingTensors& state,
                                               const at::Tensor& slots, const at::Tensor& positions) {
  check_tensor(logits, "logits", at::kFloat, 2);
  const int64_t rows = logits.size(0), vocab = logits.size(1), count = state.mask.numel();
  TORCH_CHECK_VALUE(vocab >= 1, "logits must have at least one column, got ", logits.sizes());
  check_tensor(state.masks, "masks", at::kInt, 2);
  const int64_t words = state.masks.size(1);
  TORCH_CHECK_VALUE(words == (vocab + 31) / 32, "masks of ", words, " words do not fit ", vocab, " logits");
  check_shape(slots, "slots", at::kInt, {rows});
  check_shape(positions, "positions", at::kLong, {rows});
  check_shape(state.mask, "mask", at::kInt, {count});
  check_shape(state.seed, "seed", at::kLong, {count});
  check_shape(state.temperature, "temperature", at::kFloat, {count});
  check_shape(state.top_k, "top_k", at::kInt, {count});
  check_shape(state.top_p, "top_p", at::kFloat, {count});
  check_shape(state.min_p, "min_p", at::kFloat, {count});
  check_shape(state.penalty, "penalty", at::kFloat, {count});
  check_shape(state.seen, "seen", at::kInt, {count, words});
  check_shape(state.last_ids, "last_ids", at::kLong, {count});
  check_shape(state.full, "full", at::kBool, {count});
  const int32_t* slot = slots.const_data_ptr<int32_t>();
  const int32_t* mask = state.mask.const_data_ptr<int32_t>();
  for (int64_t r = 0; r < rows; r++) {
    TORCH_CHECK_VALUE(slot[r] < count, "row ", r, ": slot must be below ", count, ", got ", slot[r]);
    if (slot[r] < 0) continue;
    TORCH_CHECK_VALUE(mask[slot[r]] >= 0 && mask[slot[r]] < state.masks.size(0), "slot ", slot[r],
                      ": there is no mask ", mask[slot[r]], ", there are ", state.masks.size(0));
  }

  at::Tensor ids = at::zeros({rows}, slots.options().dtype(at::kLong));
  at::Tensor logprobs = at::zeros({rows}, logits.options());
  int64_t* id = ids.mutable_data_ptr<int64_t>();
  float* logprob = logprobs.mutable_data_ptr<float>();
  int64_t* last = state.last_ids.mutable_data_ptr<int64_t>();
  int32_t* seen = state.seen.mutable_data_ptr<int32_t>();
  at::parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
    const int64_t padded = (vocab + 15) / 16 * 16;
    Scratch scratch;
    scratch.scores.resize(padded);
    scratch.mass.resize(padded);
    for (int64_t r = begin; r < end; r++) {
      const int64_t s = slot[r];
      if (s < 0) continue;
      const SamplingRow row{logits.const_data_ptr<float>() + r * vocab,
                            state.masks.const_data_ptr<int32_t>() + mask[s] * words,
                            seen + s * words,
                            static_cast<uint64_t>(state.seed.const_data_ptr<int64_t>()[s]),
                            positions.const_data_ptr<int64_t>()[r],
                            vocab,
                            state.top_k.const_data_ptr<int32_t>()[s],
                            state.temperature.const_data_ptr<float>()[s],
                            state.top_p.const_data_ptr<float>()[s],
                            state.min_p.const_data_ptr<float>()[s],
                            state.penalty.const_data_ptr<float>()[s],
                            state.full.const_data_ptr<bool>()[s]};
      id[r] = draw(row, scratch);
      logprob[r] = row.logits[id[r]] - PICK(log_sum_exp)(row);
      last[s] = id[r];
      row.seen[id[r] / 32] |= static_cast<int32_t>(uint32_t{1} << (id[r] % 32));
    }
  });
  return {ids, logprobs};
}

}  // namespace spiritrt
