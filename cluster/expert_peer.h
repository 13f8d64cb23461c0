// The connection from a router to one expert process.
#ifndef TROUPE_CLUSTER_EXPERT_PEER_H_
#define TROUPE_CLUSTER_EXPERT_PEER_H_

#include <cstddef>
#include <functional>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cluster/expert_frame.h"
#include "protos/cluster.pb.h"
#include "protos/expert.pb.h"

namespace troupe {

// A transport. Implementations: GrpcExpertPeer (everywhere, with shared memory
// where both processes are on one host), LocalExpertPeer (same process: tests
// and benchmarks). Thread-safe, except that one thread at a time calls Poll.
// Destroying it cancels what is in flight and returns when no callback runs any
// more.
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
  // The rows of the output are those of the transport's memory: they are
  // copied, once, before the callback returns.
  using OutputCallback =
      std::function<void(const absl::StatusOr<ExpertOutput>& output)>;
  // Writes the payload where the transport wants it.
  using WritePayload = absl::FunctionRef<void(char* to)>;

  virtual ~ExpertPeer() = default;

  // Begins to connect; the outcome goes to `listener`, which outlives this.
  // Not while connected.
  virtual void Connect(Listener* listener) = 0;

  // Sends a batch; `write` is called at most once, before Send returns. `done`
  // is called exactly once, from any thread, perhaps before Send returns.
  // Unavailable: not connected, or the connection broke. The attempt id is the
  // peer's, whatever the batch says.
  virtual void Send(const ExpertBatch& batch, size_t payload_bytes,
                    WritePayload write, OutputCallback done) = 0;

  // Looks for answers that lie in shared memory and calls their callbacks. The
  // expert process rings the Doorbell that the peer was made with.
  virtual void Poll() {}

  // Tells the process what it need not keep for this router any more. Nothing
  // happens when it is not connected.
  virtual void Release(const v1::ReleaseVersions& release) {}

  // "grpc", "shm", "local": for people.
  virtual const char* transport() const = 0;
};

}  // namespace troupe

#endif  // TROUPE_CLUSTER_EXPERT_PEER_H_
