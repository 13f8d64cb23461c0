// Carries a plan of the balancer out.
#ifndef TROUPE_TOOLS_CLI_BALANCE_APPLY_H_
#define TROUPE_TOOLS_CLI_BALANCE_APPLY_H_

#include <cstddef>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "cluster/balance.h"

namespace troupe {

// What can be done to expert processes; process: index in the problem.
class BalanceActions {
 public:
  virtual ~BalanceActions() = default;
  // Returns when the units are loaded; those that are there already are fine.
  virtual absl::Status Load(size_t process,
                            const std::vector<BalanceUnit>& units) = 0;
  // Returns when every router has them as replicas.
  virtual absl::Status AwaitRouters(size_t process,
                                    const std::vector<BalanceUnit>& units) = 0;
  // Returns when nobody uses them any more and their memory is free; those
  // that are gone already are fine.
  virtual absl::Status Unload(size_t process,
                              const std::vector<BalanceUnit>& units) = 0;
};

struct BalanceApplied {
  size_t loads = 0;
  size_t unloads = 0;
  absl::Status status;  // of the step that failed; the plan ends there
};

// Phase by phase: loads, waits until the routers see the new replicas, then
// unloads. A step that fails ends it, and every expert still has a replica:
// nothing is unloaded before what replaces it is in use. Planning and applying
// again goes on from there.
BalanceApplied ApplyBalance(
    const BalancePlan& plan, const BalanceProblem& problem,
    BalanceActions& actions,
    const std::function<void(const std::string& line)>& say);

// "expert 3 of layers 0-2,5 and expert 4 of layer 1"
std::string TextOf(const std::vector<BalanceUnit>& units);

}  // namespace troupe

#endif  // TROUPE_TOOLS_CLI_BALANCE_APPLY_H_
