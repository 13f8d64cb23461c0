// What the statistics of a cluster say about load: balance of each layer, and
// signals to scale expert processes by.
#ifndef TROUPE_CLUSTER_LOAD_SUMMARY_H_
#define TROUPE_CLUSTER_LOAD_SUMMARY_H_

#include <cstddef>
#include <map>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "cluster/load_tracker.h"
#include "protos/cluster.pb.h"
#include "protos/gateway.pb.h"

namespace troupe {

// max / mean, and standard deviation / mean; 0 when all are 0.
double MaxOverMean(absl::Span<const double> values);
double CoefficientOfVariation(absl::Span<const double> values);

// By layer, all routers together. Routers are untrusted: rows longer than
// others are kept, what is not a number counts 0.
std::map<size_t, RecentLoad> MergeRecentLoad(
    const google::protobuf::RepeatedPtrField<v1::RouterStats>& routers);

// "experts 0-3 of layers 0-5; experts 7 of layers 2", short for people.
std::string DescribeExperts(const v1::ExpertDescription& description);

// Fills in layer_balance and expert_groups from what is in `stats` already.
void SummarizeLoad(v1::ClusterStats& stats);

}  // namespace troupe

#endif  // TROUPE_CLUSTER_LOAD_SUMMARY_H_
