// A bound on warnings that may come once per request or message.
#ifndef TROUPE_COMMON_LOG_LIMITER_H_
#define TROUPE_COMMON_LOG_LIMITER_H_

#include <cstdint>
#include <mutex>
#include <utility>

#include "common/clock.h"

namespace troupe {

// Lets at most so many lines through per interval. Thread-safe.
class LogLimiter {
 public:
  LogLimiter() : LogLimiter(20, milliseconds(1000)) {}
  LogLimiter(uint64_t max_lines, milliseconds interval)
      : max_lines_(max_lines), interval_(interval) {}

  // Whether to write a line now; then `left_out` is how many were not written
  // since the last one.
  bool Allow(SteadyTime now, uint64_t& left_out) {
    const std::lock_guard<std::mutex> lock(mu_);
    if (now >= end_) {
      end_ = now + interval_;
      lines_ = 0;
    }
    if (lines_ >= max_lines_) {
      ++left_out_;
      return false;
    }
    ++lines_;
    left_out = std::exchange(left_out_, 0);
    return true;
  }

 private:
  const uint64_t max_lines_;
  const milliseconds interval_;
  std::mutex mu_;
  SteadyTime end_ = SteadyTime::min();
  uint64_t lines_ = 0;     // in this interval
  uint64_t left_out_ = 0;  // since the last line
};

}  // namespace troupe

#endif  // TROUPE_COMMON_LOG_LIMITER_H_
