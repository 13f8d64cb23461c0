#include "gateway/grpc_admission.h"

#include "absl/strings/string_view.h"
#include "common/rpc/status.h"
#include "gateway/refusal.h"

namespace troupe {

absl::StatusOr<KeyLease> AdmitGrpcCall(
    Authenticator& authenticator,
    const grpc::CallbackServerContext& server_context, CallKind kind) {
  const auto [begin, end] =
      server_context.client_metadata().equal_range("authorization");
  if (begin == end) return authenticator.Admit("", kind);
  if (std::next(begin) != end && authenticator.demands_keys()) {
    return absl::UnauthenticatedError("authorization: is there twice");
  }
  const grpc::string_ref value = begin->second;
  return authenticator.Admit(absl::string_view(value.data(), value.size()),
                             kind);
}

grpc::Status ToGrpcRefusal(const absl::Status& status) {
  const int delay_ms = RetryDelayOf(status);
  return delay_ms < 0 ? ToGrpcStatus(status)
                      : ResourceExhaustedStatus(status, delay_ms);
}

}  // namespace troupe
