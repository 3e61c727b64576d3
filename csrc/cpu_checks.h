// What a CPU kernel demands of its tensors; each failure is a ValueError that names the tensor and what it got.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace spiritrt {

inline void check_tensor(const at::Tensor& tensor, const char* name, at::ScalarType dtype, int64_t dim) {
  TORCH_CHECK_VALUE(tensor.is_cpu() && tensor.scalar_type() == dtype && tensor.dim() == dim && tensor.is_contiguous(),
                    name, " must be contiguous ", dtype, " with ", dim, " dimensions on the CPU, got ",
                    tensor.scalar_type(), " ", tensor.sizes(), " on ", tensor.device(),
                    tensor.is_contiguous() ? "" : ", not contiguous");
}

inline void check_shape(const at::Tensor& tensor, const char* name, at::ScalarType dtype, at::IntArrayRef shape) {
  check_tensor(tensor, name, dtype, static_cast<int64_t>(shape.size()));
  TORCH_CHECK_VALUE(tensor.sizes() == shape, name, " must be ", shape, ", got ", tensor.sizes());
}

inline void check_shape(const std::optional<at::Tensor>& tensor, const char* name, at::ScalarType dtype,
                        at::IntArrayRef shape) {
  if (tensor) check_shape(*tensor, name, dtype, shape);
}

template <typename T>
const T* data_or_null(const std::optional<at::Tensor>& tensor) {
  return tensor ? tensor->const_data_ptr<T>() : nullptr;
}

}  // namespace spiritrt
