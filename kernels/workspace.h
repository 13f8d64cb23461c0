// Scratch memory of kernels that is kept from call to call, so that a step
// allocates nothing once it has seen its largest shapes.
#ifndef TROUPE_KERNELS_WORKSPACE_H_
#define TROUPE_KERNELS_WORKSPACE_H_

#include <cstddef>
#include <memory>
#include <type_traits>

namespace troupe {

// One per thread of calls (the owner of a ThreadPool); not thread-safe.
// Slots are named by number so that nested kernels do not share one: the
// kernels use slots 0 .. kFirstCallerSlot - 1, their callers may use the rest.
class Workspace {
 public:
  static constexpr size_t kNumSlots = 8;
  static constexpr size_t kFirstCallerSlot = 4;

  Workspace();
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  // At least `count` floats, 64-byte aligned, contents undefined. Valid until
  // the next call with the same slot.
  float* Floats(size_t slot, size_t count) {
    return static_cast<float*>(Bytes(slot, count * sizeof(float)));
  }

  // The same for other types; the caller constructs what needs construction.
  template <typename T>
  T* Array(size_t slot, size_t count) {
    static_assert(std::is_trivially_destructible_v<T>);
    return static_cast<T*>(Bytes(slot, count * sizeof(T)));
  }

 private:
  struct Slot;
  void* Bytes(size_t slot, size_t num_bytes);

  std::unique_ptr<Slot[]> slots_;
};

}  // namespace troupe

#endif  // TROUPE_KERNELS_WORKSPACE_H_
