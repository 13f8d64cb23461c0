#include "gateway/metrics_text.h"

#include "common/metrics/process_metrics.h"
#include "gateway/gateway_metrics.h"
#include "gateway/stats_call.h"

namespace troupe {

void AddMetrics(const GatewayContext& context, MetricFamilies& families) {
  const v1::GatewayStats stats = DescribeGateway(context);
  const Authenticator::Counters& edges = context.authenticator.counters();
  AddGatewayMetrics(stats, context.metrics,
                    {.unauthenticated = edges.unauthenticated,
                     .denied = edges.denied,
                     .limited = edges.limited},
                    families);
  if (context.vllm_metrics) {
    AddVllmMetrics(stats, context.metrics, context.routers.kv_blocks(),
                   context.model.name, families);
  }
}

std::string MetricsText(const GatewayContext& context) {
  MetricFamilies families;
  AddProcessMetrics("gateway", context.name, families);
  AddMetrics(context, families);
  return families.Text();
}

}  // namespace troupe
