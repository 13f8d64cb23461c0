// A clock that a test sets.
#ifndef TROUPE_TESTS_FAKES_MANUAL_CLOCK_H_
#define TROUPE_TESTS_FAKES_MANUAL_CLOCK_H_

#include <atomic>
#include <cstdint>

#include "common/clock.h"

namespace troupe {

// Stands still unless it is advanced. Thread-safe.
class ManualClock final : public Clock {
 public:
  SteadyTime Now() const override {
    return SteadyTime(std::chrono::microseconds(now_us_.load()));
  }
  void Advance(milliseconds time) { now_us_ += time.count() * 1000; }
  void AdvanceUs(int64_t time_us) { now_us_ += time_us; }

 private:
  std::atomic<int64_t> now_us_{int64_t{1} << 40};
};

}  // namespace troupe

#endif  // TROUPE_TESTS_FAKES_MANUAL_CLOCK_H_
