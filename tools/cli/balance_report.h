// A plan of the balancer for people and for programs.
#ifndef TROUPE_TOOLS_CLI_BALANCE_REPORT_H_
#define TROUPE_TOOLS_CLI_BALANCE_REPORT_H_

#include <string>

#include "cluster/balance.h"
#include "tools/cli/balance_input.h"

namespace troupe {

// A table of processes, the moves, and the predicted balance before and after.
std::string BalanceTable(const BalanceInput& input, const BalancePlan& plan);
// The same as one JSON object.
std::string BalanceJson(const BalanceInput& input, const BalancePlan& plan);
// One line.
std::string BalanceVerdict(const BalancePlan& plan);

}  // namespace troupe

#endif  // TROUPE_TOOLS_CLI_BALANCE_REPORT_H_
