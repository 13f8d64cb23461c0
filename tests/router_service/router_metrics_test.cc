#include "router_service/router_metrics.h"

#include "gtest/gtest.h"
#include "tests/fakes/exposition.h"
#include "tests/fakes/golden_text.h"

namespace troupe {
namespace {

void AddLoad(v1::RouterStats& stats, uint32_t layer,
             const std::vector<uint64_t>& tokens) {
  v1::LayerLoad& load = *stats.add_layer_load();
  load.set_layer(layer);
  for (const uint64_t count : tokens) {
    load.add_tokens_per_expert(count);
    load.add_recent_tokens_per_expert(static_cast<double>(count) / 2);
  }
}

// Every field has a number of its own: what is mixed up shows.
v1::RouterStats Stats() {
  v1::RouterStats stats;
  stats.set_placement_epoch(3);
  stats.set_running_sequences(4);
  stats.set_waiting_sequences(5);
  stats.set_kv_blocks_total(80);
  stats.set_kv_blocks_free(60);
  stats.set_kv_blocks_cached(7);
  stats.set_steps(8);
  stats.set_prefill_tokens(9);
  stats.set_decode_tokens(10);
  stats.set_preemptions(11);
  stats.set_copies_resent(13);
  stats.set_copies_refused(14);
  stats.set_prefix_lookup_tokens(23);
  stats.set_prefix_hit_tokens(24);
  stats.set_prefix_evictions(25);
  stats.set_prefix_copies(26);
  stats.set_logit_rows(29);
  stats.add_collapsed_layers()->set_layer(2);
  stats.set_collapses(31);
  v1::CopyUsage& copies = *stats.mutable_copies();
  copies.set_first_choice(41);
  copies.set_by_replica(42);
  copies.set_after_wait(43);
  copies.set_other_version(44);
  copies.set_next_best(45);
  copies.set_dropped(46);
  copies.set_computed_tokens(47);
  stats.set_copies_over_capacity(48);
  v1::FailoverStats& failover = *stats.mutable_failover();
  failover.set_messages(51);
  failover.set_retries(52);
  failover.set_hedges(53);
  failover.set_hedges_won(54);
  failover.set_retries_held_back(55);
  failover.set_hedges_held_back(56);
  failover.set_ejections(57);
  failover.set_readmissions(58);
  failover.set_ejections_forgone(59);
  stats.set_current_snapshot("0123456789abcdef:v2");
  stats.set_canary_snapshot("fedcba9876543210:\"v3\"");
  stats.set_copies_moved_version(61);
  stats.set_sequences_moved_version(62);
  stats.set_sequences_canary(63);
  v1::DiscoveryStats& source = *stats.add_discovery();
  source.set_source("dns:experts:7200");
  source.set_addresses(2);
  source.set_changes(71);
  source.set_failures(72);
  source.set_age_seconds(7.5);
  for (const char* state : {"ready", "ejected: late", "ready"}) {
    const auto i = static_cast<uint64_t>(stats.peers_size());
    v1::ExpertPeer& peer = *stats.add_peers();
    peer.set_address("unix:/run/e" + std::to_string(i));
    peer.set_state(state);
    peer.set_free_rows(100 + i);
    peer.set_in_flight_rows(110 + i);
    peer.set_messages(120 + i);
    peer.set_failures(130 + i);
    peer.mutable_health()->set_late(140 + i);
    peer.mutable_health()->set_timeouts(150 + i);
  }
  AddLoad(stats, 0, {1, 2, 3});
  AddLoad(stats, 2, {0, 12, 0});
  return stats;
}

TEST(RouterMetricsTest, Golden) {
  LoopHistograms loop;
  loop.step_seconds.Observe(0.003);
  loop.step_tokens.Observe(17);
  loop.queue_seconds.Observe(0.25);
  HopHistograms hop;
  hop.wait_seconds.Observe(0.0007);
  hop.hop_seconds.Observe(0.0001);
  MetricFamilies families;
  AddRouterMetrics(Stats(), loop, &hop, families);
  const std::string text = families.Text();
  EXPECT_TRUE(ParseExposition(text).ok()) << ParseExposition(text).status();
  ExpectGolden("metrics/router.txt", text);
}

TEST(RouterMetricsTest, ADenseModelHasNoExperts) {
  MetricFamilies families;
  AddRouterMetrics(v1::RouterStats(), LoopHistograms(), nullptr, families);
  const auto parsed = ParseExposition(families.Text());
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->count("troupe_router_hop_seconds"), 0u);
  EXPECT_EQ(parsed->count("troupe_router_copies_total"), 0u);
  EXPECT_EQ(ValueOf(*parsed, "troupe_router_kv_cache_usage_ratio"), 0);
}

TEST(RouterMetricsTest, SeriesAreBounded) {
  v1::RouterStats stats;
  for (uint32_t layer = 0; layer < 65; ++layer) {
    AddLoad(stats, layer, std::vector<uint64_t>(256, 1));
  }
  for (size_t i = 0; i < kMaxPeerSeries + 3; ++i) {
    v1::ExpertPeer& peer = *stats.add_peers();
    peer.set_address("h:" + std::to_string(i));
    peer.set_state("ready");
  }
  const HopHistograms hop;
  MetricFamilies families;
  AddRouterMetrics(stats, LoopHistograms(), &hop, families);
  const auto parsed = ParseExposition(families.Text());
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  // 65 x 256 are more than there may be; 64 x 256 are not.
  EXPECT_EQ(parsed->count("troupe_router_expert_tokens_total"), 0u);
  EXPECT_EQ(SumOf(*parsed, "troupe_router_layer_copies_total"), 65 * 256);
  EXPECT_EQ(parsed->at("troupe_router_peer_messages_total").samples.size(),
            kMaxPeerSeries);
  EXPECT_EQ(
      ValueOf(*parsed, "troupe_router_expert_processes", {{"state", "ready"}}),
      kMaxPeerSeries + 3);
  stats.mutable_layer_load()->RemoveLast();
  MetricFamilies fewer;
  AddRouterMetrics(stats, LoopHistograms(), &hop, fewer);
  const auto all = ParseExposition(fewer.Text());
  ASSERT_TRUE(all.ok()) << all.status();
  EXPECT_EQ(all->at("troupe_router_expert_tokens_total").samples.size(),
            64 * 256u);
}

}  // namespace
}  // namespace troupe
