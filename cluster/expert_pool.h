// The expert processes that a router knows: connections, placement, load.
#ifndef TROUPE_CLUSTER_EXPERT_POOL_H_
#define TROUPE_CLUSTER_EXPERT_POOL_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"
#include "cluster/expert_peer.h"
#include "cluster/placement.h"
#include "cluster/replica_choice.h"
#include "common/clock.h"
#include "common/rpc/doorbell.h"

namespace troupe {

struct ExpertPoolOptions {
  std::vector<bool> is_moe_layer;  // [num_layers]
  size_t num_experts = 0;          // per MoE layer
  // Wait before a lost peer is tried again: doubles from min to max.
  milliseconds min_backoff = milliseconds(50);
  milliseconds max_backoff = milliseconds(1000);
  // On which the thread that waits for outputs sleeps: whatever makes a batch
  // answered rings it. Null: one of the pool's own.
  std::shared_ptr<Doorbell> bell;
};

// Owns the peers and a thread that connects them again when they are lost.
// Thread-safe. Every change of what peers say of themselves makes a new
// placement with the next epoch.
class ExpertPool {
 public:
  struct Member {
    std::string address;  // for people
    std::unique_ptr<ExpertPeer> peer;
  };

  ExpertPool(ExpertPoolOptions options, std::vector<Member> members);
  ~ExpertPool();
  ExpertPool(const ExpertPool&) = delete;
  ExpertPool& operator=(const ExpertPool&) = delete;

  std::shared_ptr<const Placement> placement() const;

  // A replica of the version with that key (0: the current one): the one that
  // ChooseReplica takes for `rows` more rows, which count as if they were
  // there until they are sent. None when no replica is left. `avoid`: peers
  // that just refused or failed.
  std::optional<size_t> Choose(const Placement& placement, size_t layer,
                               size_t expert, absl::Span<const size_t> avoid,
                               uint64_t version = 0, uint64_t rows = 0);
  // Rows that the process with the most room for the version could take, as far
  // as its last answer and what is in flight tell; 0: none is connected.
  uint64_t Room(const Placement& placement, size_t layer, size_t expert,
                uint64_t version = 0) const;
  // A snapshot that some sequence has, besides those of placements. While
  // anybody holds it, leaving versions that it names are not released.
  void Register(const SnapshotPtr& snapshot);

  // See ExpertPeer::Send; the pool keeps account of the peer's load, and rings
  // the bell after `done`.
  void Send(size_t peer, const ExpertBatch& batch, size_t payload_bytes,
            ExpertPeer::WritePayload write, ExpertPeer::OutputCallback done);
  // See ExpertPeer::Poll; one thread at a time.
  void Poll();
  Doorbell& bell() { return *bell_; }

  size_t size() const { return members_.size(); }
  const std::string& address(size_t peer) const;
  std::vector<v1::ExpertPeer> Describe() const;

 private:
  class PoolMember;

  uint64_t Draw() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Maintain();
  void Rebuild() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Notes a snapshot, forgets those that are gone.
  void Note(const SnapshotPtr& snapshot) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // The leaving versions, by peer, that no sequence has any more and whose peer
  // was not told yet.
  std::vector<std::pair<size_t, v1::ReleaseVersions>> TakeReleases()
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const ExpertPoolOptions options_;
  const std::shared_ptr<Doorbell> bell_;
  mutable absl::Mutex mu_;
  std::shared_ptr<const Placement> placement_ ABSL_GUARDED_BY(mu_);
  std::vector<std::weak_ptr<const ModelSnapshot>> snapshots_
      ABSL_GUARDED_BY(mu_);
  // Of Choose; kept, so that it allocates nothing.
  std::vector<size_t> candidates_ ABSL_GUARDED_BY(mu_);
  std::vector<ReplicaLoad> loads_ ABSL_GUARDED_BY(mu_);
  uint64_t num_sent_ ABSL_GUARDED_BY(mu_) = 0;  // messages
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  bool lost_ ABSL_GUARDED_BY(mu_) = false;            // news for Maintain()
  std::vector<std::unique_ptr<PoolMember>> members_;  // fixed
  std::thread maintenance_;
};

}  // namespace troupe

#endif  // TROUPE_CLUSTER_EXPERT_POOL_H_
