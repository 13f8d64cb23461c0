// A whole gateway, reached over gRPC as clients do, in front of routers whose
// answers the test decides.
#ifndef TROUPE_TESTS_GATEWAY_GATEWAY_FIXTURE_H_
#define TROUPE_TESTS_GATEWAY_GATEWAY_FIXTURE_H_

#include <memory>
#include <string>
#include <vector>

#include "common/rpc/rpc_channel.h"
#include "gateway/gateway.h"
#include "gtest/gtest.h"
#include "protos/gateway.grpc.pb.h"
#include "protos/health.grpc.pb.h"
#include "tests/fakes/fake_router/fake_router.h"
#include "tests/gateway/test_model.h"

namespace troupe {

inline constexpr char kStory[] = "Once upon a time";

inline FakeRouter::Behaviour Reciting(const std::string& text) {
  return [text](const v1::RouterGenerateRequest& request) {
    return Recite(text, request);
  };
}

// Recites that many tokens and hangs.
inline FakeRouter::Behaviour HangingAfter(const std::string& text,
                                          size_t num_tokens) {
  return [=](const v1::RouterGenerateRequest& request) {
    FakeRouterScript script = Recite(text, request);
    script.responses.resize(num_tokens);
    script.hang = true;
    return script;
  };
}

inline FakeRouter::Behaviour Failing(const grpc::Status& status) {
  return [status](const v1::RouterGenerateRequest&) {
    FakeRouterScript script;
    script.status = status;
    return script;
  };
}

// What one choice looked like to the client.
struct ChoiceResult {
  std::string text;
  std::vector<v1::GeneratedToken> tokens;
  v1::FinishReason finish_reason = v1::FINISH_REASON_UNSPECIFIED;
  std::string stop_reason;
};

struct CallResult {
  std::vector<ChoiceResult> choices{16};
  v1::Usage usage;
  int num_usages = 0;
  bool usage_was_last = false;
  grpc::Status status;
};

inline void Take(const v1::GenerateResponse& response, CallResult& result) {
  ChoiceResult& choice = result.choices.at(response.index());
  EXPECT_EQ(choice.finish_reason, v1::FINISH_REASON_UNSPECIFIED)
      << "a response after the last one of its choice";
  choice.text += response.text();
  choice.tokens.insert(choice.tokens.end(), response.tokens().begin(),
                       response.tokens().end());
  choice.finish_reason = response.finish_reason();
  if (!response.stop_reason().empty()) {
    choice.stop_reason = response.stop_reason();
  }
  result.usage_was_last = response.has_usage();
  if (response.has_usage()) {
    ++result.num_usages;
    result.usage = response.usage();
  }
}

class GatewayTest : public testing::Test {
 protected:
  // Starts a gateway in front of the routers, waits until it is SERVING and
  // knows all of them.
  void StartGateway(GatewayOptions options = {}) {
    options.listen = {"127.0.0.1:0"};
    options.poll_interval = milliseconds(20);
    if (options.routers.empty()) {
      for (const auto& router : routers_) {
        options.routers.push_back(router->address());
      }
    }
    absl::StatusOr<std::unique_ptr<Gateway>> gateway =
        Gateway::Start(options, TestModel());
    ASSERT_TRUE(gateway.ok()) << gateway.status();
    gateway_ = *std::move(gateway);
    channel_ = MakeChannel(gateway_->addresses()[0]);
    stub_ = v1::Gateway::NewStub(channel_);
    AwaitHealth(grpc::health::v1::HealthCheckResponse::SERVING);
    for (const auto& router : routers_) router->AwaitDescribedTwice();
  }

  FakeRouter& AddRouter(FakeRouter::Behaviour behaviour) {
    routers_.push_back(
        std::make_unique<FakeRouter>(kTestFingerprint, std::move(behaviour)));
    return *routers_.back();
  }

  void AwaitHealth(grpc::health::v1::HealthCheckResponse::ServingStatus want) {
    const auto stub = grpc::health::v1::Health::NewStub(channel_);
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() +
                         std::chrono::seconds(30));
    const auto reader =
        stub->Watch(&context, grpc::health::v1::HealthCheckRequest());
    grpc::health::v1::HealthCheckResponse response;
    while (reader->Read(&response)) {
      if (response.status() == want) {
        context.TryCancel();
        while (reader->Read(&response)) {
        }
        reader->Finish();
        return;
      }
    }
    FAIL() << "health: " << reader->Finish().error_message();
  }

  CallResult Generate(const v1::GenerateRequest& request,
                      grpc::ClientContext* context = nullptr) {
    grpc::ClientContext own;
    if (context == nullptr) context = &own;
    const auto reader = stub_->Generate(context, request);
    CallResult result;
    v1::GenerateResponse response;
    while (reader->Read(&response)) Take(response, result);
    result.status = reader->Finish();
    return result;
  }

  v1::GatewayStats Stats() {
    grpc::ClientContext context;
    v1::ClusterStats stats;
    EXPECT_TRUE(stub_->GetStats(&context, v1::GetStatsRequest(), &stats).ok());
    return stats.gateway();
  }

  static v1::GenerateRequest Prompt(const std::string& text) {
    v1::GenerateRequest request;
    request.set_text(text);
    return request;
  }

  std::vector<std::unique_ptr<FakeRouter>> routers_;
  std::unique_ptr<Gateway> gateway_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Gateway::Stub> stub_;
};

}  // namespace troupe

#endif  // TROUPE_TESTS_GATEWAY_GATEWAY_FIXTURE_H_
