#include "cluster/grpc_expert_peer.h"

#include <deque>
#include <unordered_map>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "common/rpc/rpc_channel.h"
#include "common/rpc/status.h"
#include "protos/expert.grpc.pb.h"

namespace troupe {
namespace {

// One connection attempt and what follows. Owned jointly by the peer and, from
// StartCall to OnDone, by gRPC. All state under mu_; callbacks to the outside
// are made without it.
class ExchangeStream final
    : public grpc::ClientBidiReactor<v1::ExpertRequest, v1::ExpertResponse> {
 public:
  ExchangeStream(ExpertPeer::Listener* listener, std::string address)
      : listener_(listener), address_(std::move(address)) {}

  void Start(v1::Expert::Stub& stub, v1::ExpertRequest hello,
             std::shared_ptr<ExchangeStream> self) {
    // Send may be called as soon as the lock is free: the hello is first.
    absl::MutexLock lock(&mu_);
    self_ = std::move(self);
    stub.async()->Exchange(&context_, this);
    // Writes come from outside reactions: the hold keeps the call open for
    // them until the read side has ended.
    AddHold();
    requests_.push_back(std::move(hello));
    StartWrite(&requests_.front());
    StartRead(&response_);
    StartCall();
    open_ = true;
  }

  void Send(v1::ExpertBatch batch, ExpertPeer::OutputCallback done) {
    {
      absl::MutexLock lock(&mu_);
      if (open_) {
        const uint64_t id = ++last_attempt_id_;
        batch.set_attempt_id(id);
        pending_.emplace(id, std::move(done));
        v1::ExpertRequest request;
        *request.mutable_batch() = std::move(batch);
        requests_.push_back(std::move(request));
        if (requests_.size() == 1) StartWrite(&requests_.front());
        return;
      }
    }
    done(absl::UnavailableError(
        absl::StrCat("expert process ", address_, " is not connected")));
  }

  void Cancel() { context_.TryCancel(); }

  void WaitUntilDone() {
    absl::MutexLock lock(&mu_);
    mu_.Await(absl::Condition(&done_));
  }

 private:
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
    if (response_.has_description()) {
      listener_->OnDescription(response_.description());
    } else if (response_.has_output()) {
      ExpertPeer::OutputCallback done;
      {
        absl::MutexLock lock(&mu_);
        const auto it = pending_.find(response_.output().attempt_id());
        if (it != pending_.end()) {
          done = std::move(it->second);
          pending_.erase(it);
        }
      }
      if (done) done(std::move(*response_.mutable_output()));
    }
    response_.Clear();
    StartRead(&response_);
  }

  void OnDone(const grpc::Status& status) override {
    std::unordered_map<uint64_t, ExpertPeer::OutputCallback> lost;
    {
      absl::MutexLock lock(&mu_);
      lost.swap(pending_);
    }
    absl::Status cause = FromGrpcStatus(status);
    if (cause.ok()) cause = absl::UnavailableError("the stream ended");
    cause = absl::Status(cause.code(), absl::StrCat("expert process ", address_,
                                                    ": ", cause.message()));
    for (auto& [id, done] : lost) done(absl::UnavailableError(cause.message()));
    listener_->OnLost(cause);
    // WaitUntilDone may return and drop its reference from here on.
    const std::shared_ptr<ExchangeStream> self = std::move(self_);
    absl::MutexLock lock(&mu_);
    done_ = true;
  }

  ExpertPeer::Listener* const listener_;
  const std::string address_;
  grpc::ClientContext context_;
  v1::ExpertResponse response_;  // of the read in flight

  absl::Mutex mu_;
  // The front one is being written.
  std::deque<v1::ExpertRequest> requests_ ABSL_GUARDED_BY(mu_);
  std::unordered_map<uint64_t, ExpertPeer::OutputCallback> pending_
      ABSL_GUARDED_BY(mu_);
  uint64_t last_attempt_id_ ABSL_GUARDED_BY(mu_) = 0;
  // Between Start and the end of the read side.
  bool open_ ABSL_GUARDED_BY(mu_) = false;
  bool done_ ABSL_GUARDED_BY(mu_) = false;
  // Keeps this alive while gRPC may call it.
  std::shared_ptr<ExchangeStream> self_;
};

class GrpcExpertPeer final : public ExpertPeer {
 public:
  GrpcExpertPeer(const std::string& address, const std::string& router_name,
                 const std::string& model_fingerprint)
      : address_(address), stub_(v1::Expert::NewStub(MakeChannel(address))) {
    hello_.mutable_hello()->set_router_name(router_name);
    hello_.mutable_hello()->set_model_fingerprint(model_fingerprint);
  }

  ~GrpcExpertPeer() override {
    const std::shared_ptr<ExchangeStream> stream = CurrentStream();
    if (stream == nullptr) return;
    stream->Cancel();
    stream->WaitUntilDone();
  }

  void Connect(Listener* listener) override {
    auto stream = std::make_shared<ExchangeStream>(listener, address_);
    {
      absl::MutexLock lock(&mu_);
      stream_ = stream;
    }
    stream->Start(*stub_, hello_, stream);
  }

  void Send(v1::ExpertBatch batch, OutputCallback done) override {
    const std::shared_ptr<ExchangeStream> stream = CurrentStream();
    if (stream == nullptr) {
      done(absl::UnavailableError(
          absl::StrCat("expert process ", address_, " is not connected")));
      return;
    }
    stream->Send(std::move(batch), std::move(done));
  }

  const char* transport() const override { return "grpc"; }

 private:
  std::shared_ptr<ExchangeStream> CurrentStream() {
    absl::MutexLock lock(&mu_);
    return stream_;
  }

  const std::string address_;
  const std::unique_ptr<v1::Expert::Stub> stub_;
  v1::ExpertRequest hello_;  // constant after construction

  absl::Mutex mu_;
  std::shared_ptr<ExchangeStream> stream_ ABSL_GUARDED_BY(mu_);
};

}  // namespace

std::unique_ptr<ExpertPeer> MakeGrpcExpertPeer(
    const std::string& address, const std::string& router_name,
    const std::string& model_fingerprint) {
  return std::make_unique<GrpcExpertPeer>(address, router_name,
                                          model_fingerprint);
}

}  // namespace troupe
