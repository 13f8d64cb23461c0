// Memory for what vector units read.
#ifndef TROUPE_KERNELS_ALIGNED_MEMORY_H_
#define TROUPE_KERNELS_ALIGNED_MEMORY_H_

#include <cstddef>

namespace troupe {

// At least `num_bytes`, 64-byte aligned; where that is large, aligned to a huge
// page, and the kernel is asked for huge pages (walking a model's weights
// misses the TLB at every 4 KiB otherwise). Aborts when there is no memory.
// Freed by FreeAligned.
void* AllocateAligned(size_t num_bytes);
void FreeAligned(void* memory);

}  // namespace troupe

#endif  // TROUPE_KERNELS_ALIGNED_MEMORY_H_
