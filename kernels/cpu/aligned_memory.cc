#include "kernels/aligned_memory.h"

#include <sys/mman.h>

#include <cstdlib>

#include "common/check.h"

namespace troupe {
namespace {

constexpr size_t kCacheLine = 64;
constexpr size_t kHugePage = size_t{2} << 20;
// Below this, rounding up to huge pages wastes too much.
constexpr size_t kLarge = 2 * kHugePage;

}  // namespace

void* AllocateAligned(size_t num_bytes) {
  const size_t alignment = num_bytes >= kLarge ? kHugePage : kCacheLine;
  const size_t rounded = (num_bytes + alignment - 1) / alignment * alignment;
  void* memory = std::aligned_alloc(alignment, rounded);
  CHECK(memory != nullptr || rounded == 0);
#ifdef MADV_HUGEPAGE
  // Best effort: a kernel without huge pages refuses.
  if (alignment == kHugePage) madvise(memory, rounded, MADV_HUGEPAGE);
#endif
  return memory;
}

void FreeAligned(void* memory) { std::free(memory); }

}  // namespace troupe
