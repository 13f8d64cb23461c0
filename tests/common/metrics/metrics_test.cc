#include <cmath>
#include <limits>
#include <thread>
#include <vector>

#include "common/metrics/histogram.h"
#include "common/metrics/metric_families.h"
#include "common/metrics/process_metrics.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/fakes/exposition.h"

namespace troupe {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr double kBounds[] = {1, 2.5, 10};

TEST(AtomicHistogramTest, BoundsAreInclusive) {
  AtomicHistogram histogram(kBounds);
  for (const double value : {0.0, 1.0, 1.001, 2.5, 10.0, 10.1, 1e9}) {
    histogram.Observe(value);
  }
  const AtomicHistogram::Snapshot snapshot = histogram.snapshot();
  EXPECT_THAT(snapshot.counts, ElementsAre(2, 2, 1, 2));
  EXPECT_EQ(snapshot.count, 7u);
  EXPECT_DOUBLE_EQ(snapshot.sum, 1 + 1.001 + 2.5 + 10 + 10.1 + 1e9);
}

TEST(AtomicHistogramTest, WhatIsNoDurationCountsAsZero) {
  AtomicHistogram histogram(kBounds);
  histogram.Observe(-3);
  histogram.Observe(std::nan(""));
  const AtomicHistogram::Snapshot snapshot = histogram.snapshot();
  EXPECT_THAT(snapshot.counts, ElementsAre(2, 0, 0, 0));
  EXPECT_EQ(snapshot.sum, 0);
}

TEST(AtomicHistogramTest, ThreadsLoseNothing) {
  AtomicHistogram histogram(kBounds);
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&histogram] {
      for (int k = 0; k < 10000; ++k) histogram.Observe(2);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(histogram.snapshot().counts[1], 40000u);
  EXPECT_EQ(histogram.snapshot().sum, 80000);
}

TEST(AtomicHistogramTest, TheBoundsOfMetricsAscend) {
  for (const auto& bounds : {kFirstTokenBounds, kInterTokenBounds,
                             kRequestBounds, kHopBounds, kCountBounds}) {
    ASSERT_GT(bounds.size(), 10u);
    for (size_t i = 1; i < bounds.size(); ++i) {
      EXPECT_LT(bounds[i - 1], bounds[i]);
    }
  }
}

TEST(MetricFamiliesTest, TextAsPrometheusReadsIt) {
  AtomicHistogram histogram(kBounds);
  histogram.Observe(2);
  histogram.Observe(11);
  MetricFamilies families;
  families.Counter("a_total", "Counts.").Add(3, {{"k", "v\"\\\nw"}}).Add(4);
  families.Gauge("b_ratio", "Is.").Add(0.25);
  families.Gauge("without_samples", "Is left out.");
  families.Histogram("c_seconds", "Takes.").Add(histogram, {{"x", "y"}});
  EXPECT_EQ(families.Text(),
            "# HELP a_total Counts.\n"
            "# TYPE a_total counter\n"
            "a_total{k=\"v\\\"\\\\\\nw\"} 3\n"
            "a_total 4\n"
            "# HELP b_ratio Is.\n"
            "# TYPE b_ratio gauge\n"
            "b_ratio 0.25\n"
            "# HELP c_seconds Takes.\n"
            "# TYPE c_seconds histogram\n"
            "c_seconds_count{x=\"y\"} 2\n"
            "c_seconds_sum{x=\"y\"} 13\n"
            "c_seconds_bucket{x=\"y\",le=\"1\"} 0\n"
            "c_seconds_bucket{x=\"y\",le=\"2.5\"} 1\n"
            "c_seconds_bucket{x=\"y\",le=\"10\"} 1\n"
            "c_seconds_bucket{x=\"y\",le=\"+Inf\"} 2\n");
  const absl::StatusOr<Exposition> parsed = ParseExposition(families.Text());
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(ValueOf(*parsed, "a_total", {{"k", "v\"\\\nw"}}), 3);
  EXPECT_EQ(SumOf(*parsed, "a_total"), 7);
}

TEST(MetricFamiliesTest, SamplesWithTheSameLabelsAreAddedUp) {
  MetricFamilies families;
  families.Counter("a_total", "Counts.")
      .Add(1, {{"address", "h:1"}})
      .Add(2, {{"address", "h:2"}})
      .Add(4, {{"address", "h:1"}});
  families.Gauge("b", "Is.").Add(3).Add(5);
  EXPECT_EQ(families.Text(),
            "# HELP a_total Counts.\n"
            "# TYPE a_total counter\n"
            "a_total{address=\"h:1\"} 5\n"
            "a_total{address=\"h:2\"} 2\n"
            "# HELP b Is.\n"
            "# TYPE b gauge\n"
            "b 8\n");
}

TEST(MetricFamiliesTest, LargeCountsKeepTheirDigits) {
  MetricFamilies families;
  families.Counter("a_total", "Counts.").Add(1234567890123456.0);
  EXPECT_THAT(families.Text(), HasSubstr("a_total 1234567890123456\n"));
}

TEST(ProcessMetricsTest, SaysWhatThisProcessUses) {
  MetricFamilies families;
  AddProcessMetrics("router", "router-0", families);
  const absl::StatusOr<Exposition> parsed = ParseExposition(families.Text());
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_GT(ValueOf(*parsed, "process_resident_memory_bytes"), 1 << 20);
  EXPECT_GT(ValueOf(*parsed, "process_virtual_memory_bytes"),
            ValueOf(*parsed, "process_resident_memory_bytes"));
  EXPECT_GE(ValueOf(*parsed, "process_open_fds"), 3);
  EXPECT_GE(ValueOf(*parsed, "process_max_fds"), 64);
  EXPECT_GE(ValueOf(*parsed, "process_cpu_seconds_total"), 0);
  const auto now = static_cast<double>(time(nullptr));
  EXPECT_NEAR(ValueOf(*parsed, "process_start_time_seconds"), now, 600);
  EXPECT_EQ(SumOf(*parsed, "troupe_build_info",
                  {{"service", "router"}, {"name", "router-0"}}),
            1);
}

// The parser that the other tests trust refuses what a scraper would.
TEST(ExpositionTest, RefusesWhatIsWrong) {
  const std::string head = "# HELP h H.\n# TYPE h histogram\n";
  const std::string tail = "h_count 2\nh_sum 3\n";
  for (const std::string& text : std::vector<std::string>{
           "a 1\n",                             // of no family
           "# HELP a A.\na 1\n",                // no TYPE
           "# TYPE a gauge\na 1\n",             // no HELP
           "# HELP a A.\n# TYPE a gauge\na 1",  // no last newline
           "# HELP a A.\n# TYPE a gauge\n# TYPE a gauge\n",
           "# HELP a A.\n# TYPE a gauge\na 1\n# HELP a A.\n",
           "# HELP 1a A.\n# TYPE 1a gauge\n1a 1\n",         // name
           "# HELP a A.\n# TYPE a gauge\na{b-c=\"\"} 1\n",  // label
           "# HELP a A.\n# TYPE a gauge\na{b=\"\\x\"} 1\n",
           "# HELP a A.\n# TYPE a gauge\na{b=\"c} 1\n",
           "# HELP a A.\n# TYPE a gauge\na one\n",
           "# HELP a A.\n# TYPE a gauge\na 1\na 2\n",  // twice
           "# HELP a A.\n# TYPE a counter\na 1\n",     // no _total
           "# HELP a_total A.\n# TYPE a_total counter\na_total -1\n",
           head + "h_bucket{le=\"1\"} 2\n" + tail,  // no +Inf
           head + "h_bucket{le=\"1\"} 3\nh_bucket{le=\"+Inf\"} 2\n" + tail,
           head +
               "h_bucket{le=\"2\"} 1\nh_bucket{le=\"1\"} 2\n"
               "h_bucket{le=\"+Inf\"} 2\n" +
               tail,
           head + "h_bucket{le=\"+Inf\"} 1\n" + tail,      // not the count
           head + "h_bucket{le=\"+Inf\"} 2\nh_count 2\n",  // no sum
       }) {
    EXPECT_FALSE(ParseExposition(text).ok()) << text;
  }
  EXPECT_TRUE(ParseExposition(head +
                              "h_bucket{le=\"1\"} 1\n"
                              "h_bucket{le=\"+Inf\"} 2\n" +
                              tail)
                  .ok());
}

}  // namespace
}  // namespace troupe
