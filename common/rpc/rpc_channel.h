// Client channels to other services of Troupe.
#ifndef TROUPE_COMMON_RPC_RPC_CHANNEL_H_
#define TROUPE_COMMON_RPC_RPC_CHANNEL_H_

#include <memory>
#include <string>

#include "common/clock.h"
#include "grpcpp/channel.h"
#include "grpcpp/client_context.h"
#include "grpcpp/security/credentials.h"

namespace troupe {

// address: "host:port" or "unix:/path". One connection of its own, no sharing;
// notices a dead host within seconds by pings; reconnects with a backoff of
// 50 ms to 1 s; messages up to 64 MiB. credentials: for host:port; null: plain
// text. Unix sockets are always plain.
std::shared_ptr<grpc::Channel> MakeChannel(
    const std::string& address,
    const std::shared_ptr<grpc::ChannelCredentials>& credentials = nullptr);

// Sets the deadline of a call, kNoDeadline for none.
void SetDeadline(grpc::ClientContext& context, SteadyTime deadline);

// The deadline of a call as a steady time, kNoDeadline for none.
SteadyTime ToSteadyTime(std::chrono::system_clock::time_point deadline);

}  // namespace troupe

#endif  // TROUPE_COMMON_RPC_RPC_CHANNEL_H_
