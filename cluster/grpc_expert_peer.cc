#include "cluster/grpc_expert_peer.h"

#include <deque>
#include <optional>
#include <thread>
#include <unordered_map>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "cluster/expert_wire.h"
#include "cluster/shm_expert_link.h"
#include "common/logging.h"
#include "common/rpc/rpc_channel.h"
#include "common/rpc/status.h"
#include "common/rpc/unix_socket.h"
#include "grpcpp/generic/generic_stub.h"

namespace troupe {
namespace {

constexpr char kMethod[] = "/troupe.v1.Expert/Exchange";

// Says once why a peer has no shared memory; owned by the peer.
class ShmLog {
 public:
  explicit ShmLog(std::string address) : address_(std::move(address)) {}
  void Failed(const absl::Status& status) {
    absl::MutexLock lock(&mu_);
    if (last_ == status.message()) return;
    last_ = std::string(status.message());
    spdlog::info("no shared memory with {}, gRPC instead: {}", address_, last_);
  }

 private:
  const std::string address_;
  absl::Mutex mu_;
  std::string last_ ABSL_GUARDED_BY(mu_);
};

// One connection attempt and what follows. Owned jointly by the peer and, from
// StartCall to OnDone, by gRPC. All state under mu_; callbacks to the outside
// are made without it.
class ExchangeStream final
    : public grpc::ClientBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  ExchangeStream(ExpertPeer::Listener* listener,
                 const GrpcExpertPeerOptions& options, ShmLog& shm_log)
      : listener_(listener), options_(options), shm_log_(shm_log) {}

  void Start(grpc::GenericStub& stub, std::shared_ptr<ExchangeStream> self) {
    // Send may be called as soon as the lock is free: the hello is first.
    absl::MutexLock lock(&mu_);
    self_ = std::move(self);
    stub.PrepareBidiStreamingCall(&context_, kMethod, grpc::StubOptions(),
                                  this);
    // Writes come from outside reactions: the hold keeps the call open for
    // them until the read side has ended.
    AddHold();
    v1::ExpertRequest hello;
    hello.mutable_hello()->set_router_name(options_.router_name);
    hello.mutable_hello()->set_model_fingerprint(options_.model_fingerprint);
    requests_.push_back(EncodeMessage(hello));
    StartWrite(&requests_.front());
    StartRead(&buffer_);
    StartCall();
    open_ = true;
  }

  void Send(const ExpertBatch& batch, size_t payload_bytes,
            ExpertPeer::WritePayload write, ExpertPeer::OutputCallback done) {
    if (const std::shared_ptr<ShmExpertLink> link = CurrentLink()) {
      if (link->TrySend(batch, payload_bytes, write, done)) return;
    }
    const grpc::Slice payload = NewPayload(payload_bytes);
    write(DataOf(payload));
    {
      absl::MutexLock lock(&mu_);
      if (open_) {
        const uint64_t id = ++last_attempt_id_;
        pending_.emplace(id, std::move(done));
        requests_.push_back(EncodeBatch(batch, id, payload));
        if (requests_.size() == 1) StartWrite(&requests_.front());
        return;
      }
    }
    done(absl::UnavailableError(absl::StrCat(
        "expert process ", options_.address, " is not connected")));
  }

  void Release(const v1::ReleaseVersions& release) {
    v1::ExpertRequest request;
    *request.mutable_release() = release;
    absl::MutexLock lock(&mu_);
    if (!open_) return;
    requests_.push_back(EncodeMessage(request));
    if (requests_.size() == 1) StartWrite(&requests_.front());
  }

  void Poll() {
    if (const std::shared_ptr<ShmExpertLink> link = CurrentLink()) {
      link->Poll();
    }
  }

  bool HasLiveLink() {
    const std::shared_ptr<ShmExpertLink> link = CurrentLink();
    return link != nullptr && link->alive();
  }

  void Cancel() { context_.TryCancel(); }

  void WaitUntilDone() {
    absl::MutexLock lock(&mu_);
    mu_.Await(absl::Condition(&done_));
  }

 private:
  std::shared_ptr<ShmExpertLink> CurrentLink() {
    absl::MutexLock lock(&mu_);
    return link_;
  }

  void OnWriteDone(bool ok) override {
    absl::MutexLock lock(&mu_);
    requests_.pop_front();
    if (!ok || !open_) {
      requests_.clear();
      return;  // the read side reports the end
    }
    if (!requests_.empty()) StartWrite(&requests_.front());
  }

  void OnReadDone(bool ok) override {
    if (!ok) {
      absl::MutexLock lock(&mu_);
      open_ = false;
      RemoveHold();
      return;
    }
    DecodedResponse response;
    const absl::Status status = DecodeResponse(buffer_, response);
    if (!status.ok()) {
      Fail(status);  // the next read ends the call
    } else if (response.kind == DecodedResponse::Kind::kDescription) {
      OnDescription(response.description);
    } else if (response.kind == DecodedResponse::Kind::kOutput) {
      ExpertPeer::OutputCallback done;
      {
        absl::MutexLock lock(&mu_);
        const auto it = pending_.find(response.output.attempt_id);
        if (it != pending_.end()) {
          done = std::move(it->second);
          pending_.erase(it);
        }
      }
      if (done) done(std::move(response.output));
    }
    buffer_.Clear();
    StartRead(&buffer_);
  }

  // Ends the call; what it is told to have ended with.
  void Fail(const absl::Status& status) {
    {
      absl::MutexLock lock(&mu_);
      if (failure_.ok()) failure_ = status;
    }
    context_.TryCancel();
  }

  // The first offer of shared memory is tried before the listener hears of the
  // process; it blocks, so it has a thread of its own. Later descriptions
  // wait for it.
  void OnDescription(const v1::ExpertDescription& description) {
    // The process looks at ours; one of another build may not.
    if (description.model_fingerprint() != options_.model_fingerprint) {
      Fail(absl::FailedPreconditionError(absl::StrCat(
          "expert process \"",
          absl::CHexEscape(description.name().substr(0, 64)),
          "\" serves model ",
          absl::CHexEscape(description.model_fingerprint().substr(0, 64)),
          ", router \"", options_.router_name, "\" ",
          options_.model_fingerprint)));
      return;
    }
    const bool offered = description.has_shm();
    bool wanted = options_.hop != HopMode::kGrpc && options_.bell != nullptr;
    if (wanted && offered && options_.hop == HopMode::kAuto) {
      wanted = description.shm().boot_id() == BootId();
    }
    {
      absl::MutexLock lock(&mu_);
      if (trying_link_) {
        held_description_ = description;
        return;
      }
      if (wanted && offered && !tried_link_) {
        tried_link_ = true;
        trying_link_ = true;
        held_description_ = description;
        connector_ =
            std::thread([this, offer = description.shm()] { TryLink(offer); });
        return;
      }
    }
    if (options_.hop == HopMode::kShm && !offered) {
      Fail(absl::FailedPreconditionError("offers no shared memory"));
      return;
    }
    listener_->OnDescription(description);
  }

  void TryLink(const v1::ShmOffer& offer) {
    absl::StatusOr<std::unique_ptr<ShmExpertLink>> link =
        ShmExpertLink::Connect(offer, *options_.bell, options_.address);
    if (!link.ok()) {
      if (options_.hop == HopMode::kShm) {
        Fail(absl::UnavailableError(
            absl::StrCat("no shared memory: ", link.status().message())));
        return;  // the listener never hears of the process
      }
      shm_log_.Failed(link.status());
    }
    for (bool first = true;; first = false) {
      v1::ExpertDescription description;
      {
        absl::MutexLock lock(&mu_);
        if (first && link.ok()) link_ = *std::move(link);
        if (!held_description_.has_value()) {
          trying_link_ = false;
          return;
        }
        description = *std::move(held_description_);
        held_description_.reset();
      }
      listener_->OnDescription(description);
    }
  }

  void OnDone(const grpc::Status& status) override {
    // The attempt ends by itself within seconds, by then the process is away.
    std::thread connector;
    {
      absl::MutexLock lock(&mu_);
      connector = std::move(connector_);
    }
    if (connector.joinable()) connector.join();
    std::unordered_map<uint64_t, ExpertPeer::OutputCallback> lost;
    std::shared_ptr<ShmExpertLink> link;
    absl::Status cause = FromGrpcStatus(status);
    {
      absl::MutexLock lock(&mu_);
      lost.swap(pending_);
      link = std::move(link_);
      link_ = nullptr;
      if (!failure_.ok()) cause = failure_;
    }
    if (cause.ok()) cause = absl::UnavailableError("the stream ended");
    cause = absl::Status(cause.code(),
                         absl::StrCat("expert process ", options_.address, ": ",
                                      cause.message()));
    if (link != nullptr) link->Close();
    const absl::StatusOr<ExpertOutput> error =
        absl::UnavailableError(cause.message());
    for (auto& [id, done] : lost) done(error);
    listener_->OnLost(cause);
    // WaitUntilDone may return and drop its reference from here on.
    const std::shared_ptr<ExchangeStream> self = std::move(self_);
    absl::MutexLock lock(&mu_);
    done_ = true;
  }

  ExpertPeer::Listener* const listener_;
  const GrpcExpertPeerOptions options_;
  ShmLog& shm_log_;
  grpc::ClientContext context_;
  grpc::ByteBuffer buffer_;  // of the read in flight

  absl::Mutex mu_;
  // The front one is being written.
  std::deque<grpc::ByteBuffer> requests_ ABSL_GUARDED_BY(mu_);
  std::unordered_map<uint64_t, ExpertPeer::OutputCallback> pending_
      ABSL_GUARDED_BY(mu_);
  uint64_t last_attempt_id_ ABSL_GUARDED_BY(mu_) = 0;
  // Between Start and the end of the read side.
  bool open_ ABSL_GUARDED_BY(mu_) = false;
  bool done_ ABSL_GUARDED_BY(mu_) = false;
  absl::Status failure_ ABSL_GUARDED_BY(mu_);
  bool tried_link_ ABSL_GUARDED_BY(mu_) = false;
  bool trying_link_ ABSL_GUARDED_BY(mu_) = false;
  std::optional<v1::ExpertDescription> held_description_ ABSL_GUARDED_BY(mu_);
  std::shared_ptr<ShmExpertLink> link_ ABSL_GUARDED_BY(mu_);
  std::thread connector_ ABSL_GUARDED_BY(mu_);
  // Keeps this alive while gRPC may call it.
  std::shared_ptr<ExchangeStream> self_;
};

class GrpcExpertPeer final : public ExpertPeer {
 public:
  explicit GrpcExpertPeer(GrpcExpertPeerOptions options)
      : options_(std::move(options)),
        shm_log_(options_.address),
        stub_(MakeChannel(options_.address, options_.credentials)) {}

  ~GrpcExpertPeer() override {
    const std::shared_ptr<ExchangeStream> stream = CurrentStream();
    if (stream == nullptr) return;
    stream->Cancel();
    stream->WaitUntilDone();
  }

  void Connect(Listener* listener) override {
    auto stream =
        std::make_shared<ExchangeStream>(listener, options_, shm_log_);
    {
      absl::MutexLock lock(&mu_);
      stream_ = stream;
    }
    stream->Start(stub_, stream);
  }

  void Send(const ExpertBatch& batch, size_t payload_bytes, WritePayload write,
            OutputCallback done) override {
    const std::shared_ptr<ExchangeStream> stream = CurrentStream();
    if (stream == nullptr) {
      done(absl::UnavailableError(absl::StrCat(
          "expert process ", options_.address, " is not connected")));
      return;
    }
    stream->Send(batch, payload_bytes, write, std::move(done));
  }

  void Release(const v1::ReleaseVersions& release) override {
    if (const std::shared_ptr<ExchangeStream> stream = CurrentStream()) {
      stream->Release(release);
    }
  }

  void Poll() override {
    if (const std::shared_ptr<ExchangeStream> stream = CurrentStream()) {
      stream->Poll();
    }
  }

  const char* transport() const override {
    const std::shared_ptr<ExchangeStream> stream = CurrentStream();
    return stream != nullptr && stream->HasLiveLink() ? "shm" : "grpc";
  }

 private:
  std::shared_ptr<ExchangeStream> CurrentStream() const {
    absl::MutexLock lock(&mu_);
    return stream_;
  }

  const GrpcExpertPeerOptions options_;
  ShmLog shm_log_;
  grpc::GenericStub stub_;

  mutable absl::Mutex mu_;
  std::shared_ptr<ExchangeStream> stream_ ABSL_GUARDED_BY(mu_);
};

}  // namespace

std::unique_ptr<ExpertPeer> MakeGrpcExpertPeer(GrpcExpertPeerOptions options) {
  return std::make_unique<GrpcExpertPeer>(std::move(options));
}

}  // namespace troupe
