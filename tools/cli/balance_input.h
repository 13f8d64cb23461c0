// What `troupe experts plan` plans for: from the statistics of a cluster.
#ifndef TROUPE_TOOLS_CLI_BALANCE_INPUT_H_
#define TROUPE_TOOLS_CLI_BALANCE_INPUT_H_

#include <cstddef>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "cluster/balance.h"
#include "protos/gateway.pb.h"

namespace troupe {

struct BalanceInputOptions {
  BalanceBy by = BalanceBy::kTokens;
  size_t num_groups = 1;
  // Units (experts of one layer) that a process may hold; 0: by the next.
  size_t slots = 0;
  uint64_t memory_mb = 0;  // of weights per process; 0: by the next
  // Percent above an equal share of all experts; a process that holds more
  // already may keep it.
  double spare_percent = 25;
  // Names or addresses of processes that are to be emptied.
  std::vector<std::string> without;
};

struct BalanceInput {
  BalanceProblem problem;
  std::vector<std::string> addresses;  // of problem.processes
  double tokens = 0;                   // copies of late that the load is of
};

// Ready processes that a router sees are those of the problem.
// FailedPrecondition: there is no expert process, or no router that has
// reported its layers. InvalidArgument: a flag does not fit the cluster.
absl::StatusOr<BalanceInput> MakeBalanceInput(
    const v1::ModelInfo& model, const v1::ClusterStats& stats,
    const BalanceInputOptions& options);

// "10.0.0.7" of "10.0.0.7:7200", "" of a unix socket.
std::string HostOf(const std::string& address);

}  // namespace troupe

#endif  // TROUPE_TOOLS_CLI_BALANCE_INPUT_H_
