// How often each expert of each layer was chosen of late.
#ifndef TROUPE_CLUSTER_LOAD_TRACKER_H_
#define TROUPE_CLUSTER_LOAD_TRACKER_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "common/clock.h"

namespace troupe {

// Of one layer. What was counted a half-life ago counts half.
struct RecentLoad {
  std::vector<double> tokens_per_expert;  // [num_experts]
  // Steps in which the expert had at least one copy. [num_experts]
  std::vector<double> active_steps_per_expert;
  double steps = 0;
};

// Sums that fade. A value; not thread-safe.
class LoadTracker {
 public:
  LoadTracker(size_t num_layers, size_t num_experts, double half_life_seconds,
              SteadyTime start);

  // The copies of one step, [num_layers][num_experts]. A layer without any took
  // no part in it.
  void AddStep(const std::vector<std::vector<uint64_t>>& tokens_per_expert,
               SteadyTime now);

  // As of `now`, which is not before the last step.
  RecentLoad Recent(size_t layer, SteadyTime now) const;

  double half_life_seconds() const { return half_life_seconds_; }
  size_t num_layers() const { return layers_.size(); }

 private:
  // What a copy at `now` adds: later ones weigh more, instead of all earlier
  // ones being made smaller at every step.
  double WeightAt(SteadyTime now) const;
  void Rebase(SteadyTime now);

  double half_life_seconds_;
  SteadyTime base_;                 // where the weight is 1
  std::vector<RecentLoad> layers_;  // weighted
};

}  // namespace troupe

#endif  // TROUPE_CLUSTER_LOAD_TRACKER_H_
