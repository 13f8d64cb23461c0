// What happens when expert processes die, stop, or come too late.
#include <signal.h>

#include <cstdio>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "cluster/expert_range.h"
#include "common/rpc/rpc_channel.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/fakes/child_process.h"
#include "tests/fakes/process_cluster.h"
#include "tests/fakes/temp_dir.h"

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
  options.router_flags = {"--hop-timeout-ms", "300",          "--hop", hop,
                          "--no-hedging",     "--no-ejection"};
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

// Neither the hop's timeout nor the request's deadline is near: the copies of
// what is late are sent elsewhere, the silent process is ejected, and comes
// back by itself.
void HedgeAroundAStoppedReplica(const char* hop) {
  ProcessClusterOptions options = Options(2, 2);
  options.router_flags = {"--hop-timeout-ms", "600000", "--hop", hop};
  ProcessCluster cluster(options);
  const std::string undisturbed =
      Generate(cluster.stub(), LongRequest(11)).Bytes();
  WatchedStream stream(cluster.stub(), LongRequest(11), 60000);
  stream.ReadTokens(30);
  cluster.expert(0).Kill(SIGSTOP);
  const Outcome outcome = stream.Finish();
  EXPECT_TRUE(outcome.status.ok()) << outcome.status.error_message();
  EXPECT_EQ(outcome.Bytes(), undisturbed);
  // The stream may have ended before the silence was long enough for more than
  // a hedge.
  v1::RouterStats stats = cluster.Stats();
  while (stats.failover().ejections() == 0) {
    EXPECT_EQ(Generate(cluster.stub(), LongRequest(11)).Bytes(), undisturbed);
    stats = cluster.Stats();
  }
  EXPECT_GE(stats.failover().hedges_won(), 1u);
  EXPECT_THAT(stats.peers(0).health().last_ejection(), HasSubstr("silent"));
  cluster.expert(0).Kill(SIGCONT);
  cluster.WaitUntilReady(0);
  EXPECT_GE(cluster.Stats().failover().readmissions(), 1u);
  EXPECT_EQ(Generate(cluster.stub(), LongRequest(11)).Bytes(), undisturbed);
  ExpectIdle(cluster);
}

TEST(FailureTest, StoppedReplicaIsHedgedEjectedAndTakenBack) {
  for (const char* hop : {"shm", "grpc"}) {
    SCOPED_TRACE(hop);
    HedgeAroundAStoppedReplica(hop);
  }
}

// The control: without the two the request meets its deadline.
TEST(FailureTest, WithoutHedgingAndEjectionAStoppedReplicaIsWaitedFor) {
  ProcessClusterOptions options = Options(1, 2);
  options.router_flags = {"--hop-timeout-ms", "600000", "--no-hedging",
                          "--no-ejection"};
  ProcessCluster cluster(options);
  WatchedStream stream(cluster.stub(), LongRequest(12), 5000);
  stream.ReadTokens(30);
  cluster.expert(0).Kill(SIGSTOP);
  // The draw of replicas may pass the stopped one over for a while.
  bool all_ended_well = stream.Finish().status.ok();
  for (uint32_t i = 0; i < 50 && all_ended_well; ++i) {
    WatchedStream next(cluster.stub(), LongRequest(13 + i), 5000);
    all_ended_well = next.Finish().status.ok();
  }
  EXPECT_FALSE(all_ended_well);
  EXPECT_EQ(cluster.Stats().failover().hedges(), 0u);
  EXPECT_EQ(cluster.Stats().failover().ejections(), 0u);
  cluster.expert(0).Kill(SIGCONT);
}

// A file with the addresses of expert processes, replaced as a whole.
class AddressFile {
 public:
  std::string path() const { return dir_.File("experts"); }
  std::string Socket(const std::string& name) const {
    return absl::StrCat("unix:", dir_.File(name));
  }
  std::string Log(const std::string& name) const { return dir_.File(name); }
  void Write(const std::vector<std::string>& addresses) const {
    const std::string draft = dir_.File("draft");
    std::ofstream(draft) << absl::StrJoin(addresses, "\n") << "\n";
    ASSERT_EQ(std::rename(draft.c_str(), path().c_str()), 0);
  }

 private:
  const TempDir dir_;
};

ChildProcess StartExpertAt(const AddressFile& file, const std::string& name,
                           const std::string& model,
                           std::vector<std::string> flags = {}) {
  std::vector<std::string> arguments = {
      TROUPE_BINARY_DIR "/troupe-expert",
      absl::StrCat(TROUPE_SOURCE_DIR "/tests/goldens/", model),
      "--name",
      name,
      "--threads",
      "1",
      "--listen",
      file.Socket(name)};
  arguments.insert(arguments.end(), flags.begin(), flags.end());
  return ChildProcess(arguments, file.Log(absl::StrCat(name, ".log")));
}

// Polls until `predicate` likes what the router says.
template <typename Predicate>
v1::RouterStats AwaitStats(ProcessCluster& cluster,
                           const Predicate& predicate) {
  v1::RouterStats stats;
  for (int i = 0; i < 6000; ++i) {
    stats = cluster.Stats();
    if (predicate(stats)) return stats;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  ADD_FAILURE() << "not within half a minute: " << stats.DebugString();
  return stats;
}

size_t NumReady(const v1::RouterStats& stats) {
  size_t count = 0;
  for (const v1::ExpertPeer& peer : stats.peers()) {
    count += peer.state() == "ready";
  }
  return count;
}

// Expert processes come and go while streams run; the only one of the flag is
// killed once there are others.
TEST(FailureTest, ExpertProcessesComeAndGoByFile) {
  const AddressFile file;
  file.Write({});
  ProcessClusterOptions options = Options(1, 1);
  options.router_flags = {"--experts", absl::StrCat("file:", file.path())};
  ProcessCluster cluster(options);
  const std::string undisturbed =
      Generate(cluster.stub(), LongRequest(13)).Bytes();

  const ChildProcess first = StartExpertAt(file, "first", "olmoe_clip");
  file.Write({file.Socket("first")});
  AwaitStats(cluster,
             [](const v1::RouterStats& stats) { return NumReady(stats) == 2; });
  {
    WatchedStream stream(cluster.stub(), LongRequest(13), 60000);
    stream.ReadTokens(30);
    cluster.expert(0).Kill(SIGKILL);
    const Outcome outcome = stream.Finish();
    EXPECT_TRUE(outcome.status.ok()) << outcome.status.error_message();
    EXPECT_EQ(outcome.Bytes(), undisturbed);
  }
  const ChildProcess second = StartExpertAt(file, "second", "olmoe_clip");
  file.Write({file.Socket("first"), file.Socket("second")});
  AwaitStats(cluster,
             [](const v1::RouterStats& stats) { return NumReady(stats) == 2; });
  WatchedStream stream(cluster.stub(), LongRequest(13), 60000);
  stream.ReadTokens(30);
  file.Write({file.Socket("second")});
  const Outcome outcome = stream.Finish();
  EXPECT_TRUE(outcome.status.ok()) << outcome.status.error_message();
  EXPECT_EQ(outcome.Bytes(), undisturbed);
  const v1::RouterStats stats =
      AwaitStats(cluster, [](const v1::RouterStats& router) {
        return router.peers_size() == 2;  // that of the flag is away
      });
  ASSERT_GE(stats.discovery_size(), 1);
  EXPECT_GE(stats.discovery(0).changes(), 3u);
  EXPECT_EQ(Generate(cluster.stub(), LongRequest(13)).Bytes(), undisturbed);
  ExpectIdle(cluster);
}

TEST(FailureTest, AnotherModelIsRefusedByNameUntilItIsReplaced) {
  const AddressFile file;
  ChildProcess other = StartExpertAt(file, "other", "olmoe_gqa");
  file.Write({file.Socket("other")});
  ProcessClusterOptions options = Options(1, 1);
  // ProcessCluster waits for all its peers; the file is listed later.
  const AddressFile listed;
  listed.Write({});
  options.router_flags = {"--experts", absl::StrCat("file:", listed.path())};
  ProcessCluster cluster(options);
  listed.Write({file.Socket("other")});
  const v1::RouterStats stats =
      AwaitStats(cluster, [](const v1::RouterStats& router) {
        return router.peers_size() == 2 &&
               router.peers(1).state().find("refused: ") == 0;
      });
  const std::string state = stats.peers(1).state();
  const auto stub = v1::Expert::NewStub(MakeChannel(file.Socket("other")));
  grpc::ClientContext context;
  v1::ExpertStats expert;
  ASSERT_TRUE(stub->GetStats(&context, {}, &expert).ok());
  EXPECT_GE(expert.refused_routers(), 1u);
  for (const std::string& said :
       {state, expert.last_refusal(), cluster.router(0).Log(), other.Log()}) {
    EXPECT_THAT(said, HasSubstr("router \"router-0\""));
    EXPECT_THAT(said, HasSubstr("expert process \"other\""));
    EXPECT_THAT(said, HasSubstr(stats.model_fingerprint()));
    EXPECT_THAT(said, HasSubstr(expert.description().model_fingerprint()));
  }
  EXPECT_NE(stats.model_fingerprint(),
            expert.description().model_fingerprint());
  // The others serve on.
  EXPECT_TRUE(Generate(cluster.stub(), LongRequest(14)).status.ok());
  // It is tried again and again.
  other.Kill(SIGTERM);
  EXPECT_EQ(other.Wait(), 0);
  other = StartExpertAt(file, "other", "olmoe_clip");
  AwaitStats(cluster, [](const v1::RouterStats& router) {
    return NumReady(router) == 2;
  });
}

void AwaitLog(const ChildProcess& process, const std::string& text) {
  for (int i = 0; i < 6000; ++i) {
    if (process.Log().find(text) != std::string::npos) return;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  ADD_FAILURE() << "never said: " << text << "\n" << process.Log();
}

// A router that is stopped cannot say that it needs the process no more.
TEST(FailureTest, ASecondSignalEndsADrainAtOnce) {
  ProcessClusterOptions options = Options(1, 2);
  options.expert_flags = {"--drain-seconds", "600"};
  ProcessCluster cluster(options);
  WatchedStream stream(cluster.stub(), LongRequest(15), 60000);
  stream.ReadTokens(10);
  cluster.router(0).Kill(SIGSTOP);
  cluster.expert(0).Kill(SIGTERM);
  AwaitLog(cluster.expert(0), "draining");
  cluster.expert(0).Kill(SIGTERM);
  EXPECT_EQ(cluster.expert(0).Wait(), 1);
  EXPECT_THAT(cluster.expert(0).Log(), HasSubstr("second signal"));
  cluster.router(0).Kill(SIGCONT);
  EXPECT_TRUE(stream.Finish().status.ok());
}

TEST(FailureTest, ADrainThatNobodyLetsEndIsBounded) {
  ProcessClusterOptions options = Options(1, 2);
  options.expert_flags = {"--drain-seconds", "1"};
  ProcessCluster cluster(options);
  WatchedStream stream(cluster.stub(), LongRequest(16), 60000);
  stream.ReadTokens(10);
  cluster.router(0).Kill(SIGSTOP);
  cluster.expert(0).Kill(SIGTERM);
  EXPECT_EQ(cluster.expert(0).Wait(), 0);
  cluster.router(0).Kill(SIGCONT);
  EXPECT_TRUE(stream.Finish().status.ok());
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
