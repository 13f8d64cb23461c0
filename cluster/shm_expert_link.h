// The router's end of the shared memory between it and an expert process.
#ifndef TROUPE_CLUSTER_SHM_EXPERT_LINK_H_
#define TROUPE_CLUSTER_SHM_EXPERT_LINK_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "cluster/expert_peer.h"
#include "common/rpc/doorbell.h"
#include "common/rpc/shared_ring.h"
#include "common/rpc/unique_fd.h"
#include "protos/cluster.pb.h"

namespace troupe {

// A data path beside a gRPC stream, which stays the control channel. Owns the
// rings and a thread that sees the end of the unix socket: when the process
// dies, every batch in flight gets its error at once. Thread-safe, except that
// one thread at a time calls Poll.
//
// Nothing here waits for room: a batch is only sent when the ring to the server
// has room for it and the ring to the client is sure to have room for its
// output, whatever else is still to come. Otherwise it goes over gRPC.
class ShmExpertLink {
 public:
  // Shakes hands; blocks for two seconds at most. `bell` is rung by the process
  // and outlives this.
  static absl::StatusOr<std::unique_ptr<ShmExpertLink>> Connect(
      const v1::ShmOffer& offer, const Doorbell& bell, std::string name);
  ~ShmExpertLink();
  ShmExpertLink(const ShmExpertLink&) = delete;
  ShmExpertLink& operator=(const ShmExpertLink&) = delete;

  // Takes `done` and returns true, or leaves everything as it was: there is no
  // room, or the link is dead.
  bool TrySend(const ExpertBatch& batch, size_t payload_bytes,
               ExpertPeer::WritePayload write,
               ExpertPeer::OutputCallback& done);
  // Calls the callbacks of what has been answered.
  void Poll();
  // Fails what is in flight; no callback runs any more when it returns, other
  // than in Poll.
  void Close();
  bool alive() const;

 private:
  struct Pending {
    uint64_t attempt_id;
    uint64_t output_footprint;
    ExpertPeer::OutputCallback done;
  };

  ShmExpertLink(std::string name, UniqueFd socket,
                std::unique_ptr<SharedRings> rings,
                std::unique_ptr<Doorbell> server_bell);
  void Watch();
  void Die(const absl::Status& why);

  const std::string name_;  // for people
  const UniqueFd socket_;
  const std::unique_ptr<SharedRings> rings_;
  const std::unique_ptr<Doorbell> server_bell_;

  absl::Mutex poll_mu_;  // held by who reads the ring; before mu_
  mutable absl::Mutex mu_;
  bool dead_ ABSL_GUARDED_BY(mu_) = false;
  absl::Status why_dead_ ABSL_GUARDED_BY(mu_);
  uint64_t last_attempt_id_ ABSL_GUARDED_BY(mu_) = 0;
  // Of the ring to the client, taken or promised.
  uint64_t output_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  std::vector<Pending> pending_ ABSL_GUARDED_BY(mu_);  // few

  std::thread watcher_;
};

}  // namespace troupe

#endif  // TROUPE_CLUSTER_SHM_EXPERT_LINK_H_
