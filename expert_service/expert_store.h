// The weights of the experts that one process owns.
#ifndef TROUPE_EXPERT_SERVICE_EXPERT_STORE_H_
#define TROUPE_EXPERT_SERVICE_EXPERT_STORE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"
#include "cluster/expert_range.h"
#include "common/thread_pool.h"
#include "expert_service/expert_loader.h"
#include "expert_service/expert_set.h"
#include "model/checkpoint.h"
#include "protos/cluster.pb.h"

namespace troupe {

// Owns packed copies of the weights: a set that is replaced as a whole, so that
// experts come and go while others are computed. Weights live as long as
// anybody holds a set that they are in. Thread-safe.
class ExpertStore {
 public:
  using Progress = LoadExpertsProgress;

  // With the given experts of the given layers (layers without experts are
  // passed over). InvalidArgument when no expert is left.
  static absl::StatusOr<std::unique_ptr<ExpertStore>> Load(
      const Checkpoint& checkpoint, const std::vector<HalfOpenRange>& layers,
      const std::vector<HalfOpenRange>& experts, ThreadPool& pool,
      const Progress& progress, const std::string& label = "");

  std::shared_ptr<const ExpertSet> experts() const;

  // Adds all of them or none. Those that are here already, with their label and
  // content, are passed over, those whose content is here share its weights.
  // FailedPrecondition when the label has another content here, or when an
  // expert would have too many versions.
  absl::Status Add(const LoadedExperts& experts);
  // One version of one expert: the label names it.
  struct Which {
    size_t layer = 0;
    size_t expert = 0;
    std::string label;
  };
  // Says in versions() that they are leaving, or no longer. NotFound when one
  // is not here; then nothing has changed.
  absl::Status SetLeaving(absl::Span<const Which> which, bool leaving);
  void SetAllLeaving();
  // Takes them out and returns them, so that the caller may wait until nobody
  // else holds them. Those that are not here are passed over.
  LoadedExperts Remove(absl::Span<const Which> which);

  size_t num_layers() const { return num_layers_; }
  size_t num_experts() const { return num_experts_; }  // per layer of the model
  size_t hidden_size() const { return hidden_size_; }
  // Packed weights, those of several versions once.
  uint64_t num_bytes() const;
  // One per layer, expert and version.
  std::vector<v1::ExpertVersion> versions() const;

 private:
  explicit ExpertStore(const ModelConfig& config);
  void Replace(const LoadedExperts& experts) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const size_t num_layers_;
  const size_t num_experts_;
  const size_t hidden_size_;

  mutable absl::Mutex mu_;
  std::shared_ptr<const ExpertSet> set_ ABSL_GUARDED_BY(mu_);
};

}  // namespace troupe

#endif  // TROUPE_EXPERT_SERVICE_EXPERT_STORE_H_
