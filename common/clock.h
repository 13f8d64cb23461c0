// The clock seam. Deadlines use the steady clock: a jump of the wall clock
// must not expire a request.
#ifndef TROUPE_COMMON_CLOCK_H_
#define TROUPE_COMMON_CLOCK_H_

#include <chrono>

namespace troupe {

using SteadyTime = std::chrono::steady_clock::time_point;
using std::chrono::milliseconds;

// Thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;
  virtual SteadyTime Now() const = 0;

  // The process's steady clock; never destroyed.
  static const Clock& Real();
};

inline constexpr SteadyTime kNoDeadline = SteadyTime::max();

}  // namespace troupe

#endif  // TROUPE_COMMON_CLOCK_H_
