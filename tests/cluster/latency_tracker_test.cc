#include "cluster/latency_tracker.h"

#include <chrono>

#include "gtest/gtest.h"

namespace troupe {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using std::chrono::nanoseconds;

// A bucket is a quarter of an octave wide, and its upper end is told.
void ExpectNear(nanoseconds value, nanoseconds expected) {
  EXPECT_GE(value, expected - nanoseconds(expected.count() / 1000));
  EXPECT_LE(static_cast<double>(value.count()),
            1.2 * static_cast<double>(expected.count()));
}

TEST(DecayingQuantilesTest, NothingIsZero) {
  EXPECT_EQ(DecayingQuantiles().Quantile(0.99), nanoseconds(0));
}

TEST(DecayingQuantilesTest, FindsQuantiles) {
  DecayingQuantiles quantiles;
  for (int i = 1; i <= 100; ++i) quantiles.Add(microseconds(100 * i));
  ExpectNear(quantiles.Quantile(0.5), microseconds(5000));
  ExpectNear(quantiles.Quantile(0.99), microseconds(9900));
  ExpectNear(quantiles.Quantile(0.01), microseconds(100));
}

TEST(DecayingQuantilesTest, TakesAnyDuration) {
  DecayingQuantiles quantiles;
  quantiles.Add(nanoseconds(-5));
  quantiles.Add(nanoseconds(0));
  EXPECT_LE(quantiles.Quantile(1.0), microseconds(16));
  quantiles.Add(std::chrono::hours(1000));
  EXPECT_GE(quantiles.Quantile(1.0), std::chrono::minutes(1));
}

TEST(DecayingQuantilesTest, ForgetsWhatWasLongAgo) {
  DecayingQuantiles quantiles;
  for (int i = 0; i < 2000; ++i) quantiles.Add(milliseconds(50));
  for (int i = 0; i < 3000; ++i) quantiles.Add(milliseconds(1));
  ExpectNear(quantiles.Quantile(0.99), milliseconds(1));
}

TEST(LatencyTrackerTest, TheDelayFollowsThePercentile) {
  const HedgeDelayOptions options;
  LatencyTracker tracker;
  EXPECT_EQ(tracker.HedgeDelay(1, options), options.unknown);
  for (int i = 0; i < 100; ++i) tracker.Add(1, milliseconds(8));
  ExpectNear(tracker.HedgeDelay(1, options), milliseconds(16));
  // Bounds.
  LatencyTracker quick;
  for (int i = 0; i < 100; ++i) quick.Add(1, microseconds(100));
  EXPECT_EQ(quick.HedgeDelay(1, options), options.min);
  LatencyTracker slow;
  for (int i = 0; i < 100; ++i) slow.Add(1, std::chrono::seconds(9));
  EXPECT_EQ(slow.HedgeDelay(1, options), options.max);
}

TEST(LatencyTrackerTest, LargeMessagesDoNotHideThatASmallOneIsLate) {
  const HedgeDelayOptions options;
  LatencyTracker tracker;
  for (int i = 0; i < 100; ++i) {
    tracker.Add(8, milliseconds(4));
    tracker.Add(4096, milliseconds(400));
  }
  ExpectNear(tracker.HedgeDelay(8, options), milliseconds(8));
  ExpectNear(tracker.HedgeDelay(4096, options), milliseconds(800));
  // Of a size that was not seen: not sooner than smaller ones.
  EXPECT_EQ(tracker.HedgeDelay(200, options), options.unknown);
  EXPECT_GE(tracker.HedgeDelay(16384, options), milliseconds(800));
}

}  // namespace
}  // namespace troupe
