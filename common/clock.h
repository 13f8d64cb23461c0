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

// When a service answers a call that it cannot finish: a moment before the
// call's deadline (a tenth of what is left, 20 to 500 ms), so that the client
// gets our status, which says what was missing, and not its own. A service
// further out computes it earlier and gets an earlier time.
SteadyTime AnswerBy(SteadyTime deadline);

}  // namespace troupe

#endif  // TROUPE_COMMON_CLOCK_H_
