// Who serves which version of which expert: an immutable value with an epoch.
#ifndef TROUPE_CLUSTER_PLACEMENT_H_
#define TROUPE_CLUSTER_PLACEMENT_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "cluster/model_snapshot.h"
#include "protos/cluster.pb.h"

namespace troupe {

// One expert process as far as the placement knows it.
struct PlacementPeer {
  size_t peer = 0;  // index in the ExpertPool
  // Of one that is away: what it said last, in state UNSPECIFIED.
  v1::ExpertDescription description;
};

// One version of one expert that is announced as leaving.
struct LeavingVersion {
  size_t peer = 0;
  v1::ExpertVersion version;  // of one expert of one layer
  uint64_t key = 0;
};

// For each layer, expert and version the peers that own a replica and take
// work, and the version of each expert that new sequences use. Immutable; any
// thread may read it. A step uses one placement from start to end, except where
// it lost a peer.
class Placement {
 public:
  // Only peers that are READY are replicas. Which version is current is said by
  // the newest rollout of the peers and of `previous` (cluster/rollout.h);
  // while there is none, an expert keeps the version that it had in `previous`
  // as long as that has a replica, and else takes the version of the lowest
  // peer; experts of which there are several then are named in conflicts().
  // `previous`: the placement before this one, of the same model; null: there
  // was none.
  Placement(uint64_t epoch, const std::vector<bool>& is_moe_layer,
            size_t num_experts, absl::Span<const PlacementPeer> peers,
            const Placement* previous = nullptr);

  uint64_t epoch() const { return epoch_; }

  // Peers that own the version, ascending; empty when none does. Key 0: the
  // current version. Those that it is leaving from are there only if no other
  // has it.
  absl::Span<const size_t> Replicas(size_t layer, size_t expert,
                                    uint64_t key = 0) const;
  // Whether a peer that is away has had the version, and may return.
  bool MayReturn(size_t layer, size_t expert, uint64_t key) const;

  // Of new sequences. Experts that have no replica keep their last version; one
  // that has never been seen has key 0.
  const SnapshotPtr& current() const { return current_; }
  // Of those that IsCanary chooses; null: there is no canary.
  const SnapshotPtr& canary() const { return canary_; }
  // By request id.
  const SnapshotPtr& SnapshotFor(absl::string_view request_id) const;
  // The one of that name (ModelSnapshot::Name), if it can be made from what is
  // here; else null.
  SnapshotPtr Find(absl::string_view name) const;

  // Null while there is none.
  const v1::Rollout* rollout() const {
    return rollout_.revision() == 0 ? nullptr : &rollout_;
  }
  const std::vector<LeavingVersion>& leaving() const { return leaving_; }
  // Whether the version has a replica that it is not leaving from; whether
  // another version of that expert has.
  bool StaysElsewhere(size_t layer, size_t expert, uint64_t key) const;
  bool HasOtherVersion(size_t layer, size_t expert, uint64_t key) const;

  // The first expert whose current version has no replica, as a sentence
  // ("expert 3 of layer 0 has no replica"); nothing when every expert has one.
  std::optional<std::string> Missing() const;
  // The first expert that has never been seen; a sequence cannot begin.
  std::optional<std::string> Unknown() const;

  const std::vector<std::string>& conflicts() const { return conflicts_; }

 private:
  struct Version {
    uint64_t key = 0;
    std::vector<size_t> stays;  // peers, ascending
    std::vector<size_t> leaves;
    std::vector<size_t> away;
    std::vector<std::string> labels;  // of those that stay
  };

  void AddPeer(const PlacementPeer& peer);
  const Version* Find(size_t layer, size_t expert, uint64_t key) const;
  std::vector<std::string> UsableLabels(
      const google::protobuf::RepeatedPtrField<v1::RolloutLabel>& labels) const;
  // What new sequences use if these are preferred.
  SnapshotPtr Choose(const std::vector<std::string>& labels,
                     const std::string& text,
                     const SnapshotPtr& previous) const;
  void NoteConflicts(absl::Span<const PlacementPeer> peers);
  std::optional<std::string> FirstWithout(bool known_is_enough) const;

  uint64_t epoch_;
  size_t num_experts_;
  std::vector<bool> is_moe_layer_;
  std::vector<std::vector<Version>> versions_;  // [num_layers * num_experts]
  v1::Rollout rollout_;
  SnapshotPtr current_;
  SnapshotPtr canary_;
  std::vector<LeavingVersion> leaving_;
  std::vector<std::string> conflicts_;
};

}  // namespace troupe

#endif  // TROUPE_CLUSTER_PLACEMENT_H_
