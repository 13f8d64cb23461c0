// What every process exports of itself.
#ifndef TROUPE_COMMON_METRICS_PROCESS_METRICS_H_
#define TROUPE_COMMON_METRICS_PROCESS_METRICS_H_

#include <string>

#include "common/metrics/metric_families.h"

namespace troupe {

// troupe_build_info, and process_* under the names of Prometheus' own client
// libraries, from /proc/self; what cannot be read is left out. service:
// "gateway", "router" or "expert"; name: of the process.
void AddProcessMetrics(const std::string& service, const std::string& name,
                       MetricFamilies& families);

}  // namespace troupe

#endif  // TROUPE_COMMON_METRICS_PROCESS_METRICS_H_
