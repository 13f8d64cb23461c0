// The instruction sets that the CPU kernels are compiled for. Include before
// anything of Highway.
//
// Fused multiply-add is part of the exactness contract, so the sets without it
// are left out, and so are those whose vectors have no fixed size. AVX3_DL adds
// nothing that float kernels use: only who defines HWY_WANT_AVX3_DL gets it.
#ifndef TROUPE_KERNELS_CPU_TARGETS_H_
#define TROUPE_KERNELS_CPU_TARGETS_H_

#ifdef HWY_WANT_AVX3_DL
#define TROUPE_UNWANTED_TARGETS 0
#else
#define TROUPE_UNWANTED_TARGETS HWY_AVX3_DL
#endif

#define HWY_DISABLED_TARGETS                                                \
  (TROUPE_UNWANTED_TARGETS | HWY_SSSE3 | HWY_SSE4 | HWY_SVE | HWY_SVE_256 | \
   HWY_SVE2 | HWY_SVE2_128 | HWY_SCALAR | HWY_EMU128)

#endif  // TROUPE_KERNELS_CPU_TARGETS_H_
