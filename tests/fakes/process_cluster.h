// Routers and expert processes as children, for tests of the real thing.
#ifndef TROUPE_TESTS_FAKES_PROCESS_CLUSTER_H_
#define TROUPE_TESTS_FAKES_PROCESS_CLUSTER_H_

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "protos/expert.grpc.pb.h"
#include "protos/router.grpc.pb.h"
#include "tests/fakes/child_process.h"
#include "tests/fakes/temp_dir.h"

namespace troupe {

struct ProcessClusterOptions {
  std::string model_dir;
  std::vector<std::string> expert_ranges = {""};  // one process each; "" = all
  size_t num_replicas = 1;
  size_t num_routers = 1;
  bool tcp = false;        // instead of unix sockets
  size_t num_threads = 1;  // of each process's kernels
  std::vector<std::string> router_flags;
  std::vector<std::string> expert_flags;
};

// Starts the processes and waits until every router is ready. Not thread-safe,
// but the stubs are.
class ProcessCluster {
 public:
  explicit ProcessCluster(ProcessClusterOptions options);

  size_t num_experts() const { return experts_.size(); }
  ChildProcess& expert(size_t i) { return experts_[i]; }
  ChildProcess& router(size_t i) { return routers_[i]; }
  v1::Router::Stub& stub(size_t router = 0) { return *stubs_[router]; }
  const std::vector<std::string>& expert_addresses() const {
    return expert_addresses_;
  }
  v1::Expert::Stub& expert_stub(size_t i) { return *expert_stubs_[i]; }

  // Starts an expert process or a router (again), at its old address.
  void StartExpert(size_t i);
  void StartRouter(size_t i);
  const std::string& router_address(size_t i) const {
    return router_addresses_[i];
  }
  // Polls until the router is READY and so are all its expert processes.
  void WaitUntilReady(size_t router);
  v1::RouterStats Stats(size_t router = 0);

 private:
  const ProcessClusterOptions options_;
  TempDir dir_;
  std::vector<std::string> expert_addresses_;
  std::vector<ChildProcess> experts_;
  std::vector<std::string> router_addresses_;
  std::vector<ChildProcess> routers_;
  std::vector<std::unique_ptr<v1::Router::Stub>> stubs_;
  std::vector<std::unique_ptr<v1::Expert::Stub>> expert_stubs_;
};

// One call, read to its end. The texts of two outcomes are equal exactly if all
// their bytes are.
struct Outcome {
  grpc::Status status;
  std::vector<v1::RouterGenerateResponse> responses;
  // Tokens, logprobs by their bits, finish reason; not the usage.
  std::string Bytes() const;
  size_t num_tokens() const;
  uint32_t preemptions() const;
};
Outcome Generate(v1::Router::Stub& stub,
                 const v1::RouterGenerateRequest& request,
                 int timeout_ms = 120000);

}  // namespace troupe

#endif  // TROUPE_TESTS_FAKES_PROCESS_CLUSTER_H_
