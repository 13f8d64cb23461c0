#include "expert_service/expert_metrics.h"

#include <algorithm>
#include <map>
#include <string>
#include <utility>

namespace troupe {
namespace {

// More labels of versions than an operator has in use at once.
constexpr size_t kMaxLabels = 64;

void AddVersions(const v1::ExpertDescription& description, MetricScope& scope) {
  // (label, state) -> experts of all layers
  std::map<std::pair<std::string, std::string>, uint64_t> experts;
  for (const v1::ExpertVersion& version : description.experts()) {
    const v1::ExpertRange& range = version.range();
    const uint64_t size = uint64_t{range.layer_end() - range.layer_begin()} *
                          (range.expert_end() - range.expert_begin());
    std::pair key(version.label(), version.leaving() ? "leaving" : "serving");
    if (experts.size() >= kMaxLabels) key.first = "other";
    experts[std::move(key)] += size;
  }
  MetricFamilies::Family& family = scope.Gauge(
      "experts",
      "Experts that are loaded, each layer's counted, by the label of their "
      "version.");
  for (const auto& [key, number] : experts) {
    family.Add(static_cast<double>(number),
               {{"label", key.first}, {"state", key.second}});
  }
}

}  // namespace

void AddExpertMetrics(const v1::ExpertStats& stats,
                      const BatcherHistograms& histograms,
                      MetricFamilies& families) {
  MetricScope scope(families, "troupe_expert_");
  scope.Counter("rows_total", "Routed copies computed.", stats.rows());
  scope.Counter("batches_total", "Grouped GEMMs run.", stats.batches());
  scope.Counter("messages_total", "Messages of routers answered.",
                stats.messages());
  scope.Counter("refused_rows_total", "Routed copies refused for want of room.",
                stats.refused_rows());
  scope.Gauge("queue_rows", "Routed copies that wait or are computed.",
              static_cast<double>(stats.queued_rows()));
  scope.Gauge("free_rows", "Routed copies that there is room for.",
              static_cast<double>(stats.free_rows()));
  scope.Gauge("queue_capacity_rows", "Routed copies that may wait.",
              static_cast<double>(stats.description().queue_capacity_rows()));
  scope.Counter("busy_seconds_total", "Time spent computing, in seconds.")
      .Add(stats.busy_seconds());
  scope.Gauge("busy_ratio",
              "Share of the last seconds spent computing, 0 to 1.",
              stats.busy_share());
  scope.Histogram("service_seconds", "Duration of grouped GEMMs.",
                  histograms.service_seconds);
  scope.Histogram("batch_rows", "Routed copies of grouped GEMMs.",
                  histograms.batch_rows);
  scope.Histogram("queue_seconds",
                  "What messages waited before their grouped GEMM.",
                  histograms.queue_seconds);
  scope.Gauge("connected_routers", "Routers that are connected.",
              stats.connected_routers());
  scope.Counter("refused_routers_total",
                "Routers of another model that were refused.",
                stats.refused_routers());
  scope.Gauge("weight_bytes", "Memory of the loaded weights, in bytes.",
              static_cast<double>(stats.description().weight_bytes()));
  scope.Gauge("ready", "1: takes work; 0: loads or drains.",
              stats.description().state() == v1::SERVING_STATE_READY ? 1 : 0);
  AddVersions(stats.description(), scope);
}

}  // namespace troupe
