#include "cluster/retry_budget.h"

#include <chrono>

#include "gtest/gtest.h"

namespace troupe {
namespace {

const SteadyTime kStart = SteadyTime() + std::chrono::hours(1);

RetryBudgetOptions Options() {
  RetryBudgetOptions options;
  options.per_send = 0.125;
  options.per_second = 10.0;
  options.max_tokens = 4.0;
  options.max_wait = milliseconds(1000);
  return options;
}

TEST(RetryBudgetTest, BeginsFullAndEnds) {
  RetryBudget budget(Options());
  for (int i = 0; i < 4; ++i) EXPECT_TRUE(budget.TryTake(kStart));
  EXPECT_FALSE(budget.TryTake(kStart));
  EXPECT_EQ(budget.num_exhausted(), 1u);
}

TEST(RetryBudgetTest, IsAShareOfFirstSends) {
  RetryBudgetOptions options = Options();
  options.per_second = 0.0;
  RetryBudget budget(options);
  int taken = 0;
  for (int i = 0; i < 800; ++i) {
    budget.OnFirstSend();
    taken += budget.TryTake(kStart + milliseconds(i));
  }
  EXPECT_GE(taken, 100);
  EXPECT_LE(taken, 100 + 4);
}

TEST(RetryBudgetTest, SavesNoMoreThanItsBound) {
  RetryBudget budget(Options());
  for (int i = 0; i < 1000; ++i) budget.OnFirstSend();
  EXPECT_TRUE(budget.TryTake(kStart));
  EXPECT_TRUE(budget.TryTake(kStart + std::chrono::hours(1)));
  EXPECT_LE(budget.tokens(), 4.0);
}

TEST(RetryBudgetTest, ReservationsAreSpreadOverTime) {
  RetryBudget budget(Options());
  for (int i = 0; i < 4; ++i) EXPECT_EQ(budget.Reserve(kStart), kStart);
  // 10 a second from here on.
  EXPECT_EQ(budget.Reserve(kStart), kStart + milliseconds(100));
  EXPECT_EQ(budget.Reserve(kStart), kStart + milliseconds(200));
  EXPECT_EQ(budget.Reserve(kStart + milliseconds(100)),
            kStart + milliseconds(300));
  EXPECT_EQ(budget.num_exhausted(), 3u);
  // The reserved ones are not there for others.
  EXPECT_FALSE(budget.TryTake(kStart + milliseconds(300)));
}

TEST(RetryBudgetTest, AReservationIsNeverFarAhead) {
  RetryBudget budget(Options());
  SteadyTime latest = kStart;
  for (int i = 0; i < 1000; ++i) latest = budget.Reserve(kStart);
  EXPECT_LE(latest, kStart + milliseconds(1000));
  // And a debt does not last.
  EXPECT_TRUE(budget.TryTake(kStart + milliseconds(1200)));
}

}  // namespace
}  // namespace troupe
