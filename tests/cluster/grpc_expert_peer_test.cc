#include "cluster/grpc_expert_peer.h"

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "common/rpc/rpc_server.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "protos/expert.grpc.pb.h"
#include "tests/fakes/expert_frames.h"
#include "tests/fakes/temp_dir.h"

namespace troupe {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr absl::Duration kPatience = absl::Seconds(30);

using ServerStream =
    grpc::ServerReaderWriter<v1::ExpertResponse, v1::ExpertRequest>;

// The other end: a function plays the expert process, in a thread of its own
// for each stream.
class ScriptedExpert final : public v1::Expert::Service {
 public:
  using Script = std::function<grpc::Status(ServerStream& stream)>;
  explicit ScriptedExpert(Script script) : script_(std::move(script)) {}

  grpc::Status Exchange(grpc::ServerContext*, ServerStream* stream) override {
    return script_(*stream);
  }

 private:
  const Script script_;
};

// Takes the hello and describes itself.
v1::ExpertHello Greet(ServerStream& stream) {
  v1::ExpertRequest request;
  EXPECT_TRUE(stream.Read(&request));
  EXPECT_TRUE(request.has_hello());
  v1::ExpertResponse response;
  response.mutable_description()->set_name("scripted");
  response.mutable_description()->set_model_fingerprint(
      request.hello().model_fingerprint());
  response.mutable_description()->set_state(v1::SERVING_STATE_READY);
  EXPECT_TRUE(stream.Write(response));
  return request.hello();
}

v1::ExpertResponse Output(uint64_t attempt_id, const std::string& bytes) {
  v1::ExpertResponse response;
  response.mutable_output()->set_attempt_id(attempt_id);
  response.mutable_output()->set_verdict(v1::ExpertOutput::VERDICT_COMPUTED);
  response.mutable_output()->set_outputs(bytes);
  return response;
}

// Computes each batch: its hidden states, twice.
grpc::Status Serve(ServerStream& stream) {
  Greet(stream);
  v1::ExpertRequest request;
  while (stream.Read(&request)) {
    const v1::ExpertBatch& batch = request.batch();
    stream.Write(Output(batch.attempt_id(),
                        batch.hidden_states() + batch.hidden_states()));
  }
  return grpc::Status::OK;
}

class Listener final : public ExpertPeer::Listener {
 public:
  void OnDescription(const v1::ExpertDescription& description) override {
    absl::MutexLock lock(&mu_);
    descriptions_.push_back(description);
  }
  void OnLost(const absl::Status& status) override {
    absl::MutexLock lock(&mu_);
    lost_.push_back(status);
  }

  std::vector<v1::ExpertDescription> WaitForDescriptions(size_t count) {
    absl::MutexLock lock(&mu_);
    const auto there = [&]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
      return descriptions_.size() >= count;
    };
    EXPECT_TRUE(mu_.AwaitWithTimeout(absl::Condition(&there), kPatience));
    return descriptions_;
  }
  std::vector<absl::Status> WaitForLost(size_t count) {
    absl::MutexLock lock(&mu_);
    const auto there = [&]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
      return lost_.size() >= count;
    };
    EXPECT_TRUE(mu_.AwaitWithTimeout(absl::Condition(&there), kPatience));
    return lost_;
  }

 private:
  absl::Mutex mu_;
  std::vector<v1::ExpertDescription> descriptions_ ABSL_GUARDED_BY(mu_);
  std::vector<absl::Status> lost_ ABSL_GUARDED_BY(mu_);
};

// The answer to one batch; fails the test when it comes twice.
class Answer {
 public:
  ProtoOutputCallback Callback() {
    return [this](absl::StatusOr<v1::ExpertOutput> output) {
      EXPECT_FALSE(done_.HasBeenNotified());
      output_ = std::move(output);
      done_.Notify();
    };
  }
  absl::StatusOr<v1::ExpertOutput> Wait() {
    EXPECT_TRUE(done_.WaitForNotificationWithTimeout(kPatience));
    return output_;
  }
  bool HasBeenCalled() const { return done_.HasBeenNotified(); }

 private:
  absl::StatusOr<v1::ExpertOutput> output_;
  absl::Notification done_;
};

v1::ExpertBatch Batch(const std::string& hidden_states) {
  v1::ExpertBatch batch;
  batch.set_hidden_states(hidden_states);
  return batch;
}

class GrpcExpertPeerTest : public testing::Test {
 protected:
  ~GrpcExpertPeerTest() override { peer_ = nullptr; }

  void StartServer(ScriptedExpert::Script script) {
    service_ = std::make_unique<ScriptedExpert>(std::move(script));
    RpcServerOptions options;
    options.listen = {address_};
    auto server = RpcServer::Start(options, {service_.get()});
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }
  void StopServer() { server_ = nullptr; }

  ExpertPeer& MakePeer() {
    GrpcExpertPeerOptions options;
    options.address = address_;
    options.router_name = "router-7";
    options.model_fingerprint = "fingerprint-1";
    peer_ = MakeGrpcExpertPeer(std::move(options));
    return *peer_;
  }

  TempDir dir_;
  const std::string address_ = absl::StrCat("unix:", dir_.path(), "/expert");
  Listener listener_;
  std::unique_ptr<ScriptedExpert> service_;
  std::unique_ptr<RpcServer> server_;
  std::unique_ptr<ExpertPeer> peer_;
};

TEST_F(GrpcExpertPeerTest, SaysHelloFirst) {
  v1::ExpertHello hello;
  StartServer([&](ServerStream& stream) {
    hello = Greet(stream);
    return grpc::Status::OK;
  });
  ExpertPeer& peer = MakePeer();
  EXPECT_STREQ(peer.transport(), "grpc");
  peer.Connect(&listener_);
  EXPECT_EQ(listener_.WaitForDescriptions(1)[0].name(), "scripted");
  listener_.WaitForLost(1);
  EXPECT_EQ(hello.router_name(), "router-7");
  EXPECT_EQ(hello.model_fingerprint(), "fingerprint-1");
}

TEST_F(GrpcExpertPeerTest, BatchesAreAnswered) {
  StartServer(Serve);
  ExpertPeer& peer = MakePeer();
  peer.Connect(&listener_);
  listener_.WaitForDescriptions(1);
  std::vector<Answer> answers(20);
  for (size_t i = 0; i < answers.size(); ++i) {
    SendProto(peer, Batch(absl::StrCat("<", i, ">")), answers[i].Callback());
  }
  for (size_t i = 0; i < answers.size(); ++i) {
    const auto output = answers[i].Wait();
    ASSERT_TRUE(output.ok()) << output.status();
    EXPECT_EQ(output->outputs(), absl::StrCat("<", i, "><", i, ">"));
  }
}

TEST_F(GrpcExpertPeerTest, AnswersFindTheirBatchInAnyOrder) {
  constexpr size_t kBatches = 5;
  StartServer([](ServerStream& stream) {
    Greet(stream);
    std::vector<v1::ExpertRequest> requests(kBatches);
    for (v1::ExpertRequest& request : requests) {
      EXPECT_TRUE(stream.Read(&request));
    }
    // Nobody has asked for this one.
    stream.Write(Output(12345678, "stray"));
    stream.Write(v1::ExpertResponse());
    for (size_t i = kBatches; i > 0; --i) {
      const v1::ExpertBatch& batch = requests[i - 1].batch();
      stream.Write(Output(batch.attempt_id(), batch.hidden_states()));
      // Twice the same answer: the second one meets nobody.
      stream.Write(Output(batch.attempt_id(), "again"));
    }
    v1::ExpertRequest rest;
    stream.Read(&rest);
    return grpc::Status::OK;
  });
  ExpertPeer& peer = MakePeer();
  peer.Connect(&listener_);
  listener_.WaitForDescriptions(1);
  std::vector<Answer> answers(kBatches);
  for (size_t i = 0; i < kBatches; ++i) {
    SendProto(peer, Batch(absl::StrCat(i)), answers[i].Callback());
  }
  for (size_t i = 0; i < kBatches; ++i) {
    EXPECT_EQ(answers[i].Wait()->outputs(), absl::StrCat(i));
  }
}

TEST_F(GrpcExpertPeerTest, TheEndOfTheStreamEndsWhatIsInFlight) {
  StartServer([](ServerStream& stream) {
    Greet(stream);
    v1::ExpertRequest request;
    stream.Read(&request);
    return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "no such field");
  });
  ExpertPeer& peer = MakePeer();
  peer.Connect(&listener_);
  listener_.WaitForDescriptions(1);
  Answer answer;
  SendProto(peer, Batch("x"), answer.Callback());
  // A batch is lost, whatever the reason: it may be sent elsewhere.
  EXPECT_EQ(answer.Wait().status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(answer.Wait().status().message()),
              HasSubstr("no such field"));
  const absl::Status lost = listener_.WaitForLost(1)[0];
  EXPECT_EQ(lost.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(lost.message()), HasSubstr(address_));

  Answer late;
  SendProto(peer, Batch("x"), late.Callback());
  EXPECT_EQ(late.Wait().status().code(), absl::StatusCode::kUnavailable);
}

TEST_F(GrpcExpertPeerTest, SendBeforeConnectFailsAtOnce) {
  ExpertPeer& peer = MakePeer();
  Answer answer;
  SendProto(peer, Batch("x"), answer.Callback());
  ASSERT_TRUE(answer.HasBeenCalled());
  EXPECT_EQ(answer.Wait().status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(answer.Wait().status().message()),
              HasSubstr(address_));
}

TEST_F(GrpcExpertPeerTest, ConnectsAgainWhenTheProcessIsBack) {
  ExpertPeer& peer = MakePeer();
  peer.Connect(&listener_);
  EXPECT_EQ(listener_.WaitForLost(1)[0].code(), absl::StatusCode::kUnavailable);
  StartServer(Serve);
  // The channel waits between two attempts.
  size_t num_lost = 1;
  absl::StatusOr<v1::ExpertOutput> output;
  const SteadyTime patience =
      std::chrono::steady_clock::now() + std::chrono::seconds(30);
  while (std::chrono::steady_clock::now() < patience) {
    peer.Connect(&listener_);
    Answer answer;
    SendProto(peer, Batch("x"), answer.Callback());
    output = answer.Wait();
    if (output.ok()) break;
    listener_.WaitForLost(++num_lost);
  }
  ASSERT_TRUE(output.ok()) << output.status();
  EXPECT_EQ(output->outputs(), "xx");
  EXPECT_EQ(listener_.WaitForDescriptions(1).size(), 1u);

  StopServer();
  listener_.WaitForLost(num_lost + 1);
}

TEST_F(GrpcExpertPeerTest, DestroyingItEndsWhatIsInFlight) {
  absl::Notification batch_came;
  StartServer([&](ServerStream& stream) {
    Greet(stream);
    v1::ExpertRequest request;
    stream.Read(&request);
    batch_came.Notify();
    stream.Read(&request);  // never answers
    return grpc::Status::OK;
  });
  ExpertPeer& peer = MakePeer();
  peer.Connect(&listener_);
  listener_.WaitForDescriptions(1);
  std::vector<Answer> answers(8);
  for (Answer& answer : answers) SendProto(peer, Batch("x"), answer.Callback());
  batch_came.WaitForNotification();
  peer_ = nullptr;
  for (Answer& answer : answers) {
    ASSERT_TRUE(answer.HasBeenCalled());
    EXPECT_EQ(answer.Wait().status().code(), absl::StatusCode::kUnavailable);
  }
  EXPECT_EQ(listener_.WaitForLost(1).size(), 1u);
}

// Threads send while the process comes and goes, also in the middle of large
// messages: every batch gets exactly one answer.
TEST_F(GrpcExpertPeerTest, ExactlyOneAnswerWhateverDies) {
  const auto serve_some = [](ServerStream& stream) {
    Greet(stream);
    v1::ExpertRequest request;
    for (int i = 0; i < 5 && stream.Read(&request); ++i) {
      const v1::ExpertBatch& batch = request.batch();
      stream.Write(Output(batch.attempt_id(), batch.hidden_states()));
    }
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "died");
  };
  StartServer(serve_some);
  ExpertPeer& peer = MakePeer();
  std::atomic<bool> stop = false;
  std::thread connector([&] {
    for (size_t count = 1; !stop; ++count) {
      peer.Connect(&listener_);
      listener_.WaitForLost(count);
    }
  });
  const std::string large(30000, 'x');
  std::atomic<int> num_ok = 0;
  std::vector<std::thread> senders;
  for (int t = 0; t < 3; ++t) {
    senders.emplace_back([&] {
      while (num_ok < 60) {
        Answer answer;
        SendProto(peer, Batch(large), answer.Callback());
        const auto output = answer.Wait();
        if (output.ok()) {
          EXPECT_EQ(output->outputs(), large);
          ++num_ok;
        } else {
          EXPECT_EQ(output.status().code(), absl::StatusCode::kUnavailable);
        }
      }
    });
  }
  for (std::thread& sender : senders) sender.join();
  stop = true;
  StopServer();
  connector.join();
}

}  // namespace
}  // namespace troupe
