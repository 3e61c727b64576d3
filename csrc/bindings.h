// What the module is put together from.
#pragma once

#include <pybind11/pybind11.h>

namespace spiritrt {

void bind_errors(pybind11::module_& m);
void bind_vocoder_stream(pybind11::module_& m);
void bind_hubert_stream(pybind11::module_& m);
void bind_cpu_kernels(pybind11::module_& m);

}  // namespace spiritrt
