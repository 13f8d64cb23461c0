// Routers and gateways that die, stop, drain, come and go under streams: real
// processes, the demo model, and the bytes of the undisturbed run.
#include <signal.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/rpc/rpc_channel.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "protos/health.grpc.pb.h"
#include "tests/fakes/gateway_process.h"
#include "tests/fakes/process_cluster.h"

namespace troupe {
namespace {

using testing::HasSubstr;

constexpr char kModel[] = TROUPE_SOURCE_DIR "/models/demo";
// Each stream has that many when the disturbance comes.
constexpr size_t kBefore = 12;

ProcessClusterOptions Options(const std::vector<std::string>& router_flags) {
  ProcessClusterOptions options;
  options.model_dir = kModel;
  options.num_routers = 2;
  options.router_flags = router_flags;
  return options;
}

// Eight requests that differ in everything that a moved stream must keep.
std::vector<v1::GenerateRequest> MixedRequests(uint32_t max_tokens) {
  std::vector<v1::GenerateRequest> requests(8);
  for (size_t i = 0; i < requests.size(); ++i) {
    v1::GenerateRequest& request = requests[i];
    request.set_text(absl::StrCat("Once upon a time, ", i,
                                  " little birds lived in a tree."));
    request.set_max_tokens(max_tokens);
    request.set_ignore_eos(true);
    request.set_seed(100 + i);
    request.set_request_id(absl::StrCat("mixed-", i));
    request.mutable_sampling()->set_temperature(i % 2 == 0 ? 0.0f : 0.9f);
  }
  requests[2].set_logprobs(true);
  requests[2].set_top_logprobs(5);
  requests[3].add_stop("no such text in any story");
  requests[3].add_stop("!\n\n!");
  requests[4].set_n(2);
  requests[4].mutable_sampling()->set_temperature(0.8f);
  requests[5].set_echo(true);
  requests[5].set_logprobs(true);
  requests[5].mutable_sampling()->set_top_p(0.9f);
  v1::SamplingParams& penalised = *requests[6].mutable_sampling();
  penalised.set_temperature(0.7f);
  penalised.set_repetition_penalty(1.2f);
  penalised.set_presence_penalty(0.5f);
  penalised.set_frequency_penalty(0.4f);
  // Its end-of-text token counts, after some tokens.
  requests[7].set_ignore_eos(false);
  requests[7].set_min_tokens(max_tokens / 2);
  return requests;
}

uint32_t NumMoves(const std::vector<GatewayOutcome>& outcomes) {
  uint32_t moves = 0;
  for (const GatewayOutcome& outcome : outcomes) {
    moves += outcome.moved_streams();
  }
  return moves;
}

double LongestGapMs(const std::vector<GatewayOutcome>& outcomes) {
  double longest_ms = 0;
  for (const GatewayOutcome& outcome : outcomes) {
    longest_ms = std::max(longest_ms, outcome.longest_gap_ms);
  }
  return longest_ms;
}

void ExpectSame(const std::vector<GatewayOutcome>& outcomes,
                const std::vector<GatewayOutcome>& undisturbed) {
  for (size_t i = 0; i < outcomes.size(); ++i) {
    EXPECT_TRUE(outcomes[i].status.ok())
        << i << ": " << outcomes[i].status.error_message();
    EXPECT_EQ(outcomes[i].Bytes(), undisturbed[i].Bytes()) << i;
  }
  std::printf("moves %u, longest gap %.0f ms\n", NumMoves(outcomes),
              LongestGapMs(outcomes));
}

class MovedStreamsTest : public testing::Test {
 protected:
  void Start(const std::vector<std::string>& router_flags = {},
             const std::vector<std::string>& gateway_flags = {}) {
    cluster_ = std::make_unique<ProcessCluster>(Options(router_flags));
    gateway_ = std::make_unique<GatewayProcess>(
        kModel,
        std::vector<std::string>{cluster_->router_address(0),
                                 cluster_->router_address(1)},
        gateway_flags);
    gateway_->AwaitReadyRouters(2);
  }
  // Undisturbed, then disturbed: the same bytes, and streams did move.
  void ExpectMoves(const std::vector<v1::GenerateRequest>& requests,
                   const std::function<void()>& disturb) {
    const std::vector<GatewayOutcome> undisturbed =
        GenerateAll(gateway_->stub(), requests);
    EXPECT_EQ(NumMoves(undisturbed), 0u);
    const std::vector<GatewayOutcome> outcomes =
        GenerateAll(gateway_->stub(), requests, kBefore, disturb);
    ExpectSame(outcomes, undisturbed);
    EXPECT_GT(NumMoves(outcomes), 0u);
    EXPECT_EQ(gateway_->Stats().moved_streams(), NumMoves(outcomes));
  }

  std::unique_ptr<ProcessCluster> cluster_;
  std::unique_ptr<GatewayProcess> gateway_;
};

TEST_F(MovedStreamsTest, AKilledRouterLeavesTheSameBytes) {
  Start();
  ExpectMoves(MixedRequests(100), [&] { cluster_->router(0).Kill(SIGKILL); });
  // It comes back by itself, and gets streams.
  EXPECT_EQ(cluster_->router(0).Wait(), 128 + SIGKILL);
  cluster_->StartRouter(0);
  gateway_->AwaitReadyRouters(2);
  const uint64_t before = gateway_->Router("router-0").streams();
  GenerateAll(gateway_->stub(), MixedRequests(4));
  EXPECT_GT(gateway_->Router("router-0").streams(), before);
}

// Also the measurement: TROUPE_ROUTER_KILLS=20 repeats it, and the longest gaps
// of the clients' streams, with and without a kill, are printed.
TEST_F(MovedStreamsTest, KilledAgainAndAgain) {
  const char* wanted = std::getenv("TROUPE_ROUTER_KILLS");
  const int num_kills = wanted == nullptr ? 2 : std::atoi(wanted);
  Start();
  const std::vector<v1::GenerateRequest> requests = MixedRequests(60);
  std::vector<double> quiet_ms;
  std::vector<double> killed_ms;
  for (int i = 0; i < num_kills; ++i) {
    const size_t victim = i % 2;
    const std::vector<GatewayOutcome> undisturbed =
        GenerateAll(gateway_->stub(), requests);
    const std::vector<GatewayOutcome> outcomes =
        GenerateAll(gateway_->stub(), requests, kBefore,
                    [&] { cluster_->router(victim).Kill(SIGKILL); });
    ExpectSame(outcomes, undisturbed);
    EXPECT_GT(NumMoves(outcomes), 0u);
    quiet_ms.push_back(LongestGapMs(undisturbed));
    killed_ms.push_back(LongestGapMs(outcomes));
    cluster_->router(victim).Wait();
    cluster_->StartRouter(victim);
    gateway_->AwaitReadyRouters(2);
  }
  for (std::vector<double>* gaps : {&quiet_ms, &killed_ms}) {
    std::sort(gaps->begin(), gaps->end());
    std::printf("longest gap of 8 streams, %s: median %.0f ms, max %.0f ms\n",
                gaps == &quiet_ms ? "undisturbed" : "router killed",
                (*gaps)[gaps->size() / 2], gaps->back());
  }
}

TEST_F(MovedStreamsTest, AStoppedRouterIsLeftAndTakenBack) {
  Start();
  ExpectMoves(MixedRequests(100), [&] { cluster_->router(1).Kill(SIGSTOP); });
  EXPECT_THAT(gateway_->Router("router-1").state(),
              testing::AnyOf("silent", "away"));
  cluster_->router(1).Kill(SIGCONT);
  gateway_->AwaitReadyRouters(2);
  GenerateAll(gateway_->stub(), MixedRequests(4));
}

// Short streams end where they are, long ones move before the time is over.
TEST_F(MovedStreamsTest, ADrainingRouterLosesNoStream) {
  Start({"--drain-seconds", "1"});
  ExpectMoves(MixedRequests(400), [&] { cluster_->router(0).Kill(SIGTERM); });
  EXPECT_EQ(cluster_->router(0).Wait(), 0);
  EXPECT_EQ(gateway_->Router("router-0").lost_streams(), 0u);
  EXPECT_EQ(gateway_->Router("router-0").failures(), 0u);
}

TEST_F(MovedStreamsTest, ASecondSignalEndsADrainingRouterAtOnce) {
  Start();
  ExpectMoves(MixedRequests(100), [&] {
    cluster_->router(0).Kill(SIGTERM);
    gateway_->AwaitRouter("router-0", "draining");
    cluster_->router(0).Kill(SIGTERM);
    EXPECT_EQ(cluster_->router(0).Wait(), 1);
  });
}

TEST_F(MovedStreamsTest, AFileChangesTheRoutersUnderStreams) {
  const TempDir dir;
  const std::string path = dir.File("routers");
  const auto list = [&](const std::string& text) {
    WriteFile(absl::StrCat(path, ".new"), text);
    std::filesystem::rename(absl::StrCat(path, ".new"), path);
  };
  cluster_ =
      std::make_unique<ProcessCluster>(Options({"--drain-seconds", "1"}));
  list(absl::StrCat(cluster_->router_address(0), "\n"));
  gateway_ = std::make_unique<GatewayProcess>(
      kModel, std::vector<std::string>{absl::StrCat("file:", path)});
  gateway_->AwaitReadyRouters(1);
  ExpectMoves(MixedRequests(400), [&] {
    // The other one takes over, as in a rolling replacement.
    list(absl::StrCat(cluster_->router_address(1), "\n"));
    gateway_->AwaitRouter("router-1", "ready");
    EXPECT_TRUE(gateway_->Router("router-0").removed());
    EXPECT_TRUE(
        Generate(gateway_->stub(), MixedRequests(4)[0], 60000, [](size_t) {
        }).status.ok());
    EXPECT_EQ(gateway_->Router("router-1").streams(), 1u);
    cluster_->router(0).Kill(SIGTERM);
  });
  EXPECT_EQ(cluster_->router(0).Wait(), 0);
  while (!gateway_->Router("router-0").name().empty()) {
  }
}

TEST_F(MovedStreamsTest, AllRoutersGoneAndOneBack) {
  Start();
  ExpectMoves(MixedRequests(60), [&] {
    for (const size_t i : {0, 1}) {
      cluster_->router(i).Kill(SIGKILL);
      cluster_->router(i).Wait();
    }
    cluster_->StartRouter(1);
  });
  EXPECT_EQ(gateway_->Stats().requests_failed(), 0u);
}

TEST_F(MovedStreamsTest, WithoutARouterTheDeadlineSaysWhy) {
  Start();
  v1::GenerateRequest request = MixedRequests(400)[0];
  const std::vector<GatewayOutcome> outcomes = GenerateAll(
      gateway_->stub(), {request}, kBefore,
      [&] {
        for (const size_t i : {0, 1}) cluster_->router(i).Kill(SIGKILL);
      },
      10000);
  EXPECT_EQ(outcomes[0].status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(outcomes[0].status.error_message(),
              testing::AllOf(HasSubstr(cluster_->router_address(0)),
                             HasSubstr(cluster_->router_address(1))));
}

grpc::health::v1::HealthCheckResponse::ServingStatus HealthOf(
    const std::string& address) {
  const auto stub = grpc::health::v1::Health::NewStub(MakeChannel(address));
  grpc::ClientContext context;
  grpc::health::v1::HealthCheckResponse response;
  const grpc::Status status = stub->Check(&context, {}, &response);
  EXPECT_TRUE(status.ok()) << status.error_message();
  return response.status();
}

TEST_F(MovedStreamsTest, ADrainingGatewayFinishesItsStreamsAndExits0) {
  Start();
  const std::vector<v1::GenerateRequest> requests = MixedRequests(100);
  const std::vector<GatewayOutcome> undisturbed =
      GenerateAll(gateway_->stub(), requests);
  const std::vector<GatewayOutcome> outcomes =
      GenerateAll(gateway_->stub(), requests, kBefore, [&] {
        gateway_->process().Kill(SIGTERM);
        while (gateway_->Stats().state() != v1::SERVING_STATE_DRAINING) {
        }
        EXPECT_EQ(HealthOf(gateway_->address()),
                  grpc::health::v1::HealthCheckResponse::NOT_SERVING);
        EXPECT_EQ(Generate(gateway_->stub(), requests[0], 60000, [](size_t) {})
                      .status.error_code(),
                  grpc::StatusCode::UNAVAILABLE);
      });
  ExpectSame(outcomes, undisturbed);
  EXPECT_EQ(gateway_->process().Wait(), 0);
}

TEST_F(MovedStreamsTest, ADrainHasAnEnd) {
  Start({}, {"--drain-seconds", "0"});
  const std::vector<GatewayOutcome> outcomes =
      GenerateAll(gateway_->stub(), {MixedRequests(400)[0]}, kBefore,
                  [&] { gateway_->process().Kill(SIGTERM); });
  EXPECT_FALSE(outcomes[0].status.ok());
  EXPECT_EQ(gateway_->process().Wait(), 0);
}

TEST_F(MovedStreamsTest, AnotherModelIsRefusedWithBothFingerprints) {
  cluster_ = std::make_unique<ProcessCluster>(Options({}));
  gateway_ = std::make_unique<GatewayProcess>(
      TROUPE_SOURCE_DIR "/tests/goldens/olmoe_clip",
      std::vector<std::string>{cluster_->router_address(0)});
  gateway_->AwaitRouter("router-0", "refused");
  grpc::ClientContext context;
  v1::ModelInfo info;
  ASSERT_TRUE(gateway_->stub().GetModel(&context, {}, &info).ok());
  EXPECT_THAT(gateway_->Router("router-0").reason(),
              testing::AllOf(HasSubstr(info.fingerprint()),
                             HasSubstr(cluster_->Stats().model_fingerprint())));
}

}  // namespace
}  // namespace troupe
