// The edge of a router process, reached over gRPC as gateways do.
#include "router_service/router_server.h"

#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/rpc/rpc_channel.h"
#include "common/rpc/rpc_server.h"
#include "common/rpc/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/router_service/test_engine.h"

namespace troupe {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;
using ::testing::SizeIs;
using ::testing::StartsWith;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr size_t kMaxContext = 128;

v1::RouterGenerateRequest ValidRequest() {
  v1::RouterGenerateRequest request;
  for (const uint32_t token : {3, 1, 4, 1, 5}) {
    request.add_prompt_token_ids(token);
  }
  request.set_max_tokens(10);
  return request;
}

absl::StatusOr<SequenceRequest> Convert(
    const v1::RouterGenerateRequest& request) {
  return ToSequenceRequest(request, TinyConfig(Architecture::kLlama),
                           kMaxContext);
}

TEST(ToSequenceRequestTest, TakesEveryField) {
  v1::RouterGenerateRequest request = ValidRequest();
  request.set_request_id("id-1");
  request.add_generated_token_ids(9);
  request.add_stop_token_ids(2);
  request.add_stop_token_ids(263);
  request.set_min_tokens(4);
  request.set_logprobs(true);
  request.set_top_logprobs(20);
  request.set_prompt_logprobs(true);
  v1::SamplingParams& sampling = *request.mutable_sampling();
  sampling.set_temperature(0.5f);
  sampling.set_top_k(40);
  sampling.set_top_p(0.25f);
  sampling.set_min_p(0.125f);
  sampling.set_repetition_penalty(1.5f);
  sampling.set_presence_penalty(-2.0f);
  sampling.set_frequency_penalty(2.0f);
  sampling.set_seed(~uint64_t{0});
  (*sampling.mutable_logit_bias())[7] = -100.0f;
  const auto sequence = Convert(request);
  ASSERT_TRUE(sequence.ok()) << sequence.status();
  EXPECT_EQ(sequence->request_id, "id-1");
  EXPECT_THAT(sequence->tokens, ElementsAre(3, 1, 4, 1, 5, 9));
  EXPECT_EQ(sequence->prompt_length, 5u);
  EXPECT_EQ(sequence->max_tokens, 10u);
  EXPECT_EQ(sequence->min_tokens, 4u);
  EXPECT_THAT(sequence->stop_token_ids, ElementsAre(2, 263));
  EXPECT_TRUE(sequence->logprobs);
  EXPECT_EQ(sequence->top_logprobs, 20u);
  EXPECT_TRUE(sequence->prompt_logprobs);
  EXPECT_EQ(sequence->sampling.temperature, 0.5f);
  EXPECT_EQ(sequence->sampling.top_k, 40u);
  EXPECT_EQ(sequence->sampling.top_p, 0.25f);
  EXPECT_EQ(sequence->sampling.min_p, 0.125f);
  EXPECT_EQ(sequence->sampling.repetition_penalty, 1.5f);
  EXPECT_EQ(sequence->sampling.presence_penalty, -2.0f);
  EXPECT_EQ(sequence->sampling.frequency_penalty, 2.0f);
  EXPECT_EQ(sequence->sampling.seed, ~uint64_t{0});
  EXPECT_THAT(sequence->sampling.logit_bias, ElementsAre(Pair(7, -100.0f)));
}

TEST(ToSequenceRequestTest, ZeroMeansTheDefault) {
  const auto sequence = Convert(ValidRequest());
  ASSERT_TRUE(sequence.ok()) << sequence.status();
  EXPECT_EQ(sequence->sampling.temperature, 0.0f);
  EXPECT_EQ(sequence->sampling.top_p, 1.0f);
  EXPECT_EQ(sequence->sampling.repetition_penalty, 1.0f);
  EXPECT_EQ(sequence->deadline, kNoDeadline);
}

struct Case {
  const char* field;
  const char* value;
  std::function<void(v1::RouterGenerateRequest&)> spoil;
};

const std::vector<Case>& BadRequests() {
  using R = v1::RouterGenerateRequest;
  static const auto* const cases = new std::vector<Case>{
      {"prompt_token_ids", "empty", [](R& r) { r.clear_prompt_token_ids(); }},
      {"prompt_token_ids", "264", [](R& r) { r.set_prompt_token_ids(2, 264); }},
      {"prompt_token_ids", "4294967295",
       [](R& r) { r.set_prompt_token_ids(0, 0xffffffff); }},
      {"generated_token_ids", "300",
       [](R& r) { r.add_generated_token_ids(300); }},
      {"generated_token_ids", "11",
       [](R& r) {
         for (int i = 0; i < 11; ++i) r.add_generated_token_ids(1);
       }},
      {"stop_token_ids", "264", [](R& r) { r.add_stop_token_ids(264); }},
      // Both numbers and the context.
      {"prompt of 5 tokens", "max_tokens 124",
       [](R& r) { r.set_max_tokens(124); }},
      {"max_tokens", "4294967295", [](R& r) { r.set_max_tokens(0xffffffff); }},
      {"prompt of 129 tokens", "128",
       [](R& r) {
         while (r.prompt_token_ids_size() < 129) r.add_prompt_token_ids(1);
         r.set_max_tokens(0);
       }},
      {"cache_salt", "257",
       [](R& r) { r.set_cache_salt(std::string(257, 's')); }},
      {"top_logprobs", "21", [](R& r) { r.set_top_logprobs(21); }},
      {"sampling.temperature", "-0.5",
       [](R& r) { r.mutable_sampling()->set_temperature(-0.5f); }},
      {"sampling.temperature", "101",
       [](R& r) { r.mutable_sampling()->set_temperature(101.0f); }},
      {"sampling.temperature", "nan",
       [](R& r) { r.mutable_sampling()->set_temperature(kNaN); }},
      {"sampling.top_p", "1.5",
       [](R& r) { r.mutable_sampling()->set_top_p(1.5f); }},
      {"sampling.top_p", "nan",
       [](R& r) { r.mutable_sampling()->set_top_p(kNaN); }},
      {"sampling.min_p", "-1",
       [](R& r) { r.mutable_sampling()->set_min_p(-1.0f); }},
      {"sampling.repetition_penalty", "-1",
       [](R& r) { r.mutable_sampling()->set_repetition_penalty(-1.0f); }},
      {"sampling.repetition_penalty", "inf",
       [](R& r) {
         r.mutable_sampling()->set_repetition_penalty(
             std::numeric_limits<float>::infinity());
       }},
      {"sampling.presence_penalty", "2.5",
       [](R& r) { r.mutable_sampling()->set_presence_penalty(2.5f); }},
      {"sampling.frequency_penalty", "-3",
       [](R& r) { r.mutable_sampling()->set_frequency_penalty(-3.0f); }},
      {"sampling.logit_bias", "264",
       [](R& r) { (*r.mutable_sampling()->mutable_logit_bias())[264] = 1; }},
      {"sampling.logit_bias", "101",
       [](R& r) { (*r.mutable_sampling()->mutable_logit_bias())[2] = 101; }},
      {"sampling.logit_bias", "nan",
       [](R& r) { (*r.mutable_sampling()->mutable_logit_bias())[2] = kNaN; }},
  };
  return *cases;
}

TEST(ToSequenceRequestTest, NamesTheFieldAndTheValue) {
  for (const Case& c : BadRequests()) {
    SCOPED_TRACE(absl::StrCat(c.field, " ", c.value));
    v1::RouterGenerateRequest request = ValidRequest();
    c.spoil(request);
    const auto sequence = Convert(request);
    EXPECT_EQ(sequence.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(sequence.status().message()),
                AllOf(HasSubstr(c.field), HasSubstr(c.value)));
  }
}

TEST(ToSequenceRequestTest, TheEdgesFit) {
  v1::RouterGenerateRequest request = ValidRequest();
  request.set_max_tokens(kMaxContext - 5);
  EXPECT_TRUE(Convert(request).ok());
  request.set_max_tokens(2);
  request.add_generated_token_ids(0);
  request.add_generated_token_ids(263);
  EXPECT_TRUE(Convert(request).ok());
  v1::SamplingParams& sampling = *request.mutable_sampling();
  sampling.set_temperature(100);
  sampling.set_top_p(1);
  sampling.set_min_p(1);
  sampling.set_repetition_penalty(100);
  sampling.set_top_k(0xffffffff);
  EXPECT_TRUE(Convert(request).ok());
}

class RouterServerTest : public testing::Test {
 protected:
  void Start(const TestEngineOptions& options = {}) {
    engine_ = std::make_unique<TestEngine>(options);
    RouterServerOptions service_options;
    service_options.name = "router-under-test";
    service_options.model_fingerprint = "fingerprint-1";
    service_options.max_queued_sequences =
        static_cast<uint32_t>(options.max_queued_sequences);
    service_ =
        std::make_unique<RouterServer>(service_options, engine_->config(),
                                       engine_->loop(), engine_->experts());
    RpcServerOptions server_options;
    server_options.listen = {absl::StrCat("unix:", dir_.path(), "/router")};
    server_ = *RpcServer::Start(server_options, {service_.get()});
    stub_ = v1::Router::NewStub(MakeChannel(server_options.listen[0]));
  }
  ~RouterServerTest() override {
    if (server_ != nullptr) server_->Shutdown(milliseconds(0));
  }

  struct Outcome {
    std::vector<v1::RouterGenerateResponse> responses;
    grpc::Status status;

    std::vector<uint32_t> ids() const {
      std::vector<uint32_t> ids;
      for (const auto& response : responses) {
        for (const v1::TokenOutput& token : response.tokens()) {
          ids.push_back(token.token_id());
        }
      }
      return ids;
    }
  };
  Outcome Generate(const v1::RouterGenerateRequest& request,
                   milliseconds timeout = milliseconds(60000)) {
    grpc::ClientContext context;
    SetDeadline(context, std::chrono::steady_clock::now() + timeout);
    const auto reader = stub_->Generate(&context, request);
    Outcome outcome;
    v1::RouterGenerateResponse response;
    while (reader->Read(&response)) outcome.responses.push_back(response);
    outcome.status = reader->Finish();
    return outcome;
  }
  v1::RouterDescription Describe() {
    grpc::ClientContext context;
    v1::RouterDescription description;
    EXPECT_TRUE(
        stub_->Describe(&context, v1::DescribeRouterRequest(), &description)
            .ok());
    return description;
  }
  // With a check of everything.
  v1::RouterStats Stats() {
    grpc::ClientContext context;
    v1::GetRouterStatsRequest request;
    request.set_check_integrity(true);
    v1::RouterStats stats;
    EXPECT_TRUE(stub_->GetStats(&context, request, &stats).ok());
    EXPECT_THAT(stats.integrity_errors(), testing::IsEmpty());
    return stats;
  }
  void ExpectAllFree() {
    ASSERT_TRUE(engine_->loop().WaitUntilIdle(milliseconds(60000)));
    // The counters are published after the step: those before the next one are
    // of all that was.
    { const HeldLoop next(engine_->loop()); }
    for (int i = 0; i < 100000; ++i) {
      const v1::RouterStats stats = Stats();
      if (stats.kv_blocks_free() == stats.kv_blocks_total()) return;
      std::this_thread::yield();
    }
    FAIL() << Stats().ShortDebugString();
  }

  TempDir dir_;
  std::unique_ptr<TestEngine> engine_;
  std::unique_ptr<RouterServer> service_;
  std::unique_ptr<RpcServer> server_;
  std::unique_ptr<v1::Router::Stub> stub_;
};

TEST_F(RouterServerTest, StreamsTokensThenTheUsage) {
  Start();
  v1::RouterGenerateRequest request = ValidRequest();
  request.set_logprobs(true);
  request.set_top_logprobs(2);
  request.set_prompt_logprobs(true);
  const Outcome outcome = Generate(request);
  ASSERT_TRUE(outcome.status.ok()) << outcome.status.error_message();
  ASSERT_THAT(outcome.responses, SizeIs(10));
  EXPECT_THAT(outcome.responses[0].prompt(), SizeIs(5));
  EXPECT_THAT(outcome.responses[0].prompt(0).top_logprobs(), SizeIs(0));
  EXPECT_THAT(outcome.responses[0].prompt(1).top_logprobs(), SizeIs(2));
  for (size_t i = 0; i < 10; ++i) {
    const v1::RouterGenerateResponse& response = outcome.responses[i];
    ASSERT_THAT(response.tokens(), SizeIs(1));
    EXPECT_THAT(response.tokens(0).top_logprobs(), SizeIs(2));
    EXPECT_LT(response.tokens(0).logprob(), 0.0f);
    // What became of copies is told with every response, since a stop text may
    // end the choice before the last one; the rest with the first and the last.
    ASSERT_TRUE(response.has_usage());
    EXPECT_EQ(response.usage().copies().computed_tokens(), 5 + i);
    EXPECT_EQ(response.usage().queue_ms() > 0.0, i == 0 || i == 9);
    EXPECT_EQ(response.finish_reason(), i == 9 ? v1::FINISH_REASON_LENGTH
                                               : v1::FINISH_REASON_UNSPECIFIED);
  }
  ExpectAllFree();
}

TEST_F(RouterServerTest, AStopTokenIsTheReason) {
  Start();
  v1::RouterGenerateRequest request = ValidRequest();
  const std::vector<uint32_t> ids = Generate(request).ids();
  ASSERT_THAT(ids, SizeIs(10));
  request.add_stop_token_ids(ids[0]);
  const Outcome outcome = Generate(request);
  EXPECT_THAT(outcome.ids(), ElementsAre(ids[0]));
  EXPECT_EQ(outcome.responses.back().finish_reason(), v1::FINISH_REASON_STOP);
}

TEST_F(RouterServerTest, BadRequestsAreInvalidArgument) {
  Start();
  for (const Case& c : BadRequests()) {
    SCOPED_TRACE(absl::StrCat(c.field, " ", c.value));
    v1::RouterGenerateRequest request = ValidRequest();
    c.spoil(request);
    const Outcome outcome = Generate(request);
    EXPECT_EQ(outcome.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_THAT(outcome.status.error_message(), HasSubstr(c.field));
    EXPECT_THAT(outcome.responses, SizeIs(0));
  }
  EXPECT_TRUE(Generate(ValidRequest()).status.ok());
}

TEST_F(RouterServerTest, AFullQueueTellsWhenToTryAgain) {
  TestEngineOptions options;
  options.max_queued_sequences = 1;
  Start(options);
  {
    const HeldLoop held(engine_->loop());
    const Outcome outcome = Generate(ValidRequest());
    EXPECT_EQ(outcome.status.error_code(),
              grpc::StatusCode::RESOURCE_EXHAUSTED);
    EXPECT_EQ(RetryDelayMs(outcome.status), 1000);
  }
  ASSERT_TRUE(engine_->loop().WaitUntilIdle(milliseconds(60000)));
  EXPECT_TRUE(Generate(ValidRequest()).status.ok());
}

TEST_F(RouterServerTest, ADeadlineEndsTheSequence) {
  Start();
  {
    const HeldLoop held(engine_->loop());
    EXPECT_EQ(Generate(ValidRequest(), milliseconds(20)).status.error_code(),
              grpc::StatusCode::DEADLINE_EXCEEDED);
  }
  ExpectAllFree();
}

TEST_F(RouterServerTest, AClientThatHangsUpFreesItsBlocks) {
  Start();
  v1::RouterGenerateRequest request = ValidRequest();
  request.set_max_tokens(120);
  for (const int num_reads : {0, 1, 5}) {
    grpc::ClientContext context;
    const auto reader = stub_->Generate(&context, request);
    v1::RouterGenerateResponse response;
    for (int i = 0; i < num_reads; ++i) EXPECT_TRUE(reader->Read(&response));
    context.TryCancel();
    while (reader->Read(&response)) {
    }
    EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
    ExpectAllFree();
  }
}

TEST_F(RouterServerTest, DescribesItself) {
  Start();
  const v1::RouterDescription description = Describe();
  EXPECT_EQ(description.name(), "router-under-test");
  EXPECT_EQ(description.model_fingerprint(), "fingerprint-1");
  EXPECT_EQ(description.state(), v1::SERVING_STATE_READY);
  EXPECT_EQ(description.max_context(), kMaxContext);
  EXPECT_EQ(description.max_queued_sequences(), 256u);
  EXPECT_EQ(description.detail(), "");
}

TEST_F(RouterServerTest, IsNotReadyWithoutItsExperts) {
  TestEngineOptions options;
  options.architecture = Architecture::kMixtral;
  Start(options);
  EXPECT_EQ(Describe().state(), v1::SERVING_STATE_READY);
  engine_->expert_switch(1).GoAway();
  const v1::RouterDescription description = Describe();
  EXPECT_EQ(description.state(), v1::SERVING_STATE_LOADING);
  EXPECT_EQ(description.detail(), "expert 3 of layer 0 has no replica");
  EXPECT_THAT(Stats().peers(1).state(), StartsWith("away: "));
  engine_->expert_switch(1).ComeBack();
  engine_->expert_switch(1).WaitUntilKnown();
  EXPECT_EQ(Describe().state(), v1::SERVING_STATE_READY);
}

TEST_F(RouterServerTest, UnavailableExpertsAreNamed) {
  TestEngineOptions options;
  options.architecture = Architecture::kMixtral;
  Start(options);
  engine_->expert_switch(0).GoAway();
  // The client's own deadline fires, too; the sequence's answer is what the
  // loop says, so ask without gRPC's deadline in between.
  SequenceRequest request = *ToSequenceRequest(
      ValidRequest(), engine_->config(), engine_->loop().max_context());
  request.deadline = std::chrono::steady_clock::now() + milliseconds(500);
  absl::Notification ended;
  absl::Status status;
  request.on_event = [&](SequenceEvent event) {
    status = event.status;
    ended.Notify();
  };
  ASSERT_TRUE(engine_->loop().Submit(std::move(request)).ok());
  ended.WaitForNotification();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), StartsWith("expert "));
  // A call with a deadline ends, whoever is first to notice.
  const grpc::StatusCode code =
      Generate(ValidRequest(), milliseconds(50)).status.error_code();
  EXPECT_TRUE(code == grpc::StatusCode::UNAVAILABLE ||
              code == grpc::StatusCode::DEADLINE_EXCEEDED);
  ASSERT_TRUE(engine_->loop().WaitUntilIdle(milliseconds(60000)));
  engine_->expert_switch(0).ComeBack();
  ExpectAllFree();
}

TEST_F(RouterServerTest, DrainingFinishesOldAndRefusesNew) {
  Start();
  grpc::ClientContext context;
  v1::RouterGenerateRequest request = ValidRequest();
  request.set_max_tokens(60);
  const auto reader = stub_->Generate(&context, request);
  v1::RouterGenerateResponse response;
  ASSERT_TRUE(reader->Read(&response));
  EXPECT_EQ(Describe().leave_in_ms(), 0u);
  service_->StartDraining(milliseconds(60000));
  const v1::RouterDescription draining = Describe();
  EXPECT_EQ(draining.state(), v1::SERVING_STATE_DRAINING);
  EXPECT_GT(draining.leave_in_ms(), 1000u);
  EXPECT_LE(draining.leave_in_ms(), 60000u);
  const Outcome refused = Generate(ValidRequest());
  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_GE(RetryDelayMs(refused.status), 0) << "nothing was done";
  EXPECT_THAT(refused.status.error_message(), HasSubstr("draining"));
  int num_tokens = 1;
  while (reader->Read(&response)) ++num_tokens;
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(num_tokens, 60);
}

TEST_F(RouterServerTest, ShutdownWithCallsThatRunDoesNotHang) {
  TestEngineOptions options;
  options.architecture = Architecture::kMixtral;
  Start(options);
  engine_->expert_switch(0).GoAway();
  engine_->expert_switch(1).GoAway();
  std::vector<std::thread> clients;
  std::vector<grpc::Status> status(4);
  for (size_t i = 0; i < status.size(); ++i) {
    clients.emplace_back(
        [&, i] { status[i] = Generate(ValidRequest()).status; });
  }
  // At least one has reached the loop.
  while (engine_->loop().WaitUntilIdle(milliseconds(0))) {
    std::this_thread::yield();
  }
  server_->Shutdown(milliseconds(1));
  for (std::thread& client : clients) client.join();
  for (const grpc::Status& s : status) EXPECT_FALSE(s.ok());
  server_ = nullptr;
}

// What tells a gateway that a router gets on.
TEST_F(RouterServerTest, ProgressGoesOnWithTheWork) {
  TestEngineOptions options;
  options.architecture = Architecture::kMixtral;
  Start(options);
  const uint64_t before = Describe().progress();
  Generate(ValidRequest());
  ASSERT_TRUE(engine_->loop().WaitUntilIdle(milliseconds(60000)));
  const v1::RouterDescription done = Describe();
  // Ten steps, and more than one layer of each.
  EXPECT_GE(done.progress(), before + 20);
  EXPECT_EQ(done.sequences(), 0u);
  EXPECT_EQ(Describe().progress(), done.progress());
  // Without experts it stands still, and says that it has work.
  engine_->expert_switch(0).GoAway();
  engine_->expert_switch(1).GoAway();
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, ValidRequest());
  while (Describe().sequences() == 0) std::this_thread::yield();
  const uint64_t waiting = Describe().progress();
  EXPECT_LE(waiting, done.progress() + 1);
  context.TryCancel();
  EXPECT_FALSE(reader->Finish().ok());
}

TEST_F(RouterServerTest, CountsAndNamesItself) {
  Start();
  Generate(ValidRequest());
  while (Stats().steps() < 10) std::this_thread::yield();
  const v1::RouterStats stats = Stats();
  EXPECT_EQ(stats.name(), "router-under-test");
  EXPECT_EQ(stats.model_fingerprint(), "fingerprint-1");
  EXPECT_EQ(stats.prefill_tokens(), 5u);
  EXPECT_EQ(stats.decode_tokens(), 9u);
  EXPECT_GT(stats.pid(), 0);
  EXPECT_GT(stats.resident_bytes(), 1u << 20);
}

// Calls that run, hang up and time out side by side; in the end nothing is
// left, and what came through is right.
TEST_F(RouterServerTest, ManyClients) {
  TestEngineOptions options;
  options.num_kv_blocks = 10;
  Start(options);
  v1::RouterGenerateRequest request = ValidRequest();
  request.set_max_tokens(40);
  request.mutable_sampling()->set_temperature(1.0f);
  const std::vector<uint32_t> expected = Generate(request).ids();
  ASSERT_THAT(expected, SizeIs(40));
  std::vector<std::thread> clients;
  for (int t = 0; t < 6; ++t) {
    clients.emplace_back([&, t] {
      for (int round = 0; round < 6; ++round) {
        if ((t + round) % 3 == 0) {
          grpc::ClientContext context;
          const auto reader = stub_->Generate(&context, request);
          v1::RouterGenerateResponse response;
          for (int i = 0; i < round; ++i) reader->Read(&response);
          context.TryCancel();
          reader->Finish();
        } else if ((t + round) % 3 == 1) {
          Generate(request, milliseconds(1 + round));
        } else {
          const Outcome outcome = Generate(request);
          EXPECT_TRUE(outcome.status.ok()) << outcome.status.error_message();
          EXPECT_EQ(outcome.ids(), expected);
        }
      }
    });
  }
  for (std::thread& client : clients) client.join();
  ExpectAllFree();
}

}  // namespace
}  // namespace troupe
