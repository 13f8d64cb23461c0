// Load, balance and the balancer in `troupe stats`.
#ifndef TROUPE_TOOLS_CLI_LOAD_LINES_H_
#define TROUPE_TOOLS_CLI_LOAD_LINES_H_

#include <string>

#include "protos/gateway.pb.h"

namespace troupe {

// Warnings first: collapsed layers, a balancer that is overdue or fails. Then
// expert processes, and each layer's balance of late.
std::string LoadLines(const v1::ClusterStats& stats);

}  // namespace troupe

#endif  // TROUPE_TOOLS_CLI_LOAD_LINES_H_
