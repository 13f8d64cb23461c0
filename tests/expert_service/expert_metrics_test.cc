#include "expert_service/expert_metrics.h"

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/fakes/exposition.h"
#include "tests/fakes/golden_text.h"

namespace troupe {
namespace {

void AddVersion(v1::ExpertDescription& description, const std::string& label,
                uint32_t layers, uint32_t experts, bool leaving) {
  v1::ExpertVersion& version = *description.add_experts();
  version.set_label(label);
  version.set_leaving(leaving);
  version.mutable_range()->set_layer_end(layers);
  version.mutable_range()->set_expert_begin(1);
  version.mutable_range()->set_expert_end(1 + experts);
}

v1::ExpertStats Stats() {
  v1::ExpertStats stats;
  v1::ExpertDescription& description = *stats.mutable_description();
  description.set_state(v1::SERVING_STATE_READY);
  description.set_queue_capacity_rows(1);
  description.set_weight_bytes(2);
  AddVersion(description, "v1", 12, 2, true);
  AddVersion(description, "v2", 12, 2, false);
  AddVersion(description, "v2", 3, 1, false);
  stats.set_batches(3);
  stats.set_messages(4);
  stats.set_rows(5);
  stats.set_refused_rows(6);
  stats.set_queued_rows(7);
  stats.set_busy_seconds(8.5);
  stats.set_connected_routers(9);
  stats.set_refused_routers(10);
  stats.set_busy_share(0.75);
  stats.set_free_rows(11);
  return stats;
}

TEST(ExpertMetricsTest, Golden) {
  BatcherHistograms histograms;
  histograms.service_seconds.Observe(0.0004);
  histograms.batch_rows.Observe(12);
  histograms.queue_seconds.Observe(0.00001);
  MetricFamilies families;
  AddExpertMetrics(Stats(), histograms, families);
  const std::string text = families.Text();
  EXPECT_TRUE(ParseExposition(text).ok()) << ParseExposition(text).status();
  ExpectGolden("metrics/expert.txt", text);
}

TEST(ExpertMetricsTest, LabelsOfVersionsAreBounded) {
  v1::ExpertStats stats;
  for (int i = 0; i < 1000; ++i) {
    AddVersion(*stats.mutable_description(), absl::StrCat("v", i), 1, 1, false);
  }
  MetricFamilies families;
  AddExpertMetrics(stats, BatcherHistograms(), families);
  const auto parsed = ParseExposition(families.Text());
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_LE(parsed->at("troupe_expert_experts").samples.size(), 66u);
  EXPECT_EQ(SumOf(*parsed, "troupe_expert_experts"), 1000);
}

}  // namespace
}  // namespace troupe
