// The expert processes that a router knows: connections, placement, load.
#ifndef TROUPE_CLUSTER_EXPERT_POOL_H_
#define TROUPE_CLUSTER_EXPERT_POOL_H_

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
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
#include "cluster/latency_tracker.h"
#include "cluster/peer_health.h"
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

  // Makes the peer of an address that SetAddresses adds.
  std::function<std::unique_ptr<ExpertPeer>(const std::string& address)>
      make_peer;
  // How long a peer that is not listed any more may take to answer what it has,
  // and how long its index is not another's.
  milliseconds retire_limit = milliseconds(10000);

  // Whether sick peers are left out and probed until they are well again.
  // Probes need the width of a row.
  bool ejection = true;
  size_t hidden_size = 0;
  DataType wire_dtype = DataType::kF32;
  HedgeDelayOptions hedge;
  PeerHealthOptions health;
};

// What spoke against a peer.
enum class Trouble { kHedgeWon, kTimeout, kWrongAnswer };

// Owns the peers and a thread that connects them again when they are lost,
// ejects those that are sick (never the last replica of an expert) and probes
// them until they are well. Indices of peers are stable: one whose address is
// not listed any more keeps its own until nothing refers to it.
//
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

  // From now on the peers are those of the addresses: those that are new are
  // connected to, those that are missing get nothing more and are let go when
  // they have answered what they have.
  void SetAddresses(const std::vector<std::string>& addresses);

  // A replica of the version with that key (0: the current one): the one that
  // ChooseReplica takes for `rows` more rows, which count as if they were
  // there until they are sent. Peers that are ejected or do not answer are
  // chosen when there are no others. None when no replica is left. `avoid`:
  // peers that just refused or failed.
  std::optional<size_t> Choose(const Placement& placement, size_t layer,
                               size_t expert, absl::Span<const size_t> avoid,
                               uint64_t version = 0, uint64_t rows = 0);
  // The same, but only peers that are well and have room.
  std::optional<size_t> ChooseForHedge(const Placement& placement, size_t layer,
                                       size_t expert,
                                       absl::Span<const size_t> avoid,
                                       uint64_t version = 0);
  // Rows that the process with the most room for the version could take, as far
  // as its last answer and what is in flight tell; 0: none is connected.
  uint64_t Room(const Placement& placement, size_t layer, size_t expert,
                uint64_t version = 0) const;
  // A snapshot that some sequence has, besides those of placements. While
  // anybody holds it, leaving versions that it names are not released.
  void Register(const SnapshotPtr& snapshot);

  // See ExpertPeer::Send; the pool keeps account of the peer's load, and rings
  // the bell after `done`. Returns the number of the message.
  uint64_t Send(size_t peer, const ExpertBatch& batch, size_t payload_bytes,
                ExpertPeer::WritePayload write,
                ExpertPeer::OutputCallback done);
  // See ExpertPeer::Poll.
  void Poll();
  Doorbell& bell() { return *bell_; }

  // After which a message of that many rows is late at that peer.
  std::chrono::nanoseconds HedgeDelay(size_t peer, uint64_t rows) const;
  // The message is late; nothing happens when it has been answered.
  void OnLate(size_t peer, uint64_t message);
  void OnTrouble(size_t peer, Trouble trouble, const std::string& why);

  // Indices are below this; it grows.
  size_t size() const;
  std::string address(size_t peer) const;
  // Not those whose address is no longer listed and that are gone.
  std::vector<v1::ExpertPeer> Describe() const;
  // What the pool knows of them.
  void AddFailoverStats(v1::FailoverStats& stats) const;

 private:
  class PoolMember;
  using PeerList = std::vector<std::shared_ptr<ExpertPeer>>;

  uint64_t Draw() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Maintain();
  uint64_t SendMessage(size_t peer, const ExpertBatch& batch,
                       size_t payload_bytes, ExpertPeer::WritePayload write,
                       ExpertPeer::OutputCallback done, bool probe);
  std::optional<size_t> ChooseAmong(absl::Span<const size_t> replicas,
                                    absl::Span<const size_t> avoid,
                                    int max_rank, uint64_t rows)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void ListPeers() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Lets go of retired peers that are done.
  void TakeRetired(SteadyTime now, PeerList& gone)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // pool_health.cc
  void OnAnswer(PoolMember& member, uint64_t message,
                const absl::StatusOr<ExpertOutput>& output)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool IsLastReplica(const PoolMember& member) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Ejects it if it is sick; adds it to `probes` if it is to be probed. When to
  // look again.
  SteadyTime LookAfter(PoolMember& member, SteadyTime now,
                       std::vector<size_t>& probes)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void SendProbe(size_t peer);
  v1::PeerHealth HealthOf(const PoolMember& member) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

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
  bool lost_ ABSL_GUARDED_BY(mu_) = false;  // news for Maintain()
  // Slots; none ever goes away.
  std::vector<std::unique_ptr<PoolMember>> members_ ABSL_GUARDED_BY(mu_);
  std::shared_ptr<const PeerList> peers_ ABSL_GUARDED_BY(mu_);
  uint64_t num_ejections_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t num_readmissions_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t num_ejections_forgone_ ABSL_GUARDED_BY(mu_) = 0;
  absl::Mutex poll_mu_;  // whoever polls
  std::thread maintenance_;
};

}  // namespace troupe

#endif  // TROUPE_CLUSTER_EXPERT_POOL_H_
