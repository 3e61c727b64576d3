// The CPU kernels as kernels/cpu.py sees them. All release the GIL.
#include <ATen/core/Tensor.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include "bindings.h"
#include "cpu_attention.h"
#include "cpu_linear.h"
#include "cpu_sampling.h"
#include "cpu_targets.h"

namespace py = pybind11;

namespace spiritrt {

void bind_cpu_kernels(py::module_& m) {
  using Unlocked = py::call_guard<py::gil_scoped_release>;
  m.def("cpu_targets", &cpu_targets, "Instruction sets that this machine runs the CPU kernels on, the best last.");
  m.def("set_cpu_target", &set_cpu_target, py::arg("name"), "Chooses one of `cpu_targets`; for tests.");
  m.def("cpu_linear", &cpu_linear, Unlocked(), py::arg("x"), py::arg("data"), py::arg("scales"), py::arg("bias"),
        py::arg("norm_weight"), py::arg("epsilon"), py::arg("gated"), py::arg("residual"), py::arg("needed"));
  m.def("cpu_rms_norm", &cpu_rms_norm, Unlocked(), py::arg("x"), py::arg("weight"), py::arg("epsilon"),
        py::arg("residual"));
  m.def("cpu_embed", &cpu_embed, Unlocked(), py::arg("ids"), py::arg("table"), py::arg("slots"), py::arg("last_ids"));
  m.def("cpu_rotary_attention", &cpu_rotary_attention, Unlocked(), py::arg("qkv"), py::arg("cos_sin"), py::arg("keys"),
        py::arg("values"), py::arg("slots"), py::arg("starts"), py::arg("offsets"), py::arg("page_table"),
        py::arg("heads"));
  m.def("cpu_shift_rotary", &cpu_shift_rotary, Unlocked(), py::arg("keys"), py::arg("values"), py::arg("source"),
        py::arg("target"), py::arg("delta"), py::arg("inv_freq"));
  m.def(
      "cpu_sampling",
      [](const at::Tensor& logits, const at::Tensor& slots, const at::Tensor& positions, const at::Tensor& mask,
         const at::Tensor& masks, const at::Tensor& seed, const at::Tensor& temperature, const at::Tensor& top_k,
         const at::Tensor& top_p, const at::Tensor& min_p, const at::Tensor& penalty, const at::Tensor& seen,
         const at::Tensor& last_ids, const at::Tensor& full) {
        const SamplingTensors state{mask, masks, seed, temperature, top_k, top_p, min_p, penalty, seen, last_ids, full};
        return cpu_sampling(logits, state, slots, positions);
      },
      Unlocked(), py::arg("logits"), py::arg("slots"), py::arg("positions"), py::arg("mask"), py::arg("masks"),
      py::arg("seed"), py::arg("temperature"), py::arg("top_k"), py::arg("top_p"), py::arg("min_p"), py::arg("penalty"),
      py::arg("seen"), py::arg("last_ids"), py::arg("full"));
}

}  // namespace spiritrt
