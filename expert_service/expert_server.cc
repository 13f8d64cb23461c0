#include "expert_service/expert_server.h"

#include <unistd.h>

#include <deque>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "cluster/expert_wire.h"
#include "cluster/version_key.h"
#include "common/logging.h"
#include "common/process_memory.h"
#include "common/rpc/status.h"
#include "common/status_macros.h"

namespace troupe {
namespace {

// Messages of one stream that are queued, running or waiting to be sent. At
// the bound we stop reading: flow control then holds the router back.
constexpr size_t kMaxPending = 64;

std::tuple<uint32_t, uint32_t, uint64_t> ReleaseKeyOf(
    const v1::ExpertVersion& version) {
  return {version.range().layer_begin(), version.range().expert_begin(),
          VersionKeyOf(version.content_hash())};
}

}  // namespace

// A batch that came over gRPC. Owns itself from Submit to Finish.
class ExpertServer::Call final : public ExpertCall {
 public:
  char* Reserve(size_t num_bytes) override {
    output_ = NewPayload(num_bytes);
    return DataOf(output_);
  }
  void Finish(const ExpertOutput& output) override;

  std::shared_ptr<Stream> stream;
  grpc::Slice input;

 private:
  grpc::Slice output_;
};

// Lives from Exchange() until OnDone: the server's set and the batches in
// flight keep it. All state under mu_, which may be held when the server's is
// taken.
class ExpertServer::Stream final
    : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>,
      public std::enable_shared_from_this<ExpertServer::Stream> {
 public:
  explicit Stream(ExpertServer& server) : server_(server) {}

  void Start() {
    absl::MutexLock lock(&mu_);
    reading_ = true;
    StartRead(&buffer_);
  }

  void SendDescription() {
    absl::MutexLock lock(&mu_);
    if (greeted_) EnqueueDescription();
  }

  void OnOutput(const ExpertOutput& output, const grpc::Slice& payload) {
    Response response = {EncodeOutput(output, payload), true};
    absl::MutexLock lock(&mu_);
    if (done_) return;
    Enqueue(std::move(response));
  }

  // Once everything that is pending has been sent.
  void End(const grpc::Status& status) {
    absl::MutexLock lock(&mu_);
    EndLocked(status);
  }

 private:
  struct Response {
    grpc::ByteBuffer bytes;
    bool is_output;
  };

  void OnReadDone(bool ok) override {
    if (!ok) {  // the router has closed its side, or is gone
      absl::MutexLock lock(&mu_);
      reading_ = false;
      EndLocked(grpc::Status::OK);
      return;
    }
    const absl::Status status = Handle();
    absl::MutexLock lock(&mu_);
    reading_ = false;
    if (!status.ok()) {
      // A refusal has been said once.
      spdlog::log(absl::IsFailedPrecondition(status) ? spdlog::level::debug
                                                     : spdlog::level::warn,
                  "router \"{}\": {}", router_name_,
                  std::string(status.message()));
      EndLocked(ToGrpcStatus(status));
      return;
    }
    MaybeRead();
  }

  // One request; the reactor's reads are one at a time.
  absl::Status Handle() {
    auto call = std::make_unique<Call>();
    DecodedRequest request;
    ABSL_RETURN_IF_ERROR(
        DecodeRequest(buffer_, server_.limits_, request, call->batch));
    switch (request.kind) {
      case DecodedRequest::Kind::kHello:
        return Greet(request.hello);
      case DecodedRequest::Kind::kBatch:
        return Take(request, std::move(call));
      case DecodedRequest::Kind::kRelease:
        server_.Released(this, request.release);
        return absl::OkStatus();
      case DecodedRequest::Kind::kNone:
        break;
    }
    return absl::InvalidArgumentError("ExpertRequest.message: not set");
  }

  absl::Status Greet(const v1::ExpertHello& hello) {
    // It goes into log lines.
    router_name_ = absl::CHexEscape(hello.router_name().substr(0, 64));
    ABSL_RETURN_IF_ERROR(
        server_.CheckModel(router_name_, hello.model_fingerprint()));
    absl::MutexLock lock(&mu_);
    if (!greeted_) spdlog::info("router \"{}\" connected", router_name_);
    greeted_ = true;
    server_.Greeted(this);
    EnqueueDescription();
    return absl::OkStatus();
  }

  absl::Status Take(const DecodedRequest& request, std::unique_ptr<Call> call) {
    {
      absl::MutexLock lock(&mu_);
      if (!greeted_) {
        return absl::FailedPreconditionError("a batch before the hello");
      }
      ++pending_;
    }
    ExpertBatcher* batcher = server_.batcher();
    if (batcher == nullptr) {
      ExpertOutput output;
      output.attempt_id = call->batch.attempt_id;
      output.dtype = call->batch.dtype;
      output.verdict = Verdict::kDraining;
      OnOutput(output, grpc::Slice());
      return absl::OkStatus();
    }
    const absl::Status valid =
        batcher->Validate(call->batch, request.payload_bytes);
    if (!valid.ok()) {
      absl::MutexLock lock(&mu_);
      --pending_;
      return valid;
    }
    // The one copy: what came lies in pieces, wherever the network put it.
    call->stream = shared_from_this();
    call->input = NewPayload(request.payload_bytes);
    CopyFromBuffer(buffer_, request.payload_offset, request.payload_bytes,
                   DataOf(call->input));
    call->hidden_states =
        absl::string_view(DataOf(call->input), call->input.size());
    batcher->Submit(call.release());
    return absl::OkStatus();
  }

  // The call is over, also when no read is in flight that would say so.
  void OnCancel() override {
    absl::MutexLock lock(&mu_);
    EndLocked(grpc::Status::CANCELLED);
  }

  void OnWriteDone(bool ok) override {
    absl::MutexLock lock(&mu_);
    if (responses_.front().is_output) --pending_;
    responses_.pop_front();
    if (!ok) {
      responses_.clear();
      EndLocked(grpc::Status::OK);
    } else if (!responses_.empty()) {
      StartWrite(&responses_.front().bytes);
    }
    FinishIfIdle();
    MaybeRead();
  }

  void OnDone() override {
    std::shared_ptr<Stream> self = shared_from_this();
    {
      absl::MutexLock lock(&mu_);
      done_ = true;
    }
    server_.Remove(self);
  }

  // The description is read under the stream's lock: what is sent last is
  // never older than what was sent before.
  void EnqueueDescription() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    v1::ExpertResponse response;
    *response.mutable_description() = server_.description();
    Enqueue({EncodeMessage(response), false});
  }

  void Enqueue(Response response) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (finished_) return;
    responses_.push_back(std::move(response));
    if (responses_.size() == 1) StartWrite(&responses_.front().bytes);
  }

  void MaybeRead() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (reading_ || ending_ || pending_ >= kMaxPending) return;
    reading_ = true;
    buffer_.Clear();
    StartRead(&buffer_);
  }

  void EndLocked(const grpc::Status& status)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (ending_) return;
    ending_ = true;
    end_status_ = status;
    FinishIfIdle();
  }

  void FinishIfIdle() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (!ending_ || finished_ || !responses_.empty()) return;
    finished_ = true;
    Finish(end_status_);
  }

  ExpertServer& server_;
  // Of reactions to reads alone, of which there is one at a time.
  grpc::ByteBuffer buffer_;  // of the read in flight
  std::string router_name_;

  absl::Mutex mu_;
  // The front one is being written.
  std::deque<Response> responses_ ABSL_GUARDED_BY(mu_);
  size_t pending_ ABSL_GUARDED_BY(mu_) = 0;
  bool greeted_ ABSL_GUARDED_BY(mu_) = false;
  bool reading_ ABSL_GUARDED_BY(mu_) = false;
  bool ending_ ABSL_GUARDED_BY(mu_) = false;    // Finish when all is sent
  bool finished_ ABSL_GUARDED_BY(mu_) = false;  // Finish was called
  bool done_ ABSL_GUARDED_BY(mu_) = false;
  grpc::Status end_status_ ABSL_GUARDED_BY(mu_);
};

void ExpertServer::Call::Finish(const ExpertOutput& output) {
  stream->OnOutput(output, HasRows(output.verdict) ? output_ : grpc::Slice());
  delete this;
}

ExpertServer::ExpertServer(v1::ExpertDescription description,
                           const FrameLimits& limits)
    : limits_(limits), description_(std::move(description)) {
  absl::MutexLock lock(&mu_);
  description_.set_state(v1::SERVING_STATE_LOADING);
}

ExpertServer::~ExpertServer() = default;

void ExpertServer::SetReady(ExpertBatcher* batcher,
                            const std::vector<v1::ExpertVersion>& versions,
                            uint64_t weight_bytes) {
  {
    absl::MutexLock lock(&mu_);
    batcher_ = batcher;
    description_.mutable_experts()->Assign(versions.begin(), versions.end());
    description_.set_queue_capacity_rows(batcher->capacity_rows());
    description_.set_weight_bytes(weight_bytes);
    description_.set_state(v1::SERVING_STATE_READY);
  }
  Broadcast();
}

void ExpertServer::SetExperts(const std::vector<v1::ExpertVersion>& versions,
                              uint64_t weight_bytes) {
  {
    absl::MutexLock lock(&mu_);
    description_.mutable_experts()->Assign(versions.begin(), versions.end());
    description_.set_weight_bytes(weight_bytes);
    leaving_.clear();
    for (const v1::ExpertVersion& version : versions) {
      if (version.leaving()) leaving_.insert(ReleaseKeyOf(version));
    }
    for (auto& [stream, released] : released_) {
      const auto stays = [this](const ReleaseKey& key)
                             ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
                               return leaving_.count(key) == 0;
                             };
      std::erase_if(released, stays);
    }
  }
  Broadcast();
}

bool ExpertServer::AwaitReleased(milliseconds limit, bool may_be_cancelled) {
  absl::MutexLock lock(&mu_);
  const auto cancelled = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return may_be_cancelled && wait_is_cancelled_;
  };
  const auto released = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (cancelled()) return true;
    for (const auto& [stream, keys] : released_) {
      if (keys.size() < leaving_.size()) return false;
    }
    return true;
  };
  return mu_.AwaitWithTimeout(absl::Condition(&released),
                              absl::FromChrono(limit)) &&
         !cancelled();
}

void ExpertServer::CancelWait() {
  absl::MutexLock lock(&mu_);
  wait_is_cancelled_ = true;
}

absl::Status ExpertServer::SetRollout(const v1::Rollout& rollout) {
  {
    absl::MutexLock lock(&mu_);
    const v1::Rollout& present = description_.rollout();
    if (rollout.revision() <= present.revision()) {
      if (rollout.SerializeAsString() == present.SerializeAsString()) {
        return absl::OkStatus();
      }
      return absl::FailedPreconditionError(
          absl::StrCat("rollout.revision ", rollout.revision(),
                       " is not above the present one, ", present.revision()));
    }
    *description_.mutable_rollout() = rollout;
  }
  Broadcast();
  return absl::OkStatus();
}

void ExpertServer::StartDraining() {
  {
    absl::MutexLock lock(&mu_);
    description_.set_state(v1::SERVING_STATE_DRAINING);
    if (batcher_ != nullptr) batcher_->StartDraining();
  }
  Broadcast();
}

void ExpertServer::EndStreams() {
  std::vector<std::shared_ptr<Stream>> streams;
  {
    absl::MutexLock lock(&mu_);
    streams.assign(streams_.begin(), streams_.end());
  }
  for (const auto& stream : streams) {
    stream->End(grpc::Status(grpc::StatusCode::UNAVAILABLE, "drained"));
  }
}

void ExpertServer::Broadcast() {
  std::vector<std::shared_ptr<Stream>> streams;
  {
    absl::MutexLock lock(&mu_);
    streams.assign(streams_.begin(), streams_.end());
  }
  for (const auto& stream : streams) stream->SendDescription();
}

v1::ExpertDescription ExpertServer::description() const {
  absl::MutexLock lock(&mu_);
  return description_;
}

ExpertBatcher* ExpertServer::batcher() const {
  absl::MutexLock lock(&mu_);
  return batcher_;
}

absl::Status ExpertServer::CheckModel(const std::string& router_name,
                                      const std::string& fingerprint) {
  absl::MutexLock lock(&mu_);
  if (fingerprint == description_.model_fingerprint()) {
    return absl::OkStatus();
  }
  std::string why = absl::StrCat("router \"", router_name, "\" serves model ",
                                 absl::CHexEscape(fingerprint.substr(0, 64)),
                                 ", expert process \"", description_.name(),
                                 "\" ", description_.model_fingerprint());
  ++num_refused_routers_;
  // It comes again and again: say it once.
  if (why != last_refusal_) spdlog::warn("refused: {}", why);
  last_refusal_ = why;
  return absl::FailedPreconditionError(why);
}

void ExpertServer::Add(std::shared_ptr<Stream> stream) {
  absl::MutexLock lock(&mu_);
  streams_.insert(std::move(stream));
}

void ExpertServer::Greeted(Stream* stream) {
  absl::MutexLock lock(&mu_);
  released_[stream];
}

void ExpertServer::Released(Stream* stream,
                            const v1::ReleaseVersions& release) {
  absl::MutexLock lock(&mu_);
  const auto found = released_.find(stream);
  if (found == released_.end()) return;  // before its hello
  for (const v1::ExpertVersion& version : release.versions()) {
    const ReleaseKey key = ReleaseKeyOf(version);
    if (leaving_.count(key) > 0) found->second.insert(key);
  }
}

void ExpertServer::Remove(const std::shared_ptr<Stream>& stream) {
  absl::MutexLock lock(&mu_);
  released_.erase(stream.get());
  streams_.erase(stream);
}

grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>*
ExpertServer::Exchange(grpc::CallbackServerContext* context) {
  auto stream = std::make_shared<Stream>(*this);
  stream->Start();
  Add(stream);
  return stream.get();
}

v1::ExpertStats ExpertServer::Statistics() const {
  v1::ExpertStats stats;
  {
    absl::MutexLock lock(&mu_);
    *stats.mutable_description() = description_;
    stats.mutable_description()->clear_shm();  // not for everybody
    stats.set_refused_routers(num_refused_routers_);
    stats.set_last_refusal(last_refusal_);
    stats.set_connected_routers(static_cast<uint32_t>(streams_.size()));
    if (batcher_ != nullptr) batcher_->GetStats(stats);
  }
  stats.set_resident_bytes(ResidentBytes());
  return stats;
}

grpc::ServerUnaryReactor* ExpertServer::GetStats(
    grpc::CallbackServerContext* context,
    const v1::GetExpertStatsRequest* request, v1::ExpertStats* response) {
  *response = Statistics();
  if (request->check_integrity()) {
    absl::MutexLock lock(&mu_);
    const absl::Status sound =
        batcher_ == nullptr ? absl::OkStatus() : batcher_->CheckIntegrity();
    if (!sound.ok()) {
      response->add_integrity_errors(std::string(sound.message()));
    }
  }
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

}  // namespace troupe
