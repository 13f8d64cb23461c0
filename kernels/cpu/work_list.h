// What the kernels that run as one list of dependent tasks share. ThreadPool
// hands tasks out in ascending order, so a task may wait for earlier ones:
// they have begun on other threads, or are done.
#ifndef TROUPE_KERNELS_CPU_WORK_LIST_H_
#define TROUPE_KERNELS_CPU_WORK_LIST_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <thread>

#include "hwy/base.h"
#include "hwy/cache_control.h"

namespace troupe {

// The slots of Workspace that the CPU kernels use.
enum WorkspaceSlot : size_t {
  kPackedInputSlot,
  kPackedHiddenSlot,
  kScratchSlot,
  kPlanSlot,
};

// Counts finished tasks; in zeroed memory of a Workspace.
class TaskCounter {
 public:
  void Done() { done_.fetch_add(1, std::memory_order_release); }

  // Until `count` tasks are done. Short: they run already.
  void WaitFor(uint32_t count) const {
    int spins = 0;
    while (done_.load(std::memory_order_acquire) < count) {
      if (++spins < 4096) {
        hwy::Pause();
      } else {
        std::this_thread::yield();
      }
    }
  }

 private:
  std::atomic<uint32_t> done_{0};
};

inline constexpr size_t DivideUp(size_t a, size_t b) { return (a + b - 1) / b; }

// Neighbouring panels share the reading of packed rows, and few tasks cost
// little to hand out; but all threads shall finish together.
inline size_t PanelsPerTask(size_t num_panels, size_t num_threads) {
  for (size_t panels : {4, 2}) {
    if (num_threads == 1 || num_panels >= panels * 4 * num_threads) {
      return panels;
    }
  }
  return 1;
}

// Row blocks that one task packs, about 64 KB of floats.
inline size_t BlocksPerPackTask(size_t num_cols, size_t rows_per_block) {
  const size_t blocks = 16384 / (num_cols * rows_per_block + 1);
  return blocks == 0 ? 1 : blocks;
}

}  // namespace troupe

#endif  // TROUPE_KERNELS_CPU_WORK_LIST_H_
