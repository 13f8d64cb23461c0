#include "expert_service/expert_store.h"

#include <utility>

#include "common/status_macros.h"

namespace troupe {

absl::StatusOr<std::unique_ptr<ExpertStore>> ExpertStore::Load(
    const Checkpoint& checkpoint, const std::vector<HalfOpenRange>& layers,
    const std::vector<HalfOpenRange>& experts, ThreadPool& pool,
    const Progress& progress) {
  const ModelConfig& config = checkpoint.config();
  auto store = std::unique_ptr<ExpertStore>(new ExpertStore);
  store->num_layers_ = config.num_layers;
  store->num_experts_ = config.num_experts;
  store->hidden_size_ = config.hidden_size;
  store->weights_.resize(config.num_layers * config.num_experts);

  std::vector<std::pair<size_t, size_t>> owned;
  for (const HalfOpenRange& layer_range : layers) {
    for (size_t layer = layer_range.begin; layer < layer_range.end; ++layer) {
      if (!config.is_moe_layer[layer]) continue;
      for (const HalfOpenRange& range : experts) {
        for (size_t e = range.begin; e < range.end; ++e) {
          owned.emplace_back(layer, e);
        }
      }
    }
  }
  if (owned.empty()) {
    return absl::InvalidArgumentError(
        "no expert to own: the given layers have none");
  }

  uint64_t total = 0;
  for (const auto& [layer, expert] : owned) {
    total += checkpoint.expert_bytes(layer, expert);
  }
  uint64_t done = 0;
  for (const auto& [layer, expert] : owned) {
    v1::ExpertVersion version;
    version.mutable_range()->set_layer_begin(static_cast<uint32_t>(layer));
    version.mutable_range()->set_layer_end(static_cast<uint32_t>(layer + 1));
    version.mutable_range()->set_expert_begin(static_cast<uint32_t>(expert));
    version.mutable_range()->set_expert_end(static_cast<uint32_t>(expert + 1));
    ABSL_ASSIGN_OR_RETURN(*version.mutable_content_hash(),
                          checkpoint.ExpertContentHash(layer, expert));
    store->versions_.push_back(std::move(version));

    ABSL_ASSIGN_OR_RETURN(
        const MappedTensor gate,
        checkpoint.MapExpert(layer, expert, ExpertTensor::kGateProj));
    ABSL_ASSIGN_OR_RETURN(
        const MappedTensor up,
        checkpoint.MapExpert(layer, expert, ExpertTensor::kUpProj));
    ABSL_ASSIGN_OR_RETURN(
        const MappedTensor down,
        checkpoint.MapExpert(layer, expert, ExpertTensor::kDownProj));
    GatedMlpWeights& weights =
        store->weights_[layer * config.num_experts + expert];
    weights.gate_up =
        PackedMatrix::PackGateUp(gate.matrix(), up.matrix(), pool);
    weights.down = PackedMatrix::Pack(down.matrix(), pool);
    store->num_bytes_ += weights.gate_up.num_bytes() + weights.down.num_bytes();
    done += checkpoint.expert_bytes(layer, expert);
    ABSL_RETURN_IF_ERROR(progress(done, total));
  }
  return store;
}

}  // namespace troupe
