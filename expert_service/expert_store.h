// The weights of the experts that one process owns.
#ifndef TROUPE_EXPERT_SERVICE_EXPERT_STORE_H_
#define TROUPE_EXPERT_SERVICE_EXPERT_STORE_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "cluster/expert_range.h"
#include "common/thread_pool.h"
#include "kernels/expert_ffn.h"
#include "model/checkpoint.h"
#include "protos/cluster.pb.h"

namespace troupe {

// Owns packed copies of the weights; immutable after Load, any thread may read.
class ExpertStore {
 public:
  // Bytes done and bytes in all, while loading; an error ends the loading.
  using Progress = std::function<absl::Status(uint64_t done, uint64_t total)>;

  // Packs the given experts of the given layers (layers without experts are
  // passed over). Maps one expert's tensors per thread at a time, so that the
  // process never holds more of the checkpoint than that besides the packed
  // copies.
  // InvalidArgument when no expert is left.
  static absl::StatusOr<std::unique_ptr<ExpertStore>> Load(
      const Checkpoint& checkpoint, const std::vector<HalfOpenRange>& layers,
      const std::vector<HalfOpenRange>& experts, ThreadPool& pool,
      const Progress& progress);

  // Null when this process does not own the expert.
  const GatedMlpWeights* Find(size_t layer, size_t expert) const {
    const size_t i = layer * num_experts_ + expert;
    return layer < num_layers_ && expert < num_experts_ &&
                   !weights_[i].down.empty()
               ? &weights_[i]
               : nullptr;
  }

  size_t num_layers() const { return num_layers_; }
  size_t num_experts() const { return num_experts_; }  // per layer of the model
  size_t hidden_size() const { return hidden_size_; }
  uint64_t num_bytes() const { return num_bytes_; }
  // One per layer and expert, with the hash of its weights.
  const std::vector<v1::ExpertVersion>& versions() const { return versions_; }

 private:
  ExpertStore() = default;

  size_t num_layers_ = 0;
  size_t num_experts_ = 0;
  size_t hidden_size_ = 0;
  uint64_t num_bytes_ = 0;
  std::vector<GatedMlpWeights> weights_;  // [num_layers * num_experts]
  std::vector<v1::ExpertVersion> versions_;
};

}  // namespace troupe

#endif  // TROUPE_EXPERT_SERVICE_EXPERT_STORE_H_
