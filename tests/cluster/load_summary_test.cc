#include "cluster/load_summary.h"

#include <limits>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace troupe {
namespace {

using ::testing::ElementsAre;

TEST(LoadSummary, ImbalanceOfNumbers) {
  EXPECT_EQ(MaxOverMean({}), 0);
  EXPECT_EQ(MaxOverMean({0, 0}), 0);
  EXPECT_DOUBLE_EQ(MaxOverMean({3, 1}), 1.5);
  EXPECT_DOUBLE_EQ(CoefficientOfVariation({3, 1}), 0.5);
  EXPECT_DOUBLE_EQ(CoefficientOfVariation({2, 2, 2}), 0);
}

void Own(v1::ExpertDescription& description, uint32_t layer_begin,
         uint32_t layer_end, uint32_t expert_begin, uint32_t expert_end) {
  v1::ExpertRange& range = *description.add_experts()->mutable_range();
  range.set_layer_begin(layer_begin);
  range.set_layer_end(layer_end);
  range.set_expert_begin(expert_begin);
  range.set_expert_end(expert_end);
  description.set_state(v1::SERVING_STATE_READY);
}

v1::ExpertPeer& AddPeer(v1::RouterStats& router, const std::string& address) {
  v1::ExpertPeer& peer = *router.add_peers();
  peer.set_address(address);
  return peer;
}

TEST(LoadSummary, LayersOverAllRoutersAndProcesses) {
  v1::ClusterStats stats;
  for (int i = 0; i < 2; ++i) {
    v1::RouterStats& router = *stats.add_routers();
    v1::LayerLoad& load = *router.add_layer_load();
    load.set_layer(3);
    load.set_recent_steps(2);
    for (const double tokens : {6.0, 1.0, 1.0, 0.0}) {
      load.add_recent_tokens_per_expert(tokens);
    }
    // Both routers know both processes: each counts once.
    Own(*AddPeer(router, "a").mutable_description(), 3, 4, 0, 2);
    Own(*AddPeer(router, "b").mutable_description(), 3, 4, 2, 4);
    Own(*AddPeer(router, "b").mutable_description(), 3, 4, 0, 1);
  }
  SummarizeLoad(stats);
  ASSERT_EQ(stats.layer_balance_size(), 1);
  const v1::LayerBalance& balance = stats.layer_balance(0);
  EXPECT_EQ(balance.layer(), 3u);
  EXPECT_DOUBLE_EQ(balance.tokens(), 16);
  EXPECT_DOUBLE_EQ(balance.imbalance(), 3);
  EXPECT_EQ(balance.hottest_expert(), 0u);
  EXPECT_DOUBLE_EQ(balance.hottest_share(), 0.75);
  // The last description of "b" counts: it has expert 0 alone. So the
  // processes have 6 + 2 and 6 of the 14 that somebody has.
  EXPECT_DOUBLE_EQ(balance.process_imbalance(), 8.0 / 7);
}

TEST(LoadSummary, WhatRoutersMakeUpIsNotBelieved) {
  v1::ClusterStats stats;
  v1::LayerLoad& load = *stats.add_routers()->add_layer_load();
  load.set_layer(0);
  load.set_recent_steps(-1);
  load.add_recent_tokens_per_expert(std::numeric_limits<double>::quiet_NaN());
  load.add_recent_tokens_per_expert(-5);
  load.add_recent_tokens_per_expert(4);
  v1::LayerLoad& far = *stats.mutable_routers(0)->add_layer_load();
  far.set_layer(4000000000u);
  Own(*AddPeer(*stats.mutable_routers(0), "a").mutable_description(), 0,
      4000000000u, 0, 4000000000u);
  const auto merged = MergeRecentLoad(stats.routers());
  ASSERT_EQ(merged.size(), 1u);
  EXPECT_THAT(merged.at(0).tokens_per_expert, ElementsAre(0, 0, 4));
  EXPECT_EQ(merged.at(0).steps, 0);
  SummarizeLoad(stats);
  EXPECT_EQ(stats.layer_balance(0).process_imbalance(), 0);
}

v1::ExpertStats Process(const std::string& name, double busy,
                        uint32_t expert_begin, uint32_t expert_end) {
  v1::ExpertStats stats;
  Own(*stats.mutable_description(), 0, 2, expert_begin, expert_end);
  stats.mutable_description()->set_name(name);
  stats.mutable_description()->set_queue_capacity_rows(100);
  stats.set_busy_share(busy);
  stats.set_queued_rows(10);
  stats.set_free_rows(90);
  return stats;
}

TEST(LoadSummary, ProcessesWithTheSameExpertsAreAGroup) {
  v1::ClusterStats stats;
  *stats.add_experts() = Process("a", 0.25, 0, 4);
  *stats.add_experts() = Process("b", 0.9, 4, 8);
  *stats.add_experts() = Process("c", 0.75, 0, 4);
  *stats.add_experts() = Process("d", 0.5, 0, 4);
  stats.mutable_experts(3)->mutable_description()->set_state(
      v1::SERVING_STATE_DRAINING);
  SummarizeLoad(stats);
  ASSERT_EQ(stats.expert_groups_size(), 2);
  const v1::ExpertGroup& group = stats.expert_groups(0);
  EXPECT_EQ(group.experts(), "experts 0-3 of layers 0-1");
  EXPECT_THAT(group.processes(), ElementsAre("a", "c", "d"));
  EXPECT_EQ(group.ready(), 2u);
  EXPECT_DOUBLE_EQ(group.busy_share_mean(), 0.5);
  EXPECT_DOUBLE_EQ(group.busy_share_max(), 0.75);
  EXPECT_EQ(group.queued_rows(), 20u);
  EXPECT_EQ(group.free_rows(), 180u);
  EXPECT_EQ(group.capacity_rows(), 200u);
  EXPECT_EQ(stats.expert_groups(1).experts(), "experts 4-7 of layers 0-1");
}

TEST(LoadSummary, DescribesWhatIsNotARectangle) {
  v1::ExpertDescription description;
  EXPECT_EQ(DescribeExperts(description), "no experts");
  Own(description, 0, 3, 0, 2);
  Own(description, 2, 3, 5, 6);
  EXPECT_EQ(DescribeExperts(description),
            "experts 0-1 of layers 0-1; experts 0-1,5 of layers 2");
  description.mutable_experts(1)->set_leaving(true);
  EXPECT_EQ(DescribeExperts(description), "experts 0-1 of layers 0-2");
}

}  // namespace
}  // namespace troupe
