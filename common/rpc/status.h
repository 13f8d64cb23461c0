// absl::Status to grpc::Status and back. The codes are the same numbers.
#ifndef TROUPE_COMMON_RPC_STATUS_H_
#define TROUPE_COMMON_RPC_STATUS_H_

#include "absl/status/status.h"
#include "grpcpp/support/status.h"

namespace troupe {

grpc::Status ToGrpcStatus(const absl::Status& status);
absl::Status FromGrpcStatus(const grpc::Status& status);

// The status with google.rpc.RetryInfo in its details: nothing was done, and
// may be asked for again after that time, or of another server now.
grpc::Status RefusedStatus(const absl::Status& status, int retry_delay_ms);

// RESOURCE_EXHAUSTED whose details hold google.rpc.RetryInfo.
grpc::Status ResourceExhaustedStatus(const absl::Status& status,
                                     int retry_delay_ms);

// The delay of the RetryInfo in the details, or -1.
int RetryDelayMs(const grpc::Status& status);

}  // namespace troupe

#endif  // TROUPE_COMMON_RPC_STATUS_H_
