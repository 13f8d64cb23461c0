// What clients see of a gateway; its routers' ends are in
// router_failover_test.cc.
#include "gateway/gateway.h"

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/rpc/rpc_channel.h"
#include "common/rpc/rpc_server.h"
#include "common/rpc/status.h"
#include "gateway/choice_seed.h"
#include "gmock/gmock.h"
#include "grpcpp/generic/generic_stub.h"
#include "gtest/gtest.h"
#include "protos/expert.grpc.pb.h"
#include "protos/gateway.grpc.pb.h"
#include "protos/health.grpc.pb.h"
#include "tests/fakes/fake_router/fake_router.h"
#include "tests/gateway/gateway_fixture.h"
#include "tests/gateway/test_model.h"

namespace troupe {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

TEST_F(GatewayTest, StreamsTokensTextAndUsage) {
  FakeRouter& router = AddRouter(Reciting(kStory));
  StartGateway();
  v1::GenerateRequest request = Prompt("Tell");
  request.set_seed(77);
  request.set_request_id("r1");
  const CallResult result = Generate(request);
  ASSERT_TRUE(result.status.ok()) << result.status.error_message();
  const ChoiceResult& choice = result.choices[0];
  EXPECT_EQ(choice.text, kStory);
  EXPECT_THAT(choice.tokens, SizeIs(17));
  EXPECT_EQ(choice.tokens[0].text(), "O");
  EXPECT_FALSE(choice.tokens[0].has_logprob());
  EXPECT_EQ(choice.finish_reason, v1::FINISH_REASON_STOP);
  EXPECT_EQ(choice.stop_reason, "</s>");
  EXPECT_EQ(result.num_usages, 1);
  EXPECT_TRUE(result.usage_was_last);
  EXPECT_EQ(result.usage.prompt_tokens(), 5u);
  EXPECT_EQ(result.usage.completion_tokens(), 17u);
  EXPECT_EQ(result.usage.total_tokens(), 22u);
  EXPECT_EQ(result.usage.seed(), 77u);
  EXPECT_EQ(result.usage.request_id(), "r1");
  EXPECT_EQ(result.usage.queue_ms(), 1.5);
  EXPECT_GT(result.usage.ttft_ms(), 0);
  EXPECT_GE(result.usage.total_ms(), result.usage.ttft_ms());
  ASSERT_THAT(router.requests(), SizeIs(1));
  EXPECT_THAT(router.requests()[0].prompt_token_ids(),
              ElementsAre(FakeTokenizer::kBos, 'T', 'e', 'l', 'l'));
  EXPECT_EQ(router.requests()[0].sampling().seed(), 77u);
  EXPECT_THAT(router.requests()[0].stop_token_ids(),
              ElementsAre(FakeTokenizer::kEos));
}

// The cached tokens come with the first response: a stop text may end the
// choice before the router does.
TEST_F(GatewayTest, UsageSaysWhatWasCachedForEveryChoice) {
  AddRouter([](const v1::RouterGenerateRequest& request) {
    FakeRouterScript script = Recite(kStory, request);
    const auto seed = static_cast<uint32_t>(request.sampling().seed() % 2);
    v1::RouterUsage& usage = *script.responses[0].mutable_usage();
    usage.set_cached_tokens(3 + seed);
    usage.mutable_copies()->set_first_choice(10);
    usage.mutable_copies()->set_dropped(2);
    // Later ones hold the copies alone, and replace the earlier ones.
    v1::RouterUsage& later = *script.responses[1].mutable_usage();
    later.mutable_copies()->set_first_choice(20);
    return script;
  });
  StartGateway();
  v1::GenerateRequest request = Prompt("Tell");
  request.set_n(8);
  request.set_seed(1);
  request.add_stop("nce");
  CallResult result = Generate(request);
  ASSERT_TRUE(result.status.ok()) << result.status.error_message();
  EXPECT_EQ(result.choices[0].text, "O");
  EXPECT_EQ(result.usage.cached_tokens(), 3u);
  EXPECT_EQ(result.usage.copies().dropped(), 8 * 2u);
  EXPECT_GE(result.usage.copies().first_choice(), 8 * 10u);
  // Never more than the prompt has, whatever a router says.
  routers_[0]->SetBehaviour([](const v1::RouterGenerateRequest& call) {
    FakeRouterScript script = Recite(kStory, call);
    script.responses[0].mutable_usage()->set_cached_tokens(1000);
    return script;
  });
  result = Generate(request);
  ASSERT_TRUE(result.status.ok()) << result.status.error_message();
  EXPECT_EQ(result.usage.cached_tokens(), 5u);
}

TEST_F(GatewayTest, ASeedIsDrawnUsedAndReported) {
  FakeRouter& router = AddRouter(Reciting("a"));
  StartGateway();
  const CallResult first = Generate(Prompt("x"));
  const CallResult second = Generate(Prompt("x"));
  EXPECT_NE(first.usage.seed(), second.usage.seed());
  EXPECT_EQ(router.requests()[0].sampling().seed(), first.usage.seed());
  EXPECT_EQ(router.requests()[1].sampling().seed(), second.usage.seed());
  EXPECT_NE(first.usage.request_id(), second.usage.request_id());
}

TEST_F(GatewayTest, LengthEndsAtMaxTokens) {
  AddRouter(Reciting(kStory));
  StartGateway();
  v1::GenerateRequest request = Prompt("x");
  request.set_max_tokens(6);
  const CallResult result = Generate(request);
  EXPECT_EQ(result.choices[0].text, "Once u");
  EXPECT_EQ(result.choices[0].finish_reason, v1::FINISH_REASON_LENGTH);
}

TEST_F(GatewayTest, DeltasAreWholeCharacters) {
  const std::string text = "\xC3\xBC\xE2\x82\xAC\xF0\x9F\x98\x80!";
  AddRouter(Reciting(text));
  StartGateway();
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, Prompt("x"));
  v1::GenerateResponse response;
  std::string all;
  // A delta that is not UTF-8 could not even be parsed.
  while (reader->Read(&response)) all += response.text();
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(all, text);
}

TEST_F(GatewayTest, ChoicesAreStreamsOfTheirOwn) {
  FakeRouter& router = AddRouter([](const v1::RouterGenerateRequest& request) {
    return Recite(absl::StrCat("seed ", request.sampling().seed() % 1000),
                  request);
  });
  StartGateway();
  v1::GenerateRequest request = Prompt("x");
  request.set_n(3);
  request.set_seed(5);
  const CallResult result = Generate(request);
  ASSERT_TRUE(result.status.ok()) << result.status.error_message();
  for (uint32_t i = 0; i < 3; ++i) {
    EXPECT_EQ(result.choices[i].text,
              absl::StrCat("seed ", ChoiceSeed(5, i) % 1000));
    EXPECT_EQ(result.choices[i].finish_reason, v1::FINISH_REASON_STOP);
  }
  EXPECT_TRUE(result.usage_was_last);
  EXPECT_EQ(result.num_usages, 1);
  size_t num_tokens = 0;
  for (const ChoiceResult& choice : result.choices) {
    num_tokens += choice.tokens.size();
  }
  EXPECT_EQ(result.usage.completion_tokens(), num_tokens);
  EXPECT_THAT(router.requests(), SizeIs(3));
}

TEST_F(GatewayTest, LogprobsWithAlternatives) {
  AddRouter(Reciting("ab"));
  StartGateway();
  v1::GenerateRequest request = Prompt("x");
  request.set_logprobs(true);
  request.set_top_logprobs(2);
  const CallResult result = Generate(request);
  ASSERT_THAT(result.choices[0].tokens, SizeIs(3));
  const v1::GeneratedToken& token = result.choices[0].tokens[1];
  EXPECT_EQ(token.token_id(), static_cast<uint32_t>('b'));
  EXPECT_TRUE(token.has_logprob());
  EXPECT_EQ(token.logprob(), -0.25f);
  ASSERT_EQ(token.top_logprobs_size(), 2);
  EXPECT_EQ(token.top_logprobs(1).text(), "c");
  EXPECT_EQ(token.top_logprobs(1).logprob(), -1.25f);
}

TEST_F(GatewayTest, EchoBeginsWithThePromptAndItsLogprobs) {
  AddRouter(Reciting("def"));
  StartGateway();
  v1::GenerateRequest request = Prompt("abc");
  request.set_echo(true);
  request.set_logprobs(true);
  const CallResult result = Generate(request);
  const ChoiceResult& choice = result.choices[0];
  EXPECT_EQ(choice.text, "abcdef");
  ASSERT_THAT(choice.tokens, SizeIs(4 + 4));
  EXPECT_TRUE(choice.tokens[0].is_prompt());
  EXPECT_FALSE(choice.tokens[0].has_logprob()) << "nothing comes before it";
  EXPECT_TRUE(choice.tokens[3].is_prompt());
  EXPECT_TRUE(choice.tokens[3].has_logprob());
  EXPECT_EQ(choice.tokens[3].text(), "c");
  EXPECT_EQ(choice.tokens[3].logprob(), -5.0f / 8);
  EXPECT_FALSE(choice.tokens[4].is_prompt());
  EXPECT_EQ(result.usage.completion_tokens(), 4u);
}

TEST_F(GatewayTest, EchoWithoutLogprobsOfATokenPrompt) {
  FakeRouter& router = AddRouter(Reciting("!"));
  StartGateway();
  v1::GenerateRequest request;
  for (const uint32_t id : {256, 0xC3, 0xBC}) {
    request.mutable_tokens()->add_token_ids(id);
  }
  request.set_echo(true);
  const CallResult result = Generate(request);
  EXPECT_EQ(result.choices[0].text, "\xC3\xBC!");
  EXPECT_FALSE(router.requests()[0].prompt_logprobs());
}

TEST_F(GatewayTest, AStopTextAcrossTokensEndsTheRoutersWork) {
  FakeRouter& router = AddRouter(HangingAfter("Once upon a time", 11));
  StartGateway();
  v1::GenerateRequest request = Prompt("x");
  request.add_stop("upon");
  const CallResult result = Generate(request);
  ASSERT_TRUE(result.status.ok()) << result.status.error_message();
  EXPECT_EQ(result.choices[0].text, "Once ");
  EXPECT_EQ(result.choices[0].stop_reason, "upon");
  EXPECT_EQ(result.choices[0].finish_reason, v1::FINISH_REASON_STOP);
  EXPECT_EQ(result.usage.completion_tokens(), 9u);
  router.AwaitCancelled(1);
}

TEST_F(GatewayTest, IncludeStopKeepsTheStopText) {
  AddRouter(Reciting("Once upon a time"));
  StartGateway();
  v1::GenerateRequest request = Prompt("x");
  request.add_stop("upon");
  request.set_include_stop(true);
  EXPECT_EQ(Generate(request).choices[0].text, "Once upon");
}

TEST_F(GatewayTest, TextHeldBackForAStopComesAtTheEnd) {
  AddRouter(Reciting("Once up"));
  StartGateway();
  v1::GenerateRequest request = Prompt("x");
  request.add_stop("upon");
  const CallResult result = Generate(request);
  EXPECT_EQ(result.choices[0].text, "Once up");
  EXPECT_EQ(result.choices[0].stop_reason, "</s>");
}

TEST_F(GatewayTest, CancellingReachesEveryRouterCall) {
  FakeRouter& first = AddRouter(HangingAfter(kStory, 2));
  FakeRouter& second = AddRouter(HangingAfter(kStory, 2));
  StartGateway();
  v1::GenerateRequest request = Prompt("x");
  request.set_n(4);
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, request);
  v1::GenerateResponse response;
  ASSERT_TRUE(reader->Read(&response));
  first.AwaitCalls(2);
  second.AwaitCalls(2);
  context.TryCancel();
  first.AwaitCancelled(2);
  second.AwaitCancelled(2);
  while (reader->Read(&response)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

TEST_F(GatewayTest, TheDeadlineReachesTheRouter) {
  FakeRouter& router = AddRouter(HangingAfter(kStory, 1));
  StartGateway();
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + milliseconds(400));
  const CallResult result = Generate(Prompt("x"), &context);
  EXPECT_EQ(result.status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_GT(router.newest_timeout_ms(), 0);
  // gRPC rounds timeouts up on the wire.
  EXPECT_LE(router.newest_timeout_ms(), 450);
  router.AwaitCancelled(1);
}

TEST_F(GatewayTest, AFullQueueRefusesWithRetryInfo) {
  FakeRouter& router = AddRouter(HangingAfter(kStory, 1));
  GatewayOptions options;
  options.max_requests = 1;
  StartGateway(options);
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, Prompt("x"));
  v1::GenerateResponse response;
  ASSERT_TRUE(reader->Read(&response));
  const CallResult refused = Generate(Prompt("x"));
  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_GE(RetryDelayMs(refused.status), 100);
  EXPECT_THAT(refused.status.error_message(), HasSubstr("1 requests"));
  context.TryCancel();
  router.AwaitCancelled(1);
  EXPECT_THAT(router.requests(), SizeIs(1));
}

TEST_F(GatewayTest, APromptThatDoesNotFitHasBothNumbers) {
  FakeRouter& router = AddRouter(Reciting(kStory));
  StartGateway();
  const CallResult result = Generate(Prompt(std::string(99, 'x')));
  EXPECT_EQ(result.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(result.status.error_message(), HasSubstr("100 tokens"));
  EXPECT_THAT(result.status.error_message(), HasSubstr("context is 64"));
  v1::GenerateRequest request = Prompt("123456789");
  request.set_max_tokens(60);
  const CallResult too_many = Generate(request);
  EXPECT_THAT(too_many.status.error_message(), HasSubstr("10 tokens"));
  EXPECT_THAT(too_many.status.error_message(), HasSubstr("60"));
  EXPECT_THAT(router.requests(), IsEmpty());
}

TEST_F(GatewayTest, TheSmallestContextOfTheRoutersCounts) {
  FakeRouter& router = AddRouter(Reciting(kStory));
  v1::RouterDescription description = router.description();
  description.set_max_context(16);
  router.SetDescription(description);
  StartGateway();
  const CallResult result = Generate(Prompt(std::string(20, 'x')));
  EXPECT_THAT(result.status.error_message(), HasSubstr("context is 16"));
}

TEST_F(GatewayTest, LongTextsTakeTheWorkQueue) {
  AddRouter(Reciting(kStory));
  StartGateway();
  const CallResult result = Generate(Prompt(std::string(100000, 'x')));
  EXPECT_THAT(result.status.error_message(), HasSubstr("100001 tokens"));
}

TEST_F(GatewayTest, InvalidFieldsAreRefused) {
  AddRouter(Reciting(kStory));
  StartGateway();
  v1::GenerateRequest request = Prompt("x");
  request.mutable_sampling()->set_temperature(-1);
  EXPECT_EQ(Generate(request).status.error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
  request = Prompt("x");
  request.set_model("other");
  EXPECT_EQ(Generate(request).status.error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST_F(GatewayTest, ARefusedSequenceGoesToAnotherRouter) {
  const grpc::Status refusal = ResourceExhaustedStatus(
      absl::ResourceExhaustedError("router queue is full"), 700);
  FakeRouter& full = AddRouter(Failing(refusal));
  FakeRouter& other = AddRouter(Reciting(kStory));
  StartGateway();
  // Each router gets its turn as the first choice.
  for (int i = 0; i < 4; ++i) {
    const CallResult result = Generate(Prompt("x"));
    ASSERT_TRUE(result.status.ok()) << result.status.error_message();
    EXPECT_EQ(result.choices[0].text, kStory);
  }
  EXPECT_FALSE(full.requests().empty());
  EXPECT_THAT(other.requests(), SizeIs(4));
  other.SetBehaviour(Failing(refusal));
  const CallResult refused = Generate(Prompt("x"));
  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(RetryDelayMs(refused.status), 700);
}

TEST_F(GatewayTest, ADyingRoutersStreamGoesOnElsewhereWithTheSameBytes) {
  FakeRouter& first = AddRouter(HangingAfter(kStory, 7));
  FakeRouter& second = AddRouter(HangingAfter(kStory, 7));
  StartGateway();
  v1::GenerateRequest request = Prompt("x");
  request.set_seed(3);
  request.set_logprobs(true);
  request.set_echo(true);
  // With echo and logprobs the first response is the prompt: 6 tokens come.
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, request);
  CallResult result;
  v1::GenerateResponse response;
  for (int i = 0; i < 7; ++i) {
    ASSERT_TRUE(reader->Read(&response));
    Take(response, result);
  }
  const bool at_first = !first.requests().empty();
  FakeRouter& lost = at_first ? first : second;
  FakeRouter& heir = at_first ? second : first;
  heir.SetBehaviour(Reciting(kStory));
  lost.Kill();
  while (reader->Read(&response)) Take(response, result);
  result.status = reader->Finish();
  ASSERT_TRUE(result.status.ok()) << result.status.error_message();
  EXPECT_EQ(result.choices[0].text, absl::StrCat("x", kStory));
  ASSERT_THAT(result.choices[0].tokens, SizeIs(2 + 17));
  for (int i = 0; i < 17; ++i) {
    EXPECT_EQ(result.choices[0].tokens[2 + i].logprob(),
              -static_cast<float>(i + 1) / 8);
  }
  EXPECT_EQ(result.usage.moved_streams(), 1u);
  EXPECT_EQ(Stats().moved_streams(), 1u);
  ASSERT_THAT(heir.requests(), SizeIs(1));
  const v1::RouterGenerateRequest replay = heir.requests()[0];
  EXPECT_THAT(replay.generated_token_ids(),
              ElementsAre('O', 'n', 'c', 'e', ' ', 'u'));
  EXPECT_EQ(replay.sampling().seed(), 3u);
  EXPECT_FALSE(replay.prompt_logprobs()) << "the client has them";
  EXPECT_EQ(replay.max_tokens(), lost.requests()[0].max_tokens());
}

TEST_F(GatewayTest, AStreamWaitsForItsOnlyRouterToComeBack) {
  FakeRouter& router = AddRouter(HangingAfter(kStory, 5));
  StartGateway();
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, Prompt("x"));
  CallResult result;
  v1::GenerateResponse response;
  for (int i = 0; i < 5; ++i) {
    ASSERT_TRUE(reader->Read(&response));
    Take(response, result);
  }
  router.Kill();
  AwaitHealth(grpc::health::v1::HealthCheckResponse::NOT_SERVING);
  router.SetBehaviour(Reciting(kStory));
  router.Start();
  while (reader->Read(&response)) Take(response, result);
  result.status = reader->Finish();
  ASSERT_TRUE(result.status.ok()) << result.status.error_message();
  EXPECT_EQ(result.choices[0].text, kStory);
}

TEST_F(GatewayTest, TheWaitForARouterIsBounded) {
  FakeRouter& router = AddRouter(HangingAfter(kStory, 1));
  GatewayOptions options;
  options.router_wait = milliseconds(50);
  StartGateway(options);
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, Prompt("x"));
  v1::GenerateResponse response;
  ASSERT_TRUE(reader->Read(&response));
  router.Kill();
  while (reader->Read(&response)) {
  }
  const grpc::Status status = reader->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(status.error_message(), HasSubstr(router.address()));
}

TEST_F(GatewayTest, ASequenceMovesAtMostThreeTimes) {
  const grpc::Status lost(grpc::StatusCode::UNAVAILABLE,
                          "expert 3 of layer 0 has no replica");
  FakeRouter& router = AddRouter(Failing(lost));
  StartGateway();
  const CallResult result = Generate(Prompt("x"));
  EXPECT_EQ(result.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(result.status.error_message(), HasSubstr("expert 3 of layer 0"));
  EXPECT_THAT(router.requests(), SizeIs(4));
}

TEST_F(GatewayTest, ErrorsOfTheRouterReachTheClientOnce) {
  FakeRouter& router = AddRouter(
      Failing(grpc::Status(grpc::StatusCode::INTERNAL, "a bug of the router")));
  StartGateway();
  const CallResult result = Generate(Prompt("x"));
  EXPECT_EQ(result.status.error_code(), grpc::StatusCode::INTERNAL);
  EXPECT_EQ(result.status.error_message(), "a bug of the router");
  EXPECT_THAT(router.requests(), SizeIs(1));
}

TEST_F(GatewayTest, AStreamWithoutFinishReasonIsAnError) {
  AddRouter(Failing(grpc::Status::OK));
  StartGateway();
  EXPECT_EQ(Generate(Prompt("x")).status.error_code(),
            grpc::StatusCode::INTERNAL);
}

TEST_F(GatewayTest, ARequestWaitsUntilARouterIsReady) {
  FakeRouter& router = AddRouter(Reciting(kStory));
  StartGateway();
  v1::RouterDescription description = router.description();
  description.set_state(v1::SERVING_STATE_LOADING);
  router.SetDescription(description);
  AwaitHealth(grpc::health::v1::HealthCheckResponse::NOT_SERVING);
  CallResult result;
  std::thread waiting([&] { result = Generate(Prompt("x")); });
  v1::ClusterStats stats;
  do {
    grpc::ClientContext context;
    ASSERT_TRUE(stub_->GetStats(&context, v1::GetStatsRequest(), &stats).ok());
  } while (stats.gateway().active_requests() == 0);
  description.set_state(v1::SERVING_STATE_READY);
  router.SetDescription(description);
  waiting.join();
  EXPECT_TRUE(result.status.ok()) << result.status.error_message();
  EXPECT_EQ(result.choices[0].text, kStory);
}

TEST_F(GatewayTest, HealthFollowsTheRouters) {
  FakeRouter& router = AddRouter(Reciting(kStory));
  GatewayOptions options;
  options.router_wait = milliseconds(20);
  StartGateway(options);
  v1::RouterDescription description = router.description();
  description.set_state(v1::SERVING_STATE_LOADING);
  description.set_detail("expert 2 of layer 0 has no replica");
  router.SetDescription(description);
  AwaitHealth(grpc::health::v1::HealthCheckResponse::NOT_SERVING);
  const CallResult result = Generate(Prompt("x"));
  EXPECT_EQ(result.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(result.status.error_message(), HasSubstr("expert 2 of layer 0"));
  description.set_state(v1::SERVING_STATE_READY);
  router.SetDescription(description);
  AwaitHealth(grpc::health::v1::HealthCheckResponse::SERVING);
  EXPECT_TRUE(Generate(Prompt("x")).status.ok());
}

TEST_F(GatewayTest, ARouterOfAnotherModelGetsNoWork) {
  FakeRouter& right = AddRouter(Reciting(kStory));
  routers_.push_back(
      std::make_unique<FakeRouter>("fingerprint-2", Reciting("wrong")));
  GatewayOptions options;
  options.router_wait = milliseconds(20);
  StartGateway(options);
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(Generate(Prompt("x")).choices[0].text, kStory);
  }
  EXPECT_THAT(routers_[1]->requests(), IsEmpty());
  right.Kill();
  AwaitHealth(grpc::health::v1::HealthCheckResponse::NOT_SERVING);
  EXPECT_THAT(
      Generate(Prompt("x")).status.error_message(),
      testing::AllOf(HasSubstr("fingerprint-2"), HasSubstr(kTestFingerprint)));
}

TEST_F(GatewayTest, LoadIsSpreadOverRouters) {
  FakeRouter& first = AddRouter(HangingAfter(kStory, 1));
  FakeRouter& second = AddRouter(HangingAfter(kStory, 1));
  StartGateway();
  v1::GenerateRequest request = Prompt("x");
  request.set_n(8);
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, request);
  first.AwaitCalls(4);
  second.AwaitCalls(4);
  context.TryCancel();
  first.AwaitCancelled(4);
  second.AwaitCancelled(4);
}

TEST_F(GatewayTest, ASlowReaderHoldsTheRouterBack) {
  FakeRouter& router = AddRouter([](const v1::RouterGenerateRequest& request) {
    FakeRouterScript script = Recite(std::string(50, 'a'), request);
    script.responses.resize(1);
    script.endless = true;
    return script;
  });
  GatewayOptions options;
  options.max_pending_responses = 4;
  StartGateway(options);
  v1::GenerateRequest request = Prompt("x");
  request.set_logprobs(true);
  request.set_top_logprobs(20);
  request.set_ignore_eos(true);
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, request);
  v1::GenerateResponse response;
  ASSERT_TRUE(reader->Read(&response));
  router.AwaitStalled();
  const uint64_t at_rest = router.num_written();
  // It was flow control that stopped it: reading lets it go on.
  for (uint64_t i = 0; i < at_rest + 1; ++i) {
    ASSERT_TRUE(reader->Read(&response));
  }
  EXPECT_GT(router.num_written(), at_rest);
  context.TryCancel();
  router.AwaitCancelled(1);
}

TEST_F(GatewayTest, DrainFinishesWhatRunsAndRefusesTheRest) {
  FakeRouter& router = AddRouter(HangingAfter(kStory, 1));
  StartGateway();
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, Prompt("x"));
  v1::GenerateResponse response;
  CallResult result;
  ASSERT_TRUE(reader->Read(&response));
  Take(response, result);
  std::thread drain([this] { gateway_->Drain(std::chrono::seconds(60)); });
  // Whoever asks is told that it drains, until the stream has ended.
  AwaitHealth(grpc::health::v1::HealthCheckResponse::NOT_SERVING);
  grpc::Status refused;
  do {
    refused = Generate(Prompt("x")).status;
  } while (refused.ok());
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(refused.error_message(), HasSubstr("draining"));
  EXPECT_EQ(Stats().state(), v1::SERVING_STATE_DRAINING);
  // The router ends its stream; the sequence finishes on the same router, on
  // which it moves while the gateway drains.
  router.SetBehaviour(Reciting(kStory));
  router.Kill();
  router.Start();
  while (reader->Read(&response)) Take(response, result);
  const grpc::Status status = reader->Finish();
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(result.choices[0].text, kStory);
  drain.join();
}

TEST_F(GatewayTest, DrainEndsWhatOutlastsItsLimit) {
  FakeRouter& router = AddRouter(HangingAfter(kStory, 1));
  StartGateway();
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, Prompt("x"));
  v1::GenerateResponse response;
  ASSERT_TRUE(reader->Read(&response));
  gateway_->Drain(milliseconds(20));
  router.AwaitCancelled(1);
  while (reader->Read(&response)) {
  }
  EXPECT_FALSE(reader->Finish().ok());
}

TEST_F(GatewayTest, TokenizeByTheChatTemplate) {
  AddRouter(Reciting(kStory));
  StartGateway();
  const auto tokenize = [&](const v1::TokenizeRequest& request,
                            v1::TokenizeResponse* response) {
    grpc::ClientContext context;
    return stub_->Tokenize(&context, request, response);
  };
  v1::TokenizeRequest request;
  v1::ChatMessage* message = request.add_messages();
  message->set_role("user");
  message->set_content("Hi</s>");
  v1::TokenizeResponse response;
  ASSERT_TRUE(tokenize(request, &response).ok());
  // A control token that somebody typed stays text.
  EXPECT_THAT(response.token_ids(), ElementsAre('u', ':', 'H', 'i', '<', '/',
                                                's', '>', ';', 'a', ':'));
  request.set_text("Hi");
  const grpc::Status both = tokenize(request, &response);
  EXPECT_EQ(both.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(both.error_message(), testing::HasSubstr("text"));
}

TEST_F(GatewayTest, TokenizeAndDetokenize) {
  AddRouter(Reciting(kStory));
  StartGateway();
  v1::TokenizeRequest request;
  request.set_text("a\xC3\xBC");
  v1::TokenizeResponse tokens;
  {
    grpc::ClientContext context;
    ASSERT_TRUE(stub_->Tokenize(&context, request, &tokens).ok());
  }
  EXPECT_THAT(tokens.token_ids(), ElementsAre('a', 0xC3, 0xBC));
  EXPECT_THAT(tokens.tokens(),
              ElementsAre("a", "\xEF\xBF\xBD", "\xEF\xBF\xBD"));
  v1::DetokenizeRequest back;
  *back.mutable_token_ids() = tokens.token_ids();
  back.add_token_ids(FakeTokenizer::kEos);
  v1::DetokenizeResponse text;
  {
    grpc::ClientContext context;
    ASSERT_TRUE(stub_->Detokenize(&context, back, &text).ok());
  }
  EXPECT_EQ(text.text(), "a\xC3\xBC");
  back.add_token_ids(299);
  grpc::ClientContext context;
  const grpc::Status status = stub_->Detokenize(&context, back, &text);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("token_ids[4] is 299"));
}

TEST_F(GatewayTest, ModelInfo) {
  AddRouter(Reciting(kStory));
  StartGateway();
  grpc::ClientContext context;
  v1::ModelInfo info;
  ASSERT_TRUE(stub_->GetModel(&context, v1::GetModelRequest(), &info).ok());
  EXPECT_EQ(info.name(), "fake");
  EXPECT_EQ(info.family(), "mixtral");
  EXPECT_EQ(info.max_context(), 64u);
  EXPECT_EQ(info.num_experts(), 4u);
  EXPECT_EQ(info.top_k(), 2u);
  EXPECT_EQ(info.fingerprint(), kTestFingerprint);
  EXPECT_THAT(info.eos_token_ids(), ElementsAre(FakeTokenizer::kEos));
  EXPECT_EQ(info.default_sampling().repetition_penalty(), 1.25f);
  EXPECT_EQ(info.chat_template(), TestModel().chat_template);
}

class FakeExpert final : public v1::Expert::Service {
 public:
  grpc::Status GetStats(grpc::ServerContext* context,
                        const v1::GetExpertStatsRequest* request,
                        v1::ExpertStats* response) override {
    response->set_rows(1234);
    if (request->check_integrity()) {
      response->add_integrity_errors("of 3 queued rows 2 wait");
    }
    return grpc::Status::OK;
  }
};

TEST_F(GatewayTest, StatsOfTheWholeCluster) {
  FakeExpert expert;
  RpcServerOptions expert_options;
  expert_options.listen = {"127.0.0.1:0"};
  const auto expert_server = RpcServer::Start(expert_options, {&expert});
  ASSERT_TRUE(expert_server.ok());
  FakeRouter& router = AddRouter(Reciting(kStory));
  FakeRouter& dead = AddRouter(Reciting(kStory));
  v1::RouterStats stats;
  stats.set_name("router-0");
  stats.set_steps(99);
  stats.add_peers()->set_address((*expert_server)->addresses()[0]);
  stats.add_peers()->set_address("unix:/nowhere/expert.sock");
  router.SetStats(stats);
  dead.Kill();
  StartGateway();
  EXPECT_TRUE(Generate(Prompt("x")).status.ok());
  v1::GenerateRequest bad = Prompt("x");
  bad.set_n(99);
  EXPECT_FALSE(Generate(bad).status.ok());

  grpc::ClientContext context;
  v1::GetStatsRequest request;
  request.set_include_experts(true);
  v1::ClusterStats cluster;
  ASSERT_TRUE(stub_->GetStats(&context, request, &cluster).ok());
  EXPECT_EQ(cluster.gateway().requests(), 2u);
  EXPECT_EQ(cluster.gateway().requests_ok(), 1u);
  EXPECT_EQ(cluster.gateway().requests_failed(), 1u);
  EXPECT_EQ(cluster.gateway().completion_tokens(), 17u);
  EXPECT_GT(cluster.gateway().resident_bytes(), 1u << 20);
  ASSERT_EQ(cluster.routers_size(), 1);
  EXPECT_EQ(cluster.routers(0).steps(), 99u);
  ASSERT_EQ(cluster.experts_size(), 1);
  EXPECT_EQ(cluster.experts(0).rows(), 1234u);
  EXPECT_THAT(cluster.experts(0).integrity_errors(), IsEmpty());
  EXPECT_THAT(cluster.unreachable(),
              ElementsAre(dead.address(), "unix:/nowhere/expert.sock"));

  grpc::ClientContext check_context;
  request.set_check_integrity(true);
  ASSERT_TRUE(stub_->GetStats(&check_context, request, &cluster).ok());
  ASSERT_EQ(cluster.experts_size(), 1);
  EXPECT_THAT(cluster.experts(0).integrity_errors(),
              ElementsAre("of 3 queued rows 2 wait"));
}

// The reflection protocol, in bytes: a request whose field 7 (list_services)
// is the empty text.
TEST_F(GatewayTest, ReflectionListsTheServices) {
  AddRouter(Reciting(kStory));
  StartGateway();
  grpc::GenericStub stub(channel_);
  grpc::CompletionQueue queue;
  grpc::ClientContext context;
  const auto call = stub.PrepareCall(
      &context,
      "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", &queue);
  void* tag = nullptr;
  bool ok = false;
  const auto await = [&] { return queue.Next(&tag, &ok) && ok; };
  call->StartCall(nullptr);
  ASSERT_TRUE(await());
  const grpc::Slice slice(std::string("\x3A\x00", 2));
  call->WriteLast(grpc::ByteBuffer(&slice, 1), grpc::WriteOptions(), nullptr);
  ASSERT_TRUE(await());
  grpc::ByteBuffer answer;
  call->Read(&answer, nullptr);
  ASSERT_TRUE(await());
  grpc::Status status;
  call->Finish(&status, nullptr);
  ASSERT_TRUE(await());
  std::vector<grpc::Slice> slices;
  ASSERT_TRUE(answer.Dump(&slices).ok());
  std::string bytes;
  for (const grpc::Slice& part : slices) {
    bytes.append(reinterpret_cast<const char*>(part.begin()), part.size());
  }
  EXPECT_THAT(bytes, HasSubstr("troupe.v1.Gateway"));
  EXPECT_THAT(bytes, HasSubstr("grpc.health.v1.Health"));
  queue.Shutdown();
  while (queue.Next(&tag, &ok)) {
  }
}

TEST_F(GatewayTest, AnAddressInUseIsNamed) {
  AddRouter(Reciting(kStory));
  StartGateway();
  GatewayOptions options;
  options.listen = {gateway_->addresses()[0]};
  options.routers = {routers_[0]->address()};
  const absl::Status status = Gateway::Start(options, TestModel()).status();
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(std::string(status.message()), HasSubstr(options.listen[0]));
}

}  // namespace
}  // namespace troupe
