#include "cluster/retry_budget.h"

#include <algorithm>
#include <chrono>

namespace troupe {

void RetryBudget::Earn(SteadyTime now) {
  if (earned_at_ != SteadyTime::min() && now > earned_at_) {
    const double seconds =
        std::chrono::duration<double>(now - earned_at_).count();
    tokens_ =
        std::min(options_.max_tokens, tokens_ + options_.per_second * seconds);
  }
  earned_at_ = std::max(earned_at_, now);
}

void RetryBudget::OnFirstSend() {
  tokens_ = std::min(options_.max_tokens, tokens_ + options_.per_send);
}

bool RetryBudget::TryTake(SteadyTime now) {
  Earn(now);
  if (tokens_ < 1.0) {
    ++num_exhausted_;
    return false;
  }
  tokens_ -= 1.0;
  return true;
}

SteadyTime RetryBudget::Reserve(SteadyTime now) {
  Earn(now);
  const double max_wait = 1e-3 * static_cast<double>(options_.max_wait.count());
  if (tokens_ >= 1.0) {
    tokens_ -= 1.0;
    return now;
  }
  ++num_exhausted_;
  const double wait = std::min(max_wait, (1.0 - tokens_) / options_.per_second);
  tokens_ = std::max(tokens_ - 1.0, -max_wait * options_.per_second);
  return now + std::chrono::duration_cast<SteadyTime::duration>(
                   std::chrono::duration<double>(wait));
}

}  // namespace troupe
