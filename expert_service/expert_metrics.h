// The statistics of an expert process as Prometheus reads them
// (docs/metrics.md).
#ifndef TROUPE_EXPERT_SERVICE_EXPERT_METRICS_H_
#define TROUPE_EXPERT_SERVICE_EXPERT_METRICS_H_

#include "common/metrics/metric_families.h"
#include "expert_service/batcher_histograms.h"
#include "protos/cluster.pb.h"

namespace troupe {

void AddExpertMetrics(const v1::ExpertStats& stats,
                      const BatcherHistograms& histograms,
                      MetricFamilies& families);

}  // namespace troupe

#endif  // TROUPE_EXPERT_SERVICE_EXPERT_METRICS_H_
