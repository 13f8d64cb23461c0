// The connection from a router to one expert process.
#ifndef TROUPE_CLUSTER_EXPERT_PEER_H_
#define TROUPE_CLUSTER_EXPERT_PEER_H_

#include <functional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "protos/expert.pb.h"

namespace troupe {

// A transport. Implementations: GrpcExpertPeer (everywhere), LocalExpertPeer
// (same process: tests and benchmarks). Thread-safe. Destroying it cancels what
// is in flight and returns when no callback runs any more.
class ExpertPeer {
 public:
  // Called from any thread; must not block.
  class Listener {
   public:
    virtual ~Listener() = default;
    // The process described itself: after connecting and on every change.
    virtual void OnDescription(const v1::ExpertDescription& description) = 0;
    // The connection could not be made or broke. Every batch in flight has got
    // its error already. Connect() may be called again.
    virtual void OnLost(const absl::Status& status) = 0;
  };
  using OutputCallback =
      std::function<void(absl::StatusOr<v1::ExpertOutput> output)>;

  virtual ~ExpertPeer() = default;

  // Begins to connect; the outcome goes to `listener`, which outlives this.
  // Not while connected.
  virtual void Connect(Listener* listener) = 0;

  // Sends a batch; `done` is called exactly once, from any thread, perhaps
  // before Send returns. Unavailable: not connected, or the connection broke.
  // The peer sets batch.attempt_id.
  virtual void Send(v1::ExpertBatch batch, OutputCallback done) = 0;

  // "grpc", "local": for people.
  virtual const char* transport() const = 0;
};

}  // namespace troupe

#endif  // TROUPE_CLUSTER_EXPERT_PEER_H_
