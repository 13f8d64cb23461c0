// As targets.h, for kernels that use AVX-512's dot products of bytes: these
// belong to AVX3_DL, and a plain AVX3 would be the same as AVX2.
#ifndef TROUPE_KERNELS_CPU_QUANTIZED_TARGETS_H_
#define TROUPE_KERNELS_CPU_QUANTIZED_TARGETS_H_

#define HWY_WANT_AVX3_DL
#define HWY_DISABLED_TARGETS                                            \
  (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3 | HWY_SVE | HWY_SVE_256 | HWY_SVE2 | \
   HWY_SVE2_128 | HWY_SCALAR | HWY_EMU128)

#endif  // TROUPE_KERNELS_CPU_QUANTIZED_TARGETS_H_
