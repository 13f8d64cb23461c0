// hop_bench: what a hop costs beside the medium that carries it.
//
// Two real processes: this one is the router's end, a copy of it the expert
// process, whose experts return their input. The round trip goes through the
// real ExpertPeer, the real edge of the expert process and its batcher. Beside
// it, in the same run and in turns, goes a bare echo over the same medium: the
// payload alone, no frames, no queue.
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "cluster/expert_wire.h"
#include "cluster/grpc_expert_peer.h"
#include "common/check.h"
#include "common/logging.h"
#include "common/rpc/doorbell.h"
#include "common/rpc/rpc_channel.h"
#include "common/rpc/rpc_server.h"
#include "common/rpc/sealed_memory.h"
#include "common/rpc/unix_socket.h"
#include "expert_service/expert_batcher.h"
#include "expert_service/expert_server.h"
#include "expert_service/local_expert_peer.h"
#include "expert_service/shm_expert_edge.h"
#include "grpcpp/generic/async_generic_service.h"
#include "grpcpp/generic/generic_stub.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/server_builder.h"

namespace troupe {
namespace {

constexpr size_t kHiddenSize = 256;  // 1 KiB a row
constexpr size_t kRowBytes = kHiddenSize * sizeof(float);
constexpr size_t kMaxPayload = size_t{1} << 20;
constexpr uint64_t kRingBytes = uint64_t{4} << 20;
constexpr char kEchoMethod[] = "/troupe.bench/Echo";

// One expert, which returns its input.
class EchoBackend final : public ExpertBackend {
 public:
  FrameLimits limits() const override { return {kHiddenSize, 1, 1}; }
  std::shared_ptr<const ExpertSet> experts() const override { return experts_; }
  void Compute(size_t, ConstFloatMatrix hidden_states,
               std::span<const uint32_t> row_of_copy, std::span<const uint32_t>,
               std::span<const LoadedExpert* const>,
               FloatMatrix output) override {
    for (size_t i = 0; i < row_of_copy.size(); ++i) {
      std::memcpy(output.row(i), hidden_states.row(row_of_copy[i]), kRowBytes);
    }
  }

 private:
  const std::shared_ptr<const ExpertSet> experts_ = std::make_shared<ExpertSet>(
      1, 1, LoadedExperts{std::make_shared<LoadedExpert>()});
};

// --- The bare media -----------------------------------------------------

// Shared memory: a word with the size, the way there, the way back.
struct RawSharedMemory {
  static constexpr size_t kBytes = 4096 + 2 * kMaxPayload;

  uint64_t& size() { return *reinterpret_cast<uint64_t*>(map.data()); }
  char* there() { return map.data() + 4096; }
  char* back() { return there() + kMaxPayload; }

  Mapping map;
  std::unique_ptr<Doorbell> server_bell;
  std::unique_ptr<Doorbell> client_bell;
};

void ServeRawSharedMemory(const std::string& address) {
  const absl::StatusOr<UniqueFd> listening = ListenUnix(address);
  CHECK(listening.ok());
  const UniqueFd socket = *AcceptUnix(listening->get());
  ReceivedMessage message = *ReceiveMessage(socket.get(), 16, 3);
  CHECK_EQ(message.fds.size(), 3u);
  RawSharedMemory raw;
  raw.map = *Mapping::Map(
      *SealedMemory::Attach(std::move(message.fds[0]), RawSharedMemory::kBytes),
      0, RawSharedMemory::kBytes);
  raw.server_bell = *Doorbell::Attach(std::move(message.fds[1]));
  raw.client_bell = *Doorbell::Attach(std::move(message.fds[2]));
  uint32_t seen = 0;
  for (;;) {
    raw.server_bell->Wait(seen, kNoDeadline);
    ++seen;
    std::memcpy(raw.back(), raw.there(), raw.size());
    raw.client_bell->Ring();
  }
}

// A bare bidirectional stream of bytes.
class EchoReactor final : public grpc::ServerGenericBidiReactor {
 public:
  EchoReactor() { StartRead(&buffer_); }
  void OnReadDone(bool ok) override {
    if (ok) {
      StartWrite(&buffer_);
    } else {
      Finish(grpc::Status::OK);
    }
  }
  void OnWriteDone(bool ok) override {
    if (ok) StartRead(&buffer_);
  }
  void OnDone() override { delete this; }

 private:
  grpc::ByteBuffer buffer_;
};

class EchoService final : public grpc::CallbackGenericService {
 public:
  grpc::ServerGenericBidiReactor* CreateReactor(
      grpc::GenericCallbackServerContext*) override {
    return new EchoReactor;
  }
};

// The client's end: the calling thread waits for each answer.
class EchoStream final
    : public grpc::ClientBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  explicit EchoStream(const std::string& address)
      : stub_(MakeChannel(address)) {
    stub_.PrepareBidiStreamingCall(&context_, kEchoMethod, grpc::StubOptions(),
                                   this);
    AddHold();
    StartRead(&received_);
    StartCall();
  }
  ~EchoStream() override {
    context_.TryCancel();
    done_.WaitForNotification();
  }

  void RoundTrip(const std::vector<char>& payload, std::vector<char>& answer) {
    grpc::Slice slice = NewPayload(payload.size());
    std::memcpy(DataOf(slice), payload.data(), payload.size());
    sent_ = grpc::ByteBuffer(&slice, 1);
    StartWrite(&sent_);
    {
      absl::MutexLock lock(&mu_);
      // The answer may come before the news that the write is done.
      const auto over = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
        return answered_ && written_;
      };
      mu_.Await(absl::Condition(&over));
      answered_ = written_ = false;
    }
    CopyFromBuffer(received_, 0, payload.size(), answer.data());
    received_.Clear();
    StartRead(&received_);
  }

 private:
  void OnReadDone(bool ok) override {
    if (!ok) {
      RemoveHold();
      return;
    }
    absl::MutexLock lock(&mu_);
    answered_ = true;
  }
  void OnWriteDone(bool) override {
    absl::MutexLock lock(&mu_);
    written_ = true;
  }
  void OnDone(const grpc::Status&) override { done_.Notify(); }

  grpc::GenericStub stub_;
  grpc::ClientContext context_;
  grpc::ByteBuffer sent_;
  grpc::ByteBuffer received_;
  absl::Mutex mu_;
  bool answered_ ABSL_GUARDED_BY(mu_) = false;
  bool written_ ABSL_GUARDED_BY(mu_) = false;
  absl::Notification done_;
};

// --- The other process --------------------------------------------------

int Serve(const std::string& dir) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  EchoBackend backend;
  const std::shared_ptr<Doorbell> bell = Doorbell::Create();
  ShmExpertEdgeOptions options;
  options.ring_bytes = kRingBytes;
  options.limits = backend.limits();
  const auto edge = *ShmExpertEdge::Start(options, bell);
  ExpertBatcher batcher(backend, 1 << 20, bell, edge.get());
  v1::ExpertDescription description;
  description.set_model_fingerprint("echo");
  *description.mutable_shm() = edge->offer();
  ExpertServer service(std::move(description), backend.limits());
  RpcServerOptions server_options;
  server_options.listen = {absl::StrCat("unix:", dir, "/expert"),
                           "127.0.0.1:0"};
  const auto server = *RpcServer::Start(server_options, {&service});
  service.SetReady(&batcher, {}, 0);

  EchoService echo;
  grpc::ServerBuilder builder;
  builder.SetMaxReceiveMessageSize(-1);
  int port = 0;
  builder.AddListeningPort(absl::StrCat("unix:", dir, "/raw"),
                           grpc::InsecureServerCredentials());
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(),
                           &port);
  builder.RegisterCallbackGenericService(&echo);
  const std::unique_ptr<grpc::Server> raw = builder.BuildAndStart();
  std::thread shared_memory([&] { ServeRawSharedMemory(dir + "/shm"); });
  std::printf("%s 127.0.0.1:%d\n", server->addresses()[1].c_str(), port);
  std::fflush(stdout);
  shared_memory.join();
  return 0;
}

// --- This process -------------------------------------------------------

class Ready final : public ExpertPeer::Listener {
 public:
  void OnDescription(const v1::ExpertDescription& description) override {
    if (description.state() == v1::SERVING_STATE_READY &&
        !ready.HasBeenNotified()) {
      ready.Notify();
    }
  }
  void OnLost(const absl::Status&) override {}
  absl::Notification ready;
};

// A peer, and a thread that waits for it as the dispatcher does.
class Hop {
 public:
  Hop(std::unique_ptr<ExpertPeer> peer, std::shared_ptr<Doorbell> bell)
      : bell_(std::move(bell)), peer_(std::move(peer)) {
    peer_->Connect(&ready_);
    ready_.ready.WaitForNotification();
  }
  const char* transport() const { return peer_->transport(); }

  void RoundTrip(const std::vector<char>& payload, std::vector<char>& answer) {
    const uint32_t rows = static_cast<uint32_t>(payload.size() / kRowBytes);
    batch_.Clear();
    batch_.num_tokens = rows;
    batch_.expert_ids.push_back(0);
    batch_.copies_per_expert.push_back(rows);
    for (uint32_t row = 0; row < rows; ++row) batch_.row_of_copy.push_back(row);
    std::atomic<bool> done = false;
    peer_->Send(
        batch_, payload.size(),
        [&](char* to) { std::memcpy(to, payload.data(), payload.size()); },
        [&](const absl::StatusOr<ExpertOutput>& output) {
          CHECK(output.ok());
          CHECK(output->verdict == Verdict::kComputed);
          CHECK_EQ(output->rows.size(), answer.size());
          PayloadReader(output->rows).Read(answer.data(), answer.size());
          const std::shared_ptr<Doorbell> bell = bell_;
          done = true;
          bell->Ring();
        });
    for (;;) {
      const uint32_t seen = bell_->Current();
      peer_->Poll();
      if (done) return;
      bell_->Wait(seen, kNoDeadline);
    }
  }

 private:
  Ready ready_;
  const std::shared_ptr<Doorbell> bell_;
  const std::unique_ptr<ExpertPeer> peer_;
  ExpertBatch batch_;
};

class RawSharedMemoryClient {
 public:
  explicit RawSharedMemoryClient(const std::string& address) {
    const SealedMemory memory =
        *SealedMemory::Create("raw", RawSharedMemory::kBytes);
    raw_.map = *Mapping::Map(memory, 0, RawSharedMemory::kBytes);
    raw_.server_bell = Doorbell::Create();
    raw_.client_bell = Doorbell::Create();
    absl::StatusOr<UniqueFd> socket = ConnectUnix(address);
    while (!socket.ok()) {  // the other process has just begun to listen
      std::this_thread::sleep_for(milliseconds(1));
      socket = ConnectUnix(address);
    }
    CHECK(SendMessage(socket->get(), "raw",
                      {memory.fd(), raw_.server_bell->memory()->fd(),
                       raw_.client_bell->memory()->fd()})
              .ok());
    socket_ = *std::move(socket);
  }
  void RoundTrip(const std::vector<char>& payload, std::vector<char>& answer) {
    const uint32_t seen = raw_.client_bell->Current();
    raw_.size() = payload.size();
    std::memcpy(raw_.there(), payload.data(), payload.size());
    raw_.server_bell->Ring();
    raw_.client_bell->Wait(seen, kNoDeadline);
    std::memcpy(answer.data(), raw_.back(), payload.size());
  }

 private:
  UniqueFd socket_;
  RawSharedMemory raw_;
};

using RoundTrip =
    std::function<void(const std::vector<char>&, std::vector<char>&)>;

struct Medium {
  std::string name;
  std::string raw;  // what it is compared with; empty: nothing
  RoundTrip round_trip;
  std::map<size_t, std::vector<double>> microseconds;  // by payload
};

double Quantile(std::vector<double>& values, double q) {
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(q *
                                    static_cast<double>(values.size() - 1))];
}

void Measure(std::vector<Medium>& media, const std::vector<size_t>& payloads,
             int rounds, int trips) {
  for (int round = 0; round < rounds; ++round) {
    for (const size_t payload : payloads) {
      std::vector<char> sent(payload);
      for (size_t i = 0; i < payload; ++i) {
        sent[i] = static_cast<char>(i * 7 + static_cast<size_t>(round));
      }
      std::vector<char> answer(payload);
      const int count = payload > (1 << 17) ? std::max(1, trips / 8) : trips;
      for (Medium& medium : media) {
        std::vector<double>& times = medium.microseconds[payload];
        for (int i = -count / 10; i < count; ++i) {  // the first warm it
          const SteadyTime start = std::chrono::steady_clock::now();
          medium.round_trip(sent, answer);
          const SteadyTime end = std::chrono::steady_clock::now();
          if (i < 0) continue;
          times.push_back(
              std::chrono::duration<double, std::micro>(end - start).count());
        }
        CHECK(answer == sent);
      }
    }
  }
}

void Print(std::vector<Medium>& media, const std::vector<size_t>& payloads) {
  std::printf("%-10s %10s %12s %12s  %s\n", "medium", "payload", "p50, us",
              "p99, us", "p50 against the bare medium");
  for (const size_t payload : payloads) {
    for (Medium& medium : media) {
      std::vector<double>& times = medium.microseconds[payload];
      const double p50 = Quantile(times, 0.5);
      std::printf("%-10s %6zu KiB %12.1f %12.1f", medium.name.c_str(),
                  payload >> 10, p50, Quantile(times, 0.99));
      for (Medium& raw : media) {
        if (raw.name != medium.raw) continue;
        std::printf("  %.2f x %s",
                    p50 / Quantile(raw.microseconds[payload], 0.5),
                    raw.name.c_str());
      }
      std::printf("\n");
    }
  }
}

std::unique_ptr<Hop> Connect(const std::string& address, HopMode mode) {
  GrpcExpertPeerOptions options;
  options.address = address;
  options.router_name = "hop_bench";
  options.model_fingerprint = "echo";
  options.hop = mode;
  options.bell = Doorbell::Create();
  const std::shared_ptr<Doorbell> bell = options.bell;
  return std::make_unique<Hop>(MakeGrpcExpertPeer(std::move(options)), bell);
}

void Run(const std::string& dir, const std::string& tcp,
         const std::string& raw_tcp, int rounds, int trips,
         const std::vector<size_t>& payloads) {
  EchoBackend backend;
  ExpertBatcher batcher(backend, 1 << 20);
  v1::ExpertDescription description;
  description.set_state(v1::SERVING_STATE_READY);
  Hop local(std::make_unique<LocalExpertPeer>(description, batcher),
            Doorbell::Create());
  const std::string unix_address = absl::StrCat("unix:", dir, "/expert");
  const auto shm = Connect(unix_address, HopMode::kShm);
  CHECK(std::string(shm->transport()) == "shm");
  const auto grpc_unix = Connect(unix_address, HopMode::kGrpc);
  const auto grpc_tcp = Connect(tcp, HopMode::kGrpc);
  RawSharedMemoryClient raw_shm(dir + "/shm");
  EchoStream raw_unix(absl::StrCat("unix:", dir, "/raw"));
  EchoStream raw_tcp_stream(raw_tcp);

  const auto trip = [](auto& through) {
    return [&through](const std::vector<char>& payload,
                      std::vector<char>& answer) {
      through.RoundTrip(payload, answer);
    };
  };
  std::vector<Medium> media;
  media.push_back({"raw shm", "", trip(raw_shm), {}});
  media.push_back({"local", "raw shm", trip(local), {}});
  media.push_back({"shm", "raw shm", trip(*shm), {}});
  media.push_back({"raw unix", "", trip(raw_unix), {}});
  media.push_back({"grpc unix", "raw unix", trip(*grpc_unix), {}});
  media.push_back({"raw tcp", "", trip(raw_tcp_stream), {}});
  media.push_back({"grpc tcp", "raw tcp", trip(*grpc_tcp), {}});
  Measure(media, payloads, rounds, trips);
  Print(media, payloads);
}

int Main(int argc, char** argv) {
  std::string serve;
  int rounds = 10;
  int trips = 200;
  std::vector<size_t> payloads_kb = {1, 16, 256, 1024};
  CLI::App app(
      "hop_bench: round trips between two processes by transport and payload, "
      "beside a bare echo over the same medium, in turns");
  app.add_option("--rounds", rounds, "Turns of all media")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  app.add_option("--trips", trips, "Round trips of a medium in its turn")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
  app.add_option("--payload-kb", payloads_kb, "KiB each way")
      ->delimiter(',')
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option("--serve", serve)->group("");  // the other process
  CLI11_PARSE(app, argc, argv);
  InitLogging("hop_bench", "warn");
  if (!serve.empty()) return Serve(serve);

  char dir[] = "/tmp/troupe-hop-XXXXXX";
  CHECK(mkdtemp(dir) != nullptr);
  int answer[2];
  CHECK(pipe(answer) == 0);
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    dup2(answer[1], STDOUT_FILENO);
    execl("/proc/self/exe", "hop_bench", "--serve", dir, nullptr);
    _exit(1);
  }
  close(answer[1]);
  FILE* from_child = fdopen(answer[0], "r");
  char line[256] = {};
  CHECK(std::fgets(line, sizeof(line), from_child) != nullptr);
  std::fclose(from_child);
  const std::vector<std::string> addresses =
      absl::StrSplit(absl::StripSuffix(line, "\n"), ' ');
  CHECK_EQ(addresses.size(), 2u);
  std::vector<size_t> payloads;
  for (const size_t kb : payloads_kb) payloads.push_back(kb << 10);
  Run(dir, addresses[0], addresses[1], rounds, trips, payloads);
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  for (const char* name : {"/expert", "/raw", "/shm"}) {
    unlink(absl::StrCat(dir, name).c_str());
  }
  rmdir(dir);
  return 0;
}

}  // namespace
}  // namespace troupe

int main(int argc, char** argv) { return troupe::Main(argc, argv); }
