#include "gateway/rate_limiter.h"

#include <optional>
#include <random>
#include <vector>

#include "gateway/refusal.h"
#include "gateway/token_bucket.h"
#include "gtest/gtest.h"
#include "tests/fakes/manual_clock.h"

namespace troupe {
namespace {

// The slow model: filled millisecond by millisecond, in sixty-thousandths of a
// token, without a division.
struct SlowBucket {
  int64_t per_minute;
  int64_t level = per_minute * 60000;

  void Pass(int64_t ms) {
    for (; ms > 0 && level < per_minute * 60000; --ms) {
      level = std::min(level + per_minute, per_minute * 60000);
    }
  }
  bool Has(int64_t amount) const { return level >= amount * 60000; }
  int64_t WaitMs(int64_t amount) const {
    SlowBucket copy = *this;
    int64_t ms = 0;
    for (; !copy.Has(amount); ++ms) copy.Pass(1);
    return ms;
  }
};

TEST(TokenBucketTest, AgreesWithTheSlowModel) {
  std::mt19937 random(1);
  for (const int64_t per_minute : {1, 7, 60, 1000, 60000, 90001}) {
    ManualClock clock;
    TokenBucket bucket(static_cast<uint64_t>(per_minute), clock.Now());
    SlowBucket model{per_minute};
    for (int i = 0; i < 300; ++i) {
      const auto ms = static_cast<int64_t>(random() % 3000);
      clock.Advance(milliseconds(ms));
      model.Pass(ms);
      const auto amount = static_cast<int64_t>(
          random() % static_cast<uint64_t>(per_minute) + 1);
      ASSERT_EQ(bucket.WaitMs(static_cast<uint64_t>(amount), clock.Now()),
                model.WaitMs(amount))
          << per_minute << " per minute, step " << i;
      ASSERT_EQ(
          bucket.Remaining(clock.Now()),
          static_cast<uint64_t>(std::max<int64_t>(model.level, 0) / 60000));
      ASSERT_EQ(bucket.FullMs(clock.Now()), model.WaitMs(per_minute));
      if (random() % 3 == 0) {
        bucket.Give(static_cast<uint64_t>(amount), clock.Now());
        model.level =
            std::min(model.level + amount * 60000, per_minute * 60000);
      } else if (model.level > -2 * 60000 * per_minute) {  // bounded search
        bucket.Take(static_cast<uint64_t>(amount), clock.Now());
        model.level -= amount * 60000;
      }
    }
  }
}

// To the microsecond: not yet one before, and at the time itself.
TEST(TokenBucketTest, NoRoundingDrifts) {
  ManualClock clock;
  TokenBucket bucket(7, clock.Now());
  bucket.Take(7, clock.Now());
  // 60e6 / 7 is no whole number of microseconds: seven waits of one token are
  // a minute all the same.
  for (int i = 0; i < 1000; ++i)
    clock.AdvanceUs(60000), bucket.Remaining(clock.Now());
  EXPECT_EQ(bucket.Remaining(clock.Now()), 7u);
  bucket.Take(7, clock.Now());
  clock.AdvanceUs(59999999);
  EXPECT_EQ(bucket.Remaining(clock.Now()), 6u);
  EXPECT_EQ(bucket.WaitMs(7, clock.Now()), 1);
  clock.AdvanceUs(1);
  EXPECT_EQ(bucket.WaitMs(7, clock.Now()), 0);
}

TEST(TokenBucketTest, HoldsWhatIsHugeWithoutOverflow) {
  ManualClock clock;
  TokenBucket bucket(kMaxPerMinute, clock.Now());
  for (int i = 0; i < 1000; ++i) {
    bucket.Take(~uint64_t{0}, clock.Now());
  }
  EXPECT_EQ(bucket.Remaining(clock.Now()), 0u);
  EXPECT_EQ(bucket.WaitMs(kMaxPerMinute, clock.Now()), 61 * 60 * 1000);
  clock.Advance(std::chrono::hours(24 * 365 * 100));
  EXPECT_EQ(bucket.Remaining(clock.Now()), kMaxPerMinute);
  bucket.Give(~uint64_t{0}, clock.Now());
  EXPECT_EQ(bucket.Remaining(clock.Now()), kMaxPerMinute);
}

TEST(TokenBucketTest, ANewBoundKeepsWhatWasUsed) {
  ManualClock clock;
  TokenBucket bucket(100, clock.Now());
  bucket.Take(90, clock.Now());
  bucket.SetPerMinute(1000, clock.Now());
  EXPECT_EQ(bucket.Remaining(clock.Now()), 10u);
  bucket.SetPerMinute(5, clock.Now());
  EXPECT_EQ(bucket.Remaining(clock.Now()), 5u);
  bucket.SetPerMinute(0, clock.Now());
  EXPECT_EQ(bucket.WaitMs(1 << 20, clock.Now()), 0);
  bucket.SetPerMinute(8, clock.Now());
  EXPECT_EQ(bucket.Remaining(clock.Now()), 8u);
}

// The whole limiter, the same way: what it decides, which limit it names and
// that the wait is the least one after which the same request is let in.
struct SlowLimiter {
  SlowBucket requests;
  SlowBucket tokens;
  int64_t max_concurrent;
  int64_t active = 0;

  void Pass(int64_t ms) {
    requests.Pass(ms);
    tokens.Pass(ms);
  }
  bool MayEnter() const { return requests.Has(1) && tokens.Has(1); }
  int64_t Wanted(int64_t prompt, int64_t completion) const {
    return std::min(prompt + completion, tokens.per_minute);
  }
};

struct Running {
  SteadyTime entered;
  int64_t reserved = 0;
};

TEST(RateLimiterTest, AgreesWithTheSlowModelOnRandomSchedules) {
  std::mt19937 random(2);
  const auto draw = [&random](int64_t below) {
    return static_cast<int64_t>(random() % static_cast<uint64_t>(below));
  };
  int refused_requests = 0;
  int refused_tokens = 0;
  int refused_concurrency = 0;
  for (int round = 0; round < 40; ++round) {
    const int64_t rpm = 1 + draw(300);
    const int64_t tpm = 1 + draw(5000);
    SlowLimiter model{{rpm}, {tpm}, 1 + draw(4)};
    ManualClock clock;
    RateLimiter limiter(
        {.requests_per_minute = static_cast<uint64_t>(rpm),
         .tokens_per_minute = static_cast<uint64_t>(tpm),
         .max_concurrent = static_cast<uint32_t>(model.max_concurrent)},
        clock.Now());
    std::vector<Running> running;
    for (int step = 0; step < 200; ++step) {
      const int64_t ms = draw(4) == 0 ? draw(5000) : draw(50);
      clock.Advance(milliseconds(ms));
      model.Pass(ms);
      if (!running.empty() && draw(3) == 0) {  // ends, or goes on a little
        Running& last = running.back();
        const int64_t made = draw(60);
        const int64_t announced = std::min(made, last.reserved);
        last.reserved -= announced;
        limiter.Charge(static_cast<uint64_t>(made - announced), clock.Now());
        model.tokens.level -= (made - announced) * 60000;
        if (draw(2) == 0) continue;
        limiter.Leave(last.entered, static_cast<uint64_t>(last.reserved),
                      clock.Now());
        model.tokens.level =
            std::min(model.tokens.level + last.reserved * 60000, tpm * 60000);
        --model.active;
        running.pop_back();
        continue;
      }
      const absl::Status entered = limiter.Enter(clock.Now());
      const bool places = model.active < model.max_concurrent;
      ASSERT_EQ(entered.ok(), model.MayEnter() && places);
      if (!entered.ok()) {
        ASSERT_EQ(entered.code(), absl::StatusCode::kResourceExhausted);
        const std::string limit = RefusedLimit(entered);
        if (limit == kMaxConcurrent) {
          ++refused_concurrency;
          ASSERT_FALSE(places);
          ASSERT_GE(RetryDelayOf(entered), 100);
          continue;
        }
        const int64_t wait =
            std::max(model.requests.WaitMs(1), model.tokens.WaitMs(1));
        ASSERT_EQ(RetryDelayOf(entered), wait);
        ASSERT_EQ(limit, model.requests.WaitMs(1) == wait ? kRequestsPerMinute
                                                          : kTokensPerMinute);
        ++(limit == kRequestsPerMinute ? refused_requests : refused_tokens);
        continue;
      }
      model.requests.level -= 60000;
      ++model.active;
      running.push_back({clock.Now()});
      const int64_t prompt = draw(tpm + tpm / 8 + 1);
      const int64_t completion = draw(3) == 0 ? 0 : draw(2 * tpm);
      uint64_t reserved = 99;
      const absl::Status status = limiter.Reserve(
          static_cast<uint64_t>(prompt), static_cast<uint64_t>(completion),
          clock.Now(), &reserved);
      const int64_t wanted = model.Wanted(prompt, completion);
      if (prompt > tpm) {
        ASSERT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
      } else if (!model.tokens.Has(wanted)) {
        ++refused_tokens;
        const int64_t wait =
            std::max(model.requests.WaitMs(1), model.tokens.WaitMs(wanted));
        ASSERT_EQ(RetryDelayOf(status), wait);
        // True: with nobody else, the same request is let in then; and not a
        // millisecond before.
        for (const int64_t early : {1, 0}) {
          SlowLimiter later = model;
          later.Pass(wait - early);
          ASSERT_EQ(later.MayEnter() && later.tokens.Has(wanted), early == 0);
        }
      } else {
        ASSERT_TRUE(status.ok()) << status;
        ASSERT_EQ(reserved, static_cast<uint64_t>(wanted - prompt));
        running.back().reserved = wanted - prompt;
        model.tokens.level -= wanted * 60000;
        continue;
      }
      ASSERT_EQ(reserved, 0u);
      limiter.Leave(clock.Now(), 0, clock.Now());
      --model.active;
      running.pop_back();
    }
    EXPECT_EQ(limiter.active(), running.size());
  }
  EXPECT_GT(refused_requests, 50);
  EXPECT_GT(refused_tokens, 50);
  EXPECT_GT(refused_concurrency, 50);
}

TEST(RateLimiterTest, WithoutLimitsEverythingIsLetIn) {
  ManualClock clock;
  RateLimiter limiter({}, clock.Now());
  uint64_t reserved = 0;
  for (int i = 0; i < 1000; ++i) {
    ASSERT_TRUE(limiter.Enter(clock.Now()).ok());
    ASSERT_TRUE(limiter.Count(clock.Now()).ok());
    ASSERT_TRUE(limiter.Reserve(1 << 30, 1 << 30, clock.Now(), &reserved).ok());
    limiter.Charge(1 << 30, clock.Now());
  }
  EXPECT_EQ(limiter.state(clock.Now()).requests.limit, 0u);
  EXPECT_EQ(limiter.state(clock.Now()).tokens.limit, 0u);
}

TEST(RateLimiterTest, ADebtDelaysTheNextRequestAndCountsForNothingElse) {
  ManualClock clock;
  RateLimiter limiter({.tokens_per_minute = 600}, clock.Now());
  uint64_t reserved = 0;
  ASSERT_TRUE(limiter.Enter(clock.Now()).ok());
  ASSERT_TRUE(limiter.Reserve(100, 0, clock.Now(), &reserved).ok());
  EXPECT_EQ(reserved, 0u);
  limiter.Charge(1000, clock.Now());  // 500 in debt; 10 per second
  const absl::Status status = limiter.Enter(clock.Now());
  EXPECT_EQ(RetryDelayOf(status), 50100);
  EXPECT_EQ(RefusedLimit(status), kTokensPerMinute);
  EXPECT_TRUE(limiter.Count(clock.Now()).ok());
  clock.Advance(milliseconds(50099));
  EXPECT_FALSE(limiter.Enter(clock.Now()).ok());
  clock.Advance(milliseconds(1));
  EXPECT_TRUE(limiter.Enter(clock.Now()).ok());
}

TEST(RateLimiterTest, TheStateIsThatOfTheHeaders) {
  ManualClock clock;
  RateLimiter limiter({.requests_per_minute = 60, .tokens_per_minute = 6000},
                      clock.Now());
  ASSERT_TRUE(limiter.Enter(clock.Now()).ok());
  uint64_t reserved = 0;
  ASSERT_TRUE(limiter.Reserve(1000, 500, clock.Now(), &reserved).ok());
  const RateLimitState state = limiter.state(clock.Now());
  EXPECT_EQ(state.requests.limit, 60u);
  EXPECT_EQ(state.requests.remaining, 59u);
  EXPECT_EQ(state.requests.reset_ms, 1000);
  EXPECT_EQ(state.tokens.limit, 6000u);
  EXPECT_EQ(state.tokens.remaining, 4500u);
  EXPECT_EQ(state.tokens.reset_ms, 15000);
  limiter.Leave(clock.Now(), reserved, clock.Now());
  EXPECT_EQ(limiter.state(clock.Now()).tokens.remaining, 5000u);
}

}  // namespace
}  // namespace troupe
