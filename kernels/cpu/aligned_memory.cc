#include "kernels/aligned_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <vector>

#include "common/check.h"

namespace troupe {
namespace {

constexpr size_t kCacheLine = 64;
constexpr size_t kHugePage = size_t{2} << 20;
// From here on an allocation has huge pages of its own: rounding up wastes an
// eighth at most.
constexpr size_t kLarge = 8 * kHugePage;
// Below this the TLB does not matter.
constexpr size_t kSmall = size_t{64} << 10;
constexpr size_t kSlabBytes = 16 * kHugePage;

size_t RoundUp(size_t value, size_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

uint8_t* AllocateHugePages(size_t num_bytes) {
  void* memory = std::aligned_alloc(kHugePage, RoundUp(num_bytes, kHugePage));
  CHECK(memory != nullptr);
#ifdef MADV_HUGEPAGE
  // Best effort: a kernel without huge pages refuses.
  madvise(memory, RoundUp(num_bytes, kHugePage), MADV_HUGEPAGE);
#endif
  return static_cast<uint8_t*>(memory);
}

// Allocations between kSmall and kLarge share slabs of huge pages, one after
// the other; a slab is freed with the last of its allocations. That fits the
// matrices of a model, which live and die together. Thread-safe.
class Slabs {
 public:
  void* Allocate(size_t num_bytes) {
    const size_t rounded = RoundUp(num_bytes, kCacheLine);
    const std::lock_guard<std::mutex> lock(mu_);
    if (slabs_.empty() || slabs_.back().used + rounded > kSlabBytes) {
      Trim();
      slabs_.push_back({AllocateHugePages(kSlabBytes), 0, 0});
    }
    Slab& slab = slabs_.back();
    uint8_t* memory = slab.memory + slab.used;
    slab.used += rounded;
    ++slab.live;
    return memory;
  }

  // Whether `memory` is of a slab.
  bool Free(void* memory) {
    const std::lock_guard<std::mutex> lock(mu_);
    const auto slab =
        std::find_if(slabs_.begin(), slabs_.end(), [&](const Slab& s) {
          return memory >= s.memory && memory < s.memory + kSlabBytes;
        });
    if (slab == slabs_.end()) return false;
    if (--slab->live == 0) {
      std::free(slab->memory);
      slabs_.erase(slab);
    }
    return true;
  }

 private:
  struct Slab {
    uint8_t* memory;  // [kSlabBytes]
    size_t used;
    size_t live;  // allocations that are not freed
  };

  // The last slab is full: what it has left is given back.
  void Trim() {
    if (slabs_.empty()) return;
#ifdef MADV_DONTNEED
    const size_t used = RoundUp(slabs_.back().used, kHugePage);
    if (used < kSlabBytes) {
      madvise(slabs_.back().memory + used, kSlabBytes - used, MADV_DONTNEED);
    }
#endif
  }

  std::mutex mu_;
  std::vector<Slab> slabs_;  // the last one takes new allocations
};

// Part of the heap, like malloc's state: never destroyed.
Slabs& TheSlabs() {
  static Slabs* const slabs = new Slabs();
  return *slabs;
}

}  // namespace

void* AllocateAligned(size_t num_bytes) {
  if (num_bytes >= kLarge) return AllocateHugePages(num_bytes);
  if (num_bytes >= kSmall) return TheSlabs().Allocate(num_bytes);
  void* memory = std::aligned_alloc(kCacheLine, RoundUp(num_bytes, kCacheLine));
  CHECK(memory != nullptr || num_bytes == 0);
  return memory;
}

void FreeAligned(void* memory) {
  if (memory == nullptr || TheSlabs().Free(memory)) return;
  std::free(memory);
}

}  // namespace troupe
