// Who serves which expert: an immutable value with an epoch.
#ifndef TROUPE_CLUSTER_PLACEMENT_H_
#define TROUPE_CLUSTER_PLACEMENT_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "protos/cluster.pb.h"

namespace troupe {

// One expert process as far as the placement knows it.
struct PlacementPeer {
  size_t peer = 0;  // index in the ExpertPool
  v1::ExpertDescription description;
};

// For each layer and expert the peers that own a replica and take work.
// Immutable; any thread may read it. A step uses one placement from start to
// end, except where it lost a peer.
class Placement {
 public:
  // Peers whose state is not READY are left out. Replicas of one expert must
  // have the same content hash: the version of the lowest peer that holds it
  // wins, the others are left out and named in conflicts(). `previous`: the
  // placement before this one, of the same model; null: there was none.
  Placement(uint64_t epoch, const std::vector<bool>& is_moe_layer,
            size_t num_experts, absl::Span<const PlacementPeer> peers,
            const Placement* previous = nullptr);

  uint64_t epoch() const { return epoch_; }
  // How often an expert has changed its version so far. One that went away and
  // came back with the same content has not.
  uint64_t num_version_changes() const { return num_version_changes_; }

  // Peers that own the expert, ascending; empty when none does.
  absl::Span<const size_t> Replicas(size_t layer, size_t expert) const {
    return replicas_[layer * num_experts_ + expert];
  }

  // The first expert without a replica, as a sentence ("expert 3 of layer 0
  // has no replica"); nothing when every expert has one.
  std::optional<std::string> Missing() const;

  const std::vector<std::string>& conflicts() const { return conflicts_; }

 private:
  uint64_t epoch_;
  size_t num_experts_;
  std::vector<bool> is_moe_layer_;
  std::vector<std::vector<size_t>> replicas_;  // [num_layers * num_experts]
  // Content hashes, the last that were known; empty: none yet. The same size.
  std::vector<std::string> versions_;
  uint64_t num_version_changes_ = 0;
  std::vector<std::string> conflicts_;
};

}  // namespace troupe

#endif  // TROUPE_CLUSTER_PLACEMENT_H_
