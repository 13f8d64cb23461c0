// What happens when expert processes die, stop, or come too late.
#include <signal.h>

#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cluster/expert_range.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/fakes/process_cluster.h"

namespace troupe {
namespace {

using testing::HasSubstr;

ProcessClusterOptions Options(size_t num_processes, size_t num_replicas) {
  ProcessClusterOptions options;
  options.model_dir = TROUPE_SOURCE_DIR "/tests/goldens/olmoe_clip";
  options.expert_ranges = SplitExperts(8, num_processes);
  options.num_replicas = num_replicas;
  return options;
}

v1::RouterGenerateRequest LongRequest(uint64_t seed) {
  v1::RouterGenerateRequest request;
  for (uint32_t t = 0; t < 20; ++t) request.add_prompt_token_ids(t * 7 % 256);
  request.set_max_tokens(400);
  request.set_logprobs(true);
  request.mutable_sampling()->set_temperature(1.0f);
  request.mutable_sampling()->set_seed(seed);
  return request;
}

// A stream that calls `after_tokens` when it has read `count` tokens.
class WatchedStream {
 public:
  WatchedStream(v1::Router::Stub& stub,
                const v1::RouterGenerateRequest& request, int timeout_ms) {
    context_.set_deadline(std::chrono::system_clock::now() +
                          std::chrono::milliseconds(timeout_ms));
    reader_ = stub.Generate(&context_, request);
  }
  // Reads until `count` tokens in all, or the end.
  void ReadTokens(size_t count) {
    v1::RouterGenerateResponse response;
    while (outcome_.num_tokens() < count && reader_->Read(&response)) {
      outcome_.responses.push_back(response);
    }
  }
  Outcome Finish() {
    ReadTokens(SIZE_MAX);
    outcome_.status = reader_->Finish();
    return outcome_;
  }
  void Cancel() { context_.TryCancel(); }
  size_t num_tokens() const { return outcome_.num_tokens(); }

 private:
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReader<v1::RouterGenerateResponse>> reader_;
  Outcome outcome_;
};

// Waits until the router has no sequence and all blocks are free.
void ExpectIdle(ProcessCluster& cluster) {
  v1::RouterStats stats;
  for (int i = 0; i < 2000; ++i) {
    stats = cluster.Stats();
    if (stats.running_sequences() + stats.waiting_sequences() == 0) break;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  EXPECT_EQ(stats.running_sequences() + stats.waiting_sequences(), 0u);
  EXPECT_EQ(stats.kv_blocks_free(), stats.kv_blocks_total());
}

void KillReplicas(const char* hop) {
  ProcessClusterOptions options = Options(2, 2);
  options.router_flags = {"--hop", hop};
  ProcessCluster cluster(options);
  const std::string undisturbed =
      Generate(cluster.stub(), LongRequest(1)).Bytes();
  for (const size_t victim : {0, 3}) {
    WatchedStream stream(cluster.stub(), LongRequest(1), 60000);
    stream.ReadTokens(50);
    cluster.expert(victim).Kill(SIGKILL);
    const Outcome outcome = stream.Finish();
    EXPECT_TRUE(outcome.status.ok()) << outcome.status.error_message();
    EXPECT_EQ(outcome.Bytes(), undisturbed);
    cluster.StartExpert(victim);
    cluster.WaitUntilReady(0);
  }
  ExpectIdle(cluster);
  // Those that came back have their transport back.
  EXPECT_TRUE(Generate(cluster.stub(), LongRequest(1)).status.ok());
  const v1::RouterStats stats = cluster.Stats();
  for (const v1::ExpertPeer& peer : stats.peers()) {
    if (peer.state() != "ready") continue;
    EXPECT_EQ(peer.transport(), hop);
  }
}

TEST(FailureTest, KilledReplicaLeavesTheSameBytes) {
  for (const char* hop : {"shm", "grpc"}) {
    SCOPED_TRACE(hop);
    KillReplicas(hop);
  }
}

TEST(FailureTest, WithoutReplicaTheStreamWaitsForTheRestartedProcess) {
  ProcessCluster cluster(Options(2, 1));
  const std::string undisturbed =
      Generate(cluster.stub(), LongRequest(2)).Bytes();
  WatchedStream stream(cluster.stub(), LongRequest(2), 60000);
  stream.ReadTokens(50);
  cluster.expert(1).Kill(SIGKILL);
  EXPECT_EQ(cluster.expert(1).Wait(), 128 + SIGKILL);
  cluster.StartExpert(1);
  const Outcome outcome = stream.Finish();
  EXPECT_TRUE(outcome.status.ok()) << outcome.status.error_message();
  EXPECT_EQ(outcome.Bytes(), undisturbed);
}

TEST(FailureTest, WithoutReplicaTheDeadlineNamesTheExpert) {
  ProcessCluster cluster(Options(2, 1));
  WatchedStream stream(cluster.stub(), LongRequest(3), 1500);
  stream.ReadTokens(20);
  cluster.expert(1).Kill(SIGKILL);
  const Outcome outcome = stream.Finish();
  EXPECT_EQ(outcome.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(outcome.status.error_message(),
              testing::ContainsRegex("expert [4-7] of layer [0-2]"));
  ExpectIdle(cluster);
  // The router lives, and serves again when the expert does.
  cluster.StartExpert(1);
  cluster.WaitUntilReady(0);
  EXPECT_TRUE(Generate(cluster.stub(), LongRequest(3)).status.ok());
}

TEST(FailureTest, CancelDuringAnOutageFreesTheSequence) {
  ProcessCluster cluster(Options(2, 1));
  WatchedStream stream(cluster.stub(), LongRequest(4), 60000);
  stream.ReadTokens(20);
  cluster.expert(0).Kill(SIGKILL);
  stream.Cancel();
  EXPECT_EQ(stream.Finish().status.error_code(), grpc::StatusCode::CANCELLED);
  ExpectIdle(cluster);
}

TEST(FailureTest, CancelFreesARunningSequence) {
  ProcessCluster cluster(Options(1, 1));
  WatchedStream stream(cluster.stub(), LongRequest(5), 60000);
  stream.ReadTokens(5);
  stream.Cancel();
  EXPECT_EQ(stream.Finish().status.error_code(), grpc::StatusCode::CANCELLED);
  ExpectIdle(cluster);
}

// Over both transports.
void StopReplica(const char* hop) {
  ProcessClusterOptions options = Options(1, 2);
  options.router_flags = {"--hop-timeout-ms", "300", "--hop", hop};
  ProcessCluster cluster(options);
  const std::string undisturbed =
      Generate(cluster.stub(), LongRequest(6)).Bytes();
  WatchedStream stream(cluster.stub(), LongRequest(6), 60000);
  stream.ReadTokens(30);
  cluster.expert(0).Kill(SIGSTOP);
  const Outcome outcome = stream.Finish();
  cluster.expert(0).Kill(SIGCONT);
  EXPECT_TRUE(outcome.status.ok()) << outcome.status.error_message();
  EXPECT_EQ(outcome.Bytes(), undisturbed);
}

TEST(FailureTest, StoppedReplicaIsGivenUpAfterTheHopTimeout) {
  for (const char* hop : {"shm", "grpc"}) {
    SCOPED_TRACE(hop);
    StopReplica(hop);
  }
}

// The expert process lets go of a router that dies, and of its memory.
TEST(FailureTest, AKilledRouterLeavesNoMemoryBehind) {
  ProcessClusterOptions options = Options(1, 1);
  options.num_routers = 2;
  options.router_flags = {"--hop", "shm"};
  ProcessCluster cluster(options);
  const auto rings = [&] {
    std::ifstream maps(
        absl::StrCat("/proc/", cluster.expert(0).pid(), "/maps"));
    size_t count = 0;
    for (std::string line; std::getline(maps, line);) {
      count += line.find("troupe-ring") != std::string::npos;
    }
    return count;
  };
  const std::string undisturbed =
      Generate(cluster.stub(0), LongRequest(9)).Bytes();
  const size_t before = rings();
  EXPECT_EQ(before, 2 * 5u);  // a page, and two rings, twice each
  WatchedStream stream(cluster.stub(1), LongRequest(9), 60000);
  stream.ReadTokens(20);
  cluster.router(1).Kill(SIGKILL);
  for (int i = 0; i < 2000 && rings() != before / 2; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  EXPECT_EQ(rings(), before / 2);
  EXPECT_EQ(Generate(cluster.stub(0), LongRequest(9)).Bytes(), undisturbed);
}

TEST(FailureTest, DrainedReplicaHandsOverAndExits0) {
  ProcessCluster cluster(Options(2, 2));
  const std::string undisturbed =
      Generate(cluster.stub(), LongRequest(7)).Bytes();
  WatchedStream stream(cluster.stub(), LongRequest(7), 60000);
  stream.ReadTokens(30);
  cluster.expert(0).Kill(SIGTERM);
  EXPECT_EQ(cluster.expert(0).Wait(), 0);
  const Outcome outcome = stream.Finish();
  EXPECT_TRUE(outcome.status.ok()) << outcome.status.error_message();
  EXPECT_EQ(outcome.Bytes(), undisturbed);
}

TEST(FailureTest, DrainedRouterFinishesItsStreamsAndExits0) {
  ProcessCluster cluster(Options(1, 1));
  WatchedStream stream(cluster.stub(), LongRequest(8), 60000);
  stream.ReadTokens(10);
  cluster.router(0).Kill(SIGTERM);
  const Outcome outcome = stream.Finish();
  EXPECT_TRUE(outcome.status.ok()) << outcome.status.error_message();
  EXPECT_GT(outcome.num_tokens(), 10u);
  EXPECT_EQ(cluster.router(0).Wait(), 0);
}

}  // namespace
}  // namespace troupe
