// The Open Inference Protocol's health and metadata, of a gateway.
#ifndef TROUPE_GATEWAY_INFERENCE_SERVICE_H_
#define TROUPE_GATEWAY_INFERENCE_SERVICE_H_

#include <memory>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "gateway/gateway_context.h"
#include "grpcpp/impl/service_type.h"
#include "protos/inference.pb.h"

namespace troupe {

// Of protos/inference.proto; open to everybody, as health is. Outlived by the
// context.
std::unique_ptr<grpc::Service> MakeInferenceService(
    const GatewayContext& context);

// What both its gRPC and its HTTP face answer.
bool IsReady(const GatewayContext& context);
inference::ServerMetadataResponse DescribeServer();
// NotFound names what is served. version: empty for any.
absl::StatusOr<inference::ModelMetadataResponse> DescribeForInference(
    const GatewayContext& context, absl::string_view name,
    absl::string_view version);

}  // namespace troupe

#endif  // TROUPE_GATEWAY_INFERENCE_SERVICE_H_
