#include "gateway/balance_board.h"

#include <limits>
#include <string>

#include "gtest/gtest.h"

namespace troupe {
namespace {

SteadyTime At(int seconds) {
  return SteadyTime() + std::chrono::seconds(1000 + seconds);
}

v1::BalanceReport Report() {
  v1::BalanceReport report;
  report.set_name("balancer");
  report.set_every_seconds(10);
  report.set_runs(3);
  return report;
}

TEST(BalanceBoard, ShowsTheLastReportAndItsAge) {
  BalanceBoard board;
  v1::ClusterStats stats;
  board.Describe(At(0), stats);
  EXPECT_FALSE(stats.has_balancer());
  ASSERT_TRUE(board.Report(Report(), At(0)).ok());
  board.Describe(At(7), stats);
  EXPECT_EQ(stats.balancer().report().runs(), 3u);
  EXPECT_DOUBLE_EQ(stats.balancer().age_seconds(), 7);
  EXPECT_FALSE(stats.balancer().overdue());
}

TEST(BalanceBoard, ABalancerThatFallsSilentIsOverdue) {
  BalanceBoard board;
  ASSERT_TRUE(board.Report(Report(), At(0)).ok());
  v1::ClusterStats stats;
  board.Describe(At(50), stats);
  EXPECT_FALSE(stats.balancer().overdue());
  board.Describe(At(51), stats);
  EXPECT_TRUE(stats.balancer().overdue());
  ASSERT_TRUE(board.Report(Report(), At(52)).ok());
  board.Describe(At(53), stats);
  EXPECT_FALSE(stats.balancer().overdue());
}

TEST(BalanceBoard, RefusesWhatIsOutOfRangeAndCutsTexts) {
  BalanceBoard board;
  v1::BalanceReport report = Report();
  report.set_every_seconds(0);
  EXPECT_TRUE(absl::IsInvalidArgument(board.Report(report, At(0))));
  report.set_every_seconds(std::numeric_limits<double>::quiet_NaN());
  EXPECT_TRUE(absl::IsInvalidArgument(board.Report(report, At(0))));
  report = Report();
  report.set_name(std::string(129, 'x'));
  EXPECT_TRUE(absl::IsInvalidArgument(board.Report(report, At(0))));
  report = Report();
  report.set_imbalance_after(std::numeric_limits<double>::infinity());
  EXPECT_TRUE(absl::IsInvalidArgument(board.Report(report, At(0))));
  report = Report();
  report.set_last_error("x");
  for (int i = 0; i < 1000; ++i) {
    *report.mutable_last_error() += "\xc3\xa9";  // two bytes each
  }
  ASSERT_TRUE(board.Report(report, At(0)).ok());
  v1::ClusterStats stats;
  board.Describe(At(0), stats);
  EXPECT_EQ(stats.balancer().report().last_error().size(), 1023u);
}

}  // namespace
}  // namespace troupe
