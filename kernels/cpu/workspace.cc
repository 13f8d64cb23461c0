#include "kernels/workspace.h"

#include "common/check.h"
#include "kernels/aligned_memory.h"

namespace troupe {

struct Workspace::Slot {
  ~Slot() { FreeAligned(memory); }

  void* memory = nullptr;
  size_t num_bytes = 0;
};

Workspace::Workspace() : slots_(std::make_unique<Slot[]>(kNumSlots)) {}
Workspace::~Workspace() = default;

void* Workspace::Bytes(size_t slot, size_t num_bytes) {
  CHECK_LT(slot, kNumSlots);
  Slot& s = slots_[slot];
  if (s.num_bytes < num_bytes || s.memory == nullptr) {
    FreeAligned(s.memory);
    s.memory = AllocateAligned(num_bytes + 1);  // never null
    s.num_bytes = num_bytes;
  }
  return s.memory;
}

}  // namespace troupe
