// The module, and what it was built with, so that `spiritrt doctor` can tell a stale or mismatched build from a good one.
#include <torch/version.h>

#include "bindings.h"

namespace py = pybind11;

namespace {

py::dict build_info() {
  py::dict info;
  info["torch"] = TORCH_VERSION;
  info["compiler"] = __VERSION__;
  info["cxx_standard"] = static_cast<long>(__cplusplus);
#ifdef __AVX512F__
  info["vector"] = "avx512";
#elif defined(__AVX2__)
  info["vector"] = "avx2";
#else
  info["vector"] = "baseline";
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native parts of spiritrt.";
  m.def("build_info", &build_info, "Versions and flags this extension was compiled with.");
  spiritrt::bind_errors(m);
  spiritrt::bind_vocoder_stream(m);
  spiritrt::bind_hubert_stream(m);
  spiritrt::bind_cpu_kernels(m);
}
