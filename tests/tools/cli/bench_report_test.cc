#include "tools/cli/bench_report.h"

#include <algorithm>
#include <cmath>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace troupe {
namespace {

using ::testing::HasSubstr;

std::vector<double> OneTo(int n) {
  std::vector<double> values;
  for (int i = n; i >= 1; --i) values.push_back(i);
  return values;
}

TEST(PercentilesTest, NearestRank) {
  const Percentiles hundred = ComputePercentiles(OneTo(100));
  EXPECT_EQ(hundred.p50, 50);
  EXPECT_EQ(hundred.p90, 90);
  EXPECT_EQ(hundred.p99, 99);
  EXPECT_EQ(hundred.max, 100);
  EXPECT_EQ(hundred.mean, 50.5);
  const Percentiles ten = ComputePercentiles(OneTo(10));
  EXPECT_EQ(ten.p50, 5);
  EXPECT_EQ(ten.p90, 9);
  EXPECT_EQ(ten.p99, 10);
  const Percentiles one = ComputePercentiles({7});
  EXPECT_EQ(one.p50, 7);
  EXPECT_EQ(one.p99, 7);
  EXPECT_EQ(ComputePercentiles({}).count, 0u);
  EXPECT_EQ(ComputePercentiles({}).p99, 0);
}

BenchRecord Record(double intended_s, double first_s, double end_s,
                   size_t tokens) {
  BenchRecord record;
  record.intended_s = intended_s;
  record.first_token_s = first_s;
  record.end_s = end_s;
  record.prompt_tokens = 10;
  record.output_tokens = tokens;
  record.ok = true;
  return record;
}

TEST(MakeReportTest, LatenciesCountFromTheIntendedStart) {
  // Due at 1 s; whatever the client did until then, the user waited 2 s.
  const BenchReport report =
      MakeReport({Record(1, 3, 7, 5), Record(2, 2.5, 2.5, 1)});
  EXPECT_EQ(report.ttft_ms.max, 2000);
  EXPECT_EQ(report.ttft_ms.p50, 500);
  EXPECT_EQ(report.e2e_ms.max, 6000);
  EXPECT_EQ(report.tpot_ms.count, 1u) << "one token has no time per token";
  EXPECT_EQ(report.tpot_ms.p50, 1000);
  EXPECT_EQ(report.wall_s, 6);
  EXPECT_EQ(report.output_tokens_per_s, 1);
  EXPECT_NEAR(report.prompt_tokens_per_s, 20.0 / 6, 1e-12);
}

TEST(MakeReportTest, FailuresCountOnlyAsFailures) {
  BenchRecord failed = Record(0, 0, 10, 3);
  failed.ok = false;
  failed.error = "code 14: gone";
  const BenchReport report = MakeReport({failed, Record(0, 1, 2, 2)});
  EXPECT_EQ(report.requests, 2u);
  EXPECT_EQ(report.failures, 1u);
  EXPECT_EQ(report.output_tokens, 2u);
  EXPECT_EQ(report.ttft_ms.count, 1u);
  EXPECT_THAT(FormatReport(report), HasSubstr("code 14: gone"));
  EXPECT_EQ(nlohmann::json::parse(ReportJson(report))["failures"], 1);
}

TEST(MakeReportTest, TellsHowMuchWasCached) {
  BenchRecord record = Record(0, 1, 2, 2);
  record.cached_tokens = 5;
  const BenchReport report = MakeReport({record, Record(0, 1, 2, 2)});
  EXPECT_EQ(report.cached_tokens, 5u);
  EXPECT_THAT(FormatReport(report), HasSubstr("(25% cached)"));
  EXPECT_EQ(nlohmann::json::parse(ReportJson(report))["cached_tokens"], 5);
}

TEST(MakeReportTest, NothingMeasured) {
  const BenchReport report = MakeReport({});
  EXPECT_EQ(report.wall_s, 0);
  EXPECT_EQ(report.output_tokens_per_s, 0);
}

TEST(PoissonArrivalsTest, AscendingWithTheRightRateAndSpread) {
  const std::vector<double> times = PoissonArrivals(50, 20000, 3);
  EXPECT_TRUE(std::is_sorted(times.begin(), times.end()));
  EXPECT_NEAR(times.back() / 20000, 1.0 / 50, 0.05 / 50);
  // Of exponential gaps the share exp(-1) is longer than their mean.
  size_t longer = 0;
  for (size_t i = 1; i < times.size(); ++i) {
    longer += times[i] - times[i - 1] > 1.0 / 50;
  }
  EXPECT_NEAR(static_cast<double>(longer) / 20000, std::exp(-1.0), 0.02);
  EXPECT_EQ(PoissonArrivals(50, 20000, 3), times);
  EXPECT_NE(PoissonArrivals(50, 20000, 4), times);
}

TEST(RandomPromptTest, RepeatableAndWithoutExcludedTokens) {
  const std::vector<uint32_t> prompt = RandomPrompt(1000, 0, 8, {2, 5}, 9, 1);
  EXPECT_EQ(prompt.size(), 1000u);
  for (const uint32_t token_id : prompt) {
    EXPECT_LT(token_id, 8u);
    EXPECT_NE(token_id, 2u);
    EXPECT_NE(token_id, 5u);
  }
  EXPECT_NE(std::find(prompt.begin(), prompt.end(), 7u), prompt.end());
  EXPECT_EQ(RandomPrompt(1000, 0, 8, {2, 5}, 8, 1), prompt);
  EXPECT_NE(RandomPrompt(1000, 0, 8, {2, 5}, 9, 2), prompt);
}

TEST(RandomPromptTest, TheFirstTokensAreShared) {
  const std::vector<uint32_t> a = RandomPrompt(100, 40, 1000, {}, 9, 1);
  const std::vector<uint32_t> b = RandomPrompt(100, 40, 1000, {}, 9, 2);
  const std::vector<uint32_t> c = RandomPrompt(100, 40, 1000, {}, 8, 2);
  EXPECT_TRUE(std::equal(a.begin(), a.begin() + 40, b.begin()));
  EXPECT_NE(a[40], b[40]);
  EXPECT_NE(b[0], c[0]);
  EXPECT_TRUE(std::equal(b.begin() + 40, b.end(), c.begin() + 40));
  EXPECT_EQ(RandomPrompt(40, 40, 1000, {}, 9, 2),
            std::vector<uint32_t>(a.begin(), a.begin() + 40));
}

// Where a seed's first token is an excluded one, the next is taken.
TEST(RandomPromptTest, ASeedMayBeginWithAnExcludedToken) {
  for (uint64_t seed = 0; seed < 32; ++seed) {
    for (const uint32_t token_id :
         RandomPrompt(4, seed % 4, 3, {0, 2}, seed, seed + 1)) {
      EXPECT_EQ(token_id, 1u);
    }
  }
}

}  // namespace
}  // namespace troupe
