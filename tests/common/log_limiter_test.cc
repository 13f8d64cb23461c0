#include "common/log_limiter.h"

#include "gtest/gtest.h"

namespace troupe {
namespace {

TEST(LogLimiterTest, OneLinePerIntervalAndTheRestIsCounted) {
  LogLimiter limiter(milliseconds(1000));
  const SteadyTime start = std::chrono::steady_clock::now();
  EXPECT_EQ(limiter.Take(start), std::optional<uint64_t>(0));
  EXPECT_EQ(limiter.Take(start), std::nullopt);
  EXPECT_EQ(limiter.Take(start + milliseconds(999)), std::nullopt);
  EXPECT_EQ(limiter.Take(start + milliseconds(1000)),
            std::optional<uint64_t>(2));
  EXPECT_EQ(limiter.Take(start + milliseconds(5000)),
            std::optional<uint64_t>(0));
  EXPECT_EQ(LeftOutNote(0), "");
  EXPECT_EQ(LeftOutNote(2), " (2 like it left out)");
}

}  // namespace
}  // namespace troupe
