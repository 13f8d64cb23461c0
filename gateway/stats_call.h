// One Gateway.GetStats call.
#ifndef TROUPE_GATEWAY_STATS_CALL_H_
#define TROUPE_GATEWAY_STATS_CALL_H_

#include <memory>

#include "gateway/gateway_context.h"
#include "grpcpp/server_context.h"
#include "grpcpp/support/server_callback.h"
#include "protos/gateway.pb.h"

namespace troupe {

// Asks every router, then, if wanted, every expert process that a router
// names, each with a deadline of one second, and finishes the call. Who does
// not answer is listed as unreachable. Starts no thread and blocks none.
grpc::ServerUnaryReactor* StartStatsCall(
    GatewayContext& context, grpc::CallbackServerContext* server_context,
    const v1::GetStatsRequest* request, v1::ClusterStats* response);

v1::GatewayStats DescribeGateway(const GatewayContext& context);

}  // namespace troupe

#endif  // TROUPE_GATEWAY_STATS_CALL_H_
