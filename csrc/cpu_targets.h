// Which instruction set the CPU kernels run on.
#pragma once

#include <string>
#include <vector>

#if defined(__x86_64__) && defined(__GNUC__)
#define SPIRITRT_X86 1
#include <immintrin.h>
#else
#define SPIRITRT_X86 0
#endif

namespace spiritrt {

enum class CpuTarget { baseline, avx2, avx512 };

// The one in use: the best that this machine has, unless `set_cpu_target` chose another.
CpuTarget cpu_target();

// Those that this machine can run, the best last.
std::vector<std::string> cpu_targets();

// Chooses one by name; a ValueError where this machine cannot run it. For tests and comparisons: not while computing.
void set_cpu_target(const std::string& name);

#if SPIRITRT_X86
template <typename Function>
Function pick(Function baseline, Function avx2, Function avx512) {
  switch (cpu_target()) {
    case CpuTarget::avx512: return avx512;
    case CpuTarget::avx2: return avx2;
    default: return baseline;
  }
}
#define PICK(function) pick(baseline::function, avx2::function, avx512::function)
#else
#define PICK(function) baseline::function
#endif

}  // namespace spiritrt
