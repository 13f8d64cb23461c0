// Linked into tests that make and destroy gRPC servers and channels all the
// time: keeps one call's channel for the whole process. gRPC 1.51 shares one
// completion queue for callbacks among all of them, destroys it with the last
// one, and aborts now and then when the next one comes at that moment
// ("assertion failed: prior > 0"). A service keeps its server until it ends.
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "common/rpc/rpc_channel.h"
#include "common/rpc/rpc_server.h"
#include "gtest/gtest.h"
#include "protos/health.grpc.pb.h"
#include "tests/fakes/temp_dir.h"

namespace troupe {
namespace {

class KeepGrpcAlive final : public testing::Environment {
 public:
  // Once, however often the tests are repeated.
  void SetUp() override {
    if (stub_ != nullptr) return;
    TempDir dir;
    RpcServerOptions options;
    options.listen = {absl::StrCat("unix:", dir.File("alive"))};
    const auto server = *RpcServer::Start(options, {});
    stub_ = grpc::health::v1::Health::NewStub(MakeChannel(options.listen[0]));
    grpc::ClientContext context;
    grpc::health::v1::HealthCheckRequest request;
    grpc::health::v1::HealthCheckResponse response;
    absl::Notification done;
    stub_->async()->Check(&context, &request, &response,
                          [&](const grpc::Status&) { done.Notify(); });
    done.WaitForNotification();
  }

 private:
  std::unique_ptr<grpc::health::v1::Health::Stub> stub_;
};

testing::Environment* const kRegistered =
    testing::AddGlobalTestEnvironment(new KeepGrpcAlive);

}  // namespace
}  // namespace troupe
