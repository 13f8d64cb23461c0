#include "gateway/gateway_metrics.h"

#include "gateway/refusal.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/fakes/exposition.h"
#include "tests/fakes/golden_text.h"

namespace troupe {
namespace {

v1::GatewayStats Stats() {
  v1::GatewayStats stats;
  stats.set_requests(20);
  stats.set_active_requests(5);
  stats.set_max_requests(256);
  stats.set_prompt_tokens(31);
  stats.set_completion_tokens(32);
  stats.set_state(v1::SERVING_STATE_READY);
  stats.set_moved_streams(33);
  stats.set_moves_held_back(34);
  for (const char* state : {"ready", "away"}) {
    const auto i = static_cast<uint64_t>(stats.router_peers_size());
    v1::RouterPeer& peer = *stats.add_router_peers();
    peer.set_address("unix:/run/r" + std::to_string(i));
    peer.set_state(state);
    peer.set_active_streams(static_cast<uint32_t>(41 + i));
    peer.set_streams(51 + i);
    peer.set_lost_streams(61 + i);
    peer.set_failures(71 + i);
  }
  v1::DiscoveryStats& source = *stats.add_router_discovery();
  source.set_source("file:/etc/routers");
  source.set_addresses(2);
  return stats;
}

void Fill(GatewayMetrics& metrics) {
  for (int i = 0; i < 3; ++i) metrics.CountEnd(grpc::StatusCode::OK);
  metrics.CountEnd(grpc::StatusCode::CANCELLED);
  metrics.CountEnd(grpc::StatusCode::DEADLINE_EXCEEDED);
  metrics.CountEnd(grpc::StatusCode::RESOURCE_EXHAUSTED);
  metrics.CountEnd(grpc::StatusCode::UNAVAILABLE);
  metrics.CountRefusal(kPlaces);
  metrics.CountRefusal(kTokensPerMinute);
  metrics.CountRefusal(kTokensPerMinute);
  metrics.CountRefusal(kNoRouterRefusal);
  metrics.CountRefusal("what nobody has heard of");
  metrics.Count(ChoiceEnd::kStop);
  metrics.Count(ChoiceEnd::kLength);
  metrics.Count(ChoiceEnd::kLength);
  metrics.Count(ChoiceEnd::kAbort);
  metrics.first_token_seconds.Observe(0.05);
  metrics.inter_token_seconds.Observe(0.0015);
  metrics.request_seconds.Observe(0.7);
  metrics.queue_seconds.Observe(0.002);
  metrics.prompt_tokens.Observe(11);
  metrics.generation_tokens.Observe(200);
  metrics.generating = 2;
}

TEST(GatewayMetricsTest, Golden) {
  GatewayMetrics metrics;
  Fill(metrics);
  MetricFamilies families;
  AddGatewayMetrics(Stats(), metrics,
                    {.unauthenticated = 81, .denied = 82, .limited = 83},
                    families);
  const std::string text = families.Text();
  EXPECT_TRUE(ParseExposition(text).ok()) << ParseExposition(text).status();
  ExpectGolden("metrics/gateway.txt", text);
}

TEST(GatewayMetricsTest, VllmGolden) {
  GatewayMetrics metrics;
  Fill(metrics);
  MetricFamilies families;
  AddVllmMetrics(Stats(), metrics, {.total = 80, .free = 20}, "demo", families);
  const std::string text = families.Text();
  EXPECT_TRUE(ParseExposition(text).ok()) << ParseExposition(text).status();
  ExpectGolden("metrics/vllm.txt", text);
}

TEST(GatewayMetricsTest, AnUnknownCodeIsCountedAsUnknown) {
  GatewayMetrics metrics;
  metrics.CountEnd(static_cast<grpc::StatusCode>(99));
  metrics.CountEnd(static_cast<grpc::StatusCode>(-5));
  EXPECT_EQ(metrics.ends(grpc::StatusCode::UNKNOWN), 2u);
}

}  // namespace
}  // namespace troupe
