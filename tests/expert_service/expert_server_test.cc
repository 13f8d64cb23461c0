// The edge of an expert process, reached over gRPC as routers do.
#include "expert_service/expert_server.h"

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/blocking_counter.h"
#include "absl/synchronization/notification.h"
#include "cluster/grpc_expert_peer.h"
#include "common/rpc/rpc_channel.h"
#include "common/rpc/rpc_server.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/expert_service/test_experts.h"

namespace troupe {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kCapacityRows = 100;
constexpr char kFingerprint[] = "fingerprint-of-the-model";

// A router's end of the stream, one message at a time.
class Client {
 public:
  explicit Client(v1::Expert::Stub& stub) {
    context_.set_deadline(std::chrono::system_clock::now() +
                          std::chrono::seconds(30));
    stream_ = stub.Exchange(&context_);
  }
  // A call that a failed test has left open must not wait for its deadline.
  ~Client() { context_.TryCancel(); }

  void Hello(const std::string& fingerprint = kFingerprint) {
    v1::ExpertRequest request;
    request.mutable_hello()->set_router_name("router");
    request.mutable_hello()->set_model_fingerprint(fingerprint);
    stream_->Write(request);
  }
  v1::ServingState HelloAndRead() {
    Hello();
    return ReadDescription().state();
  }
  void Send(const v1::ExpertBatch& batch) {
    v1::ExpertRequest request;
    *request.mutable_batch() = batch;
    stream_->Write(request);
  }
  void Send(const v1::ExpertRequest& request) { stream_->Write(request); }

  v1::ExpertDescription ReadDescription() {
    v1::ExpertResponse response;
    EXPECT_TRUE(stream_->Read(&response));
    EXPECT_TRUE(response.has_description());
    return response.description();
  }
  v1::ExpertOutput ReadOutput() {
    v1::ExpertResponse response;
    EXPECT_TRUE(stream_->Read(&response));
    EXPECT_TRUE(response.has_output());
    return response.output();
  }
  // The status, when nothing more comes.
  grpc::Status End() {
    v1::ExpertResponse response;
    EXPECT_FALSE(stream_->Read(&response)) << response.ShortDebugString();
    return stream_->Finish();
  }
  grpc::Status CloseAndEnd() {
    stream_->WritesDone();
    return End();
  }
  void Cancel() { context_.TryCancel(); }

 private:
  grpc::ClientContext context_;
  std::unique_ptr<
      grpc::ClientReaderWriter<v1::ExpertRequest, v1::ExpertResponse>>
      stream_;
};

class ExpertServerTest : public testing::Test {
 protected:
  static void SetUpTestSuite() { experts_ = new TestExperts; }
  static void TearDownTestSuite() {
    delete experts_;
    experts_ = nullptr;
  }

  ExpertServerTest() : service_(Description(), backend_.limits()) {
    RpcServerOptions options;
    options.listen = {absl::StrCat("unix:", dir_.path(), "/expert")};
    server_ = *RpcServer::Start(options, {&service_});
    stub_ = v1::Expert::NewStub(MakeChannel(options.listen[0]));
  }
  ~ExpertServerTest() override { server_->Shutdown(milliseconds(0)); }

  static v1::ExpertDescription Description() {
    v1::ExpertDescription description;
    description.set_name("expert-under-test");
    description.set_model_fingerprint(kFingerprint);
    return description;
  }
  void SetReady() {
    service_.SetReady(&batcher_, experts_->store().versions(),
                      experts_->store().num_bytes());
  }
  std::unique_ptr<ExpertPeer> MakePeer() {
    GrpcExpertPeerOptions options;
    options.address = absl::StrCat("unix:", dir_.path(), "/expert");
    options.router_name = "router";
    options.model_fingerprint = kFingerprint;
    return MakeGrpcExpertPeer(std::move(options));
  }
  static v1::ExpertBatch Batch(size_t layer, size_t num_tokens, uint32_t seed) {
    return RandomBatch(experts_->config().hidden_size, layer, num_tokens, seed);
  }
  HeldBatcher Hold() {
    return HeldBatcher(batcher_, experts_->config().hidden_size);
  }
  v1::ExpertStats Stats() {
    grpc::ClientContext context;
    v1::ExpertStats stats;
    EXPECT_TRUE(
        stub_->GetStats(&context, v1::GetExpertStatsRequest(), &stats).ok());
    return stats;
  }
  void WaitForStats(
      const std::function<bool(const v1::ExpertStats&)>& condition) {
    for (int i = 0; i < 100000; ++i) {
      if (condition(Stats())) return;
      std::this_thread::yield();
    }
    FAIL() << Stats().ShortDebugString();
  }
  void WaitForQueuedRows(uint64_t rows) {
    WaitForStats([rows](const v1::ExpertStats& stats) {
      return stats.queued_rows() == rows;
    });
  }

  static TestExperts* experts_;
  TempDir dir_;
  ThreadPool pool_{2};
  CpuExpertBackend backend_{experts_->store(), pool_};
  ExpertBatcher batcher_{backend_, kCapacityRows};
  ExpertServer service_;
  std::unique_ptr<RpcServer> server_;
  std::unique_ptr<v1::Expert::Stub> stub_;
};
TestExperts* ExpertServerTest::experts_ = nullptr;

TEST_F(ExpertServerTest, HelloIsAnsweredByTheDescription) {
  Client early(*stub_);
  early.Hello();
  const v1::ExpertDescription loading = early.ReadDescription();
  EXPECT_EQ(loading.name(), "expert-under-test");
  EXPECT_EQ(loading.state(), v1::SERVING_STATE_LOADING);
  EXPECT_EQ(loading.experts_size(), 0);

  SetReady();
  const v1::ExpertDescription ready = early.ReadDescription();
  EXPECT_EQ(ready.state(), v1::SERVING_STATE_READY);
  EXPECT_EQ(ready.experts_size(), 3 * int{TestExperts::kNumOwned});
  EXPECT_EQ(ready.queue_capacity_rows(), kCapacityRows);
  EXPECT_EQ(ready.weight_bytes(), experts_->store().num_bytes());

  Client late(*stub_);
  EXPECT_EQ(late.HelloAndRead(), v1::SERVING_STATE_READY);
  EXPECT_TRUE(early.CloseAndEnd().ok());
}

// However hello and the change of state interleave, the router knows in the
// end.
TEST_F(ExpertServerTest, NoChangeOfStateIsMissed) {
  for (int round = 0; round < 50; ++round) {
    ExpertServer service(Description(), backend_.limits());
    RpcServerOptions options;
    options.listen = {absl::StrCat("unix:", dir_.path(), "/again")};
    auto server = *RpcServer::Start(options, {&service});
    const auto stub = v1::Expert::NewStub(MakeChannel(options.listen[0]));
    Client client(*stub);
    client.Hello();
    service.SetReady(&batcher_, experts_->store().versions(), 1);
    v1::ServingState state = client.ReadDescription().state();
    if (state == v1::SERVING_STATE_LOADING) {
      state = client.ReadDescription().state();
    }
    EXPECT_EQ(state, v1::SERVING_STATE_READY);
    server->Shutdown(milliseconds(0));
  }
}

TEST_F(ExpertServerTest, AnotherModelIsRefusedWithBothFingerprints) {
  SetReady();
  Client client(*stub_);
  client.Hello("fingerprint-of-another");
  const grpc::Status status = client.End();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(status.error_message(), HasSubstr("fingerprint-of-another"));
  EXPECT_THAT(status.error_message(), HasSubstr(kFingerprint));

  // Whatever it says must fit into a status.
  Client odd(*stub_);
  odd.Hello(std::string(20000, '\n'));
  EXPECT_EQ(odd.End().error_code(), grpc::StatusCode::FAILED_PRECONDITION);
}

TEST_F(ExpertServerTest, ABatchBeforeTheHelloIsRefused) {
  SetReady();
  Client client(*stub_);
  client.Send(Batch(0, 2, 1));
  const grpc::Status status = client.End();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(status.error_message(), HasSubstr("before the hello"));
}

TEST_F(ExpertServerTest, ABatchWhileLoadingGoesElsewhere) {
  Client client(*stub_);
  EXPECT_EQ(client.HelloAndRead(), v1::SERVING_STATE_LOADING);
  client.Send(Batch(0, 2, 31));
  const v1::ExpertOutput output = client.ReadOutput();
  EXPECT_EQ(output.verdict(), v1::ExpertOutput::VERDICT_DRAINING);
  EXPECT_EQ(output.attempt_id(), 31u);
  EXPECT_TRUE(client.CloseAndEnd().ok());
}

// Each frame is broken in one way; the message names the field, the stream
// ends, the process goes on.
TEST_F(ExpertServerTest, MalformedFramesAreInvalidArgument) {
  SetReady();
  const uint32_t kMax = 0xffffffff;
  struct Case {
    const char* name;
    const char* field;
    std::function<void(v1::ExpertBatch&)> spoil;
  };
  using B = v1::ExpertBatch;
  // Six tokens, experts 0-3.
  const Case cases[] = {
      {"no such layer", "ExpertBatch.layer", [](B& b) { b.set_layer(3); }},
      {"layer overflow", "ExpertBatch.layer", [=](B& b) { b.set_layer(kMax); }},
      {"no tokens", "ExpertBatch.num_tokens",
       [](B& b) { b.set_num_tokens(0); }},
      {"more tokens than bytes", "ExpertBatch.hidden_states",
       [](B& b) { b.set_num_tokens(b.num_tokens() + 1); }},
      {"fewer tokens than bytes", "ExpertBatch.hidden_states",
       [](B& b) { b.set_num_tokens(b.num_tokens() - 1); }},
      {"token count overflow", "ExpertBatch.hidden_states",
       [=](B& b) { b.set_num_tokens(kMax); }},
      // 2^25 tokens of 128 bytes are 2^32 bytes: 0 in 32 bits.
      {"byte count overflow", "ExpertBatch.hidden_states",
       [](B& b) {
         b.set_num_tokens(1u << 25);
         b.clear_hidden_states();
       }},
      {"no hidden states", "ExpertBatch.hidden_states",
       [](B& b) { b.clear_hidden_states(); }},
      {"a byte too few", "ExpertBatch.hidden_states",
       [](B& b) { b.mutable_hidden_states()->pop_back(); }},
      {"tokens without copies", "ExpertBatch.num_tokens",
       [](B& b) {
         b.set_num_tokens(600);
         b.set_hidden_states(std::string(600 * 128, '\0'));
       }},
      {"no experts", "ExpertBatch.expert_ids",
       [](B& b) { b.clear_expert_ids(); }},
      {"an expert of another process", "ExpertBatch.expert_ids",
       [](B& b) { b.set_expert_ids(3, 4); }},
      {"no such expert", "ExpertBatch.expert_ids",
       [=](B& b) { b.set_expert_ids(3, kMax); }},
      {"experts descending", "ExpertBatch.expert_ids",
       [](B& b) { b.mutable_expert_ids()->SwapElements(0, 1); }},
      {"an expert twice", "ExpertBatch.expert_ids",
       [](B& b) { b.set_expert_ids(1, b.expert_ids(0)); }},
      {"more experts than counts", "ExpertBatch.copies_per_expert",
       [](B& b) { b.mutable_copies_per_expert()->RemoveLast(); }},
      {"more counts than experts", "ExpertBatch.copies_per_expert",
       [](B& b) { b.add_copies_per_expert(1); }},
      {"an expert without copies", "ExpertBatch.copies_per_expert",
       [](B& b) { b.set_copies_per_expert(2, 0); }},
      {"more copies than tokens", "ExpertBatch.copies_per_expert",
       [](B& b) { b.set_copies_per_expert(2, b.num_tokens() + 1); }},
      {"copy count overflow", "ExpertBatch.copies_per_expert",
       [=](B& b) { b.set_copies_per_expert(2, kMax); }},
      {"no rows", "ExpertBatch.row_of_copy",
       [](B& b) {
         // One token, so that one copy is enough.
         b.set_num_tokens(1);
         b.mutable_hidden_states()->resize(128);
         b.clear_row_of_copy();
         for (int i = 0; i < b.copies_per_expert_size(); ++i) {
           b.set_copies_per_expert(i, 1);
         }
       }},
      {"fewer rows than copies", "ExpertBatch.row_of_copy",
       [](B& b) { b.mutable_row_of_copy()->RemoveLast(); }},
      {"more rows than copies", "ExpertBatch.row_of_copy",
       [](B& b) { b.add_row_of_copy(0); }},
      {"a row that is not there", "ExpertBatch.row_of_copy",
       [](B& b) { b.set_row_of_copy(4, b.num_tokens()); }},
      {"row overflow", "ExpertBatch.row_of_copy",
       [=](B& b) { b.set_row_of_copy(4, kMax); }},
  };
  const v1::ExpertBatch good = Batch(1, 6, 12);
  ASSERT_EQ(good.expert_ids_size(), 4);
  for (const Case& c : cases) {
    SCOPED_TRACE(c.name);
    v1::ExpertBatch batch = good;
    c.spoil(batch);
    Client client(*stub_);
    client.HelloAndRead();
    client.Send(batch);
    const grpc::Status status = client.End();
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_THAT(status.error_message(), HasSubstr(absl::StrCat(c.field, ":")));
  }
  {
    Client client(*stub_);
    client.HelloAndRead();
    client.Send(v1::ExpertRequest());
    const grpc::Status status = client.End();
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_THAT(status.error_message(), HasSubstr("ExpertRequest.message"));
  }
  EXPECT_EQ(Stats().rows(), 0u);
  Client client(*stub_);
  client.HelloAndRead();
  client.Send(good);
  EXPECT_EQ(client.ReadOutput().verdict(), v1::ExpertOutput::VERDICT_COMPUTED);
}

TEST_F(ExpertServerTest, SeveralRoutersShareOneGroupedGemm) {
  SetReady();
  constexpr size_t kRouters = 3;
  std::vector<std::unique_ptr<Client>> clients;
  std::vector<v1::ExpertBatch> batches;
  std::vector<std::string> alone;
  uint64_t rows = 0;
  for (size_t i = 0; i < kRouters; ++i) {
    clients.push_back(std::make_unique<Client>(*stub_));
    clients[i]->HelloAndRead();
    // Attempt ids are a stream's own.
    batches.push_back(Batch(2, 2 + i, static_cast<uint32_t>(40 + i)));
    batches[i].set_attempt_id(1);
    rows += static_cast<uint64_t>(batches[i].row_of_copy_size());
    clients[i]->Send(batches[i]);
    alone.push_back(clients[i]->ReadOutput().outputs());
  }
  EXPECT_NE(alone[0], alone[1]);
  ASSERT_TRUE(batcher_.WaitUntilIdle(milliseconds(30000)));
  const v1::ExpertStats before = Stats();
  EXPECT_EQ(before.batches(), kRouters);
  EXPECT_EQ(before.connected_routers(), kRouters);
  {
    const HeldBatcher held = Hold();
    for (size_t i = 0; i < kRouters; ++i) clients[i]->Send(batches[i]);
    WaitForQueuedRows(rows);
  }
  for (size_t i = 0; i < kRouters; ++i) {
    const v1::ExpertOutput output = clients[i]->ReadOutput();
    EXPECT_EQ(output.attempt_id(), 1u);
    EXPECT_EQ(output.outputs(), alone[i]) << "router " << i;
  }
  const v1::ExpertStats after = Stats();
  EXPECT_EQ(after.batches(), before.batches() + 2);  // the held one, theirs
  EXPECT_EQ(after.messages(), before.messages() + 1 + kRouters);
}

TEST_F(ExpertServerTest, RefusesWhenFull) {
  SetReady();
  Client client(*stub_);
  client.HelloAndRead();
  v1::ExpertBatch batch = Batch(0, 30, 1);
  const uint64_t rows = static_cast<uint64_t>(batch.row_of_copy_size());
  ASSERT_GT(2 * rows, kCapacityRows);
  ASSERT_LT(rows, kCapacityRows);
  {
    const HeldBatcher held = Hold();
    client.Send(batch);
    batch.set_attempt_id(2);
    client.Send(batch);
    batch.set_attempt_id(3);
    client.Send(batch);
    // The refusal overtakes what waits.
    const v1::ExpertOutput refused = client.ReadOutput();
    EXPECT_EQ(refused.attempt_id(), 3u);
    EXPECT_EQ(refused.verdict(), v1::ExpertOutput::VERDICT_REFUSED);
    EXPECT_EQ(refused.free_rows(), 0u);
  }
  const v1::ExpertOutput computed = client.ReadOutput();
  EXPECT_EQ(computed.attempt_id(), 1u);
  EXPECT_EQ(computed.verdict(), v1::ExpertOutput::VERDICT_COMPUTED);
  const v1::ExpertOutput partial = client.ReadOutput();
  EXPECT_EQ(partial.attempt_id(), 2u);
  EXPECT_EQ(partial.verdict(), v1::ExpertOutput::VERDICT_PARTIAL);
  EXPECT_EQ(static_cast<uint64_t>(partial.refused_copies_size()),
            2 * rows - kCapacityRows);
  EXPECT_EQ(Stats().refused_rows(), 3 * rows - kCapacityRows);
}

TEST_F(ExpertServerTest, DrainsInOrder) {
  SetReady();
  Client client(*stub_);
  client.HelloAndRead();
  {
    const HeldBatcher held = Hold();
    v1::ExpertBatch batch = Batch(0, 4, 1);
    client.Send(batch);
    WaitForQueuedRows(static_cast<uint64_t>(batch.row_of_copy_size()));
    service_.StartDraining();
    EXPECT_EQ(client.ReadDescription().state(), v1::SERVING_STATE_DRAINING);
    batch.set_attempt_id(2);
    client.Send(batch);
    const v1::ExpertOutput after = client.ReadOutput();
    EXPECT_EQ(after.attempt_id(), 2u);
    EXPECT_EQ(after.verdict(), v1::ExpertOutput::VERDICT_DRAINING);
  }
  ASSERT_TRUE(batcher_.WaitUntilIdle(milliseconds(30000)));
  service_.EndStreams();
  // What had been taken before is still answered.
  const v1::ExpertOutput queued = client.ReadOutput();
  EXPECT_EQ(queued.attempt_id(), 1u);
  EXPECT_EQ(queued.verdict(), v1::ExpertOutput::VERDICT_COMPUTED);
  const grpc::Status status = client.End();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(status.error_message(), "drained");

  // Who comes now is told at once.
  Client late(*stub_);
  EXPECT_EQ(late.HelloAndRead(), v1::SERVING_STATE_DRAINING);
}

// The rows of a router that is gone leave the queue, and its stream the server.
TEST_F(ExpertServerTest, ARouterThatDiesLeavesNothingBehind) {
  SetReady();
  {
    const HeldBatcher held = Hold();
    Client client(*stub_);
    client.HelloAndRead();
    const v1::ExpertBatch batch = Batch(0, 4, 1);
    client.Send(batch);
    WaitForQueuedRows(static_cast<uint64_t>(batch.row_of_copy_size()));
    client.Cancel();
    WaitForStats([](const v1::ExpertStats& stats) {
      return stats.connected_routers() == 0;
    });
  }
  WaitForQueuedRows(0);
  Client client(*stub_);
  EXPECT_EQ(client.HelloAndRead(), v1::SERVING_STATE_READY);
}

// 64 batches wait, so the server reads no more and no read would tell it.
TEST_F(ExpertServerTest, ARouterThatDiesWhileItIsHeldBackLeavesNothingBehind) {
  SetReady();
  const HeldBatcher held = Hold();
  Client client(*stub_);
  client.HelloAndRead();
  v1::ExpertBatch batch = Batch(0, 1, 1);
  batch.clear_expert_ids();
  batch.clear_copies_per_expert();
  batch.clear_row_of_copy();
  batch.add_expert_ids(0);
  batch.add_copies_per_expert(1);
  batch.add_row_of_copy(0);
  for (int i = 0; i < 80; ++i) client.Send(batch);
  WaitForQueuedRows(64);
  client.Cancel();
  WaitForStats([](const v1::ExpertStats& stats) {
    return stats.connected_routers() == 0;
  });
}

// The router's real end of the stream against the real server.
class PeerListener final : public ExpertPeer::Listener {
 public:
  void OnDescription(const v1::ExpertDescription& description) override {
    if (description.state() == v1::SERVING_STATE_READY &&
        !ready.HasBeenNotified()) {
      ready.Notify();
    }
  }
  void OnLost(const absl::Status& status) override {
    lost_with = status;
    lost.Notify();
  }
  absl::Notification ready;
  absl::Notification lost;
  absl::Status lost_with;
};

TEST_F(ExpertServerTest, TalksToGrpcExpertPeer) {
  PeerListener listener;
  const auto peer = MakePeer();
  peer->Connect(&listener);
  SetReady();
  listener.ready.WaitForNotification();
  absl::Notification done;
  SendProto(*peer, Batch(0, 5, 3),
            [&](absl::StatusOr<v1::ExpertOutput> output) {
              EXPECT_TRUE(output.ok()) << output.status();
              done.Notify();
            });
  done.WaitForNotification();
  service_.EndStreams();
  listener.lost.WaitForNotification();
  EXPECT_EQ(listener.lost_with.code(), absl::StatusCode::kUnavailable);
}

// More batches than the server takes before it stops reading.
TEST_F(ExpertServerTest, AFloodIsAnsweredCompletely) {
  SetReady();
  PeerListener listener;
  const auto peer = MakePeer();
  peer->Connect(&listener);
  listener.ready.WaitForNotification();
  constexpr int kBatches = 500;
  absl::BlockingCounter answers(kBatches);
  std::atomic<int> computed = 0;
  {
    const HeldBatcher held = Hold();
    for (int i = 0; i < kBatches; ++i) {
      SendProto(*peer, Batch(1, 20, 8),
                [&](absl::StatusOr<v1::ExpertOutput> output) {
                  EXPECT_TRUE(output.ok()) << output.status();
                  if (output.ok()) {
                    computed +=
                        output->verdict() == v1::ExpertOutput::VERDICT_COMPUTED;
                  }
                  answers.DecrementCount();
                });
    }
  }
  answers.Wait();
  EXPECT_GE(computed, 1);
}

TEST_F(ExpertServerTest, GetStatsDescribesTheProcess) {
  EXPECT_EQ(Stats().description().state(), v1::SERVING_STATE_LOADING);
  SetReady();
  const v1::ExpertStats stats = Stats();
  EXPECT_EQ(stats.description().state(), v1::SERVING_STATE_READY);
  EXPECT_EQ(stats.connected_routers(), 0u);
  EXPECT_GT(stats.resident_bytes(), 1u << 20);
}

}  // namespace
}  // namespace troupe
