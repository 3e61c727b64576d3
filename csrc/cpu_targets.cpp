#include "cpu_targets.h"

#include <c10/util/Exception.h>

#include <atomic>

namespace spiritrt {

namespace {

const char* const kNames[] = {"baseline", "avx2", "avx512"};

CpuTarget best() {
#if SPIRITRT_X86
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return CpuTarget::baseline;
  const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return wide ? CpuTarget::avx512 : CpuTarget::avx2;
#else
  return CpuTarget::baseline;
#endif
}

std::atomic<CpuTarget>& chosen() {
  static std::atomic<CpuTarget> target{best()};
  return target;
}

}  // namespace

CpuTarget cpu_target() { return chosen().load(std::memory_order_relaxed); }

std::vector<std::string> cpu_targets() { return {kNames, kNames + static_cast<int>(best()) + 1}; }

void set_cpu_target(const std::string& name) {
  for (int i = 0; i <= static_cast<int>(best()); i++) {
    if (name == kNames[i]) {
      chosen().store(static_cast<CpuTarget>(i), std::memory_order_relaxed);
      return;
    }
  }
  TORCH_CHECK_VALUE(false, "this machine runs ", c10::Join(", ", cpu_targets()), ", got '", name, "'");
}

}  // namespace spiritrt
