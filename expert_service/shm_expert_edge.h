// The expert process's end of shared memory.
#ifndef TROUPE_EXPERT_SERVICE_SHM_EXPERT_EDGE_H_
#define TROUPE_EXPERT_SERVICE_SHM_EXPERT_EDGE_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "common/log_limiter.h"
#include "common/rpc/doorbell.h"
#include "common/rpc/shared_ring.h"
#include "common/rpc/unique_fd.h"
#include "expert_service/expert_batcher.h"
#include "protos/cluster.pb.h"

namespace troupe {

struct ShmExpertEdgeOptions {
  // A path, or "@name"; empty: a name of its own in the abstract namespace.
  std::string socket;
  uint64_t ring_bytes = uint64_t{4} << 20;  // each way, per router
  size_t max_routers = 64;                  // at once; bounds the memory
  FrameLimits limits;                       // of the model
};

// Listens on a unix socket; gives each router that knows the token two rings in
// a sealed memfd. The batcher's thread takes frames from the rings, computes
// them where they lie and writes outputs where the router reads them. A router
// that breaks the rules, or ends, loses its rings; gRPC tells it nothing new.
//
// Owns a thread that accepts and one per router that waits for its end.
// Poll is the batcher's thread's; the rest is thread-safe. Destroyed after the
// batcher.
class ShmExpertEdge final : public BatchSource {
 public:
  // `bell` is the batcher's.
  static absl::StatusOr<std::unique_ptr<ShmExpertEdge>> Start(
      const ShmExpertEdgeOptions& options, std::shared_ptr<Doorbell> bell);
  ~ShmExpertEdge() override;

  // For the description of the process.
  v1::ShmOffer offer() const;
  size_t num_routers() const;

  void Poll(ExpertBatcher& batcher) override;

 private:
  class Connection;
  class Call;

  ShmExpertEdge(const ShmExpertEdgeOptions& options,
                std::shared_ptr<Doorbell> bell, UniqueFd socket,
                std::string address);
  void Accept();
  // Shakes hands, then waits for the end of the socket.
  void Serve(UniqueFd socket);
  absl::StatusOr<std::shared_ptr<Connection>> Greet(UniqueFd& socket);

  const ShmExpertEdgeOptions options_;
  const std::shared_ptr<Doorbell> bell_;
  const UniqueFd socket_;
  const std::string address_;
  const std::string token_;

  mutable absl::Mutex mu_;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<std::shared_ptr<Connection>> connections_ ABSL_GUARDED_BY(mu_);
  std::vector<int> open_sockets_ ABSL_GUARDED_BY(mu_);
  std::atomic<uint64_t> changes_{0};  // of connections_
  LogLimiter refusals_;               // of routers

  // Of the batcher's thread.
  std::vector<std::shared_ptr<Connection>> polled_;
  uint64_t polled_changes_ = 0;

  std::thread acceptor_;
  // Threads of routers that have ended are joined by the acceptor.
  struct Server {
    std::thread thread;
    std::shared_ptr<std::atomic<bool>> done;
  };
  std::list<Server> servers_;  // of the acceptor
};

}  // namespace troupe

#endif  // TROUPE_EXPERT_SERVICE_SHM_EXPERT_EDGE_H_
