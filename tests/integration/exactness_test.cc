// The exactness contract (docs/architecture.md): the same prompt and seed give
// the same bytes, whatever the batch, the number of expert processes, the
// transport, the replicas, preemption, what was cached.
#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cluster/expert_range.h"
#include "common/rpc/rpc_channel.h"
#include "common/rpc/rpc_server.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "router_service/router_server.h"
#include "tests/fakes/process_cluster.h"
#include "tests/integration/mixed_requests.h"
#include "tools/bench/local_cluster.h"

namespace troupe {
namespace {

const std::string& ModelDir() {
  static const std::string dir = TROUPE_SOURCE_DIR "/tests/goldens/olmoe_clip";
  return dir;
}

// A router with local experts behind its real edge.
class LocalRouter {
 public:
  explicit LocalRouter(const LocalClusterOptions& options)
      : cluster_(*LocalCluster::Start(options)),
        service_(ServerOptions(), cluster_->config(), cluster_->StartLoop(),
                 nullptr) {
    RpcServerOptions server_options;
    server_options.listen = {absl::StrCat("unix:", dir_.path(), "/router")};
    server_ = *RpcServer::Start(server_options, {&service_});
    stub_ = v1::Router::NewStub(MakeChannel(server_options.listen[0]));
  }
  ~LocalRouter() { server_->Shutdown(milliseconds(1000)); }

  v1::Router::Stub& stub() { return *stub_; }
  const ModelConfig& config() const { return cluster_->config(); }
  v1::RouterStats Stats() {
    v1::RouterStats stats;
    cluster_->StartLoop().GetStats(stats);
    return stats;
  }

 private:
  static RouterServerOptions ServerOptions() {
    RouterServerOptions options;
    options.name = "local";
    options.max_queued_sequences = 256;
    return options;
  }

  TempDir dir_;
  std::unique_ptr<LocalCluster> cluster_;
  RouterServer service_;
  std::unique_ptr<RpcServer> server_;
  std::unique_ptr<v1::Router::Stub> stub_;
};

LocalClusterOptions LocalOptions() {
  LocalClusterOptions options;
  options.model_dir = ModelDir();
  return options;
}

// Each request alone, one expert group, one thread, nothing cached.
class ExactnessTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    LocalClusterOptions options = LocalOptions();
    options.scheduler.prefix_cache = false;
    LocalRouter router(options);
    requests_ = new std::vector<v1::RouterGenerateRequest>(
        MixedRequests(static_cast<uint32_t>(router.config().vocab_size)));
    alone_ = new std::vector<std::string>();
    size_t num_tokens = 0;
    for (const v1::RouterGenerateRequest& request : *requests_) {
      const Outcome outcome = Generate(router.stub(), request);
      ASSERT_TRUE(outcome.status.ok()) << outcome.status.error_message();
      alone_->push_back(outcome.Bytes());
      num_tokens += outcome.num_tokens();
    }
    ASSERT_GT(num_tokens, 200u);
  }
  static void TearDownTestSuite() {
    delete requests_;
    delete alone_;
  }

  static void ExpectSame(const std::vector<Outcome>& outcomes) {
    ASSERT_EQ(outcomes.size(), alone_->size());
    for (size_t i = 0; i < outcomes.size(); ++i) {
      EXPECT_EQ(outcomes[i].Bytes(), (*alone_)[i]) << "request " << i;
    }
  }

  static std::vector<v1::RouterGenerateRequest>* requests_;
  static std::vector<std::string>* alone_;
};
std::vector<v1::RouterGenerateRequest>* ExactnessTest::requests_ = nullptr;
std::vector<std::string>* ExactnessTest::alone_ = nullptr;

TEST_F(ExactnessTest, RequestsDiffer) {
  for (size_t i = 0; i < alone_->size(); ++i) {
    for (size_t j = 0; j < i; ++j) EXPECT_NE((*alone_)[i], (*alone_)[j]);
  }
}

TEST_F(ExactnessTest, AnotherSeedGivesOtherBytes) {
  LocalRouter router(LocalOptions());
  v1::RouterGenerateRequest request = (*requests_)[1];
  request.mutable_sampling()->set_seed(7);
  EXPECT_NE(Generate(router.stub(), request).Bytes(), (*alone_)[1]);
}

TEST_F(ExactnessTest, LocalBatchOf16) {
  for (const size_t groups : {1, 2, 4, 8}) {
    for (const size_t replicas : {1, 2}) {
      SCOPED_TRACE(absl::StrCat(groups, " groups, ", replicas, " replicas"));
      LocalClusterOptions options = LocalOptions();
      options.num_expert_groups = groups;
      options.num_replicas = replicas;
      options.router_threads = replicas;
      options.expert_threads = replicas;
      LocalRouter router(options);
      ExpectSame(GenerateAll(router.stub(), *requests_));
    }
  }
}

TEST_F(ExactnessTest, LocalWithExpertsOnTheRoutersThreads) {
  LocalClusterOptions options = LocalOptions();
  options.num_expert_groups = 4;
  options.router_threads = 2;
  options.expert_threads = 0;
  LocalRouter router(options);
  ExpectSame(GenerateAll(router.stub(), *requests_));
}

TEST_F(ExactnessTest, LocalWithSmallSteps) {
  LocalClusterOptions options = LocalOptions();
  options.scheduler.max_batch_tokens = 5;
  options.scheduler.max_sequences = 3;
  LocalRouter router(options);
  ExpectSame(GenerateAll(router.stub(), *requests_));
}

TEST_F(ExactnessTest, LocalWithPreemption) {
  LocalClusterOptions options = LocalOptions();
  options.num_kv_blocks = 14;  // the longest request needs 9
  LocalRouter router(options);
  ExpectSame(GenerateAll(router.stub(), *requests_));
  const v1::RouterStats stats = router.Stats();
  EXPECT_GT(stats.preemptions(), 0u);
  EXPECT_EQ(stats.kv_blocks_free(), stats.kv_blocks_total());
}

// An earlier attempt's tokens are given back: the rest is the same.
TEST_F(ExactnessTest, ReplayGoesOnWithTheSameBytes) {
  LocalRouter router(LocalOptions());
  for (const size_t i : {1, 2, 5, 8}) {
    const Outcome whole = Generate(router.stub(), (*requests_)[i]);
    v1::RouterGenerateRequest rest = (*requests_)[i];
    for (size_t t = 0; t < 5; ++t) {
      rest.add_generated_token_ids(whole.responses[t].tokens(0).token_id());
    }
    const Outcome replay = Generate(router.stub(), rest);
    Outcome tail;
    tail.responses.assign(whole.responses.begin() + 5, whole.responses.end());
    EXPECT_EQ(replay.Bytes(), tail.Bytes()) << "request " << i;
  }
}

struct ProcessCase {
  const char* name;
  size_t num_processes;
  size_t num_replicas;
  bool tcp;
  std::vector<std::string> router_flags;
  bool expect_preemptions;
  const char* transport = "shm";
  std::vector<std::string> expert_flags = {};
};

class ProcessExactnessTest : public ExactnessTest,
                             public testing::WithParamInterface<ProcessCase> {};

TEST_P(ProcessExactnessTest, BatchOf16) {
  const ProcessCase& test_case = GetParam();
  ProcessClusterOptions options;
  options.model_dir = ModelDir();
  options.expert_ranges = SplitExperts(8, test_case.num_processes);
  options.num_replicas = test_case.num_replicas;
  options.tcp = test_case.tcp;
  options.router_flags = test_case.router_flags;
  options.expert_flags = test_case.expert_flags;
  ProcessCluster cluster(options);
  ExpectSame(GenerateAll(cluster.stub(), *requests_));
  const v1::RouterStats stats = cluster.Stats();
  EXPECT_EQ(stats.preemptions() > 0, test_case.expect_preemptions);
  // Nobody was idle: every expert process computed some of it.
  for (const v1::ExpertPeer& peer : stats.peers()) {
    EXPECT_GT(peer.messages(), 0u) << peer.address();
    EXPECT_EQ(peer.transport(), test_case.transport);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Processes, ProcessExactnessTest,
    testing::Values(
        ProcessCase{"one", 1, 1, false, {}, false},
        ProcessCase{"two", 2, 1, false, {}, false},
        ProcessCase{"four", 4, 1, false, {}, false},
        ProcessCase{"eight", 8, 1, false, {}, false},
        ProcessCase{"four_tcp", 4, 1, true, {}, false},
        ProcessCase{"four_grpc", 4, 1, false, {"--hop", "grpc"}, false, "grpc"},
        ProcessCase{
            "four_grpc_tcp", 4, 1, true, {"--hop", "grpc"}, false, "grpc"},
        ProcessCase{
            "two_without_offer", 2, 1, false, {}, false, "grpc", {"--no-shm"}},
        // Rings that hold few of the messages: the rest goes over gRPC.
        ProcessCase{"two_small_rings",
                    2,
                    1,
                    false,
                    {"--hop", "shm"},
                    false,
                    "shm",
                    {"--hop-ring-kb", "64"}},
        ProcessCase{"two_with_two_replicas", 2, 2, false, {}, false},
        ProcessCase{"preempted", 2, 1, false, {"--kv-blocks", "14"}, true},
        ProcessCase{
            "without_cache", 2, 1, false, {"--no-prefix-cache"}, false}),
    [](const auto& param) { return std::string(param.param.name); });

// Prompts that begin alike, twice, all at once and one after the other, with
// few blocks and many: the bytes are those of a router without a cache.
TEST_F(ExactnessTest, CommonPrefixes) {
  std::vector<v1::RouterGenerateRequest> requests = *requests_;
  for (size_t i = 0; i < requests.size(); ++i) {
    // Up to 70 tokens of a common trunk, some ending within a block.
    const size_t common = 5 * (i % 15);
    for (size_t t = common; t > 0; --t) {
      requests[i].mutable_prompt_token_ids()->Add(0);
    }
    auto& prompt = *requests[i].mutable_prompt_token_ids();
    std::rotate(prompt.begin(), prompt.end() - static_cast<int>(common),
                prompt.end());
    for (size_t t = 0; t < common; ++t) {
      prompt[static_cast<int>(t)] = static_cast<uint32_t>(3 * t + 1);
    }
  }
  std::vector<std::string> expected;
  {
    LocalClusterOptions options = LocalOptions();
    options.scheduler.prefix_cache = false;
    LocalRouter router(options);
    for (const v1::RouterGenerateRequest& request : requests) {
      expected.push_back(Generate(router.stub(), request).Bytes());
    }
  }
  for (const char* num_kv_blocks : {"256", "16"}) {
    SCOPED_TRACE(num_kv_blocks);
    ProcessClusterOptions options;
    options.model_dir = ModelDir();
    options.expert_ranges = SplitExperts(8, 2);
    options.router_flags = {"--kv-blocks", num_kv_blocks, "--max-batch-tokens",
                            "40"};
    ProcessCluster cluster(options);
    for (int round = 0; round < 2; ++round) {
      const std::vector<Outcome> outcomes =
          GenerateAll(cluster.stub(), requests);
      for (size_t i = 0; i < requests.size(); ++i) {
        EXPECT_EQ(outcomes[i].Bytes(), expected[i]) << "request " << i;
      }
    }
    uint32_t cached_tokens = 0;
    for (size_t i = 0; i < requests.size(); ++i) {
      const Outcome outcome = Generate(cluster.stub(), requests[i]);
      EXPECT_EQ(outcome.Bytes(), expected[i]) << "request " << i;
      const v1::RouterUsage& usage = outcome.responses.back().usage();
      EXPECT_LT(usage.cached_tokens(), requests[i].prompt_token_ids_size());
      if (requests[i].prompt_logprobs()) {
        EXPECT_EQ(usage.cached_tokens(), 0u);
      }
      cached_tokens += usage.cached_tokens();
    }
    // The counters are published after the last step has been reported.
    v1::RouterStats stats = cluster.Stats();
    for (int i = 0;
         i < 1000 && stats.kv_blocks_free() < stats.kv_blocks_total(); ++i) {
      stats = cluster.Stats();
    }
    EXPECT_GT(cached_tokens, 100u);
    EXPECT_GT(stats.prefix_hit_tokens(), cached_tokens);
    EXPECT_GT(stats.prefix_copies(), 0u);
    EXPECT_EQ(stats.kv_blocks_free(), stats.kv_blocks_total());
    EXPECT_GT(stats.kv_blocks_cached(), 0u);
    EXPECT_EQ(stats.prefix_evictions() > 0, stats.kv_blocks_total() == 16);
  }
}

// Another numeric format of the cluster: other bytes than float32's, and the
// same ones whatever carries them.
TEST_F(ExactnessTest, BFloat16OnTheWire) {
  LocalClusterOptions local = LocalOptions();
  local.wire_dtype = DataType::kBF16;
  std::vector<std::string> expected;
  {
    LocalRouter router(local);
    for (const v1::RouterGenerateRequest& request : *requests_) {
      expected.push_back(Generate(router.stub(), request).Bytes());
    }
  }
  EXPECT_NE(expected, *alone_);
  for (const char* hop : {"shm", "grpc"}) {
    SCOPED_TRACE(hop);
    ProcessClusterOptions options;
    options.model_dir = ModelDir();
    options.expert_ranges = SplitExperts(8, 2);
    options.router_flags = {"--wire-dtype", "bfloat16", "--hop", hop};
    ProcessCluster cluster(options);
    const std::vector<Outcome> outcomes =
        GenerateAll(cluster.stub(), *requests_);
    for (size_t i = 0; i < outcomes.size(); ++i) {
      EXPECT_EQ(outcomes[i].Bytes(), expected[i]) << "request " << i;
    }
    const v1::RouterStats stats = cluster.Stats();
    for (const v1::ExpertPeer& peer : stats.peers()) {
      EXPECT_EQ(peer.transport(), hop);
    }
  }
}

// A cache of bfloat16 is another numeric format, as exact as the first.
TEST_F(ExactnessTest, BFloat16Cache) {
  LocalClusterOptions local = LocalOptions();
  local.kv_dtype = DataType::kBF16;
  local.scheduler.prefix_cache = false;
  std::vector<std::string> expected;
  {
    LocalRouter router(local);
    for (const v1::RouterGenerateRequest& request : *requests_) {
      expected.push_back(Generate(router.stub(), request).Bytes());
    }
  }
  EXPECT_NE(expected, *alone_);
  for (const std::string num_kv_blocks : {"256", "14"}) {
    ProcessClusterOptions options;
    options.model_dir = ModelDir();
    options.expert_ranges = SplitExperts(8, 2);
    options.router_flags = {"--kv-dtype",  "bfloat16",           "--kv-blocks",
                            num_kv_blocks, "--max-batch-tokens", "50"};
    ProcessCluster cluster(options);
    for (int round = 0; round < 2; ++round) {
      const std::vector<Outcome> outcomes =
          GenerateAll(cluster.stub(), *requests_);
      for (size_t i = 0; i < outcomes.size(); ++i) {
        EXPECT_EQ(outcomes[i].Bytes(), expected[i]) << "request " << i;
      }
    }
    const v1::RouterStats stats = cluster.Stats();
    EXPECT_EQ(stats.preemptions() > 0, num_kv_blocks == "14");
    if (num_kv_blocks == "256") {
      EXPECT_GT(stats.prefix_hit_tokens(), 0u);
    }
  }
}

// Two routers share the expert processes: their rows are merged.
TEST_F(ExactnessTest, TwoRouters) {
  ProcessClusterOptions options;
  options.model_dir = ModelDir();
  options.expert_ranges = SplitExperts(8, 2);
  options.num_routers = 2;
  ProcessCluster cluster(options);
  std::vector<Outcome> first;
  std::thread thread([&] { first = GenerateAll(cluster.stub(0), *requests_); });
  const std::vector<Outcome> second = GenerateAll(cluster.stub(1), *requests_);
  thread.join();
  ExpectSame(first);
  ExpectSame(second);
}

}  // namespace
}  // namespace troupe
