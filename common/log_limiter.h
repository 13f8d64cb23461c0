// Keeps a line that strangers can cause from filling the log.
#ifndef TROUPE_COMMON_LOG_LIMITER_H_
#define TROUPE_COMMON_LOG_LIMITER_H_

#include <atomic>
#include <cstdint>
#include <optional>
#include <string>

#include "common/clock.h"

namespace troupe {

// Lets one line pass per interval and counts the others. Thread-safe.
class LogLimiter {
 public:
  explicit LogLimiter(milliseconds interval) : interval_(interval) {}

  // When the line is to be written: how many were not since the last one.
  std::optional<uint64_t> Take(SteadyTime now = Clock::Real().Now()) {
    const int64_t ticks = now.time_since_epoch().count();
    int64_t next = next_.load();
    const int64_t after =
        ticks +
        std::chrono::duration_cast<SteadyTime::duration>(interval_).count();
    if (ticks < next || !next_.compare_exchange_strong(next, after)) {
      ++left_out_;
      return std::nullopt;
    }
    return left_out_.exchange(0);
  }

 private:
  const milliseconds interval_;
  std::atomic<int64_t> next_{INT64_MIN};  // in the clock's ticks
  std::atomic<uint64_t> left_out_{0};
};

// The end of a line that has some before it left out.
inline std::string LeftOutNote(uint64_t left_out) {
  return left_out == 0 ? ""
                       : " (" + std::to_string(left_out) + " like it left out)";
}

}  // namespace troupe

#endif  // TROUPE_COMMON_LOG_LIMITER_H_
