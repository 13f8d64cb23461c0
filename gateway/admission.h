// The bound on the requests that a gateway works on.
#ifndef TROUPE_GATEWAY_ADMISSION_H_
#define TROUPE_GATEWAY_ADMISSION_H_

#include <cstdint>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace troupe {

// Lets at most `max_requests` in at a time; whoever comes when it is full is
// refused at once with a hint when to come back. Thread-safe; outlives its
// tickets.
class Admission {
 public:
  explicit Admission(uint32_t max_requests) : max_requests_(max_requests) {}

  // A place; empty when refused. Move-only; gives the place back.
  class Ticket {
   public:
    Ticket() = default;
    Ticket(Ticket&& other) noexcept
        : admission_(std::exchange(other.admission_, nullptr)) {}
    Ticket& operator=(Ticket&& other) noexcept {
      std::swap(admission_, other.admission_);
      return *this;
    }
    ~Ticket() {
      if (admission_ != nullptr) admission_->Leave();
    }
    explicit operator bool() const { return admission_ != nullptr; }

   private:
    friend class Admission;
    explicit Ticket(Admission* admission) : admission_(admission) {}
    Admission* admission_ = nullptr;
  };

  Ticket TryEnter();

  // A served request took that long; refines the hint.
  void RecordDuration(double duration_ms);

  // The mean time until one of the active requests ends, in [100, 10000].
  int RetryDelayMs() const;

  uint32_t active() const;
  uint32_t max_requests() const { return max_requests_; }

 private:
  void Leave();

  const uint32_t max_requests_;
  mutable absl::Mutex mu_;
  uint32_t active_ ABSL_GUARDED_BY(mu_) = 0;
  double mean_duration_ms_ ABSL_GUARDED_BY(mu_) = 1000;
};

}  // namespace troupe

#endif  // TROUPE_GATEWAY_ADMISSION_H_
