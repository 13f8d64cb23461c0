#include "expert_service/shm_expert_edge.h"

#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "cluster/shm_handshake.h"
#include "common/logging.h"
#include "common/rpc/unix_socket.h"
#include "common/status_macros.h"

namespace troupe {
namespace {

constexpr milliseconds kHandshakeLimit(1000);
// Frames taken from one router at a time; the others get their turn, and the
// rest waits in the ring.
constexpr int kMaxFramesPerPoll = 64;

}  // namespace

// A frame that lies in a ring. Used again and again.
class ShmExpertEdge::Call final : public ExpertCall {
 public:
  explicit Call(Connection& owner) : connection(owner) {}
  char* Reserve(size_t num_bytes) override;
  void Finish(const ExpertOutput& output) override;

  Connection& connection;
  std::shared_ptr<Connection> keep;  // while the batcher has it
  uint64_t position = 0;             // of the frame
  char* frame = nullptr;             // of the output
  size_t payload_bytes = 0;
};

// One router's rings. Everything but the end is the batcher's thread's.
class ShmExpertEdge::Connection
    : public std::enable_shared_from_this<Connection> {
 public:
  Connection(UniqueFd socket, std::unique_ptr<SharedRings> rings,
             std::unique_ptr<Doorbell> bell)
      : socket_(std::move(socket)),
        rings_(std::move(rings)),
        router_bell_(std::move(bell)) {}

  // Any thread.
  int socket() const { return socket_.get(); }
  void End() {
    ended_.store(true);
    shutdown(socket_.get(), SHUT_RDWR);  // the router goes on over gRPC
  }
  bool ended() const { return ended_.load(); }

  // What has come; an error ends the connection.
  absl::Status Take(const FrameLimits& limits, ExpertBatcher& batcher) {
    for (int i = 0; i < kMaxFramesPerPoll; ++i) {
      ABSL_ASSIGN_OR_RETURN(const std::optional<RingReader::Message> message,
                            rings_->reader().Next());
      if (!message.has_value()) return absl::OkStatus();
      Call* const call = NewCall();
      call->position = message->position;
      const absl::StatusOr<absl::string_view> payload = DecodeFlatBatch(
          absl::string_view(message->data, message->size), limits, call->batch);
      absl::Status status = payload.status();
      if (status.ok()) {
        call->hidden_states = *payload;
        status = batcher.Validate(call->batch, payload->size());
      }
      if (!status.ok()) {
        Recycle(call);
        return status;
      }
      batcher.Submit(call);
    }
    return absl::OkStatus();  // Submit has rung the bell: we come again
  }

 private:
  friend class Call;

  Call* NewCall() {
    if (idle_calls_.empty()) {
      calls_.push_back(std::make_unique<Call>(*this));
      idle_calls_.push_back(calls_.back().get());
    }
    Call* const call = idle_calls_.back();
    idle_calls_.pop_back();
    call->keep = shared_from_this();
    return call;
  }
  void Recycle(Call* call) {
    rings_->reader().Release(call->position);
    call->frame = nullptr;
    call->payload_bytes = 0;
    idle_calls_.push_back(call);
    // Perhaps the last one: nothing of this is used after it.
    const std::shared_ptr<Connection> last = std::move(call->keep);
  }
  // A frame for an output. None: the router has broken the rules, or is gone.
  char* NewFrame(size_t payload_bytes) {
    if (ended()) return nullptr;
    char* const frame =
        rings_->writer().Reserve(FlatOutputBytes(payload_bytes));
    if (frame == nullptr) {
      spdlog::warn("a router has left no room for an output of {} bytes",
                   payload_bytes);
      End();
    }
    return frame;
  }
  void Publish() {
    rings_->writer().Commit();
    router_bell_->Ring();
  }

  const UniqueFd socket_;
  const std::unique_ptr<SharedRings> rings_;
  const std::unique_ptr<Doorbell> router_bell_;
  std::vector<std::unique_ptr<Call>> calls_;
  std::vector<Call*> idle_calls_;
  std::atomic<bool> ended_{false};
};

char* ShmExpertEdge::Call::Reserve(size_t num_bytes) {
  const size_t all_bytes =
      num_bytes + refused_copies.size() * sizeof(refused_copies[0]);
  frame = connection.NewFrame(all_bytes);
  if (frame == nullptr) return nullptr;
  payload_bytes = all_bytes;
  return FlatOutputPayload(frame);
}

void ShmExpertEdge::Call::Finish(const ExpertOutput& output) {
  if (frame == nullptr) frame = connection.NewFrame(0);
  if (frame != nullptr) {
    EncodeFlatOutput(output, payload_bytes, frame);
    connection.Publish();
  }
  connection.Recycle(this);
}

absl::StatusOr<std::unique_ptr<ShmExpertEdge>> ShmExpertEdge::Start(
    const ShmExpertEdgeOptions& options, std::shared_ptr<Doorbell> bell) {
  ABSL_RETURN_IF_ERROR(
      SharedRings::Check({options.ring_bytes, options.ring_bytes}));
  if (bell->memory() == nullptr) {
    return absl::UnavailableError("the kernel gives no memory to share");
  }
  std::string address = options.socket;
  if (address.empty()) {
    address = absl::StrCat("@troupe-expert-", getpid(), "-",
                           absl::BytesToHexString(RandomBytes(8)));
  }
  ABSL_ASSIGN_OR_RETURN(UniqueFd socket, ListenUnix(address));
  return std::unique_ptr<ShmExpertEdge>(new ShmExpertEdge(
      options, std::move(bell), std::move(socket), std::move(address)));
}

ShmExpertEdge::ShmExpertEdge(const ShmExpertEdgeOptions& options,
                             std::shared_ptr<Doorbell> bell, UniqueFd socket,
                             std::string address)
    : options_(options),
      bell_(std::move(bell)),
      socket_(std::move(socket)),
      address_(std::move(address)),
      token_(RandomBytes(ShmHello::kTokenBytes)) {
  acceptor_ = std::thread([this] { Accept(); });
}

ShmExpertEdge::~ShmExpertEdge() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
    for (const int fd : open_sockets_) shutdown(fd, SHUT_RDWR);
  }
  shutdown(socket_.get(), SHUT_RDWR);
  acceptor_.join();
  if (address_[0] != '@') unlink(address_.c_str());
}

v1::ShmOffer ShmExpertEdge::offer() const {
  v1::ShmOffer offer;
  offer.set_socket(address_);
  offer.set_boot_id(BootId());
  offer.set_token(token_);
  return offer;
}

size_t ShmExpertEdge::num_routers() const {
  absl::MutexLock lock(&mu_);
  return connections_.size();
}

void ShmExpertEdge::Accept() {
  for (;;) {
    absl::StatusOr<UniqueFd> socket = AcceptUnix(socket_.get());
    servers_.remove_if([](Server& server) {
      if (!server.done->load()) return false;
      server.thread.join();
      return true;
    });
    if (absl::IsCancelled(socket.status())) break;
    if (!socket.ok()) {
      // Out of descriptors: routers go on over gRPC.
      spdlog::warn("shared memory: {}", std::string(socket.status().message()));
      std::this_thread::sleep_for(milliseconds(100));
      continue;
    }
    {
      absl::MutexLock lock(&mu_);
      if (stopping_ || open_sockets_.size() >= options_.max_routers) continue;
      open_sockets_.push_back(socket->get());
    }
    auto done = std::make_shared<std::atomic<bool>>(false);
    servers_.push_back(
        {std::thread([this, done, fd = *std::move(socket)]() mutable {
           Serve(std::move(fd));
           done->store(true);
         }),
         done});
  }
  for (Server& server : servers_) server.thread.join();
}

absl::StatusOr<std::shared_ptr<ShmExpertEdge::Connection>> ShmExpertEdge::Greet(
    UniqueFd& socket) {
  SetSocketTimeout(socket.get(), kHandshakeLimit);
  ABSL_ASSIGN_OR_RETURN(
      ReceivedMessage message,
      ReceiveMessage(socket.get(), sizeof(ShmHello), /*max_fds=*/1));
  ShmHello hello = {};
  if (message.bytes.size() != sizeof(hello) || message.fds.size() != 1) {
    return absl::InvalidArgumentError("no hello");
  }
  std::memcpy(&hello, message.bytes.data(), sizeof(hello));
  if (hello.magic != ShmHello::kMagic || hello.version != kShmVersion) {
    return absl::InvalidArgumentError(
        absl::StrCat("another version of shared memory: ", hello.version));
  }
  if (absl::string_view(hello.token, sizeof(hello.token)) != token_) {
    return absl::PermissionDeniedError("it does not know the token");
  }
  ABSL_ASSIGN_OR_RETURN(std::unique_ptr<Doorbell> router_bell,
                        Doorbell::Attach(std::move(message.fds[0])));
  const SharedRings::Capacities capacities = {options_.ring_bytes,
                                              options_.ring_bytes};
  ABSL_ASSIGN_OR_RETURN(
      std::unique_ptr<SharedRings> rings,
      SharedRings::Create(capacities, SharedRings::Side::kServer));
  ShmWelcome welcome = {};
  welcome.magic = ShmWelcome::kMagic;
  welcome.version = kShmVersion;
  welcome.to_server_bytes = capacities.to_server;
  welcome.to_client_bytes = capacities.to_client;
  const int fds[] = {bell_->memory()->fd(), rings->memory().fd()};
  ABSL_RETURN_IF_ERROR(
      SendMessage(socket.get(),
                  absl::string_view(reinterpret_cast<const char*>(&welcome),
                                    sizeof(welcome)),
                  fds));
  SetSocketTimeout(socket.get(), milliseconds(0));
  return std::make_shared<Connection>(std::move(socket), std::move(rings),
                                      std::move(router_bell));
}

void ShmExpertEdge::Serve(UniqueFd socket) {
  const int number = socket.get();
  absl::StatusOr<std::shared_ptr<Connection>> connection = Greet(socket);
  if (connection.ok()) {
    {
      absl::MutexLock lock(&mu_);
      connections_.push_back(*connection);
    }
    changes_.fetch_add(1);
    // What the router has sent since its welcome.
    bell_->Ring();
    // Nothing is ever sent after the handshake: this returns at the end.
    (void)ReceiveMessage((*connection)->socket(), 1, 0);
    (*connection)->End();
  } else if (uint64_t left_out = 0;
             refusals_.Allow(std::chrono::steady_clock::now(), left_out)) {
    // Whoever may connect may do it again and again.
    spdlog::warn("shared memory: a router was refused lines_left_out={}: {}",
                 left_out, std::string(connection.status().message()));
  }
  {
    absl::MutexLock lock(&mu_);
    std::erase(open_sockets_, number);
    if (connection.ok()) std::erase(connections_, *connection);
  }
  changes_.fetch_add(1);
  bell_->Ring();  // its memory goes when the batcher's thread has let it go
}

void ShmExpertEdge::Poll(ExpertBatcher& batcher) {
  const uint64_t changes = changes_.load();
  if (changes != polled_changes_) {
    absl::MutexLock lock(&mu_);
    polled_ = connections_;
    polled_changes_ = changes;
  }
  for (const std::shared_ptr<Connection>& connection : polled_) {
    if (connection->ended()) continue;
    const absl::Status status = connection->Take(options_.limits, batcher);
    if (!status.ok()) {
      spdlog::warn("shared memory: a router's rings are closed: {}",
                   std::string(status.message()));
      connection->End();
    }
  }
}

}  // namespace troupe
