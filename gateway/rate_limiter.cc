#include "gateway/rate_limiter.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "gateway/refusal.h"

namespace troupe {
namespace {

// Of the longest of several waits.
struct Wait {
  int64_t ms = 0;
  absl::string_view limit;
  uint64_t bound = 0;

  void Update(int64_t other_ms, absl::string_view other_limit,
              uint64_t other_bound) {
    if (other_ms <= ms) return;
    *this = {other_ms, other_limit, other_bound};
  }
  absl::Status ToStatus() const {
    if (ms == 0) return absl::OkStatus();
    return RefusedError(absl::StrCat("the key's limit of ", bound, " ",
                                     absl::string_view(limit), " is reached"),
                        limit, ms);
  }
};

}  // namespace

RateLimiter::RateLimiter(const KeyLimits& limits, SteadyTime now)
    : limits_(limits),
      requests_(limits.requests_per_minute, now),
      tokens_(limits.tokens_per_minute, now) {}

void RateLimiter::SetLimits(const KeyLimits& limits, SteadyTime now) {
  absl::MutexLock lock(&mu_);
  limits_ = limits;
  requests_.SetPerMinute(limits.requests_per_minute, now);
  tokens_.SetPerMinute(limits.tokens_per_minute, now);
}

absl::Status RateLimiter::Check(bool generates, SteadyTime now) {
  Wait wait;
  wait.Update(requests_.WaitMs(1, now), kRequestsPerMinute,
              limits_.requests_per_minute);
  if (!generates) return wait.ToStatus();
  wait.Update(tokens_.WaitMs(1, now), kTokensPerMinute,
              limits_.tokens_per_minute);
  if (limits_.max_concurrent > 0 && active_ >= limits_.max_concurrent) {
    const double mean_ms = mean_duration_ms_ / active_;
    wait.Update(static_cast<int64_t>(std::clamp(mean_ms, 100.0, 10000.0)),
                kMaxConcurrent, limits_.max_concurrent);
  }
  return wait.ToStatus();
}

absl::Status RateLimiter::Enter(SteadyTime now) {
  absl::MutexLock lock(&mu_);
  absl::Status status = Check(/*generates=*/true, now);
  if (!status.ok()) return status;
  requests_.Take(1, now);
  ++active_;
  return absl::OkStatus();
}

absl::Status RateLimiter::Count(SteadyTime now) {
  absl::MutexLock lock(&mu_);
  absl::Status status = Check(/*generates=*/false, now);
  if (status.ok()) requests_.Take(1, now);
  return status;
}

absl::Status RateLimiter::Reserve(uint64_t prompt_tokens,
                                  uint64_t max_completion_tokens,
                                  SteadyTime now, uint64_t* reserved) {
  absl::MutexLock lock(&mu_);
  *reserved = 0;
  if (!tokens_.bounded()) return absl::OkStatus();
  const uint64_t bound = tokens_.per_minute();
  if (prompt_tokens > bound) {
    return absl::InvalidArgumentError(
        absl::StrCat("the prompt has ", prompt_tokens,
                     " tokens; this key's limit is ", bound, " per minute"));
  }
  const uint64_t wanted =
      prompt_tokens + std::min(max_completion_tokens, bound - prompt_tokens);
  Wait wait;
  wait.Update(tokens_.WaitMs(wanted, now), kTokensPerMinute, bound);
  if (wait.ms == 0) {
    tokens_.Take(wanted, now);
    *reserved = wanted - prompt_tokens;
    return absl::OkStatus();
  }
  wait.Update(requests_.WaitMs(1, now), kRequestsPerMinute,
              limits_.requests_per_minute);
  return wait.ToStatus();
}

void RateLimiter::Charge(uint64_t num_tokens, SteadyTime now) {
  absl::MutexLock lock(&mu_);
  tokens_.Take(num_tokens, now);
}

void RateLimiter::Leave(SteadyTime entered, uint64_t unused, SteadyTime now) {
  constexpr double kWeight = 0.2;  // of the newest in the moving mean
  absl::MutexLock lock(&mu_);
  CHECK_GT(active_, 0u);
  --active_;
  tokens_.Give(unused, now);
  const double duration_ms =
      std::chrono::duration<double, std::milli>(now - entered).count();
  mean_duration_ms_ += kWeight * (duration_ms - mean_duration_ms_);
}

RateLimitState RateLimiter::state(SteadyTime now) {
  absl::MutexLock lock(&mu_);
  const auto describe = [now](TokenBucket& bucket) {
    RateLimitState::Bucket state;
    if (!bucket.bounded()) return state;
    state.limit = bucket.per_minute();
    state.remaining = bucket.Remaining(now);
    state.reset_ms = bucket.FullMs(now);
    return state;
  };
  return {.requests = describe(requests_), .tokens = describe(tokens_)};
}

uint32_t RateLimiter::active() const {
  absl::MutexLock lock(&mu_);
  return active_;
}

}  // namespace troupe
