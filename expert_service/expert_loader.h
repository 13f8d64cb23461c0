// From the files to weights that can be computed with.
#ifndef TROUPE_EXPERT_SERVICE_EXPERT_LOADER_H_
#define TROUPE_EXPERT_SERVICE_EXPERT_LOADER_H_

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/thread_pool.h"
#include "expert_service/expert_set.h"
#include "model/checkpoint.h"

namespace troupe {

// Bytes done and bytes in all, while loading; an error ends the loading.
using LoadExpertsProgress =
    std::function<absl::Status(uint64_t done, uint64_t total)>;

// Hashes and packs experts of a checkpoint, or of a file of experts
// (Checkpoint::OpenExperts). Maps one expert's tensors per thread at a time, so
// that the process never holds more of the files than that besides the packed
// copies. All of them or an error, which names file and tensor.
absl::StatusOr<LoadedExperts> LoadExperts(const Checkpoint& checkpoint,
                                          absl::Span<const ExpertOfLayer> which,
                                          const std::string& label,
                                          const std::string& source,
                                          ThreadPool& pool,
                                          const LoadExpertsProgress& progress);

}  // namespace troupe

#endif  // TROUPE_EXPERT_SERVICE_EXPERT_LOADER_H_
