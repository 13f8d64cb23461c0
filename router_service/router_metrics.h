// The statistics of a router as Prometheus reads them (docs/metrics.md).
#ifndef TROUPE_ROUTER_SERVICE_ROUTER_METRICS_H_
#define TROUPE_ROUTER_SERVICE_ROUTER_METRICS_H_

#include <cstddef>

#include "common/metrics/metric_families.h"
#include "protos/cluster.pb.h"
#include "router_service/dispatch/hop_histograms.h"
#include "router_service/loop_histograms.h"

namespace troupe {

// Series by layer and expert are left out of models with more of them; what
// their layers had in all is there.
inline constexpr size_t kMaxExpertSeries = 16384;
// Expert processes beyond that many have no series of their own.
inline constexpr size_t kMaxPeerSeries = 512;

// hop: null for a dense model.
void AddRouterMetrics(const v1::RouterStats& stats, const LoopHistograms& loop,
                      const HopHistograms* hop, MetricFamilies& families);

}  // namespace troupe

#endif  // TROUPE_ROUTER_SERVICE_ROUTER_METRICS_H_
