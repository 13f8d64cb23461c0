// A whole cluster as processes on two hosts, to be broken.
#ifndef TROUPE_TESTS_ROBUSTNESS_CHAOS_CLUSTER_H_
#define TROUPE_TESTS_ROBUSTNESS_CHAOS_CLUSTER_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "protos/gateway.grpc.pb.h"
#include "tests/fakes/child_process.h"
#include "tests/robustness/tcp_proxy.h"
#include "tests/robustness/two_hosts.h"

namespace troupe {

struct ChaosClusterOptions {
  std::string model_dir;
  std::string bin_dir;
  std::string work_dir;  // logs, sockets, lists of addresses
  size_t num_experts = 8;
  size_t num_groups = 2;    // expert processes that share the experts
  size_t num_replicas = 2;  // of each group
  size_t num_routers = 2;
  // Routers and gateway watch lists of addresses, if they can; else they are
  // given them.
  bool watch_lists = true;
  std::vector<std::string> gateway_flags;
  std::vector<std::string> router_flags;
  std::vector<std::string> expert_flags;
};

// Whether `command --help` prints that text: what a build can do.
bool HelpSays(const std::string& command, const std::string& text);

// One process of the cluster, running or not.
struct ChaosProcess {
  enum class Role { kExpert, kRouter, kGateway };
  Role role = Role::kExpert;
  std::string name;
  bool on_b = false;                   // host
  std::vector<std::string> arguments;  // of the command
  std::string address;                 // that its clients use
  std::string log_path;
  std::unique_ptr<TcpProxy> proxy;  // null: clients reach it directly
  std::unique_ptr<ChildProcess> child;
  bool listed = true;  // in the list of addresses that its clients watch
};

// Host A has the gateway, the first router and the first replica of each group
// of experts: TCP, and shared memory between them. Host B has the second
// router and the second replicas, each behind a proxy, without shared memory.
// Without the right to make a namespace, B is on the loopback interface, too.
// Processes end with this one.
// Not thread-safe.
class ChaosCluster {
 public:
  // Starts everything; WaitUntilWhole follows.
  explicit ChaosCluster(ChaosClusterOptions options);
  ~ChaosCluster();

  const ChaosClusterOptions& options() const { return options_; }
  // Null: one host alone; why() says why.
  TwoHosts* hosts() const { return hosts_.get(); }
  const std::string& why_one_host() const { return why_one_host_; }

  std::vector<ChaosProcess*> All();
  std::vector<ChaosProcess*> Experts();
  std::vector<ChaosProcess*> Routers();
  ChaosProcess& gateway() { return *gateway_; }
  const std::string& address() const { return gateway_->address; }

  void Start(ChaosProcess& process);
  // SIGKILL, and waits for the end.
  void KillNow(ChaosProcess& process);
  // SIGTERM, and waits until it has ended; its exit status, or -1 when it was
  // still there at the limit (and is killed).
  int Terminate(ChaosProcess& process, int limit_ms);

  // One more replica of a group, on host A, not yet started or listed.
  ChaosProcess& AddExpert(size_t group);
  // Forgets a process that has ended.
  void Remove(ChaosProcess& process);
  // Rewrites the lists of addresses after `listed` has changed.
  void WriteLists();

  // Statistics of gateway, routers and experts; with `check_integrity` their
  // invariants, too.
  absl::StatusOr<v1::ClusterStats> Stats(bool check_integrity) const;
  // Polls until every router sees every listed expert process ready, and the
  // gateway every router; DeadlineExceeded: what is missing.
  absl::Status WaitUntilWhole(int limit_ms) const;

 private:
  ChaosProcess& AddProcess(ChaosProcess::Role role, const std::string& name,
                           bool on_b, bool behind_proxy,
                           std::vector<std::string> arguments);
  int NextPort();
  // What clients of the processes of that role are given.
  std::string Peers(ChaosProcess::Role role) const;
  std::string Missing() const;

  ChaosClusterOptions options_;  // constant after construction
  std::unique_ptr<TwoHosts> hosts_;
  std::string why_one_host_;
  std::string host_a_ = "127.0.0.1";
  std::string host_b_ = "127.0.0.1";
  bool allows_plaintext_ = false;
  int next_port_ = 0;
  size_t num_added_ = 0;
  std::vector<std::unique_ptr<ChaosProcess>> processes_;
  ChaosProcess* gateway_ = nullptr;
  std::unique_ptr<v1::Gateway::Stub> stub_;
};

}  // namespace troupe

#endif  // TROUPE_TESTS_ROBUSTNESS_CHAOS_CLUSTER_H_
