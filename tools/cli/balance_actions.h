// The balancer's actions on a running cluster.
#ifndef TROUPE_TOOLS_CLI_BALANCE_ACTIONS_H_
#define TROUPE_TOOLS_CLI_BALANCE_ACTIONS_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/clock.h"
#include "tools/cli/balance_apply.h"
#include "tools/cli/gateway_client.h"

namespace troupe {

struct BalanceActionsOptions {
  uint32_t drain_ms = 0;  // of unloading; 0: as the processes say
  // That long for a router to see a new replica.
  milliseconds router_limit{10000};
  uint32_t admin_port = 0;  // see AtAdminPort
};

// Loads by the expert processes' admin service, each expert in the versions
// that its replicas have, from where they have them; one that nobody has comes
// from the checkpoint. Routers are asked through the gateway. `gateway`
// outlives it; addresses: by process; credentials: see ExpertsClient. An error
// names the process that does not answer.
absl::StatusOr<std::unique_ptr<BalanceActions>> MakeBalanceActions(
    GatewayClient& gateway, const std::vector<std::string>& addresses,
    const std::shared_ptr<grpc::ChannelCredentials>& credentials,
    const BalanceActionsOptions& options);

}  // namespace troupe

#endif  // TROUPE_TOOLS_CLI_BALANCE_ACTIONS_H_
