// What every transport must do, one body for all: the real peer against the
// real edge of an expert process and its batcher, with real experts.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/blocking_counter.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "cluster/grpc_expert_peer.h"
#include "cluster/shm_handshake.h"
#include "common/rpc/rpc_server.h"
#include "common/rpc/unix_socket.h"
#include "expert_service/expert_server.h"
#include "expert_service/local_expert_peer.h"
#include "expert_service/shm_expert_edge.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/expert_service/test_experts.h"
#include "tests/fakes/expert_frames.h"

namespace troupe {
namespace {

using ::testing::HasSubstr;

constexpr char kFingerprint[] = "fingerprint-of-the-model";
constexpr uint64_t kCapacityRows = 1000;

// An expert process in this one. Destroyed in the order of main.cc.
class Process {
 public:
  Process(const TestExperts& experts, const std::string& listen,
          uint64_t ring_bytes, bool offer_shm = true)
      : backend_(experts.store(), pool_) {
    if (offer_shm) {
      ShmExpertEdgeOptions options;
      options.ring_bytes = ring_bytes;
      options.limits = backend_.limits();
      edge_ = *ShmExpertEdge::Start(options, bell_);
    }
    batcher_ = std::make_unique<ExpertBatcher>(backend_, kCapacityRows, bell_,
                                               edge_.get());
    v1::ExpertDescription description;
    description.set_model_fingerprint(kFingerprint);
    if (edge_ != nullptr) *description.mutable_shm() = edge_->offer();
    service_ = std::make_unique<ExpertServer>(std::move(description),
                                              backend_.limits());
    RpcServerOptions options;
    options.listen = {listen};
    server_ = *RpcServer::Start(options, {service_.get()});
    service_->SetReady(batcher_.get(), experts.store().versions(), 1);
  }

  const std::string& address() const { return server_->addresses()[0]; }
  ExpertBatcher& batcher() { return *batcher_; }
  ShmExpertEdge* edge() { return edge_.get(); }

 private:
  ThreadPool pool_{2};
  CpuExpertBackend backend_;
  const std::shared_ptr<Doorbell> bell_ = Doorbell::Create();
  std::unique_ptr<ShmExpertEdge> edge_;
  std::unique_ptr<ExpertBatcher> batcher_;
  std::unique_ptr<ExpertServer> service_;
  std::unique_ptr<RpcServer> server_;
};

// A router's end: a thread waits on the bell and polls, as the dispatcher does.
class Router final : public ExpertPeer::Listener {
 public:
  explicit Router(std::shared_ptr<Doorbell> bell) : bell_(std::move(bell)) {}
  ~Router() override { Stop(); }

  void Start(std::unique_ptr<ExpertPeer> peer) {
    peer_ = std::move(peer);
    peer_->Connect(this);
    poller_ = std::thread([this] {
      while (!stop_) {
        const uint32_t seen = bell_->Current();
        peer_->Poll();
        if (!stop_) bell_->Wait(seen, kNoDeadline);
      }
    });
  }
  void Stop() {
    if (!poller_.joinable()) return;
    stop_ = true;
    bell_->Ring();
    poller_.join();
    peer_ = nullptr;
  }
  ExpertPeer& peer() { return *peer_; }

  void OnDescription(const v1::ExpertDescription& description) override {
    absl::MutexLock lock(&mu_);
    ready_ = description.state() == v1::SERVING_STATE_READY;
  }
  void OnLost(const absl::Status& status) override {
    absl::MutexLock lock(&mu_);
    ready_ = false;
    lost_ = status;
    ++num_lost_;
  }
  void WaitUntilReady() {
    absl::MutexLock lock(&mu_);
    mu_.Await(absl::Condition(&ready_));
  }
  absl::Status WaitUntilLost(int count = 1) {
    absl::MutexLock lock(&mu_);
    const auto lost = [&]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
      return num_lost_ >= count;
    };
    mu_.Await(absl::Condition(&lost));
    return lost_;
  }

  // True when ready, false when lost for the lost-th time.
  bool TryToConnect(int lost) {
    peer_->Connect(this);
    absl::MutexLock lock(&mu_);
    const auto over = [&]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
      return ready_ || num_lost_ >= lost;
    };
    mu_.Await(absl::Condition(&over));
    return ready_;
  }

  // Sends and waits.
  absl::StatusOr<v1::ExpertOutput> Run(const v1::ExpertBatch& batch) {
    absl::StatusOr<v1::ExpertOutput> result;
    absl::Notification done;
    SendProto(*peer_, batch, [&](absl::StatusOr<v1::ExpertOutput> output) {
      result = std::move(output);
      done.Notify();
    });
    done.WaitForNotification();
    return result;
  }

 private:
  const std::shared_ptr<Doorbell> bell_;
  std::unique_ptr<ExpertPeer> peer_;
  std::thread poller_;
  std::atomic<bool> stop_{false};
  absl::Mutex mu_;
  bool ready_ ABSL_GUARDED_BY(mu_) = false;
  int num_lost_ ABSL_GUARDED_BY(mu_) = 0;
  absl::Status lost_ ABSL_GUARDED_BY(mu_);
};

enum class Kind { kLocal, kShm, kShmSmallRing, kGrpcUnix, kGrpcTcp };

std::string Name(Kind kind) {
  switch (kind) {
    case Kind::kLocal:
      return "local";
    case Kind::kShm:
      return "shm";
    case Kind::kShmSmallRing:
      return "shm_small_ring";
    case Kind::kGrpcUnix:
      return "grpc_unix";
    case Kind::kGrpcTcp:
      return "grpc_tcp";
  }
  return "?";
}

class ExpertTransportTest : public testing::TestWithParam<Kind> {
 protected:
  static void SetUpTestSuite() { experts_ = new TestExperts; }
  static void TearDownTestSuite() {
    delete experts_;
    experts_ = nullptr;
  }
  static bool IsShm(Kind kind) {
    return kind == Kind::kShm || kind == Kind::kShmSmallRing;
  }
  static size_t hidden_size() { return experts_->config().hidden_size; }

  ExpertTransportTest() { StartProcess(); }
  ~ExpertTransportTest() override { router_.Stop(); }

  void StartProcess() {
    process_ = std::make_unique<Process>(
        *experts_,
        GetParam() == Kind::kGrpcTcp ? "127.0.0.1:0"
                                     : absl::StrCat("unix:", dir_.path(), "/e"),
        GetParam() == Kind::kShmSmallRing ? SharedRings::kMinCapacity
                                          : uint64_t{1} << 20);
  }
  std::unique_ptr<ExpertPeer> MakePeer() {
    if (GetParam() == Kind::kLocal) {
      v1::ExpertDescription description;
      description.set_state(v1::SERVING_STATE_READY);
      return std::make_unique<LocalExpertPeer>(std::move(description),
                                               process_->batcher());
    }
    GrpcExpertPeerOptions options;
    options.address = process_->address();
    options.model_fingerprint = kFingerprint;
    options.hop = IsShm(GetParam()) ? HopMode::kShm : HopMode::kGrpc;
    options.bell = bell_;
    return MakeGrpcExpertPeer(std::move(options));
  }
  Router& Connect() {
    router_.Start(MakePeer());
    router_.WaitUntilReady();
    return router_;
  }
  v1::ExpertBatch Batch(size_t layer, size_t num_tokens, uint32_t seed,
                        DataType dtype = DataType::kF32) {
    v1::ExpertBatch batch = RandomBatch(hidden_size(), layer, num_tokens, seed);
    if (dtype == DataType::kBF16) {
      const std::string floats = batch.hidden_states();
      std::string rounded(floats.size() / 2, '\0');
      WriteElements(dtype, reinterpret_cast<const float*>(floats.data()),
                    rounded.size() / 2, rounded.data());
      batch.set_hidden_states(rounded);
      batch.set_dtype(v1::WIRE_DTYPE_BFLOAT16);
    }
    return batch;
  }
  // The bytes that the batcher gives when nothing is between.
  std::string Expected(const v1::ExpertBatch& batch) {
    std::string bytes;
    absl::Notification done;
    Submit(process_->batcher(), batch, [&](v1::ExpertOutput output) {
      bytes = output.outputs();
      done.Notify();
    });
    done.WaitForNotification();
    return bytes;
  }

  static TestExperts* experts_;
  TempDir dir_;
  const std::shared_ptr<Doorbell> bell_ = Doorbell::Create();
  std::unique_ptr<Process> process_;
  Router router_{bell_};
};
TestExperts* ExpertTransportTest::experts_ = nullptr;

TEST_P(ExpertTransportTest, IsWhatItSays) {
  const std::string transport = Connect().peer().transport();
  EXPECT_EQ(transport, GetParam() == Kind::kLocal ? "local"
                       : IsShm(GetParam())        ? "shm"
                                                  : "grpc");
}

TEST_P(ExpertTransportTest, CarriesBothFormatsWithoutChangingABit) {
  Router& router = Connect();
  for (const DataType dtype : {DataType::kF32, DataType::kBF16}) {
    // The last one is larger than the small ring.
    for (const size_t num_tokens : {1, 2, 31, 300}) {
      SCOPED_TRACE(absl::StrCat(num_tokens, " tokens of ", Name(dtype)));
      const v1::ExpertBatch batch =
          Batch(1, num_tokens, static_cast<uint32_t>(num_tokens), dtype);
      const auto output = router.Run(batch);
      ASSERT_TRUE(output.ok()) << output.status();
      EXPECT_EQ(output->verdict(), v1::ExpertOutput::VERDICT_COMPUTED);
      EXPECT_EQ(output->dtype(), batch.dtype());
      EXPECT_EQ(output->outputs(), Expected(batch));
      EXPECT_EQ(output->outputs().size(),
                static_cast<size_t>(batch.row_of_copy_size()) * hidden_size() *
                    SizeOf(dtype));
    }
  }
}

// Room for some of a batch: their rows, and which the others are.
TEST_P(ExpertTransportTest, APartialAnswerSaysWhatIsMissing) {
  Router& router = Connect();
  for (const DataType dtype : {DataType::kF32, DataType::kBF16}) {
    v1::ExpertBatch batch = Batch(1, 700, 3, dtype);
    const auto num_copies = static_cast<size_t>(batch.row_of_copy_size());
    ASSERT_GT(num_copies, kCapacityRows);
    for (uint32_t copy = 0; copy < num_copies; ++copy) {
      batch.add_priorities(copy % 7 == 0 ? 1 : 0xffffffff - copy % 3);
    }
    const auto output = router.Run(batch);
    ASSERT_TRUE(output.ok()) << output.status();
    ASSERT_EQ(output->verdict(), v1::ExpertOutput::VERDICT_PARTIAL);
    const auto num_refused = static_cast<size_t>(output->refused_copies_size());
    ASSERT_EQ(num_refused, num_copies - kCapacityRows);
    const std::set<size_t> refused(output->refused_copies().begin(),
                                   output->refused_copies().end());
    // Whole runs that are small enough are computed by the reference.
    const size_t row_bytes = hidden_size() * SizeOf(dtype);
    ASSERT_EQ(output->outputs().size(), kCapacityRows * row_bytes);
    size_t row = 0;
    size_t copy = 0;
    for (int e = 0; e < batch.expert_ids_size(); ++e) {
      for (uint32_t n = 0; n < batch.copies_per_expert(e); ++n, ++copy) {
        if (refused.count(copy) > 0) {
          EXPECT_NE(batch.priorities(static_cast<int>(copy)), 0xffffffffu);
          continue;
        }
        const size_t at = row++;
        if (at % 97 != 0) continue;
        v1::ExpertBatch one;
        one.set_layer(batch.layer());
        one.set_num_tokens(1);
        one.set_dtype(batch.dtype());
        one.set_hidden_states(batch.hidden_states().substr(
            batch.row_of_copy(static_cast<int>(copy)) * row_bytes, row_bytes));
        one.add_expert_ids(batch.expert_ids(e));
        one.add_copies_per_expert(1);
        one.add_row_of_copy(0);
        EXPECT_EQ(output->outputs().substr(at * row_bytes, row_bytes),
                  Expected(one));
      }
    }
  }
}

// A batch says which version it wants, and is told when that is not here.
TEST_P(ExpertTransportTest, VersionsAreSaid) {
  Router& router = Connect();
  v1::ExpertBatch batch = Batch(1, 9, 3);
  const std::string expected = Expected(batch);
  for (const uint32_t expert : batch.expert_ids()) {
    batch.add_versions(experts_->store().experts()->Find(1, expert)->key);
  }
  auto output = router.Run(batch);
  ASSERT_TRUE(output.ok()) << output.status();
  EXPECT_EQ(output->outputs(), expected);
  batch.set_versions(1, batch.versions(1) + 1);
  output = router.Run(batch);
  ASSERT_TRUE(output.ok()) << output.status();
  EXPECT_EQ(output->verdict(), v1::ExpertOutput::VERDICT_GONE);
  EXPECT_EQ(output->outputs(), "");
}

// Outputs in bfloat16 are those in float32, rounded.
TEST_P(ExpertTransportTest, RoundsToTheNearest) {
  Router& router = Connect();
  v1::ExpertBatch batch = Batch(0, 5, 7, DataType::kBF16);
  const std::string rounded = router.Run(batch)->outputs();
  std::string floats(2 * batch.hidden_states().size(), '\0');
  ReadElements(DataType::kBF16, batch.hidden_states().data(),
               floats.size() / sizeof(float),
               reinterpret_cast<float*>(floats.data()));
  batch.set_hidden_states(floats);
  batch.set_dtype(v1::WIRE_DTYPE_FLOAT32);
  const std::string exact = router.Run(batch)->outputs();
  std::string expected(exact.size() / 2, '\0');
  WriteElements(DataType::kBF16, reinterpret_cast<const float*>(exact.data()),
                exact.size() / sizeof(float), expected.data());
  EXPECT_EQ(rounded, expected);
}

// More than the rings hold, in flight together: what has no room there takes
// the other way, and nothing waits for room.
TEST_P(ExpertTransportTest, ManyInFlight) {
  Router& router = Connect();
  constexpr int kBatches = 60;
  std::vector<v1::ExpertBatch> batches;
  std::vector<std::string> expected;
  for (uint32_t i = 0; i < 6; ++i) {
    batches.push_back(Batch(i % 3, 1 + 5 * i, i + 1));
    expected.push_back(Expected(batches.back()));
  }
  absl::BlockingCounter answers(kBatches);
  std::atomic<int> computed = 0;
  {
    const HeldBatcher held(process_->batcher(), hidden_size());
    for (int i = 0; i < kBatches; ++i) {
      const size_t which = static_cast<size_t>(i) % batches.size();
      SendProto(
          router.peer(), batches[which],
          [&, which](absl::StatusOr<v1::ExpertOutput> output) {
            ASSERT_TRUE(output.ok()) << output.status();
            if (output->verdict() == v1::ExpertOutput::VERDICT_COMPUTED) {
              EXPECT_EQ(output->outputs(), expected[which]);
              ++computed;
            } else if (output->verdict() == v1::ExpertOutput::VERDICT_REFUSED) {
              EXPECT_EQ(output->outputs(), "");
            } else {
              EXPECT_EQ(output->verdict(), v1::ExpertOutput::VERDICT_PARTIAL);
            }
            answers.DecrementCount();
          });
    }
  }
  answers.Wait();
  EXPECT_GT(computed, 5);
}

// Thousands of round trips of all sizes: the rings go round many times.
TEST_P(ExpertTransportTest, OnAndOn) {
  Router& router = Connect();
  std::vector<v1::ExpertBatch> batches;
  std::vector<std::string> expected;
  for (uint32_t i = 0; i < 12; ++i) {
    batches.push_back(Batch(i % 3, 1 + i * i % 50, i + 1,
                            i % 4 == 3 ? DataType::kBF16 : DataType::kF32));
    expected.push_back(Expected(batches.back()));
  }
  for (size_t i = 0; i < 600; ++i) {
    const size_t which = i * 7 % batches.size();
    const auto output = router.Run(batches[which]);
    ASSERT_TRUE(output.ok()) << output.status();
    ASSERT_EQ(output->outputs(), expected[which]) << i;
  }
}

TEST_P(ExpertTransportTest, DrainingIsSaid) {
  Router& router = Connect();
  process_->batcher().StartDraining();
  const auto output = router.Run(Batch(0, 3, 1));
  ASSERT_TRUE(output.ok());
  EXPECT_EQ(output->verdict(), v1::ExpertOutput::VERDICT_DRAINING);
  EXPECT_EQ(output->outputs(), "");
}

TEST_P(ExpertTransportTest, ABatchThatIsWrongEndsInAnError) {
  Router& router = Connect();
  v1::ExpertBatch batch = Batch(0, 3, 1);
  batch.set_layer(99);
  EXPECT_FALSE(router.Run(batch).ok());
}

TEST_P(ExpertTransportTest, DestroyingThePeerEndsWhatIsInFlight) {
  Router& router = Connect();
  if (GetParam() == Kind::kLocal) {
    GTEST_SKIP() << "waits: expert_batcher_test";
  }
  const HeldBatcher held(process_->batcher(), hidden_size());
  absl::BlockingCounter answers(5);
  for (int i = 0; i < 5; ++i) {
    SendProto(router.peer(), Batch(0, 2, 1),
              [&](absl::StatusOr<v1::ExpertOutput> output) {
                EXPECT_EQ(output.status().code(),
                          absl::StatusCode::kUnavailable);
                answers.DecrementCount();
              });
  }
  router.Stop();
  answers.Wait();
}

TEST_P(ExpertTransportTest, TheEndOfTheProcessIsSeenAndItsReturnToo) {
  if (GetParam() == Kind::kLocal || GetParam() == Kind::kGrpcTcp) {
    GTEST_SKIP() << "no address to come back to";
  }
  Router& router = Connect();
  const std::string expected = router.Run(Batch(0, 4, 2))->outputs();
  process_ = nullptr;
  EXPECT_FALSE(router.WaitUntilLost().ok());
  EXPECT_EQ(router.Run(Batch(0, 4, 2)).status().code(),
            absl::StatusCode::kUnavailable);
  StartProcess();
  // The channel waits between two attempts; each of them fails until then.
  for (int lost = 2; !router.TryToConnect(lost); ++lost) {
    ASSERT_LT(lost, 1000000);
  }
  const auto output = router.Run(Batch(0, 4, 2));
  ASSERT_TRUE(output.ok()) << output.status();
  EXPECT_EQ(output->outputs(), expected);
  EXPECT_STREQ(router.peer().transport(), IsShm(GetParam()) ? "shm" : "grpc");
}

INSTANTIATE_TEST_SUITE_P(Transports, ExpertTransportTest,
                         testing::Values(Kind::kLocal, Kind::kShm,
                                         Kind::kShmSmallRing, Kind::kGrpcUnix,
                                         Kind::kGrpcTcp),
                         [](const auto& kind) { return Name(kind.param); });

// What a router that is not ours may do to shared memory.
class HostileRouterTest : public testing::Test {
 protected:
  struct Rings {
    UniqueFd socket;
    std::unique_ptr<Doorbell> server_bell;
    std::unique_ptr<SharedRings> rings;
  };

  // Shakes hands as the router does.
  absl::StatusOr<Rings> Greet(const std::string& token,
                              uint32_t version = kShmVersion) {
    Rings rings;
    rings.socket = *ConnectUnix(process_.edge()->offer().socket());
    SetSocketTimeout(rings.socket.get(), milliseconds(10000));
    ShmHello hello = {};
    hello.magic = ShmHello::kMagic;
    hello.version = version;
    std::memcpy(hello.token, token.data(), sizeof(hello.token));
    EXPECT_TRUE(
        SendMessage(rings.socket.get(),
                    absl::string_view(reinterpret_cast<const char*>(&hello),
                                      sizeof(hello)),
                    {bell_->memory()->fd()})
            .ok());
    absl::StatusOr<ReceivedMessage> message =
        ReceiveMessage(rings.socket.get(), sizeof(ShmWelcome), 2);
    if (!message.ok()) return message.status();
    ShmWelcome welcome = {};
    std::memcpy(&welcome, message->bytes.data(), sizeof(welcome));
    rings.server_bell = *Doorbell::Attach(std::move(message->fds[0]));
    rings.rings =
        *SharedRings::Attach(std::move(message->fds[1]),
                             {welcome.to_server_bytes, welcome.to_client_bytes},
                             SharedRings::Side::kClient);
    return rings;
  }
  std::string Token() { return process_.edge()->offer().token(); }

  std::string Frame(const v1::ExpertBatch& proto) {
    const ExpertBatch batch = FromProto(proto);
    std::string frame(FlatBatchBytes(batch, proto.hidden_states().size()),
                      '\0');
    std::memcpy(
        EncodeFlatBatch(batch, 1, proto.hidden_states().size(), frame.data()),
        proto.hidden_states().data(), proto.hidden_states().size());
    return frame;
  }
  static void Write(Rings& rings, const std::string& frame) {
    char* to = rings.rings->writer().Reserve(frame.size());
    ASSERT_NE(to, nullptr);
    std::memcpy(to, frame.data(), frame.size());
    rings.rings->writer().Commit();
    rings.server_bell->Ring();
  }
  static void ExpectClosed(Rings& rings) {
    EXPECT_EQ(ReceiveMessage(rings.socket.get(), 1, 0).status().message(),
              "the other side has closed the unix socket");
  }
  // A router that keeps the rules is served as before.
  void ExpectServes() {
    absl::StatusOr<Rings> rings = Greet(Token());
    ASSERT_TRUE(rings.ok()) << rings.status();
    Write(*rings, good_);
    for (;;) {
      const uint32_t seen = bell_->Current();
      const auto message = rings->rings->reader().Next();
      ASSERT_TRUE(message.ok());
      if (message->has_value()) {
        const auto output = DecodeFlatOutput(
            absl::string_view((*message)->data, (*message)->size));
        ASSERT_TRUE(output.ok());
        EXPECT_EQ(output->verdict, Verdict::kComputed);
        return;
      }
      bell_->Wait(seen, kNoDeadline);
    }
  }

  TempDir dir_;
  TestExperts experts_;
  Process process_{experts_, absl::StrCat("unix:", dir_.path(), "/e"),
                   SharedRings::kMinCapacity};
  const std::unique_ptr<Doorbell> bell_ = Doorbell::Create();
  const std::string good_ =
      Frame(RandomBatch(experts_.config().hidden_size, 0, 6, 12));
};

TEST_F(HostileRouterTest, TheTokenMustBeKnown) {
  EXPECT_FALSE(Greet(std::string(16, 'x')).ok());
  EXPECT_FALSE(Greet(Token(), kShmVersion + 1).ok());
  {
    // Not even a hello; then nothing at all.
    const UniqueFd socket = *ConnectUnix(process_.edge()->offer().socket());
    EXPECT_TRUE(SendMessage(socket.get(), "?", {}).ok());
    EXPECT_FALSE(ReceiveMessage(socket.get(), 100, 2).ok());
    const UniqueFd silent = *ConnectUnix(process_.edge()->offer().socket());
    ExpectServes();
  }
  ExpectServes();
}

// A doorbell that could be cut under the process is not taken.
TEST_F(HostileRouterTest, UnsealedMemoryIsRefused) {
  const UniqueFd socket = *ConnectUnix(process_.edge()->offer().socket());
  ShmHello hello = {};
  hello.magic = ShmHello::kMagic;
  hello.version = kShmVersion;
  std::memcpy(hello.token, Token().data(), sizeof(hello.token));
  const UniqueFd open(memfd_create("open", 0));
  ASSERT_EQ(ftruncate(open.get(), 4096), 0);
  EXPECT_TRUE(
      SendMessage(socket.get(),
                  absl::string_view(reinterpret_cast<const char*>(&hello),
                                    sizeof(hello)),
                  {open.get()})
          .ok());
  EXPECT_FALSE(ReceiveMessage(socket.get(), 100, 2).ok());
  ExpectServes();
}

TEST_F(HostileRouterTest, FramesThatDoNotFitEndTheirRouterAlone) {
  const auto spoil = [this](size_t offset, uint64_t value, size_t size) {
    std::string frame = good_;
    std::memcpy(frame.data() + offset, &value, size);
    return frame;
  };
  std::vector<std::string> frames = {"", "short", std::string(64, '\0'),
                                     good_.substr(0, good_.size() - 1),
                                     good_ + "more"};
  // The header's fields: payload_bytes, layer, num_tokens, dtype, num_experts,
  // num_copies.
  for (const uint64_t value :
       {uint64_t{0}, uint64_t{7}, uint64_t{0xffffffff}, ~uint64_t{0}}) {
    frames.push_back(spoil(8, value, 8));
    for (const size_t offset : {20, 28, 32, 36, 44}) {
      if (offset == 44 && value == 0) continue;  // no priorities
      if (offset == 28 && value == 0) continue;  // float32
      frames.push_back(spoil(offset, value, 4));
    }
  }
  frames.push_back(spoil(16, 3, 4));              // no such layer
  frames.push_back(spoil(64, 0xffffffff, 4));     // no such expert
  frames.push_back(spoil(64 + 32, 0xffffff, 4));  // no such row
  for (size_t i = 0; i < frames.size(); ++i) {
    SCOPED_TRACE(i);
    absl::StatusOr<Rings> rings = Greet(Token());
    ASSERT_TRUE(rings.ok()) << rings.status();
    Write(*rings, frames[i]);
    ExpectClosed(*rings);
  }
  ExpectServes();
}

TEST_F(HostileRouterTest, PositionsThatAreImpossible) {
  for (const uint64_t tail : {uint64_t{1}, uint64_t{1} << 40, ~uint64_t{0}}) {
    absl::StatusOr<Rings> rings = Greet(Token());
    ASSERT_TRUE(rings.ok());
    Mapping map = *Mapping::Map(rings->rings->memory(), 0, 4096);
    reinterpret_cast<RingPositions*>(map.data())[0].tail.store(tail);
    rings->server_bell->Ring();
    ExpectClosed(*rings);
  }
  ExpectServes();
}

// It sends without reading: the process neither waits for it nor keeps its
// outputs.
TEST_F(HostileRouterTest, ARouterThatTakesNoOutputs) {
  absl::StatusOr<Rings> rings = Greet(Token());
  ASSERT_TRUE(rings.ok());
  for (int i = 0; i < 1000; ++i) {
    char* to = rings->rings->writer().Reserve(good_.size());
    if (to == nullptr) {
      std::this_thread::yield();
      if (ReceiveMessage(rings->socket.get(), 1, 0).status().message() ==
          "the other side has closed the unix socket") {
        break;
      }
      continue;
    }
    std::memcpy(to, good_.data(), good_.size());
    rings->rings->writer().Commit();
    rings->server_bell->Ring();
  }
  ExpectClosed(*rings);
  ExpectServes();
}

// The numbers of a frame change while it is looked at: it is computed as one of
// its versions or refused, and nothing else is touched.
TEST_F(HostileRouterTest, NumbersThatChange) {
  absl::StatusOr<Rings> rings = Greet(Token());
  ASSERT_TRUE(rings.ok());
  for (int round = 0; round < 200; ++round) {
    char* to = rings->rings->writer().Reserve(good_.size());
    if (to == nullptr) break;
    std::memcpy(to, good_.data(), good_.size());
    rings->rings->writer().Commit();
    rings->server_bell->Ring();
    for (int i = 0; i < 300; ++i) {
      for (const uint32_t value : {0xffffffffu, 0u, 5u}) {
        for (const size_t offset : {32, 36, 64, 64 + 16, 64 + 32}) {
          reinterpret_cast<volatile uint32_t*>(to)[offset / 4] = value;
        }
      }
    }
    const auto answer = rings->rings->reader().Next();
    if (answer.ok() && answer->has_value()) {
      rings->rings->reader().Release((*answer)->position);
    }
  }
  rings->socket = UniqueFd();
  ExpectServes();
}

TEST(FlatOutputTest, ListsThatDoNotFitAreRefused) {
  ExpertOutput output;
  output.verdict = Verdict::kPartial;
  output.refused_copies = {1, 5};
  std::string frame(FlatOutputBytes(24), 'x');
  EncodeFlatOutput(output, 24, frame.data());
  const auto good = DecodeFlatOutput(frame);
  ASSERT_TRUE(good.ok()) << good.status();
  EXPECT_EQ(good->rows.size(), 16u);
  EXPECT_EQ(good->refused_copies, output.refused_copies);
  for (const uint32_t count : {7u, 0x40000000u, 0xffffffffu}) {
    std::memcpy(frame.data() + 40, &count, sizeof(count));
    EXPECT_THAT(std::string(DecodeFlatOutput(frame).status().message()),
                testing::HasSubstr("refused_copies"));
  }
}

TEST(HopModeTest, SharedMemoryIsAnOffer) {
  TempDir dir;
  TestExperts experts;
  Process process(experts, absl::StrCat("unix:", dir.path(), "/e"),
                  uint64_t{1} << 20, /*offer_shm=*/false);
  for (const HopMode hop : {HopMode::kAuto, HopMode::kShm}) {
    const std::shared_ptr<Doorbell> bell = Doorbell::Create();
    Router router(bell);
    GrpcExpertPeerOptions options;
    options.address = process.address();
    options.model_fingerprint = kFingerprint;
    options.hop = hop;
    options.bell = bell;
    router.Start(MakeGrpcExpertPeer(std::move(options)));
    if (hop == HopMode::kAuto) {
      router.WaitUntilReady();
      EXPECT_STREQ(router.peer().transport(), "grpc");
    } else {
      EXPECT_THAT(std::string(router.WaitUntilLost().message()),
                  HasSubstr("no shared memory"));
    }
  }
}

}  // namespace
}  // namespace troupe
