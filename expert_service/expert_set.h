// The experts that one process has loaded, at one moment.
#ifndef TROUPE_EXPERT_SERVICE_EXPERT_SET_H_
#define TROUPE_EXPERT_SERVICE_EXPERT_SET_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "kernels/expert_ffn.h"
#include "protos/cluster.pb.h"

namespace troupe {

// One version of one expert of one layer. Immutable.
struct LoadedExpert {
  v1::ExpertVersion version;  // its range is this expert of this layer
  uint64_t key = 0;           // VersionKeyOf(version.content_hash())
  std::string source;         // "checkpoint", or the path of a file
  // Versions with other labels and the same content share them.
  std::shared_ptr<const GatedMlpWeights> weights;

  size_t layer() const { return version.range().layer_begin(); }
  size_t expert() const { return version.range().expert_begin(); }
  // Of the packed weights.
  uint64_t num_bytes() const {
    return weights->gate_up.num_bytes() + weights->down.num_bytes();
  }
};
using LoadedExperts = std::vector<std::shared_ptr<const LoadedExpert>>;

// Immutable: whoever holds it may compute with all that is in it. Any thread
// may read it.
class ExpertSet {
 public:
  // `experts`: within num_layers and num_experts.
  ExpertSet(size_t num_layers, size_t num_experts,
            const LoadedExperts& experts);

  // In the order of their loading; empty: the expert is not here.
  absl::Span<const std::shared_ptr<const LoadedExpert>> Versions(
      size_t layer, size_t expert) const {
    if (layer >= num_layers_ || expert >= num_experts_) return {};
    return versions_[layer * num_experts_ + expert];
  }
  // Null when it is not here. Key 0: the first that was loaded. Versions with
  // one key have the same weights.
  const LoadedExpert* Find(size_t layer, size_t expert,
                           uint64_t key = 0) const {
    for (const auto& version : Versions(layer, expert)) {
      if (key == 0 || version->key == key) return version.get();
    }
    return nullptr;
  }
  // All of them, ascending by layer and expert.
  LoadedExperts All() const;

 private:
  const size_t num_layers_;
  const size_t num_experts_;
  std::vector<LoadedExperts> versions_;  // [num_layers * num_experts]
};

}  // namespace troupe

#endif  // TROUPE_EXPERT_SERVICE_EXPERT_SET_H_
