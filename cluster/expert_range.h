// Which experts a process owns, as flags say it.
#ifndef TROUPE_CLUSTER_EXPERT_RANGE_H_
#define TROUPE_CLUSTER_EXPERT_RANGE_H_

#include <cstddef>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "protos/cluster.pb.h"

namespace troupe {

// Numbers of "0-3,6" as half-open ranges, ascending and disjoint:
// [0, 4), [6, 7). InvalidArgument names the part that is wrong or not below
// `limit`.
struct HalfOpenRange {
  size_t begin = 0;
  size_t end = 0;
  bool operator==(const HalfOpenRange&) const = default;
};
absl::StatusOr<std::vector<HalfOpenRange>> ParseRanges(const std::string& text,
                                                       size_t limit);

// Splits num_experts experts into num_processes contiguous ranges whose sizes
// differ by one at most, larger ones first: "0-2", "3-5", "6-7".
// num_processes is in [1, num_experts].
std::vector<std::string> SplitExperts(size_t num_experts, size_t num_processes);

// "experts 0-3 of layers 0-11", for logs and errors.
std::string ToString(const v1::ExpertRange& range);

}  // namespace troupe

#endif  // TROUPE_CLUSTER_EXPERT_RANGE_H_
