// What the kernels need of the processor.
#ifndef TROUPE_KERNELS_CPU_FEATURES_H_
#define TROUPE_KERNELS_CPU_FEATURES_H_

#include <string>

namespace troupe {

// Empty when this processor runs the kernels, else what it lacks, as one
// sentence ("this processor has no AVX2"). Fused multiply-add is part of the
// exactness contract, so there is no path without it. Call at the start of
// main, before anything else of kernels/.
std::string MissingCpuFeatures();

// The instruction set that the kernels chose: "AVX2", "AVX3", "AVX3_DL" (with
// dot products of bytes), "NEON".
std::string ChosenInstructionSet();

}  // namespace troupe

#endif  // TROUPE_KERNELS_CPU_FEATURES_H_
