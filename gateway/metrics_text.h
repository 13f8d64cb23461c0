// What a gateway's /metrics says, whichever port serves it.
#ifndef TROUPE_GATEWAY_METRICS_TEXT_H_
#define TROUPE_GATEWAY_METRICS_TEXT_H_

#include <string>

#include "common/metrics/metric_families.h"
#include "gateway/gateway_context.h"

namespace troupe {

// Without those of the process.
void AddMetrics(const GatewayContext& context, MetricFamilies& families);

// All, in the format kMetricsContentType. Blocks for no call; any thread.
std::string MetricsText(const GatewayContext& context);

}  // namespace troupe

#endif  // TROUPE_GATEWAY_METRICS_TEXT_H_
