// Routers that die, stop, drain, come and go under the streams of a gateway.
#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/rpc/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/fakes/temp_dir.h"
#include "tests/gateway/gateway_fixture.h"

namespace troupe {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

class RouterFailoverTest : public GatewayTest {
 protected:
  // Reads until the stream of one choice has that many tokens.
  void ReadTokens(size_t count) {
    v1::GenerateResponse response;
    while (result_.choices[0].tokens.size() < count) {
      ASSERT_TRUE(reader_->Read(&response));
      Take(response, result_);
    }
  }
  void Begin(const v1::GenerateRequest& request) {
    context_ = std::make_unique<grpc::ClientContext>();
    result_ = CallResult();
    reader_ = stub_->Generate(context_.get(), request);
  }
  const CallResult& Finish() {
    v1::GenerateResponse response;
    while (reader_->Read(&response)) Take(response, result_);
    result_.status = reader_->Finish();
    return result_;
  }

  // Two routers and a stream with five tokens, where it hangs; the other one
  // would recite to the end.
  void BeginAtOneOfTwo(GatewayOptions options = {}) {
    AddRouter(HangingAfter(kStory, 5));
    AddRouter(HangingAfter(kStory, 5));
    StartGateway(options);
    Begin(Prompt("x"));
    ReadTokens(5);
    const size_t at = routers_[0]->requests().empty() ? 1 : 0;
    here_ = routers_[at].get();
    there_ = routers_[1 - at].get();
    there_->SetBehaviour(Reciting(kStory));
  }
  void ExpectWholeStory(uint32_t moves) {
    const CallResult& result = Finish();
    ASSERT_TRUE(result.status.ok()) << result.status.error_message();
    EXPECT_EQ(result.choices[0].text, kStory);
    EXPECT_THAT(result.choices[0].tokens, SizeIs(17));
    EXPECT_EQ(result.usage.completion_tokens(), 17u);
    EXPECT_EQ(result.usage.moved_streams(), moves);
    EXPECT_EQ(Stats().moved_streams(), moves);
  }
  v1::RouterPeer PeerOf(const FakeRouter& router) {
    const v1::GatewayStats stats = Stats();
    for (const v1::RouterPeer& peer : stats.router_peers()) {
      if (peer.address() == router.address()) return peer;
    }
    return {};
  }

  std::unique_ptr<grpc::ClientContext> context_;
  std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>> reader_;
  CallResult result_;
  FakeRouter* here_ = nullptr;  // where the stream is
  FakeRouter* there_ = nullptr;
};

TEST_F(RouterFailoverTest, ASilentRoutersStreamMoves) {
  BeginAtOneOfTwo();
  here_->SetSilent(true);
  ExpectWholeStory(1);
  here_->AwaitCancelled(1);
  EXPECT_THAT(there_->requests()[0].generated_token_ids(),
              ElementsAre('O', 'n', 'c', 'e', ' '));
  EXPECT_EQ(PeerOf(*here_).state(), "silent");
  EXPECT_EQ(PeerOf(*here_).moved_streams(), 1u);
  // It is used again when it has woken up.
  here_->SetBehaviour(Reciting(kStory));
  here_->SetSilent(false);
  while (PeerOf(*here_).state() != "ready") {
  }
  for (int i = 0; i < 2; ++i) EXPECT_TRUE(Generate(Prompt("x")).status.ok());
  EXPECT_THAT(here_->requests(), SizeIs(2));
}

// Its tokens come late, its answers to probes do not.
TEST_F(RouterFailoverTest, ASlowRouterKeepsItsStream) {
  GatewayOptions options;
  options.router_health.min_silence = milliseconds(200);
  BeginAtOneOfTwo(options);
  for (int i = 0; i < 20; ++i) here_->AwaitDescribedTwice();
  EXPECT_THAT(there_->requests(), IsEmpty());
  EXPECT_EQ(PeerOf(*here_).state(), "ready");
  here_->Kill();  // the control: then it does move
  ExpectWholeStory(1);
}

TEST_F(RouterFailoverTest, TheOnlyRouterKeepsItsStreamWhileItIsSilent) {
  FakeRouter& router = AddRouter(HangingAfter(kStory, 5));
  GatewayOptions options;
  options.router_wait = milliseconds(600);
  options.router_health.min_silence = milliseconds(50);
  StartGateway(options);
  Begin(Prompt("x"));
  ReadTokens(5);
  router.SetSilent(true);
  const CallResult& result = Finish();
  EXPECT_EQ(result.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(result.status.error_message(),
              testing::AllOf(HasSubstr(router.address()), HasSubstr("silent")));
  EXPECT_THAT(router.requests(), SizeIs(1));
}

TEST_F(RouterFailoverTest, AStuckRoutersStreamMoves) {
  GatewayOptions options;
  options.router_health.stall_after = milliseconds(300);
  BeginAtOneOfTwo(options);
  v1::RouterDescription description = here_->description();
  description.set_sequences(1);
  description.set_progress(5);
  here_->SetDescription(description);
  ExpectWholeStory(1);
  EXPECT_EQ(PeerOf(*here_).state(), "stuck");
}

TEST_F(RouterFailoverTest, ARouterThatStandsStillWithAllOthersKeepsItsStream) {
  GatewayOptions options;
  options.router_health.stall_after = milliseconds(100);
  BeginAtOneOfTwo(options);
  for (FakeRouter* router : {there_, here_}) {
    v1::RouterDescription description = router->description();
    description.set_sequences(1);
    description.set_progress(5);
    router->SetDescription(description);
  }
  while (PeerOf(*here_).state() != "stuck") {
  }
  for (int i = 0; i < 5; ++i) here_->AwaitDescribedTwice();
  EXPECT_THAT(there_->requests(), IsEmpty());
  v1::RouterDescription description = there_->description();
  description.set_progress(6);
  there_->SetDescription(description);
  ExpectWholeStory(1);
}

TEST_F(RouterFailoverTest, ADrainingRoutersStreamStaysUntilItIsToLeave) {
  BeginAtOneOfTwo();
  v1::RouterDescription description = here_->description();
  description.set_state(v1::SERVING_STATE_DRAINING);
  description.set_leave_in_ms(60000);
  here_->SetDescription(description);
  while (PeerOf(*here_).state() != "draining") {
  }
  for (int i = 0; i < 5; ++i) here_->AwaitDescribedTwice();
  EXPECT_THAT(there_->requests(), IsEmpty());
  // New ones go elsewhere.
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(Generate(Prompt("x")).status.ok());
  EXPECT_THAT(here_->requests(), SizeIs(1));
  description.set_leave_in_ms(0);
  here_->SetDescription(description);
  ExpectWholeStory(1);
  EXPECT_EQ(PeerOf(*here_).lost_streams(), 0u);
  EXPECT_EQ(PeerOf(*here_).failures(), 0u);
}

TEST_F(RouterFailoverTest, ARefusalOfADrainingRouterIsNoFailure) {
  FakeRouter& first = AddRouter(Reciting(kStory));
  FakeRouter& second = AddRouter(Reciting(kStory));
  StartGateway();
  // One that drains, and nobody has been told yet.
  first.SetBehaviour(Failing(
      RefusedStatus(absl::UnavailableError("the router is draining"), 1000)));
  for (int i = 0; i < 6; ++i) {
    const CallResult result = Generate(Prompt("x"));
    ASSERT_TRUE(result.status.ok()) << result.status.error_message();
    EXPECT_EQ(result.usage.moved_streams(), 0u);
  }
  EXPECT_THAT(second.requests(), SizeIs(6));
  EXPECT_EQ(PeerOf(first).failures(), 0u);
}

TEST_F(RouterFailoverTest, ARouterWithoutExpertsIsLeftForOneThatHasThem) {
  GatewayOptions options;
  options.router_health.loading_grace = milliseconds(0);
  BeginAtOneOfTwo(options);
  v1::RouterDescription description = here_->description();
  description.set_state(v1::SERVING_STATE_LOADING);
  description.set_detail("expert 3 of layer 0 has no replica");
  here_->SetDescription(description);
  ExpectWholeStory(1);
}

// Nobody is better off elsewhere.
TEST_F(RouterFailoverTest, WhenAllRoutersLackAnExpertStreamsStay) {
  GatewayOptions options;
  options.router_health.loading_grace = milliseconds(0);
  BeginAtOneOfTwo(options);
  for (FakeRouter* router : {there_, here_}) {
    v1::RouterDescription description = router->description();
    description.set_state(v1::SERVING_STATE_LOADING);
    router->SetDescription(description);
    while (PeerOf(*router).state() != "loading") {
    }
  }
  for (int i = 0; i < 5; ++i) here_->AwaitDescribedTwice();
  EXPECT_THAT(there_->requests(), IsEmpty());
  v1::RouterDescription description = there_->description();
  description.set_state(v1::SERVING_STATE_READY);
  there_->SetDescription(description);
  ExpectWholeStory(1);
}

TEST_F(RouterFailoverTest, AllRoutersGoneAndOneBack) {
  BeginAtOneOfTwo();
  there_->Kill();
  here_->Kill();
  AwaitHealth(grpc::health::v1::HealthCheckResponse::NOT_SERVING);
  there_->Start();
  ExpectWholeStory(1);
  EXPECT_EQ(PeerOf(*here_).state(), "away");
}

TEST_F(RouterFailoverTest, AllChoicesMoveEachWithItsOwnTokens) {
  const auto by_seed = [](const v1::RouterGenerateRequest& request) {
    return Recite(absl::StrCat("the seed is ", request.sampling().seed()),
                  request);
  };
  const auto hanging = [by_seed](const v1::RouterGenerateRequest& request) {
    FakeRouterScript script = by_seed(request);
    script.responses.resize(3 + request.sampling().seed() % 5);
    script.hang = true;
    return script;
  };
  FakeRouter& first = AddRouter(hanging);
  FakeRouter& second = AddRouter(hanging);
  StartGateway();
  v1::GenerateRequest request = Prompt("x");
  request.set_n(6);
  request.set_seed(11);
  request.set_logprobs(true);
  request.add_stop("is 9");
  Begin(request);
  first.AwaitCalls(3);
  second.AwaitCalls(3);
  first.AwaitStalled();
  second.SetBehaviour(by_seed);
  first.Kill();
  second.AwaitCalls(6);
  second.Kill();
  second.Start();
  const CallResult result = Finish();
  ASSERT_TRUE(result.status.ok()) << result.status.error_message();
  EXPECT_GE(result.usage.moved_streams(), 6u);
  const CallResult undisturbed = Generate(request);
  EXPECT_EQ(undisturbed.usage.moved_streams(), 0u);
  for (size_t i = 0; i < 6; ++i) {
    EXPECT_EQ(result.choices[i].text, undisturbed.choices[i].text);
    ASSERT_EQ(result.choices[i].tokens.size(),
              undisturbed.choices[i].tokens.size());
    for (size_t t = 0; t < result.choices[i].tokens.size(); ++t) {
      EXPECT_EQ(result.choices[i].tokens[t].SerializeAsString(),
                undisturbed.choices[i].tokens[t].SerializeAsString());
    }
  }
}

// A sequence that breaks every router must end; one that gets on may go on.
TEST_F(RouterFailoverTest, TokensMakeUpForFailures) {
  const grpc::Status lost(grpc::StatusCode::UNAVAILABLE, "broke");
  const auto breaking_after = [lost](size_t count) {
    return [=](const v1::RouterGenerateRequest& request) {
      FakeRouterScript script = Recite(std::string(60, 'a'), request);
      if (script.responses.size() > count) {
        script.responses.resize(count);
        script.status = lost;
      }
      return script;
    };
  };
  FakeRouter& router = AddRouter(breaking_after(1));
  GatewayOptions options;
  options.router_health.max_backoff = milliseconds(1);
  options.router_health.min_backoff = milliseconds(1);
  StartGateway(options);
  v1::GenerateRequest request = Prompt("x");
  request.set_max_tokens(50);
  CallResult result = Generate(request);
  EXPECT_EQ(result.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(router.requests(), SizeIs(4));
  router.SetBehaviour(breaking_after(9));  // every ninth: 5 failures
  result = Generate(request);
  EXPECT_EQ(result.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  router.SetBehaviour(breaking_after(16));
  result = Generate(request);
  EXPECT_TRUE(result.status.ok()) << result.status.error_message();
  EXPECT_THAT(result.choices[0].tokens, SizeIs(50));
  EXPECT_EQ(result.usage.moved_streams(), 3u);
}

TEST_F(RouterFailoverTest, AFileAddsAndRemovesRouters) {
  const TempDir dir;
  const std::string path = dir.File("routers");
  const auto list = [&](const std::vector<FakeRouter*>& routers) {
    std::string text;
    for (const FakeRouter* router : routers) {
      absl::StrAppend(&text, router->address(), "\n");
    }
    WriteFile(absl::StrCat(path, ".new"), text);
    std::filesystem::rename(absl::StrCat(path, ".new"), path);
  };
  FakeRouter& first = AddRouter(HangingAfter(kStory, 5));
  list({&first});
  GatewayOptions options;
  options.routers = {absl::StrCat("file:", path)};
  options.discovery.file_interval = milliseconds(5);
  StartGateway(options);
  Begin(Prompt("x"));
  ReadTokens(5);
  FakeRouter& second = AddRouter(Reciting(kStory));
  list({&first, &second});
  while (PeerOf(second).state() != "ready") {
  }
  EXPECT_TRUE(Generate(Prompt("x")).status.ok());
  EXPECT_THAT(second.requests(), SizeIs(1)) << "the one with fewer streams";
  // One that is taken off the list keeps its stream and gets no other.
  list({&second});
  while (!PeerOf(first).removed()) {
  }
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(Generate(Prompt("x")).status.ok());
  EXPECT_THAT(first.requests(), SizeIs(1));
  EXPECT_THAT(second.requests(), SizeIs(4));
  first.Kill();
  ExpectWholeStory(1);
  while (!PeerOf(first).address().empty()) {
  }
  const v1::GatewayStats stats = Stats();
  ASSERT_THAT(stats.router_discovery(), SizeIs(1));
  EXPECT_EQ(stats.router_discovery(0).addresses(), 1u);
  EXPECT_EQ(stats.router_discovery(0).changes(), 3u);
}

TEST_F(RouterFailoverTest, AWrongAddressIsNamed) {
  GatewayOptions options;
  options.listen = {"127.0.0.1:0"};
  options.routers = {"dns:routers"};
  const absl::Status status = Gateway::Start(options, TestModel()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("routers: \"dns:rou"));
}

// The bytes of a stream would change with a move between the two.
TEST_F(RouterFailoverTest, ARouterOfAnotherNumericFormatIsRefused) {
  FakeRouter& first = AddRouter(Reciting(kStory));
  v1::RouterDescription description = first.description();
  description.set_numeric_format("kv float32");
  first.SetDescription(description);
  StartGateway();
  FakeRouter& second = AddRouter(Reciting(kStory));
  description.set_numeric_format("kv bfloat16");
  second.SetDescription(description);
  GatewayOptions options;
  StartGateway(options);
  // Which of the two was asked first decides.
  while (PeerOf(first).state() != "refused" &&
         PeerOf(second).state() != "refused") {
  }
  const bool second_lost = PeerOf(second).state() == "refused";
  FakeRouter& winner = second_lost ? first : second;
  FakeRouter& loser = second_lost ? second : first;
  EXPECT_THAT(PeerOf(loser).reason(), testing::AllOf(HasSubstr("kv float32"),
                                                     HasSubstr("kv bfloat16")));
  for (int i = 0; i < 4; ++i) EXPECT_TRUE(Generate(Prompt("x")).status.ok());
  EXPECT_THAT(loser.requests(), IsEmpty());
  // When nobody computes in the first format any more the other one serves.
  winner.Kill();
  while (PeerOf(loser).state() != "ready") {
  }
  EXPECT_TRUE(Generate(Prompt("x")).status.ok());
}

TEST_F(RouterFailoverTest, MovesBeyondTheContextOfARouterAreNotTried) {
  BeginAtOneOfTwo();
  v1::RouterDescription description = there_->description();
  description.set_max_context(20);
  there_->SetDescription(description);
  there_->AwaitDescribedTwice();
  here_->SetBehaviour(Reciting(kStory));
  here_->Kill();
  here_->Start();
  ExpectWholeStory(1);
  EXPECT_THAT(there_->requests(), IsEmpty());
}

}  // namespace
}  // namespace troupe
