// How much work a gateway may do over again.
#ifndef TROUPE_GATEWAY_RETRY_BUDGET_H_
#define TROUPE_GATEWAY_RETRY_BUDGET_H_

#include <algorithm>

#include "common/clock.h"

namespace troupe {

struct RetryBudgetOptions {
  // At once: all streams of a router that dies.
  double burst = 256;
  double per_second = 10;
  double per_stream = 0.2;  // of streams that start
};

// A token bucket. When routers are sick a stream that is prefilled again and
// again must not take their last breath: who finds the bucket empty waits. A
// value; not thread-safe.
class RetryBudget {
 public:
  RetryBudget(const RetryBudgetOptions& options, SteadyTime now)
      : options_(options), tokens_(options.burst), updated_(now) {}

  void OnStream() { Add(options_.per_stream); }

  bool TryTake(SteadyTime now) {
    Add(options_.per_second *
        std::chrono::duration<double>(now - updated_).count());
    updated_ = std::max(updated_, now);
    if (tokens_ < 1) return false;
    tokens_ -= 1;
    return true;
  }

 private:
  void Add(double tokens) {
    tokens_ = std::min(tokens_ + std::max(tokens, 0.0), options_.burst);
  }

  RetryBudgetOptions options_;
  double tokens_;
  SteadyTime updated_;
};

}  // namespace troupe

#endif  // TROUPE_GATEWAY_RETRY_BUDGET_H_
