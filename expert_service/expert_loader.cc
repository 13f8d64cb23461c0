#include "expert_service/expert_loader.h"

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "cluster/version_key.h"
#include "common/status_macros.h"

namespace troupe {
namespace {

// Maps, checks, hashes and packs one expert.
absl::Status LoadExpert(const Checkpoint& checkpoint, ExpertOfLayer which,
                        ThreadPool& pool, LoadedExpert& loaded) {
  const auto map = [&](ExpertTensor tensor) {
    return checkpoint.MapExpert(which.layer, which.expert, tensor);
  };
  ABSL_ASSIGN_OR_RETURN(const MappedTensor gate, map(ExpertTensor::kGateProj));
  ABSL_ASSIGN_OR_RETURN(const MappedTensor up, map(ExpertTensor::kUpProj));
  ABSL_ASSIGN_OR_RETURN(const MappedTensor down, map(ExpertTensor::kDownProj));
  const std::string hash = ExpertContentHashOf(gate, up, down);
  ABSL_RETURN_IF_ERROR(
      checkpoint.CheckContentHash(which.layer, which.expert, hash));
  v1::ExpertRange& range = *loaded.version.mutable_range();
  range.set_layer_begin(static_cast<uint32_t>(which.layer));
  range.set_layer_end(static_cast<uint32_t>(which.layer + 1));
  range.set_expert_begin(static_cast<uint32_t>(which.expert));
  range.set_expert_end(static_cast<uint32_t>(which.expert + 1));
  loaded.version.set_content_hash(hash);
  loaded.key = VersionKeyOf(hash);
  auto weights = std::make_shared<GatedMlpWeights>();
  weights->gate_up = PackedMatrix::PackGateUp(gate.matrix(), up.matrix(), pool);
  weights->down = PackedMatrix::Pack(down.matrix(), pool);
  loaded.weights = std::move(weights);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<LoadedExperts> LoadExperts(const Checkpoint& checkpoint,
                                          absl::Span<const ExpertOfLayer> which,
                                          const std::string& label,
                                          const std::string& source,
                                          ThreadPool& pool,
                                          const LoadExpertsProgress& progress) {
  uint64_t total = 0;
  for (const auto& [layer, expert] : which) {
    total += checkpoint.expert_bytes(layer, expert);
  }
  uint64_t done = 0;
  LoadedExperts experts;
  // A thread takes an expert from its file to the packed form, while the bytes
  // are in the caches: as many at once as there are threads. The files of the
  // next ones are read meanwhile.
  const size_t at_once = pool.num_threads();
  std::vector<absl::Status> statuses(at_once);
  for (size_t begin = 0; begin < which.size(); begin += at_once) {
    const size_t end = std::min(begin + at_once, which.size());
    for (size_t i = end; i < std::min(end + at_once, which.size()); ++i) {
      checkpoint.PrefetchExpert(which[i].layer, which[i].expert);
    }
    std::vector<std::shared_ptr<LoadedExpert>> loaded(end - begin);
    pool.ParallelFor(end - begin, [&](size_t i, size_t) {
      loaded[i] = std::make_shared<LoadedExpert>();
      loaded[i]->version.set_label(label);
      loaded[i]->source = source;
      ThreadPool this_thread(1);
      statuses[i] =
          LoadExpert(checkpoint, which[begin + i],
                     end - begin == 1 ? pool : this_thread, *loaded[i]);
    });
    for (size_t i = 0; i < end - begin; ++i) {
      ABSL_RETURN_IF_ERROR(statuses[i]);
      experts.push_back(std::move(loaded[i]));
      const auto [layer, expert] = which[begin + i];
      done += checkpoint.expert_bytes(layer, expert);
    }
    ABSL_RETURN_IF_ERROR(progress(done, total));
  }
  return experts;
}

}  // namespace troupe
