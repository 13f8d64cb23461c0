// What one API key may use.
#ifndef TROUPE_GATEWAY_RATE_LIMITER_H_
#define TROUPE_GATEWAY_RATE_LIMITER_H_

#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "common/clock.h"
#include "gateway/api_keys.h"
#include "gateway/token_bucket.h"

namespace troupe {

// For the x-ratelimit headers. limit 0: there is none.
struct RateLimitState {
  struct Bucket {
    uint64_t limit = 0;  // per minute
    uint64_t remaining = 0;
    int64_t reset_ms = 0;  // until all of `limit` remains
  };
  Bucket requests;
  Bucket tokens;
};

// Counts a key's requests and tokens against its limits.
//
// A request is charged when it enters, unless it is refused. Its tokens are
// charged in two steps. Once the prompt is tokenized, the prompt and what the
// client said that it wants at most (max_tokens) are reserved: a request for
// which there is not enough left is refused; one that wants more than a whole
// minute's tokens needs a full minute's. Tokens that come are taken from the
// reservation, then, where the client did not say, from what is left or is to
// come: no stream is cut off, but the next request waits until the debt is
// filled up. What was reserved and not used is given back at the end.
//
// So in any T minutes a key can reserve at most (T + 1) times its tokens per
// minute; what is generated without having been announced delays what follows.
//
// A refusal (refusal.h) names the limit and the time after which the same
// request would be let in if the key did nothing else meanwhile. For requests
// and tokens that time is exact. For concurrency nobody knows when a request
// ends: it is the mean time until one of the key's does.
//
// Thread-safe.
class RateLimiter {
 public:
  RateLimiter(const KeyLimits& limits, SteadyTime now);

  // What was used stays used.
  void SetLimits(const KeyLimits& limits, SteadyTime now);

  // Charges a request and takes one of max_concurrent places until Leave.
  // Refused while there is not one token left, too.
  absl::Status Enter(SteadyTime now);
  // Charges a request that generates nothing: it takes no place.
  absl::Status Count(SteadyTime now);

  // Of a request that has entered. InvalidArgument when the prompt alone has
  // more tokens than there are in a minute. The refused request stays charged,
  // as its prompt has been tokenized: the wait allows for it.
  absl::Status Reserve(uint64_t prompt_tokens, uint64_t max_completion_tokens,
                       SteadyTime now, uint64_t* reserved);
  // Tokens that were generated, beyond what was reserved.
  void Charge(uint64_t num_tokens, SteadyTime now);

  // `unused` of the reservation is given back.
  void Leave(SteadyTime entered, uint64_t unused, SteadyTime now);

  RateLimitState state(SteadyTime now);
  uint32_t active() const;

 private:
  absl::Status Check(bool generates, SteadyTime now)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  mutable absl::Mutex mu_;
  KeyLimits limits_ ABSL_GUARDED_BY(mu_);
  TokenBucket requests_ ABSL_GUARDED_BY(mu_);
  TokenBucket tokens_ ABSL_GUARDED_BY(mu_);
  uint32_t active_ ABSL_GUARDED_BY(mu_) = 0;
  double mean_duration_ms_ ABSL_GUARDED_BY(mu_) = 1000;
};

}  // namespace troupe

#endif  // TROUPE_GATEWAY_RATE_LIMITER_H_
