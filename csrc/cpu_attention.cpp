#include "cpu_attention.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <c10/util/BFloat16.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "cpu_checks.h"
#include "cpu_targets.h"

namespace spiritrt {

namespace {

constexpr int64_t kHeadDimMax = 256;
constexpr int64_t kQueries = 32;  // that share a pass over the keys: their scores fit the second cache

inline float wide(float x) { return x; }
inline float wide(uint16_t bits) { return c10::BFloat16(bits, c10::BFloat16::from_bits()); }

#define KERNELS "cpu_attention_kernels.inc"
#include "cpu_targets.inc"

void check_cache(const at::Tensor& keys, const at::Tensor& values, int64_t dim) {
  TORCH_CHECK_VALUE(keys.scalar_type() == at::kFloat || keys.scalar_type() == at::kBFloat16,
                    "keys and values on the CPU must be float32 or bfloat16, got ", keys.scalar_type());
  check_tensor(keys, "keys", keys.scalar_type(), dim);
  check_shape(values, "values", keys.scalar_type(), keys.sizes());
  TORCH_CHECK_VALUE(keys.size(-1) % 2 == 0 && keys.size(-1) <= kHeadDimMax, "head_dim must be even and at most ",
                    kHeadDimMax, ", got ", keys.size(-1));
}

// Every row in its slot, its pages and the rotations; returns the most tokens a slot will hold.
int64_t check_rows(const AttentionCall& call, int64_t rows, int64_t tokens, int64_t slots, int64_t pages,
                   int64_t positions) {
  TORCH_CHECK_VALUE(call.offsets[0] == 0 && call.offsets[rows] == tokens, "offsets must run from 0 to the ", tokens,
                    " tokens of qkv, got ", call.offsets[0], " to ", call.offsets[rows]);
  int64_t reach = 0;
  for (int64_t r = 0; r < rows; r++) {
    const int64_t slot = call.slots[r], start = call.starts[r], count = call.offsets[r + 1] - call.offsets[r];
    TORCH_CHECK_VALUE(slot >= 0 && slot < slots, "row ", r, ": slot must be from 0 to ", slots - 1, ", got ", slot);
    TORCH_CHECK_VALUE(start >= 0 && count >= 1, "row ", r, ": got ", count, " tokens from position ", start);
    const int64_t end = start + count;
    TORCH_CHECK_VALUE(end <= positions && end <= call.max_pages * call.page_size, "row ", r, ": ", end,
                      " tokens, beyond ", call.max_pages, " pages of ", call.page_size, " or ", positions, " positions");
    for (int64_t p = 0; p * call.page_size < end; p++) {
      const int64_t page = call.table[slot * call.max_pages + p];
      TORCH_CHECK_VALUE(page >= 0 && page < pages, "slot ", slot, ": page ", p, " must be from 0 to ", pages - 1,
                        ", got ", page);
    }
    reach = std::max(reach, end);
  }
  return reach;
}

template <typename Append, typename Attend>
void run(const AttentionCall& call, int64_t rows, int64_t tokens, int64_t reach, Append append, Attend attend) {
  // all rows before any attends: a prefill's queries see the keys of their own row
  for (int64_t r = 0; r < rows; r++) append(call, r);
  // one thread reads whole pages; more share out the heads too where rows are few
  const int64_t threads = at::get_num_threads();
  const int64_t parts = threads == 1 ? 1 : std::min(call.kv_heads, (2 * threads + rows - 1) / rows);
  const int64_t heads = (call.kv_heads + parts - 1) / parts;
  const int64_t work = 2 * (tokens / rows) * heads * (call.heads / call.kv_heads) * reach * call.head_dim;
  const int64_t grain = std::max<int64_t>(1, (1 << 17) / std::max<int64_t>(work, 1));
  at::parallel_for(0, rows * parts, grain, [&](int64_t begin, int64_t end) {
    // kept from call to call: fresh memory of this size would be mapped and cleared each time
    static thread_local std::vector<float> scratch;
    const size_t floats = kQueries * (reach + 16 + 2 * kHeadDimMax);
    if (scratch.size() < floats) scratch.resize(floats);
    for (int64_t i = begin; i < end; i++) {
      const int64_t head = i % parts * heads;
      attend(call, i / parts, head, std::min(head + heads, call.kv_heads), scratch.data());
    }
  });
}

template <typename T, typename Rotate>
void shift(at::Tensor& keys, at::Tensor& values, const at::Tensor& source, const at::Tensor& target,
           const std::vector<float>& cos, const std::vector<float>& sin, Rotate rotate_key) {
  const int64_t layers = keys.size(0), places = keys.size(1) * keys.size(2), heads = keys.size(3), dim = keys.size(4);
  const int64_t* from = source.const_data_ptr<int64_t>();
  const int64_t* to = target.const_data_ptr<int64_t>();
  T* k = static_cast<T*>(keys.mutable_data_ptr());
  T* v = static_cast<T*>(values.mutable_data_ptr());
  at::parallel_for(0, layers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t layer = begin; layer < end; layer++) {
      for (int64_t m = 0; m < source.numel(); m++) {
        const int64_t a = (layer * places + from[m]) * heads * dim, b = (layer * places + to[m]) * heads * dim;
        for (int64_t head = 0; head < heads; head++) {
          rotate_key(k + a + head * dim, cos.data(), sin.data(), dim, k + b + head * dim);
        }
        std::memmove(v + b, v + a, heads * dim * sizeof(T));
      }
    }
  });
}

}  // namespace

at::Tensor cpu_rotary_attention(const at::Tensor& qkv, const at::Tensor& cos_sin, at::Tensor& keys, at::Tensor& values,
                                const at::Tensor& slots, const at::Tensor& starts, const at::Tensor& offsets,
                                const at::Tensor& page_table, int64_t heads) {
  check_tensor(qkv, "qkv", at::kFloat, 2);
  check_cache(keys, values, 4);
  const int64_t tokens = qkv.size(0), kv_heads = keys.size(2), dim = keys.size(3), rows = slots.numel();
  TORCH_CHECK_VALUE(heads >= 1 && heads % kv_heads == 0, "heads must be a multiple of the ", kv_heads,
                    " key-value heads, got ", heads);
  check_shape(qkv, "qkv", at::kFloat, {tokens, (heads + 2 * kv_heads) * dim});
  check_tensor(cos_sin, "cos_sin", at::kFloat, 2);
  check_shape(cos_sin, "cos_sin", at::kFloat, {cos_sin.size(0), dim});
  check_tensor(page_table, "page_table", at::kInt, 2);
  check_shape(slots, "slots", at::kInt, {rows});
  check_shape(starts, "starts", at::kInt, {rows});
  check_shape(offsets, "offsets", at::kInt, {rows + 1});

  at::Tensor out = at::empty({tokens, heads * dim}, qkv.options());
  at::Tensor queries = at::empty({tokens, heads * dim}, qkv.options());
  if (tokens == 0) return out;
  AttentionCall call{};
  call.qkv = qkv.const_data_ptr<float>();
  call.cos_sin = cos_sin.const_data_ptr<float>();
  call.keys = keys.mutable_data_ptr();
  call.values = values.mutable_data_ptr();
  call.slots = slots.const_data_ptr<int32_t>();
  call.starts = starts.const_data_ptr<int32_t>();
  call.offsets = offsets.const_data_ptr<int32_t>();
  call.table = page_table.const_data_ptr<int32_t>();
  call.queries = queries.mutable_data_ptr<float>();
  call.out = out.mutable_data_ptr<float>();
  call.max_pages = page_table.size(1);
  call.page_size = keys.size(1);
  call.heads = heads;
  call.kv_heads = kv_heads;
  call.head_dim = dim;
  const int64_t reach = check_rows(call, rows, tokens, page_table.size(0), keys.size(0), cos_sin.size(0));
  if (keys.scalar_type() == at::kFloat) {
    run(call, rows, tokens, reach, PICK(append_row<float>), PICK(attend_row<float>));
  } else {
    run(call, rows, tokens, reach, PICK(append_row<uint16_t>), PICK(attend_row<uint16_t>));
  }
  return out;
}

void cpu_shift_rotary(at::Tensor& keys, at::Tensor& values, const at::Tensor& source, const at::Tensor& target,
                      int64_t delta, const at::Tensor& inv_freq) {
  check_cache(keys, values, 5);
  check_tensor(source, "source", at::kLong, 1);
  check_shape(target, "target", at::kLong, source.sizes());
  check_shape(inv_freq, "inv_freq", at::kFloat, {keys.size(4) / 2});
  const int64_t places = keys.size(1) * keys.size(2);
  for (const at::Tensor& moved : {source, target}) {
    const int64_t* place = moved.const_data_ptr<int64_t>();
    for (int64_t m = 0; m < moved.numel(); m++) {
      TORCH_CHECK_VALUE(place[m] >= 0 && place[m] < places, "places must be from 0 to ", places - 1, ", got ",
                        place[m]);
    }
  }
  std::vector<float> cos, sin;
  for (int64_t i = 0; i < inv_freq.numel(); i++) {
    const double angle = static_cast<double>(delta) * inv_freq.const_data_ptr<float>()[i];
    cos.push_back(static_cast<float>(std::cos(angle)));
    sin.push_back(static_cast<float>(std::sin(angle)));
  }
  if (keys.scalar_type() == at::kFloat) {
    shift<float>(keys, values, source, target, cos, sin, PICK(rotate_key<float>));
  } else {
    shift<uint16_t>(keys, values, source, target, cos, sin, PICK(rotate_key<uint16_t>));
  }
}

}  // namespace spiritrt
