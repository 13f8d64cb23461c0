// gRPC's own messages in our log.
#ifndef TROUPE_COMMON_RPC_GRPC_LOG_H_
#define TROUPE_COMMON_RPC_GRPC_LOG_H_

#include <string>

#include "absl/strings/string_view.h"

namespace troupe {

// Sends what gRPC would write to standard error through the process's logger.
// Failed TLS handshakes, which any stranger can cause, are one line a second
// at most, in words of ours. For main, after InitLogging.
void RouteGrpcLog();

// What a failed handshake means, from gRPC's message of OpenSSL's error; empty
// when the message is of something else.
std::string ExplainHandshake(absl::string_view message);

}  // namespace troupe

#endif  // TROUPE_COMMON_RPC_GRPC_LOG_H_
