#include "common/rpc/doorbell.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <new>
#include <utility>

#include "common/check.h"

namespace troupe {
namespace {

using std::chrono::microseconds;
using std::chrono::nanoseconds;

// A sleeping thread on another core takes some 50 us to wake. Spinning for
// longer than twice that cannot win much, and costs the core of somebody who
// may be what we wait for.
constexpr nanoseconds kMaxSpin = microseconds(100);
// Even when waiting takes long: the cost of going to sleep.
constexpr nanoseconds kMinSpin = microseconds(2);
// Between two looks at the clock nothing takes that long, unless this thread
// was not running: somebody else wants the core.
constexpr nanoseconds kDescheduled = microseconds(30);
// After that, so many waits go to sleep at once.
constexpr uint32_t kWaitsAfterDescheduled = 64;
// While waits are too long to spin, one in so many spins anyway, so that a
// change is noticed.
constexpr uint32_t kProbeEvery = 32;

void CpuRelax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield" ::: "memory");
#endif
}

static_assert(std::atomic<uint32_t>::is_always_lock_free);

long Futex(std::atomic<uint32_t>* word, int operation, uint32_t value,
           const timespec* timeout) {
  return syscall(SYS_futex, reinterpret_cast<uint32_t*>(word), operation, value,
                 timeout, nullptr, 0);
}

size_t PageSize() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }

}  // namespace

std::unique_ptr<Doorbell> Doorbell::Create() {
  auto bell = std::unique_ptr<Doorbell>(new Doorbell);
  absl::StatusOr<SealedMemory> memory =
      SealedMemory::Create("troupe-doorbell", PageSize());
  if (memory.ok()) {
    absl::StatusOr<Mapping> mapping = Mapping::Map(*memory, 0, PageSize());
    if (mapping.ok()) {
      bell->memory_ = *std::move(memory);
      bell->mapping_ = *std::move(mapping);
      bell->words_ = new (bell->mapping_.data()) Words();
      return bell;
    }
  }
  bell->own_ = std::make_unique<Words>();
  bell->words_ = bell->own_.get();
  return bell;
}

absl::StatusOr<std::unique_ptr<Doorbell>> Doorbell::Attach(UniqueFd fd) {
  absl::StatusOr<SealedMemory> memory =
      SealedMemory::Attach(std::move(fd), PageSize());
  if (!memory.ok()) return memory.status();
  absl::StatusOr<Mapping> mapping = Mapping::Map(*memory, 0, PageSize());
  if (!mapping.ok()) return mapping.status();
  auto bell = std::unique_ptr<Doorbell>(new Doorbell);
  bell->memory_ = *std::move(memory);
  bell->mapping_ = *std::move(mapping);
  // Zero bytes are the state that Create makes; the owner may be using it.
  bell->words_ = reinterpret_cast<Words*>(bell->mapping_.data());
  return bell;
}

Doorbell::~Doorbell() = default;

void Doorbell::Ring() {
  words_->rings.fetch_add(1, std::memory_order_seq_cst);
  if (words_->sleepers.load(std::memory_order_seq_cst) != 0) {
    Futex(&words_->rings, FUTEX_WAKE, INT_MAX, nullptr);
  }
}

uint32_t Doorbell::Current() const {
  return words_->rings.load(std::memory_order_seq_cst);
}

// Spins for twice the time that waits have lately taken, if that is short. A
// gap in the clock says that this thread was taken off its core: the cores are
// shared with threads that have work, perhaps the very one that we wait for,
// and spinning only delays it (docs/decisions/0008-the-hop.md).
bool Doorbell::Spin(uint32_t seen, SteadyTime start) {
  nanoseconds budget = std::max(kMinSpin, 2 * expected_wait_);
  if (waits_without_spin_ > 0) {
    --waits_without_spin_;
    budget = nanoseconds(0);
  } else if (budget > kMaxSpin) {
    if (waits_until_probe_ > 0) {
      --waits_until_probe_;
      budget = kMinSpin;
    } else {
      waits_until_probe_ = kProbeEvery;
      budget = kMaxSpin;
    }
  }
  SteadyTime last = start;
  while (last - start < budget) {
    for (int i = 0; i < 8; ++i) {
      if (Current() != seen) return true;
      CpuRelax();
    }
    const SteadyTime now = std::chrono::steady_clock::now();
    if (now - last > kDescheduled) {
      waits_without_spin_ = kWaitsAfterDescheduled;
      break;
    }
    last = now;
  }
  return Current() != seen;
}

void Doorbell::Learn(SteadyTime::duration waited) {
  // A wait of seconds says as much as one that is just too long.
  const nanoseconds capped =
      std::min(nanoseconds(waited), nanoseconds(10 * kMaxSpin));
  expected_wait_ += (capped - expected_wait_) / 8;
}

bool Doorbell::Wait(uint32_t seen, SteadyTime deadline) {
  const SteadyTime start = std::chrono::steady_clock::now();
  if (Spin(seen, start)) {
    ++num_spun_;
    Learn(std::chrono::steady_clock::now() - start);
    return true;
  }
  bool rung = false;
  words_->sleepers.fetch_add(1, std::memory_order_seq_cst);
  for (;;) {
    if (Current() != seen) {
      rung = true;
      break;
    }
    timespec limit;
    const timespec* timeout = nullptr;
    if (deadline != kNoDeadline) {
      const nanoseconds left = deadline - std::chrono::steady_clock::now();
      if (left <= nanoseconds(0)) break;
      limit.tv_sec = left.count() / 1000000000;
      limit.tv_nsec = left.count() % 1000000000;
      timeout = &limit;
    }
    // Returns when rung, when the number has changed already, at the time-out,
    // and for signals.
    Futex(&words_->rings, FUTEX_WAIT, seen, timeout);
  }
  words_->sleepers.fetch_sub(1, std::memory_order_seq_cst);
  ++num_slept_;
  if (rung) Learn(std::chrono::steady_clock::now() - start);
  return rung;
}

}  // namespace troupe
