// The version of every expert that a sequence uses.
#ifndef TROUPE_CLUSTER_MODEL_SNAPSHOT_H_
#define TROUPE_CLUSTER_MODEL_SNAPSHOT_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace troupe {

// Immutable; any thread may read it. Two with the same keys have the same id
// in every router: it is a digest of them.
class ModelSnapshot {
 public:
  // keys [num_layers * num_experts]: VersionKeyOf of each expert's content
  // hash; 0: not known, or a layer without experts. `labels`: what it was made
  // by, for people ("v2,v1").
  ModelSnapshot(size_t num_experts, std::vector<uint64_t> keys,
                std::string labels);

  uint64_t key(size_t layer, size_t expert) const {
    return keys_[layer * num_experts_ + expert];
  }
  const std::vector<uint64_t>& keys() const { return keys_; }
  uint64_t id() const { return id_; }
  std::string id_text() const;  // 16 hex digits
  const std::string& labels() const { return labels_; }
  // "ID:LABELS": by which another router finds the same one.
  std::string Name() const;

 private:
  const size_t num_experts_;
  const std::vector<uint64_t> keys_;
  const std::string labels_;
  uint64_t id_;
};
using SnapshotPtr = std::shared_ptr<const ModelSnapshot>;

// The parts of Name(); false when it is none.
bool ParseSnapshotName(absl::string_view name, uint64_t* id,
                       std::string* labels);

}  // namespace troupe

#endif  // TROUPE_CLUSTER_MODEL_SNAPSHOT_H_
