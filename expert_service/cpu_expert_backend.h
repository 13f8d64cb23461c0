// Experts on the CPU: grouped GEMMs over an ExpertStore.
#ifndef TROUPE_EXPERT_SERVICE_CPU_EXPERT_BACKEND_H_
#define TROUPE_EXPERT_SERVICE_CPU_EXPERT_BACKEND_H_

#include <memory>
#include <vector>

#include "common/thread_pool.h"
#include "expert_service/expert_backend.h"
#include "expert_service/expert_store.h"
#include "kernels/expert_ffn.h"
#include "kernels/workspace.h"

namespace troupe {

// Does not own store and pool; the pool is the backend's alone.
class CpuExpertBackend final : public ExpertBackend {
 public:
  CpuExpertBackend(const ExpertStore& store, ThreadPool& pool)
      : store_(store), pool_(pool) {}

  FrameLimits limits() const override {
    return {store_.hidden_size(), store_.num_layers(), store_.num_experts()};
  }
  std::shared_ptr<const ExpertSet> experts() const override {
    return store_.experts();
  }
  void Compute(size_t layer, ConstFloatMatrix hidden_states,
               std::span<const uint32_t> row_of_copy,
               std::span<const uint32_t> expert_offsets,
               std::span<const LoadedExpert* const> experts,
               FloatMatrix output) override {
    weights_.clear();
    for (const LoadedExpert* expert : experts) {
      weights_.push_back(expert->weights.get());
    }
    GroupedGatedMlp(hidden_states, row_of_copy, expert_offsets, weights_,
                    output, workspace_, pool_);
  }

 private:
  const ExpertStore& store_;
  ThreadPool& pool_;
  Workspace workspace_;
  std::vector<const GatedMlpWeights*> weights_;
};

}  // namespace troupe

#endif  // TROUPE_EXPERT_SERVICE_CPU_EXPERT_BACKEND_H_
