#include "cluster/shm_expert_link.h"

#include <sys/socket.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cluster/shm_handshake.h"
#include "common/rpc/unix_socket.h"
#include "common/status_macros.h"

namespace troupe {
namespace {

constexpr milliseconds kHandshakeLimit(1000);  // for each of two waits

}  // namespace

absl::StatusOr<std::unique_ptr<ShmExpertLink>> ShmExpertLink::Connect(
    const v1::ShmOffer& offer, const Doorbell& bell, std::string name) {
  if (offer.token().size() != ShmHello::kTokenBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("ShmOffer.token: ", offer.token().size(),
                     " bytes instead of ", ShmHello::kTokenBytes));
  }
  if (bell.memory() == nullptr) {
    return absl::UnavailableError("this process has no memory to share");
  }
  ABSL_ASSIGN_OR_RETURN(UniqueFd socket, ConnectUnix(offer.socket()));
  SetSocketTimeout(socket.get(), kHandshakeLimit);
  ShmHello hello = {};
  hello.magic = ShmHello::kMagic;
  hello.version = kShmVersion;
  std::memcpy(hello.token, offer.token().data(), sizeof(hello.token));
  ABSL_RETURN_IF_ERROR(SendMessage(
      socket.get(),
      absl::string_view(reinterpret_cast<const char*>(&hello), sizeof(hello)),
      {bell.memory()->fd()}));
  ABSL_ASSIGN_OR_RETURN(
      ReceivedMessage message,
      ReceiveMessage(socket.get(), sizeof(ShmWelcome), /*max_fds=*/2));
  ShmWelcome welcome = {};
  if (message.bytes.size() != sizeof(welcome) || message.fds.size() != 2) {
    return absl::InvalidArgumentError("the answer on the unix socket is wrong");
  }
  std::memcpy(&welcome, message.bytes.data(), sizeof(welcome));
  if (welcome.magic != ShmWelcome::kMagic || welcome.version != kShmVersion) {
    return absl::InvalidArgumentError(
        absl::StrCat("another version of shared memory: ", welcome.version));
  }
  ABSL_ASSIGN_OR_RETURN(std::unique_ptr<Doorbell> server_bell,
                        Doorbell::Attach(std::move(message.fds[0])));
  ABSL_ASSIGN_OR_RETURN(
      std::unique_ptr<SharedRings> rings,
      SharedRings::Attach(std::move(message.fds[1]),
                          {welcome.to_server_bytes, welcome.to_client_bytes},
                          SharedRings::Side::kClient));
  SetSocketTimeout(socket.get(), milliseconds(0));
  return std::unique_ptr<ShmExpertLink>(
      new ShmExpertLink(std::move(name), std::move(socket), std::move(rings),
                        std::move(server_bell)));
}

ShmExpertLink::ShmExpertLink(std::string name, UniqueFd socket,
                             std::unique_ptr<SharedRings> rings,
                             std::unique_ptr<Doorbell> server_bell)
    : name_(std::move(name)),
      socket_(std::move(socket)),
      rings_(std::move(rings)),
      server_bell_(std::move(server_bell)) {
  watcher_ = std::thread([this] { Watch(); });
}

ShmExpertLink::~ShmExpertLink() { Close(); }

void ShmExpertLink::Close() {
  Die(absl::UnavailableError("closed"));
  absl::MutexLock lock(&poll_mu_);
  if (watcher_.joinable()) watcher_.join();
}

void ShmExpertLink::Watch() {
  // Nothing is ever sent after the handshake: this returns at the end.
  (void)ReceiveMessage(socket_.get(), 1, 0);
  Die(absl::UnavailableError("the unix socket was closed"));
}

void ShmExpertLink::Die(const absl::Status& why) {
  std::vector<Pending> lost;
  {
    absl::MutexLock lock(&mu_);
    if (!dead_) why_dead_ = why;
    dead_ = true;
    lost.swap(pending_);
  }
  shutdown(socket_.get(), SHUT_RDWR);  // wakes the watcher, tells the process
  const absl::StatusOr<ExpertOutput> error =
      absl::UnavailableError(absl::StrCat("expert process ", name_,
                                          ": shared memory: ", why.message()));
  for (const Pending& pending : lost) pending.done(error);
}

bool ShmExpertLink::alive() const {
  absl::MutexLock lock(&mu_);
  return !dead_;
}

bool ShmExpertLink::TrySend(const ExpertBatch& batch, size_t payload_bytes,
                            ExpertPeer::WritePayload write,
                            ExpertPeer::OutputCallback& done) {
  {
    absl::MutexLock lock(&mu_);
    if (dead_ || batch.num_tokens == 0) return false;
    // A refused copy takes a number in place of a row.
    const uint64_t row_bytes =
        std::max<uint64_t>(sizeof(uint32_t), payload_bytes / batch.num_tokens);
    const uint64_t output_footprint =
        RingWriter::Footprint(FlatOutputBytes(batch.num_copies() * row_bytes));
    if (output_bytes_ + output_footprint > rings_->reader().capacity()) {
      return false;
    }
    char* const frame =
        rings_->writer().Reserve(FlatBatchBytes(batch, payload_bytes));
    if (frame == nullptr) return false;
    const uint64_t attempt_id = ++last_attempt_id_;
    write(EncodeFlatBatch(batch, attempt_id, payload_bytes, frame));
    // Known before the answer can come.
    pending_.push_back({attempt_id, output_footprint, std::move(done)});
    output_bytes_ += output_footprint;
    rings_->writer().Commit();
  }
  server_bell_->Ring();
  return true;
}

void ShmExpertLink::Poll() {
  absl::MutexLock poll_lock(&poll_mu_);
  for (;;) {
    absl::StatusOr<std::optional<RingReader::Message>> message =
        rings_->reader().Next();
    absl::StatusOr<ExpertOutput> output = ExpertOutput();
    if (message.ok()) {
      if (!message->has_value()) return;
      output = DecodeFlatOutput(
          absl::string_view((*message)->data, (*message)->size));
    } else {
      output = message.status();
    }
    if (!output.ok()) {
      Die(output.status());
      return;
    }
    Pending answered = {};
    {
      absl::MutexLock lock(&mu_);
      if (dead_) return;
      for (Pending& pending : pending_) {
        if (pending.attempt_id != output->attempt_id) continue;
        answered = std::move(pending);
        pending = std::move(pending_.back());
        pending_.pop_back();
        break;
      }
    }
    if (!answered.done) {
      // Nobody has asked for it: what it takes of the ring is not accounted
      // for, so that nothing can be relied on any more.
      Die(absl::DataLossError("an answer to nothing"));
      return;
    }
    if (RingWriter::Footprint((*message)->size) > answered.output_footprint) {
      output = absl::UnavailableError("an answer larger than asked for");
    }
    answered.done(output);
    rings_->reader().Release((*message)->position);
    absl::MutexLock lock(&mu_);
    output_bytes_ -= answered.output_footprint;
  }
}

}  // namespace troupe
