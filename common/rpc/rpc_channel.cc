#include "common/rpc/rpc_channel.h"

#include "absl/strings/match.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/support/channel_arguments.h"

namespace troupe {

std::shared_ptr<grpc::Channel> MakeChannel(
    const std::string& address,
    const std::shared_ptr<grpc::ChannelCredentials>& credentials) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(64 << 20);
  arguments.SetMaxSendMessageSize(-1);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 5000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 2000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 50);
  // In spite of its name the time that a connection attempt may take; it does
  // not delay the next one.
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 2000);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  const bool plain =
      credentials == nullptr || absl::StartsWith(address, "unix:");
  return grpc::CreateCustomChannel(
      address, plain ? grpc::InsecureChannelCredentials() : credentials,
      arguments);
}

void SetDeadline(grpc::ClientContext& context, SteadyTime deadline) {
  if (deadline == kNoDeadline) return;
  context.set_deadline(
      std::chrono::system_clock::now() +
      std::chrono::duration_cast<std::chrono::system_clock::duration>(
          deadline - std::chrono::steady_clock::now()));
}

SteadyTime ToSteadyTime(std::chrono::system_clock::time_point deadline) {
  // gRPC's "no deadline" is the far end of the clock; a hundred years are as
  // good, and do not overflow.
  const auto left = deadline - std::chrono::system_clock::now();
  if (left > std::chrono::hours(24 * 365 * 100)) return kNoDeadline;
  return std::chrono::steady_clock::now() + left;
}

}  // namespace troupe
