// Metrics of where the addresses of peers come from.
#ifndef TROUPE_CLUSTER_DISCOVERY_METRICS_H_
#define TROUPE_CLUSTER_DISCOVERY_METRICS_H_

#include <string>

#include "common/metrics/metric_families.h"
#include "google/protobuf/repeated_ptr_field.h"
#include "protos/cluster.pb.h"

namespace troupe {

// prefix: of the service, "troupe_router".
void AddDiscoveryMetrics(
    const std::string& prefix,
    const google::protobuf::RepeatedPtrField<v1::DiscoveryStats>& discovery,
    MetricFamilies& families);

}  // namespace troupe

#endif  // TROUPE_CLUSTER_DISCOVERY_METRICS_H_
