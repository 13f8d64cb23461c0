#include "gateway/generate_call.h"

#include <memory>
#include <utility>

#include "common/rpc/rpc_channel.h"
#include "gateway/generation.h"
#include "gateway/grpc_admission.h"

namespace troupe {
namespace {

// The gRPC side of a generation. Deletes itself when gRPC has done with it.
class GenerateCall final
    : public grpc::ServerWriteReactor<v1::GenerateResponse>,
      public GenerationClient {
 public:
  GenerateCall(GatewayContext& context,
               grpc::CallbackServerContext* server_context,
               const v1::GenerateRequest& request, KeyLease lease)
      : generation_(std::make_shared<Generation>(
            context, *this, request, ToSteadyTime(server_context->deadline()),
            std::move(lease))) {}

  void Begin() { generation_->Begin(); }

 private:
  bool Write(v1::GenerateResponse response) override {
    response_ = std::move(response);
    StartWrite(&response_);
    return false;
  }
  void Finish(const grpc::Status& status) override {
    grpc::ServerWriteReactor<v1::GenerateResponse>::Finish(status);
  }

  void OnWriteDone(bool ok) override { generation_->OnWritten(ok); }
  void OnCancel() override { generation_->Cancel(); }
  void OnDone() override { delete this; }

  const std::shared_ptr<Generation> generation_;
  v1::GenerateResponse response_;  // being written
};

// A call that ends with this status at once.
class RefusedCall final
    : public grpc::ServerWriteReactor<v1::GenerateResponse> {
 public:
  explicit RefusedCall(const grpc::Status& status) { Finish(status); }

 private:
  void OnDone() override { delete this; }
};

}  // namespace

grpc::ServerWriteReactor<v1::GenerateResponse>* StartGenerateCall(
    GatewayContext& context, grpc::CallbackServerContext* server_context,
    const v1::GenerateRequest* request) {
  absl::StatusOr<KeyLease> lease = AdmitGrpcCall(
      context.authenticator, *server_context, CallKind::kGenerate);
  if (!lease.ok()) return new RefusedCall(ToGrpcRefusal(lease.status()));
  auto* call =
      new GenerateCall(context, server_context, *request, *std::move(lease));
  call->Begin();
  return call;
}

}  // namespace troupe
