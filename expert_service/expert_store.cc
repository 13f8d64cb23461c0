#include "expert_service/expert_store.h"

#include <algorithm>
#include <utility>

#include "common/status_macros.h"

namespace troupe {
namespace {

// Maps, checks, hashes and packs one expert.
absl::Status LoadExpert(const Checkpoint& checkpoint, size_t layer,
                        size_t expert, ThreadPool& pool,
                        GatedMlpWeights& weights, v1::ExpertVersion& version) {
  const auto map = [&](ExpertTensor which) {
    return checkpoint.MapExpert(layer, expert, which);
  };
  ABSL_ASSIGN_OR_RETURN(const MappedTensor gate, map(ExpertTensor::kGateProj));
  ABSL_ASSIGN_OR_RETURN(const MappedTensor up, map(ExpertTensor::kUpProj));
  ABSL_ASSIGN_OR_RETURN(const MappedTensor down, map(ExpertTensor::kDownProj));
  version.mutable_range()->set_layer_begin(static_cast<uint32_t>(layer));
  version.mutable_range()->set_layer_end(static_cast<uint32_t>(layer + 1));
  version.mutable_range()->set_expert_begin(static_cast<uint32_t>(expert));
  version.mutable_range()->set_expert_end(static_cast<uint32_t>(expert + 1));
  version.set_content_hash(ExpertContentHashOf(gate, up, down));
  weights.gate_up = PackedMatrix::PackGateUp(gate.matrix(), up.matrix(), pool);
  weights.down = PackedMatrix::Pack(down.matrix(), pool);
  return absl::OkStatus();
}

}  // namespace

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
  store->versions_.resize(owned.size());
  // A thread takes an expert from its file to the packed form, while the bytes
  // are in the caches: as many at once as there are threads. The files of the
  // next ones are read meanwhile.
  const size_t at_once = pool.num_threads();
  std::vector<absl::Status> statuses(owned.size());
  for (size_t begin = 0; begin < owned.size(); begin += at_once) {
    const size_t end = std::min(begin + at_once, owned.size());
    for (size_t i = end; i < std::min(end + at_once, owned.size()); ++i) {
      checkpoint.PrefetchExpert(owned[i].first, owned[i].second);
    }
    pool.ParallelFor(end - begin, [&](size_t index, size_t) {
      const size_t i = begin + index;
      const auto [layer, expert] = owned[i];
      ThreadPool this_thread(1);
      statuses[i] = LoadExpert(
          checkpoint, layer, expert, end - begin == 1 ? pool : this_thread,
          store->weights_[layer * config.num_experts + expert],
          store->versions_[i]);
    });
    for (size_t i = begin; i < end; ++i) {
      const auto [layer, expert] = owned[i];
      ABSL_RETURN_IF_ERROR(statuses[i]);
      const GatedMlpWeights& weights =
          store->weights_[layer * config.num_experts + expert];
      store->num_bytes_ +=
          weights.gate_up.num_bytes() + weights.down.num_bytes();
      done += checkpoint.expert_bytes(layer, expert);
    }
    ABSL_RETURN_IF_ERROR(progress(done, total));
  }
  return store;
}

}  // namespace troupe
