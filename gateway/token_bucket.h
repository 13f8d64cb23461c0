// A bound per minute, exact to the microsecond.
#ifndef TROUPE_GATEWAY_TOKEN_BUCKET_H_
#define TROUPE_GATEWAY_TOKEN_BUCKET_H_

#include <cstdint>

#include "common/clock.h"

namespace troupe {

// Holds at most `per_minute` tokens, is full at first and fills evenly. What is
// taken may exceed what is there: the debt is filled up first. All arithmetic
// is on integers (microseconds, and the sixty-millionth of a token that one
// token per minute fills in one), so that a wait that it tells is neither too
// short nor, by more than one microsecond, too long.
//
// A value; not thread-safe. `now` never goes back (it is taken as standing
// still).
class TokenBucket {
 public:
  // 0: no bound; at most kMaxPerMinute (api_keys.h).
  TokenBucket(uint64_t per_minute, SteadyTime now);

  // What is there stays, up to the new bound.
  void SetPerMinute(uint64_t per_minute, SteadyTime now);

  uint64_t per_minute() const { return per_minute_; }
  bool bounded() const { return per_minute_ > 0; }

  // Until `amount` (of at most per_minute) is there. 0: it is. Whole
  // milliseconds, rounded up.
  int64_t WaitMs(uint64_t amount, SteadyTime now);
  // Whole tokens; 0 in debt. Not for a bucket without a bound.
  uint64_t Remaining(SteadyTime now);
  // Until it is full.
  int64_t FullMs(SteadyTime now);

  void Take(uint64_t amount, SteadyTime now);
  // Takes back a Take; what does not fit is lost.
  void Give(uint64_t amount, SteadyTime now);

 private:
  int64_t Capacity() const;
  void Fill(SteadyTime now);
  int64_t MsUntil(int64_t level) const;

  uint64_t per_minute_;
  int64_t level_ = 0;  // sixty-millionths of a token
  int64_t filled_us_;  // the time, since the clock's epoch
};

}  // namespace troupe

#endif  // TROUPE_GATEWAY_TOKEN_BUCKET_H_
