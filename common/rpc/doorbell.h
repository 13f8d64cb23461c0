// The one word on which a thread waits for news from other threads and other
// processes.
#ifndef TROUPE_COMMON_RPC_DOORBELL_H_
#define TROUPE_COMMON_RPC_DOORBELL_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>

#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/rpc/sealed_memory.h"
#include "common/rpc/unique_fd.h"

namespace troupe {

// A counter of rings and a count of sleepers in a page of memory that other
// processes may map. Whoever has news for the owner publishes them first, then
// calls Ring(); the owner reads Current(), looks for news everywhere, and when
// there were none calls Wait() with what it had read:
//
//   for (;;) {
//     const uint32_t seen = bell.Current();
//     if (LookForNews()) ... else bell.Wait(seen, deadline);
//   }
//
// No ring is lost: Ring() adds to the counter before it looks for sleepers,
// Wait() counts itself among the sleepers before the kernel compares the
// counter with `seen` (all sequentially consistent). News that were published
// before a ring are visible after Current() has returned its number (release
// and acquire).
//
// Wait spins before it sleeps, for as long as waiting has lately been worth it:
// see Spin in doorbell.cc. The futex is not a private one.
//
// A process that was given the page may ring for nothing, or spoil the count of
// sleepers so that rings of others are not heard until the waiter's deadline;
// it can do no more than that. It belongs to the same user (unix_socket.h).
//
// Ring and Current: any thread. Wait: one thread at a time.
class Doorbell {
 public:
  // In memory that can be handed to other processes; where the kernel refuses
  // that, in memory of this process (memory() is null).
  static std::unique_ptr<Doorbell> Create();
  // Another process's, to be rung.
  static absl::StatusOr<std::unique_ptr<Doorbell>> Attach(UniqueFd fd);
  ~Doorbell();
  Doorbell(const Doorbell&) = delete;
  Doorbell& operator=(const Doorbell&) = delete;

  void Ring();
  uint32_t Current() const;
  // Returns true as soon as Current() is not `seen`, false at the deadline.
  bool Wait(uint32_t seen, SteadyTime deadline);

  const SealedMemory* memory() const {
    return memory_.has_value() ? &*memory_ : nullptr;
  }

  // Waits that ended while spinning, and that slept. Of the waiting thread.
  uint64_t num_spun() const { return num_spun_; }
  uint64_t num_slept() const { return num_slept_; }

 private:
  struct Words {
    std::atomic<uint32_t> rings;
    std::atomic<uint32_t> sleepers;
  };

  Doorbell() = default;
  bool Spin(uint32_t seen, SteadyTime start);
  void Learn(SteadyTime::duration waited);

  std::optional<SealedMemory> memory_;
  Mapping mapping_;
  std::unique_ptr<Words> own_;  // without shared memory
  Words* words_ = nullptr;

  // Of the waiting thread.
  std::chrono::nanoseconds expected_wait_{0};
  uint32_t waits_until_probe_ = 0;
  uint32_t waits_without_spin_ = 0;
  uint64_t num_spun_ = 0;
  uint64_t num_slept_ = 0;
};

}  // namespace troupe

#endif  // TROUPE_COMMON_RPC_DOORBELL_H_
