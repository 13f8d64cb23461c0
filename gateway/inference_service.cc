#include "gateway/inference_service.h"

#include "absl/strings/str_cat.h"
#include "common/rpc/status.h"
#include "protos/inference.grpc.pb.h"

namespace troupe {
namespace {

// Thread-safe.
class InferenceService final
    : public inference::GRPCInferenceService::CallbackService {
 public:
  explicit InferenceService(const GatewayContext& context)
      : context_(context) {}

 private:
  static grpc::ServerUnaryReactor* Finish(
      grpc::CallbackServerContext* server_context,
      const absl::Status& status = absl::OkStatus()) {
    grpc::ServerUnaryReactor* reactor = server_context->DefaultReactor();
    reactor->Finish(ToGrpcStatus(status));
    return reactor;
  }

  grpc::ServerUnaryReactor* ServerLive(
      grpc::CallbackServerContext* server_context,
      const inference::ServerLiveRequest*,
      inference::ServerLiveResponse* response) override {
    response->set_live(true);
    return Finish(server_context);
  }

  grpc::ServerUnaryReactor* ServerReady(
      grpc::CallbackServerContext* server_context,
      const inference::ServerReadyRequest*,
      inference::ServerReadyResponse* response) override {
    response->set_ready(IsReady(context_));
    return Finish(server_context);
  }

  grpc::ServerUnaryReactor* ModelReady(
      grpc::CallbackServerContext* server_context,
      const inference::ModelReadyRequest* request,
      inference::ModelReadyResponse* response) override {
    response->set_ready(IsReady(context_));
    return Finish(
        server_context,
        DescribeForInference(context_, request->name(), request->version())
            .status());
  }

  grpc::ServerUnaryReactor* ServerMetadata(
      grpc::CallbackServerContext* server_context,
      const inference::ServerMetadataRequest*,
      inference::ServerMetadataResponse* response) override {
    *response = DescribeServer();
    return Finish(server_context);
  }

  grpc::ServerUnaryReactor* ModelMetadata(
      grpc::CallbackServerContext* server_context,
      const inference::ModelMetadataRequest* request,
      inference::ModelMetadataResponse* response) override {
    absl::StatusOr<inference::ModelMetadataResponse> metadata =
        DescribeForInference(context_, request->name(), request->version());
    if (metadata.ok()) *response = *std::move(metadata);
    return Finish(server_context, metadata.status());
  }

  const GatewayContext& context_;
};

void AddTensor(const char* name,
               google::protobuf::RepeatedPtrField<
                   inference::ModelMetadataResponse::TensorMetadata>& tensors) {
  auto& tensor = *tensors.Add();
  tensor.set_name(name);
  tensor.set_datatype("BYTES");
  tensor.add_shape(1);
}

}  // namespace

std::unique_ptr<grpc::Service> MakeInferenceService(
    const GatewayContext& context) {
  return std::make_unique<InferenceService>(context);
}

bool IsReady(const GatewayContext& context) {
  return !context.draining && context.routers.MaxContext() > 0;
}

inference::ServerMetadataResponse DescribeServer() {
  inference::ServerMetadataResponse response;
  response.set_name("troupe");
  response.set_version(TROUPE_VERSION);
  return response;
}

absl::StatusOr<inference::ModelMetadataResponse> DescribeForInference(
    const GatewayContext& context, absl::string_view name,
    absl::string_view version) {
  const ServedModel& model = context.model;
  if (name != model.name) {
    return absl::NotFoundError(
        absl::StrCat("model is \"", name, "\"; served: \"", model.name, "\""));
  }
  if (!version.empty() && version != model.fingerprint) {
    return absl::NotFoundError(absl::StrCat(
        "version is \"", version, "\"; served: \"", model.fingerprint, "\""));
  }
  inference::ModelMetadataResponse response;
  response.set_name(model.name);
  response.add_versions(model.fingerprint);
  response.set_platform("troupe");
  AddTensor("text_input", *response.mutable_inputs());
  AddTensor("text_output", *response.mutable_outputs());
  return response;
}

}  // namespace troupe
