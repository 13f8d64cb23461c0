#include "gateway/openai/openai_call.h"

#include <ctime>
#include <deque>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/rpc/status.h"
#include "common/status_macros.h"
#include "gateway/generation.h"
#include "gateway/openai/api_error.h"
#include "gateway/openai/openai_request.h"
#include "gateway/openai/openai_response.h"
#include "gateway/openai/rate_limit_headers.h"
#include "gateway/refusal.h"
#include "model/strict_json.h"

namespace troupe {
namespace {

std::string Event(const nlohmann::json& json) {
  return absl::StrCat("data: ", DumpJson(json), "\n\n");
}

// Threads: generations write from gRPC's threads with their own lock held, the
// exchange calls back from the server's. mu_ is taken after a generation's
// lock, never before it: a generation is called with mu_ free.
class OpenAiCall : public std::enable_shared_from_this<OpenAiCall> {
 public:
  OpenAiCall(GatewayContext& context, std::shared_ptr<HttpExchange> exchange,
             const ChatPrompt* chat, std::string request_id, KeyLease lease)
      : live_(context.live_calls),
        context_(context),
        exchange_(std::move(exchange)),
        chat_(chat),
        request_id_(std::move(request_id)),
        rate_limits_(lease.rate_limits()) {
    leases_.push_back(std::move(lease));
  }

  // Takes time with long bodies.
  void Begin() {
    absl::StatusOr<OpenAiRequest> request = Parse();
    if (!request.ok()) {
      return Respond(ErrorResponse(ToApiError(request.status())));
    }
    request_ = *std::move(request);
    if (const absl::Status status = AdmitOthers(); !status.ok()) {
      return Respond(ErrorResponse(ToApiError(status, RetryDelayOf(status))));
    }
    {
      absl::MutexLock lock(&mu_);
      response_ = std::make_unique<OpenAiResponse>(
          request_, *context_.model.tokenizer, request_id_, context_.model.name,
          context_.model.fingerprint.substr(0, 12),
          static_cast<int64_t>(std::time(nullptr)));
      num_running_ = request_.generations.size();
    }
    for (size_t i = 0; i < request_.generations.size(); ++i) {
      request_.generations[i].set_request_id(
          request_.generations.size() > 1 ? absl::StrCat(request_id_, "-", i)
                                          : request_id_);
      parts_.push_back(std::make_unique<Part>(*this, i));
    }
    // From here on the client may go.
    exchange_->WatchClient([self = shared_from_this()] { self->CancelAll(); });
    for (const auto& part : parts_) part->generation->Begin();
  }

 private:
  // The stream of one generation.
  struct Part final : GenerationClient {
    Part(OpenAiCall& owner, size_t part_index)
        : call(owner.shared_from_this()),
          index(part_index),
          generation(std::make_shared<Generation>(
              owner.context_, *this, owner.request_.generations[part_index],
              kNoDeadline, std::move(owner.leases_[part_index]))) {}

    bool Write(v1::GenerateResponse response) override {
      return call->OnResponse(index, response);
    }
    void Finish(const grpc::Status& status) override {
      // The last of them ends the call, and this with it.
      const std::shared_ptr<OpenAiCall> kept = std::move(call);
      kept->OnFinished(status);
    }

    std::shared_ptr<OpenAiCall> call;  // until Finish
    const size_t index;
    const std::shared_ptr<Generation> generation;
  };

  struct Piece {
    std::string bytes;
    Part* part = nullptr;  // that waits for it to be written
  };

  absl::StatusOr<OpenAiRequest> Parse() const {
    ABSL_ASSIGN_OR_RETURN(
        const nlohmann::json body,
        ParseStrictJson(exchange_->request().body, "the body"));
    if (chat_ == nullptr) return ParseCompletion(body, context_.model);
    ABSL_ASSIGN_OR_RETURN(OpenAiRequest request,
                          ParseChat(body, context_.model));
    ABSL_ASSIGN_OR_RETURN(const std::vector<uint32_t> token_ids,
                          chat_->Encode(request, context_.limits));
    request.generations[0].mutable_tokens()->mutable_token_ids()->Add(
        token_ids.begin(), token_ids.end());
    return request;
  }

  // Each further generation is a request for the key's limits, too.
  absl::Status AdmitOthers() {
    while (leases_.size() < request_.generations.size()) {
      ABSL_ASSIGN_OR_RETURN(KeyLease lease,
                            context_.authenticator.Admit(
                                exchange_->request().Header("authorization"),
                                CallKind::kGenerate));
      leases_.push_back(std::move(lease));
    }
    return absl::OkStatus();
  }

  void Respond(HttpResponse response) const {
    AddCommonHeaders(response);
    exchange_->Respond(std::move(response));
  }

  void AddCommonHeaders(HttpResponse& response) const {
    response.headers.push_back({"x-request-id", request_id_});
    AddRateLimitHeaders(rate_limits_.Read(), response);
    const SteadyTime::duration passed = Clock::Real().Now() - start_;
    response.headers.push_back(
        {"openai-processing-ms",
         absl::StrCat(
             std::chrono::duration_cast<milliseconds>(passed).count())});
  }

  // True: the next one may come at once.
  bool OnResponse(size_t part, const v1::GenerateResponse& response) {
    absl::MutexLock lock(&mu_);
    const nlohmann::json event = response_->Add(part, response);
    if (event.is_null()) return true;
    Queue({Event(event), parts_[part].get()});
    return false;
  }

  void OnFinished(const grpc::Status& status) {
    absl::MutexLock lock(&mu_);
    --num_running_;
    if (!status.ok() && status_.ok()) {
      status_ = status;
      if (num_running_ > 0) {
        // Not from within a generation.
        context_.work_queue.Post(
            [self = shared_from_this()] { self->CancelAll(); });
      }
    }
    if (num_running_ > 0) return;
    if (!status_.ok()) return EndBadly();
    if (!request_.stream) {
      return Respond(JsonResponse(200, response_->Whole()));
    }
    if (request_.include_usage) Queue({Event(response_->UsageEvent())});
    Queue({"data: [DONE]\n\n"});
  }

  void EndBadly() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    const ApiError error =
        ToApiError(FromGrpcStatus(status_), RetryDelayMs(status_));
    if (!begun_) return Respond(ErrorResponse(error));
    Queue({Event(ErrorJson(error))});
    Queue({"data: [DONE]\n\n"});
  }

  void CancelAll() {
    for (const auto& part : parts_) part->generation->Cancel();
  }

  void Queue(Piece piece) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (!std::exchange(begun_, true)) {
      HttpResponse head;
      head.headers = {{"content-type", "text/event-stream; charset=utf-8"},
                      {"cache-control", "no-cache"},
                      {"x-accel-buffering", "no"}};
      AddCommonHeaders(head);
      exchange_->BeginStream(std::move(head));
    }
    pieces_.push_back(std::move(piece));
    if (pieces_.size() == 1) WriteNext();
  }

  void WriteNext() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    exchange_->Write(
        std::move(pieces_.front().bytes),
        [self = shared_from_this()](bool ok) { self->OnWritten(ok); });
  }

  void OnWritten(bool ok) {
    // With the client gone nothing that waits is written any more.
    std::vector<Part*> heard;
    {
      absl::MutexLock lock(&mu_);
      do {
        if (pieces_.front().part != nullptr) {
          heard.push_back(pieces_.front().part);
        }
        pieces_.pop_front();
      } while (!ok && !pieces_.empty());
      if (!pieces_.empty()) {
        WriteNext();
      } else if (num_running_ == 0) {
        exchange_->EndStream();
      }
    }
    for (Part* part : heard) part->generation->OnWritten(ok);
  }

  const LiveCalls::Guard live_;
  GatewayContext& context_;
  const std::shared_ptr<HttpExchange> exchange_;
  const ChatPrompt* const chat_;
  const std::string request_id_;
  const RateLimitReader rate_limits_;
  const SteadyTime start_ = Clock::Real().Now();
  std::vector<KeyLease> leases_;  // until the generations have them
  // Set by Begin, before the first generation starts.
  OpenAiRequest request_;
  std::vector<std::unique_ptr<Part>> parts_;

  absl::Mutex mu_;
  std::unique_ptr<OpenAiResponse> response_ ABSL_GUARDED_BY(mu_);
  size_t num_running_ ABSL_GUARDED_BY(mu_) = 0;
  grpc::Status status_ ABSL_GUARDED_BY(mu_);       // the first that is not OK
  bool begun_ ABSL_GUARDED_BY(mu_) = false;        // the stream
  std::deque<Piece> pieces_ ABSL_GUARDED_BY(mu_);  // the first is being sent
};

}  // namespace

void StartOpenAiCall(GatewayContext& context,
                     std::shared_ptr<HttpExchange> exchange,
                     const ChatPrompt* chat, const std::string& request_id,
                     KeyLease lease) {
  auto call = std::make_shared<OpenAiCall>(context, std::move(exchange), chat,
                                           request_id, std::move(lease));
  context.work_queue.Post([call = std::move(call)] { call->Begin(); });
}

}  // namespace troupe
