#include "gateway/token_bucket.h"

#include <algorithm>

namespace troupe {
namespace {

constexpr int64_t kUnit = 60000000;  // of a level: one token
// Keeps a level within 64 bits, whatever is taken: an hour of the highest
// bound, 1e9 per minute.
constexpr uint64_t kMaxTake = 1000000000;
constexpr int64_t kMaxDebt = 60 * static_cast<int64_t>(kMaxTake) * kUnit;

int64_t Microseconds(SteadyTime time) {
  return std::chrono::floor<std::chrono::microseconds>(time)
      .time_since_epoch()
      .count();
}

int64_t DivideUp(int64_t value, int64_t divisor) {
  return (value + divisor - 1) / divisor;
}

}  // namespace

TokenBucket::TokenBucket(uint64_t per_minute, SteadyTime now)
    : per_minute_(per_minute), filled_us_(Microseconds(now)) {
  level_ = Capacity();
}

int64_t TokenBucket::Capacity() const {
  return static_cast<int64_t>(per_minute_) * kUnit;
}

void TokenBucket::SetPerMinute(uint64_t per_minute, SteadyTime now) {
  if (per_minute == per_minute_) return;
  Fill(now);
  const bool was_bounded = bounded();
  per_minute_ = per_minute;
  level_ = was_bounded ? std::min(level_, Capacity()) : Capacity();
}

void TokenBucket::Fill(SteadyTime now) {
  const int64_t now_us = Microseconds(now);
  if (now_us <= filled_us_ || !bounded()) return;
  const int64_t elapsed_us = now_us - filled_us_;
  filled_us_ = now_us;
  const auto rate = static_cast<int64_t>(per_minute_);  // units per us
  const int64_t missing = Capacity() - level_;
  // Compared by division: the product may not fit.
  if (elapsed_us >= DivideUp(missing, rate)) {
    level_ = Capacity();
  } else {
    level_ += elapsed_us * rate;
  }
}

int64_t TokenBucket::MsUntil(int64_t level) const {
  if (level_ >= level) return 0;
  return DivideUp(DivideUp(level - level_, static_cast<int64_t>(per_minute_)),
                  1000);
}

int64_t TokenBucket::WaitMs(uint64_t amount, SteadyTime now) {
  if (!bounded()) return 0;
  Fill(now);
  return MsUntil(static_cast<int64_t>(std::min(amount, per_minute_)) * kUnit);
}

uint64_t TokenBucket::Remaining(SteadyTime now) {
  Fill(now);
  return static_cast<uint64_t>(std::max<int64_t>(level_, 0) / kUnit);
}

int64_t TokenBucket::FullMs(SteadyTime now) {
  if (!bounded()) return 0;
  Fill(now);
  return MsUntil(Capacity());
}

void TokenBucket::Take(uint64_t amount, SteadyTime now) {
  if (!bounded()) return;
  Fill(now);
  level_ -= static_cast<int64_t>(std::min(amount, kMaxTake)) * kUnit;
  level_ = std::max(level_, -kMaxDebt);
}

void TokenBucket::Give(uint64_t amount, SteadyTime now) {
  if (!bounded()) return;
  Fill(now);
  level_ += static_cast<int64_t>(std::min(amount, kMaxTake)) * kUnit;
  level_ = std::min(level_, Capacity());
}

}  // namespace troupe
