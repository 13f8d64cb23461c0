// The gRPC side of the authenticator, and of refusals.
#ifndef TROUPE_GATEWAY_GRPC_ADMISSION_H_
#define TROUPE_GATEWAY_GRPC_ADMISSION_H_

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gateway/authenticator.h"
#include "grpcpp/server_context.h"
#include "grpcpp/support/status.h"

namespace troupe {

// By the metadata "authorization". A call that has it twice is refused: two
// readers might not agree on which one counts.
absl::StatusOr<KeyLease> AdmitGrpcCall(
    Authenticator& authenticator,
    const grpc::CallbackServerContext& server_context, CallKind kind);

// A refusal (refusal.h) has google.rpc.RetryInfo in its details.
grpc::Status ToGrpcRefusal(const absl::Status& status);

}  // namespace troupe

#endif  // TROUPE_GATEWAY_GRPC_ADMISSION_H_
