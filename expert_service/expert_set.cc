#include "expert_service/expert_set.h"

#include "common/check.h"

namespace troupe {

ExpertSet::ExpertSet(size_t num_layers, size_t num_experts,
                     const LoadedExperts& experts)
    : num_layers_(num_layers),
      num_experts_(num_experts),
      versions_(num_layers * num_experts) {
  for (const auto& expert : experts) {
    CHECK_LT(expert->layer(), num_layers);
    CHECK_LT(expert->expert(), num_experts);
    versions_[expert->layer() * num_experts + expert->expert()].push_back(
        expert);
  }
}

LoadedExperts ExpertSet::All() const {
  LoadedExperts all;
  for (const LoadedExperts& versions : versions_) {
    all.insert(all.end(), versions.begin(), versions.end());
  }
  return all;
}

}  // namespace troupe
