// Bounds what is sent again by what is sent for the first time.
#ifndef TROUPE_CLUSTER_RETRY_BUDGET_H_
#define TROUPE_CLUSTER_RETRY_BUDGET_H_

#include <cstdint>

#include "common/clock.h"

namespace troupe {

struct RetryBudgetOptions {
  // Tokens that each first send earns; each one sent again costs 1.
  double per_send = 0.1;
  // Earned without any, so that those who must be sent again (`exact`) are, if
  // slowly.
  double per_second = 10.0;
  double max_tokens = 20.0;  // at most saved, and at first
  // How far ahead a reservation may lie.
  milliseconds max_wait{1000};
};

// A token bucket. A sick cluster gets few messages a second time. A value; not
// thread-safe.
class RetryBudget {
 public:
  explicit RetryBudget(RetryBudgetOptions options)
      : options_(options), tokens_(options.max_tokens) {}

  void OnFirstSend();
  // Takes a token if one is there.
  bool TryTake(SteadyTime now);
  // Takes one in any case; returns from when on it may be used: `now`, or, when
  // nothing is saved, when it will have been earned by the passing of time.
  SteadyTime Reserve(SteadyTime now);

  // How often nothing was saved.
  uint64_t num_exhausted() const { return num_exhausted_; }
  double tokens() const { return tokens_; }

 private:
  void Earn(SteadyTime now);

  const RetryBudgetOptions options_;
  double tokens_;  // below 0: reserved
  SteadyTime earned_at_ = SteadyTime::min();
  uint64_t num_exhausted_ = 0;
};

}  // namespace troupe

#endif  // TROUPE_CLUSTER_RETRY_BUDGET_H_
