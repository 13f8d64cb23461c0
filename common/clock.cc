#include "common/clock.h"

#include <algorithm>

namespace troupe {
namespace {

class RealClock final : public Clock {
 public:
  SteadyTime Now() const override { return std::chrono::steady_clock::now(); }
};

}  // namespace

SteadyTime AnswerBy(SteadyTime deadline) {
  if (deadline == kNoDeadline) return deadline;
  const auto left = deadline - std::chrono::steady_clock::now();
  return deadline - std::clamp<SteadyTime::duration>(
                        left / 10, milliseconds(20), milliseconds(500));
}

const Clock& Clock::Real() {
  static const RealClock clock;
  return clock;
}

}  // namespace troupe
