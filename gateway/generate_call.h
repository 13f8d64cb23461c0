// One Gateway.Generate call.
#ifndef TROUPE_GATEWAY_GENERATE_CALL_H_
#define TROUPE_GATEWAY_GENERATE_CALL_H_

#include "gateway/gateway_context.h"
#include "grpcpp/server_context.h"
#include "grpcpp/support/server_callback.h"
#include "protos/gateway.pb.h"

namespace troupe {

// Starts the call, or refuses it for want of a key; it ends and deletes itself
// and counts as one of the context's live calls until then.
grpc::ServerWriteReactor<v1::GenerateResponse>* StartGenerateCall(
    GatewayContext& context, grpc::CallbackServerContext* server_context,
    const v1::GenerateRequest* request);

}  // namespace troupe

#endif  // TROUPE_GATEWAY_GENERATE_CALL_H_
