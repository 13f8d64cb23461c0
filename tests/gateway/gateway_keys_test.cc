// API keys and fair places at the gRPC edge of a whole gateway.
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "common/rpc/local_address.h"
#include "common/rpc/status.h"
#include "gateway/exposure.h"
#include "gmock/gmock.h"
#include "tests/fakes/manual_clock.h"
#include "tests/gateway/gateway_fixture.h"
#include "tests/gateway/key_file.h"

namespace troupe {
namespace {

using grpc::StatusCode;
using ::testing::HasSubstr;

class GatewayKeysTest : public GatewayTest {
 protected:
  void Start(const std::vector<ApiKey>& keys,
             FakeRouter::Behaviour behaviour = Reciting(" there was a fox"),
             GatewayOptions options = {}) {
    AddRouter(std::move(behaviour));
    file_.emplace(keys);
    options.api_keys = file_->path();
    options.limit_clock = &clock_;
    StartGateway(options);
  }

  static std::unique_ptr<grpc::ClientContext> As(const std::string& key) {
    auto context = std::make_unique<grpc::ClientContext>();
    if (!key.empty()) {
      context->AddMetadata("authorization", "Bearer " + key);
    }
    return context;
  }

  grpc::Status GenerateAs(const std::string& key,
                          const v1::GenerateRequest& request) {
    return Generate(request, As(key).get()).status;
  }
  grpc::Status GenerateAs(const std::string& key) {
    return GenerateAs(key, Prompt(kStory));
  }
  grpc::Status TokenizeAs(const std::string& key) {
    v1::TokenizeRequest request;
    request.set_text(kStory);
    v1::TokenizeResponse response;
    return stub_->Tokenize(As(key).get(), request, &response);
  }
  grpc::Status DetokenizeAs(const std::string& key) {
    v1::DetokenizeResponse response;
    return stub_->Detokenize(As(key).get(), v1::DetokenizeRequest(), &response);
  }
  grpc::Status GetModelAs(const std::string& key) {
    v1::ModelInfo response;
    return stub_->GetModel(As(key).get(), v1::GetModelRequest(), &response);
  }
  grpc::Status GetStatsAs(const std::string& key) {
    v1::ClusterStats response;
    return stub_->GetStats(As(key).get(), v1::GetStatsRequest(), &response);
  }
  grpc::Status ReportBalanceAs(const std::string& key) {
    v1::BalanceReport report;
    report.set_name("balancer");
    report.set_every_seconds(1);
    v1::ReportBalanceResponse response;
    return stub_->ReportBalance(As(key).get(), report, &response);
  }

  // A Generate call that has given its first token and hangs.
  struct Stream {
    std::unique_ptr<grpc::ClientContext> context;
    std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>> reader;
    bool started = false;

    grpc::Status End() {
      if (started) context->TryCancel();  // else it was refused
      v1::GenerateResponse response;
      while (reader->Read(&response)) {
      }
      return reader->Finish();
    }
  };
  Stream Open(const std::string& key) {
    Stream stream{As(key), nullptr};
    stream.reader = stub_->Generate(stream.context.get(), Prompt(kStory));
    v1::GenerateResponse response;
    stream.started = stream.reader->Read(&response);
    return stream;
  }

  ManualClock clock_;
  std::optional<KeyFile> file_;
};

TEST_F(GatewayKeysTest, EveryCallDemandsAKeyAndAdminCallsTheRole) {
  Start({TestKey("user"), TestKey("boss", {}, KeyRole::kAdmin)});
  using Call = std::function<grpc::Status(const std::string& key)>;
  const std::pair<const char*, Call> user_calls[] = {
      {"Generate", [this](const auto& key) { return GenerateAs(key); }},
      {"Tokenize", [this](const auto& key) { return TokenizeAs(key); }},
      {"Detokenize", [this](const auto& key) { return DetokenizeAs(key); }},
      {"GetModel", [this](const auto& key) { return GetModelAs(key); }}};
  for (const auto& [name, call] : user_calls) {
    for (const std::string key : {"", "trp-nobody", "trp-use", "trp-user2"}) {
      const grpc::Status status = call(key);
      EXPECT_EQ(status.error_code(), StatusCode::UNAUTHENTICATED)
          << name << " " << key;
      EXPECT_EQ(status.error_message().find("trp-"), std::string::npos);
    }
    for (const std::string key : {"trp-user", "trp-boss"}) {
      const grpc::Status status = call(key);
      EXPECT_TRUE(status.ok()) << name << " " << status.error_message();
    }
  }
  const Call admin_calls[] = {
      [this](const auto& key) { return GetStatsAs(key); },
      [this](const auto& key) { return ReportBalanceAs(key); }};
  for (const Call& call : admin_calls) {
    EXPECT_EQ(call("").error_code(), StatusCode::UNAUTHENTICATED);
    const grpc::Status denied = call("trp-user");
    EXPECT_EQ(denied.error_code(), StatusCode::PERMISSION_DENIED);
    EXPECT_THAT(denied.error_message(), HasSubstr("role \"admin\""));
    EXPECT_TRUE(call("trp-boss").ok());
  }
  // The router was asked for nothing by those that were refused.
  EXPECT_EQ(routers_[0]->requests().size(), 2u);
}

TEST_F(GatewayKeysTest, TwoKeysInOneCallAreRefused) {
  Start({TestKey("a"), TestKey("b")});
  const auto context = As("trp-a");
  context->AddMetadata("authorization", "Bearer trp-b");
  EXPECT_EQ(Generate(Prompt(kStory), context.get()).status.error_code(),
            StatusCode::UNAUTHENTICATED);
}

TEST_F(GatewayKeysTest, HealthIsOpen) {
  Start({});
  AwaitHealth(grpc::health::v1::HealthCheckResponse::SERVING);
}

TEST_F(GatewayKeysTest, ARevokedKeyIsRefusedWhileItsStreamGoesOn) {
  Start({TestKey("a"), TestKey("b")}, HangingAfter(" there was a fox", 1));
  Stream stream = Open("trp-a");
  ASSERT_TRUE(stream.started);
  file_->Set({TestKey("b")});
  while (GetModelAs("trp-a").ok()) {
  }
  EXPECT_EQ(GenerateAs("trp-a").error_code(), StatusCode::UNAUTHENTICATED);
  EXPECT_TRUE(GetModelAs("trp-b").ok());
  EXPECT_EQ(stream.End().error_code(), StatusCode::CANCELLED);
}

TEST_F(GatewayKeysTest, RequestsPerMinute) {
  Start({TestKey("a", {.requests_per_minute = 3}), TestKey("b")});
  EXPECT_TRUE(GenerateAs("trp-a").ok());
  EXPECT_TRUE(TokenizeAs("trp-a").ok());
  EXPECT_TRUE(GenerateAs("trp-a").ok());
  const grpc::Status refused = GenerateAs("trp-a");
  EXPECT_EQ(refused.error_code(), StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(RetryDelayMs(refused), 20000);
  EXPECT_THAT(refused.error_message(), HasSubstr("3 requests_per_minute"));
  EXPECT_EQ(RetryDelayMs(TokenizeAs("trp-a")), 20000);
  EXPECT_TRUE(GetModelAs("trp-a").ok());  // free
  EXPECT_TRUE(GenerateAs("trp-b").ok());  // has no part in it
  clock_.Advance(milliseconds(19999));
  EXPECT_EQ(RetryDelayMs(GenerateAs("trp-a")), 1);
  clock_.Advance(milliseconds(1));
  EXPECT_TRUE(GenerateAs("trp-a").ok());
}

TEST_F(GatewayKeysTest, TokensPerMinuteCountWhatWasReadAndWritten) {
  Start({TestKey("a", {.tokens_per_minute = 600}),
         TestKey("small", {.tokens_per_minute = 10})});
  CallResult result = Generate(Prompt(kStory), As("trp-a").get());
  ASSERT_TRUE(result.status.ok()) << result.status.error_message();
  const uint32_t used = result.usage.total_tokens();
  ASSERT_GT(result.usage.completion_tokens(), 3u);
  // Now a request that wants all of a minute: 10 tokens come per second.
  v1::GenerateRequest all = Prompt(kStory);
  all.set_max_tokens(40);
  all.set_n(16);
  const grpc::Status refused = GenerateAs("trp-a", all);
  EXPECT_EQ(refused.error_code(), StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(RetryDelayMs(refused), static_cast<int>(used) * 100);
  EXPECT_THAT(refused.error_message(), HasSubstr("600 tokens_per_minute"));
  clock_.Advance(milliseconds(used * 100 - 1));
  EXPECT_EQ(RetryDelayMs(GenerateAs("trp-a", all)), 1);
  clock_.Advance(milliseconds(1));
  result = Generate(all, As("trp-a").get());
  ASSERT_TRUE(result.status.ok()) << result.status.error_message();
  // What it did not use came back at its end: not the minute that it had
  // reserved, but what it used is to be waited for.
  const grpc::Status again = GenerateAs("trp-a", all);
  EXPECT_EQ(RetryDelayMs(again),
            static_cast<int>(result.usage.total_tokens()) * 100);
  // A prompt of more than a minute's tokens can never be let in.
  const grpc::Status never = GenerateAs("trp-small");
  EXPECT_EQ(never.error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(never.error_message(), HasSubstr("limit is 10 per minute"));
}

TEST_F(GatewayKeysTest, MaxConcurrent) {
  Start({TestKey("a", {.max_concurrent = 2}), TestKey("b")},
        HangingAfter(" there was a fox", 1));
  Stream first = Open("trp-a");
  Stream second = Open("trp-a");
  ASSERT_TRUE(first.started && second.started);
  const grpc::Status refused = GenerateAs("trp-a");
  EXPECT_EQ(refused.error_code(), StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(refused.error_message(), HasSubstr("2 max_concurrent"));
  EXPECT_GE(RetryDelayMs(refused), 100);
  Stream other = Open("trp-b");
  EXPECT_TRUE(other.started);
  other.End();
  first.End();
  // The place is free when the gateway has seen the end.
  Stream third = Open("trp-a");
  while (!third.started) {
    EXPECT_EQ(third.End().error_code(), StatusCode::RESOURCE_EXHAUSTED);
    third = Open("trp-a");
  }
  third.End();
  second.End();
}

TEST_F(GatewayKeysTest, AGreedyKeyLeavesPlacesForAnother) {
  GatewayOptions options;
  options.max_requests = 8;
  Start({TestKey("greedy"), TestKey("modest")},
        HangingAfter(" there was a fox", 1), options);
  std::vector<Stream> streams;
  while (true) {
    Stream stream = Open("trp-greedy");
    if (!stream.started) {
      const grpc::Status refused = stream.End();
      EXPECT_EQ(refused.error_code(), StatusCode::RESOURCE_EXHAUSTED);
      EXPECT_THAT(refused.error_message(), HasSubstr("fair share is 4"));
      EXPECT_GE(RetryDelayMs(refused), 100);
      break;
    }
    streams.push_back(std::move(stream));
  }
  EXPECT_EQ(streams.size(), 7u);
  Stream modest = Open("trp-modest");
  EXPECT_TRUE(modest.started);
  streams.push_back(std::move(modest));
  EXPECT_TRUE(
      Generate(Prompt(kStory), As("trp-modest").get()).status.error_code() ==
      StatusCode::RESOURCE_EXHAUSTED);
  for (Stream& stream : streams) stream.End();
}

TEST_F(GatewayKeysTest, WithoutAFileEverybodyIsLetInWithOrWithoutAKey) {
  AddRouter(Reciting(" there was a fox"));
  StartGateway();
  for (const std::string key : {"", "trp-anything"}) {
    EXPECT_TRUE(GenerateAs(key).ok());
    EXPECT_TRUE(GetStatsAs(key).ok());
  }
}

TEST_F(GatewayKeysTest, ABrokenFileIsNoStart) {
  KeyFile file({});
  file.SetText("{\"keys\": 1}");
  GatewayOptions options;
  options.listen = {"127.0.0.1:0"};
  options.routers = {"127.0.0.1:1"};
  options.api_keys = file.path();
  const auto gateway = Gateway::Start(options, TestModel());
  ASSERT_FALSE(gateway.ok());
  EXPECT_THAT(std::string(gateway.status().message()),
              HasSubstr(file.path() + ": keys: is not an array"));
}

TEST(ExposureTest, OnlyWhatOthersReachIsWarnedOf) {
  for (const char* local : {"127.0.0.1:80", "127.1.2.3:80", "[::1]:80",
                            "localhost:80", "unix:/run/x"}) {
    EXPECT_TRUE(IsLocalAddress(local)) << local;
    EXPECT_FALSE(WarnWhenOpen(local, false, false));
  }
  for (const char* open : {"0.0.0.0:80", "[::]:80", "10.0.0.1:80", "host:80",
                           "[fe80::1]:80", "127.0.0.1.example.com:80"}) {
    EXPECT_FALSE(IsLocalAddress(open)) << open;
    EXPECT_TRUE(WarnWhenOpen(open, false, false)) << open;
    EXPECT_FALSE(WarnWhenOpen(open, true, false));
    EXPECT_FALSE(WarnWhenOpen(open, false, true));
  }
}

}  // namespace
}  // namespace troupe
