#include "tools/cli/load_lines.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace troupe {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

TEST(LoadLines, NothingToSay) { EXPECT_EQ(LoadLines(v1::ClusterStats()), ""); }

TEST(LoadLines, WarningsComeFirst) {
  v1::ClusterStats stats;
  v1::RouterStats& router = *stats.add_routers();
  router.set_name("router-0");
  v1::RoutingCollapse& layer = *router.add_collapsed_layers();
  layer.set_layer(3);
  layer.add_experts(7);
  layer.add_experts(2);
  layer.set_share(0.91);
  v1::BalancerStatus& balancer = *stats.mutable_balancer();
  balancer.mutable_report()->set_name("balancer");
  balancer.mutable_report()->set_verdict("balanced");
  balancer.mutable_report()->set_every_seconds(60);
  balancer.mutable_report()->set_last_error("once");
  balancer.set_age_seconds(400);
  EXPECT_THAT(LoadLines(stats), Not(HasSubstr("no run")));
  balancer.set_overdue(true);
  const std::string text = LoadLines(stats);
  EXPECT_THAT(text, StartsWith("WARNING router-0: routing of layer 3 has "
                               "collapsed: 91% of its copies go to experts "
                               "7,2"));
  EXPECT_THAT(text, HasSubstr("WARNING balancer: no run for 400 s"));
  EXPECT_THAT(text, HasSubstr("last failure: once"));
}

TEST(LoadLines, ProcessesByWhatTheyAreScaledWith) {
  v1::ClusterStats stats;
  v1::ExpertStats& expert = *stats.add_experts();
  expert.mutable_description()->set_name("expert-1");
  expert.set_busy_share(0.5);
  expert.set_queued_rows(12);
  v1::ExpertGroup& group = *stats.add_expert_groups();
  group.set_experts("experts 0-3 of layers 0-5");
  group.add_processes("expert-1");
  const std::string text = LoadLines(stats);
  EXPECT_THAT(text, HasSubstr("expert-1            50%       12"));
  EXPECT_THAT(text, HasSubstr("experts 0-3 of layers 0-5"));
}

}  // namespace
}  // namespace troupe
