// Compiled for any processor of the architecture: this file must run where the
// kernels cannot.
#include "kernels/cpu_features.h"

#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace troupe {

std::string MissingCpuFeatures() {
#if defined(__x86_64__)
  // __builtin_cpu_supports also asks whether the operating system saves the
  // wide registers. It does not know F16C everywhere.
  __builtin_cpu_init();
  unsigned eax = 0;
  unsigned ebx = 0;
  unsigned ecx = 0;
  unsigned edx = 0;
  const bool has_leaf = __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0;
  const struct {
    const char* name;
    bool present;
  } features[] = {
      {"AVX2", __builtin_cpu_supports("avx2") != 0},
      {"FMA", __builtin_cpu_supports("fma") != 0},
      {"BMI", __builtin_cpu_supports("bmi") != 0},
      {"BMI2", __builtin_cpu_supports("bmi2") != 0},
      {"F16C", has_leaf && (ecx & bit_F16C) != 0},
      {"AES", has_leaf && (ecx & bit_AES) != 0},
      {"PCLMUL", has_leaf && (ecx & bit_PCLMUL) != 0},
  };
  std::string missing;
  for (const auto& feature : features) {
    if (feature.present) continue;
    missing += missing.empty() ? "this processor has no " : ", ";
    missing += feature.name;
  }
  return missing;
#else
  return "";  // NEON and fused multiply-add are part of the architecture
#endif
}

}  // namespace troupe
