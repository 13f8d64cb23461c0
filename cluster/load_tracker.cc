#include "cluster/load_tracker.h"

#include <algorithm>
#include <cmath>

#include "common/check.h"

namespace troupe {
namespace {

// Beyond that the sums are written anew, long before they lose digits.
constexpr double kMaxWeight = 1e9;

}  // namespace

LoadTracker::LoadTracker(size_t num_layers, size_t num_experts,
                         double half_life_seconds, SteadyTime start)
    : half_life_seconds_(half_life_seconds),
      base_(start),
      layers_(num_layers, {std::vector<double>(num_experts, 0),
                           std::vector<double>(num_experts, 0), 0}) {
  CHECK(half_life_seconds > 0);
}

double LoadTracker::WeightAt(SteadyTime now) const {
  const double seconds = std::chrono::duration<double>(now - base_).count();
  return std::exp2(std::max(0.0, seconds) / half_life_seconds_);
}

void LoadTracker::Rebase(SteadyTime now) {
  const double scale = 1 / WeightAt(now);
  for (RecentLoad& layer : layers_) {
    for (double& value : layer.tokens_per_expert) value *= scale;
    for (double& value : layer.active_steps_per_expert) value *= scale;
    layer.steps *= scale;
  }
  base_ = now;
}

void LoadTracker::AddStep(
    const std::vector<std::vector<uint64_t>>& tokens_per_expert,
    SteadyTime now) {
  CHECK_EQ(tokens_per_expert.size(), layers_.size());
  if (WeightAt(now) > kMaxWeight) Rebase(now);
  const double weight = WeightAt(now);
  for (size_t l = 0; l < layers_.size(); ++l) {
    RecentLoad& layer = layers_[l];
    CHECK_EQ(tokens_per_expert[l].size(), layer.tokens_per_expert.size());
    bool any = false;
    for (size_t e = 0; e < tokens_per_expert[l].size(); ++e) {
      const uint64_t tokens = tokens_per_expert[l][e];
      if (tokens == 0) continue;
      any = true;
      layer.tokens_per_expert[e] += weight * static_cast<double>(tokens);
      layer.active_steps_per_expert[e] += weight;
    }
    if (any) layer.steps += weight;
  }
}

RecentLoad LoadTracker::Recent(size_t layer, SteadyTime now) const {
  RecentLoad recent = layers_[layer];
  const double scale = 1 / WeightAt(now);
  for (double& value : recent.tokens_per_expert) value *= scale;
  for (double& value : recent.active_steps_per_expert) value *= scale;
  recent.steps *= scale;
  return recent;
}

}  // namespace troupe
