#include "cpu_linear.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "cpu_checks.h"
#include "cpu_targets.h"

namespace spiritrt {

namespace {

#define KERNELS "cpu_linear_kernels.inc"
#include "cpu_targets.inc"

using LinearBlock = void (*)(const LinearCall&, int64_t column, float* scratch);

LinearBlock linear_block_for(at::ScalarType weight) {
  switch (weight) {
    case at::kFloat: return PICK(linear_block<float>);
    case at::kBFloat16: return PICK(linear_block<uint16_t>);
    case at::kChar: return PICK(linear_block<int8_t>);
    default: TORCH_CHECK_VALUE(false, "weights on the CPU must be float32, bfloat16 or int8, got ", weight);
  }
}

// Below this many products a second thread costs more than it brings.
int64_t grain(int64_t work) { return std::max<int64_t>(1, (1 << 17) / std::max<int64_t>(work, 1)); }

void rms_norm(const at::Tensor& x, const at::Tensor& weight, double epsilon, const at::Tensor* residual,
              at::Tensor& normed, at::Tensor* summed) {
  const auto row = PICK(rms_norm_row);
  const int64_t width = x.size(1);
  const float* from = x.const_data_ptr<float>();
  const float* added = residual ? residual->const_data_ptr<float>() : nullptr;
  float* to = normed.mutable_data_ptr<float>();
  float* sum = summed ? summed->mutable_data_ptr<float>() : nullptr;
  const float* gain = weight.const_data_ptr<float>();
  at::parallel_for(0, x.size(0), grain(4 * width), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; t++) {
      const int64_t at = t * width;
      row(from + at, added ? added + at : nullptr, gain, static_cast<float>(epsilon), width, to + at,
          sum ? sum + at : nullptr);
    }
  });
}

}  // namespace

at::Tensor cpu_linear(const at::Tensor& x, const at::Tensor& data, const std::optional<at::Tensor>& scales,
                      const std::optional<at::Tensor>& bias, const std::optional<at::Tensor>& norm_weight,
                      double epsilon, bool gated, const std::optional<at::Tensor>& residual,
                      const std::optional<at::Tensor>& needed) {
  check_tensor(x, "x", at::kFloat, 2);
  TORCH_CHECK_VALUE(data.dim() == 2 && data.is_contiguous() && data.is_cpu(),
                    "the weight must be contiguous [N, K] on the CPU, got ", data.sizes(), " on ", data.device());
  const int64_t rows = x.size(0), inner = x.size(1), outputs = data.size(0);
  TORCH_CHECK_VALUE(data.size(1) == inner, "x is ", inner, " wide and the weight's rows ", data.size(1));
  TORCH_CHECK_VALUE(!gated || outputs % 2 == 0, "gate and up must have as many rows each, got ", outputs, " together");
  TORCH_CHECK_VALUE((data.scalar_type() == at::kChar) == scales.has_value(),
                    "scales go with int8 weights and only with them, got weights of ", data.scalar_type());
  const int64_t columns = gated ? outputs / 2 : outputs;
  const int64_t blocks = (columns + kLinearBlock - 1) / kLinearBlock;
  check_shape(scales, "scales", at::kFloat, {outputs});
  check_shape(bias, "bias", at::kFloat, {outputs});
  check_shape(norm_weight, "the norm's weight", at::kFloat, {inner});
  check_shape(residual, "residual", at::kFloat, {rows, columns});
  check_shape(needed, "needed", at::kByte, {blocks});

  at::Tensor input = x;
  if (norm_weight) {
    input = at::empty_like(x);
    rms_norm(x, *norm_weight, epsilon, nullptr, input, nullptr);
  }
  at::Tensor out = at::empty({rows, columns}, x.options());
  LinearCall call{};
  call.x = input.const_data_ptr<float>();
  call.weight = data.const_data_ptr();
  call.scales = data_or_null<float>(scales);
  call.bias = data_or_null<float>(bias);
  call.residual = data_or_null<float>(residual);
  call.out = out.mutable_data_ptr<float>();
  call.rows = rows;
  call.inner = inner;
  call.columns = columns;
  call.gated = gated;
  const uint8_t* flags = data_or_null<uint8_t>(needed);
  const LinearBlock run = linear_block_for(data.scalar_type());
  const int64_t work = rows * inner * kLinearBlock * (gated ? 2 : 1);
  at::parallel_for(0, blocks, grain(work), [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(data.scalar_type() == at::kFloat ? 0 : 16 * inner);
    for (int64_t block = begin; block < end; block++) {
      if (!flags || flags[block]) run(call, block * kLinearBlock, scratch.data());
    }
  });
  return out;
}

std::pair<at::Tensor, at::Tensor> cpu_rms_norm(const at::Tensor& x, const at::Tensor& weight, double epsilon,
                                               const std::optional<at::Tensor>& residual) {
  check_tensor(x, "x", at::kFloat, 2);
  check_shape(weight, "weight", at::kFloat, {x.size(1)});
  check_shape(residual, "residual", at::kFloat, x.sizes());
  at::Tensor normed = at::empty_like(x);
  at::Tensor summed = residual ? at::empty_like(x) : x;
  rms_norm(x, weight, epsilon, residual ? &*residual : nullptr, normed, residual ? &summed : nullptr);
  return {normed, summed};
}

at::Tensor cpu_embed(const at::Tensor& ids, const at::Tensor& table, const std::optional<at::Tensor>& slots,
                     const std::optional<at::Tensor>& last_ids) {
  check_tensor(ids, "ids", at::kLong, 1);
  TORCH_CHECK_VALUE(table.dim() == 2 && table.is_contiguous() && table.is_cpu(),
                    "the table must be contiguous [V, C] on the CPU, got ", table.sizes(), " on ", table.device());
  TORCH_CHECK_VALUE(slots.has_value() == last_ids.has_value(), "slots and last_ids go together");
  check_shape(slots, "slots", at::kInt, ids.sizes());
  if (last_ids) check_tensor(*last_ids, "last_ids", at::kLong, 1);
  const int64_t width = table.size(1), count = ids.size(0);
  std::vector<int64_t> id(ids.const_data_ptr<int64_t>(), ids.const_data_ptr<int64_t>() + count);
  for (int64_t t = 0; t < count; t++) {
    if (id[t] < 0 && last_ids) {
      const int64_t slot = slots->const_data_ptr<int32_t>()[t];
      TORCH_CHECK_VALUE(slot >= 0 && slot < last_ids->numel(), "slots must be from 0 to ", last_ids->numel() - 1,
                        ", got ", slot);
      id[t] = last_ids->const_data_ptr<int64_t>()[slot];
    }
    TORCH_CHECK_VALUE(id[t] >= 0 && id[t] < table.size(0), "ids must be from 0 to ", table.size(0) - 1, ", got ", id[t]);
  }
  at::Tensor x = at::empty({count, width}, table.options().dtype(at::kFloat));
  float* to = x.mutable_data_ptr<float>();
  const auto copy = [&](auto* rows) {
    for (int64_t t = 0; t < count; t++) std::copy_n(rows + id[t] * width, width, to + t * width);
  };
  switch (table.scalar_type()) {
    case at::kFloat: copy(table.const_data_ptr<float>()); break;
    case at::kBFloat16: copy(table.const_data_ptr<at::BFloat16>()); break;
    case at::kHalf: copy(table.const_data_ptr<at::Half>()); break;
    default: TORCH_CHECK_VALUE(false, "the table must be float32, bfloat16 or float16, got ", table.scalar_type());
  }
  return x;
}

}  // namespace spiritrt
