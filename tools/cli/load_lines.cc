#include "tools/cli/load_lines.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "tools/cli/terminal.h"

namespace troupe {
namespace {

std::string Warnings(const v1::ClusterStats& stats) {
  std::string text;
  for (const v1::RouterStats& router : stats.routers()) {
    for (const v1::RoutingCollapse& layer : router.collapsed_layers()) {
      absl::StrAppendFormat(
          &text,
          "WARNING %s: routing of layer %d has collapsed: %.0f%% of its copies "
          "go to experts %s, for %.0f s\n",
          router.name(), layer.layer(), 100 * layer.share(),
          absl::StrJoin(layer.experts(), ","), layer.for_seconds());
    }
  }
  if (stats.has_balancer() && stats.balancer().overdue()) {
    absl::StrAppendFormat(
        &text, "WARNING %s: no run for %.0f s, one every %g s is due\n",
        stats.balancer().report().name(), stats.balancer().age_seconds(),
        stats.balancer().report().every_seconds());
  }
  return text;
}

std::string BalancerLine(const v1::BalancerStatus& status) {
  const v1::BalanceReport& report = status.report();
  std::string text = absl::StrFormat(
      "%s: %d runs (%d failed), %d loads, %d unloads; %.0f s ago: %s: %s\n",
      report.name(), report.runs(), report.failed_runs(), report.loads(),
      report.unloads(), status.age_seconds(), report.verdict(),
      report.detail());
  if (!report.last_error().empty() && report.verdict() != "failed") {
    absl::StrAppend(&text, "  last failure: ", report.last_error(), "\n");
  }
  return text;
}

}  // namespace

std::string LoadLines(const v1::ClusterStats& stats) {
  std::string text = Warnings(stats);
  if (stats.has_balancer()) text += BalancerLine(stats.balancer());
  if (stats.experts_size() > 0) {
    absl::StrAppendFormat(&text, "%-16s %6s %8s %9s %9s  %s\n",
                          "expert process", "busy", "queued", "room", "refused",
                          "scaled with");
  }
  for (const v1::ExpertGroup& group : stats.expert_groups()) {
    for (const v1::ExpertStats& expert : stats.experts()) {
      const std::string& name = expert.description().name();
      bool is_member = false;
      for (const std::string& member : group.processes()) {
        is_member = is_member || member == name;
      }
      if (!is_member) continue;
      absl::StrAppendFormat(
          &text, "%-16s %5.0f%% %8d %9s %9s  %s\n", name,
          100 * expert.busy_share(), expert.queued_rows(),
          FormatCount(static_cast<double>(expert.free_rows())),
          FormatCount(static_cast<double>(expert.refused_rows())),
          group.experts());
    }
  }
  for (const v1::LayerBalance& layer : stats.layer_balance()) {
    if (layer.tokens() < 1) continue;
    absl::StrAppendFormat(
        &text,
        "layer %3d of late: max/mean %.2f, deviation/mean %.2f, hottest expert "
        "%d with %.0f%%; processes %.2f\n",
        layer.layer(), layer.imbalance(), layer.cv(), layer.hottest_expert(),
        100 * layer.hottest_share(), layer.process_imbalance());
  }
  return text;
}

}  // namespace troupe
