#include "tests/fakes/fake_router/fake_router.h"

#include <unistd.h>

#include <atomic>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/check.h"
#include "common/rpc/rpc_server.h"
#include "protos/router.grpc.pb.h"
#include "tests/fakes/fake_router/fake_tokenizer.h"

namespace troupe {
namespace {

std::string NewAddress() {
  static std::atomic<int> next{0};
  return absl::StrCat("unix:/tmp/troupe-fake-router-", getpid(), "-", next++);
}

void AddLogprobs(const v1::RouterGenerateRequest& request, uint32_t position,
                 v1::TokenOutput& token) {
  token.set_logprob(-static_cast<float>(position + 1) / 8);
  for (uint32_t i = 0; i < request.top_logprobs(); ++i) {
    v1::TokenLogprob* top = token.add_top_logprobs();
    top->set_token_id((token.token_id() + i) % FakeTokenizer::kVocabSize);
    top->set_logprob(token.logprob() - static_cast<float>(i));
  }
}

}  // namespace

struct FakeRouter::State {
  class Call;
  class Service;

  mutable absl::Mutex mu;
  Behaviour behaviour;
  v1::RouterDescription description;
  v1::RouterStats stats;
  std::vector<v1::RouterGenerateRequest> requests;
  double newest_timeout_ms = -1;
  uint64_t num_written = 0;
  size_t cancelled = 0;
  uint64_t num_described = 0;
  bool killing = false;  // or killed
  bool silent = false;
  std::vector<grpc::ServerUnaryReactor*> unanswered;

  std::string address;
  std::unique_ptr<Service> service;
  std::unique_ptr<RpcServer> server;
};

// Deletes itself when done.
class FakeRouter::State::Call final
    : public grpc::ServerWriteReactor<v1::RouterGenerateResponse> {
 public:
  Call(State& state, FakeRouterScript script)
      : state_(state), script_(std::move(script)) {
    absl::MutexLock lock(&mu_);
    Next();
  }

 private:
  void Next() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (finished_) return;
    if (next_ == script_.responses.size() && script_.endless) --next_;
    if (!cancelled_ && next_ < script_.responses.size()) {
      writing_ = true;
      StartWrite(&script_.responses[next_++]);
    } else if (cancelled_ || !script_.hang) {
      finished_ = true;
      Finish(cancelled_ ? grpc::Status::CANCELLED : script_.status);
    }
  }
  void OnWriteDone(bool ok) override {
    {
      absl::MutexLock lock(&state_.mu);
      if (ok) ++state_.num_written;
    }
    absl::MutexLock lock(&mu_);
    writing_ = false;
    if (!ok) cancelled_ = true;
    Next();
  }
  void OnCancel() override {
    {
      absl::MutexLock lock(&state_.mu);
      if (!state_.killing) ++state_.cancelled;
    }
    absl::MutexLock lock(&mu_);
    cancelled_ = true;
    if (!writing_) Next();
  }
  void OnDone() override { delete this; }

  State& state_;
  FakeRouterScript script_;
  absl::Mutex mu_;
  size_t next_ ABSL_GUARDED_BY(mu_) = 0;
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  bool cancelled_ ABSL_GUARDED_BY(mu_) = false;
  bool finished_ ABSL_GUARDED_BY(mu_) = false;
};

class FakeRouter::State::Service final : public v1::Router::CallbackService {
 public:
  explicit Service(State& state) : state_(state) {}

  grpc::ServerWriteReactor<v1::RouterGenerateResponse>* Generate(
      grpc::CallbackServerContext* context,
      const v1::RouterGenerateRequest* request) override {
    Behaviour behaviour;
    {
      absl::MutexLock lock(&state_.mu);
      state_.requests.push_back(*request);
      const auto left = context->deadline() - std::chrono::system_clock::now();
      state_.newest_timeout_ms =
          left > std::chrono::hours(1000)
              ? -1
              : std::chrono::duration<double, std::milli>(left).count();
      behaviour = state_.behaviour;
    }
    return new Call(state_, behaviour(*request));
  }

  grpc::ServerUnaryReactor* Describe(grpc::CallbackServerContext* context,
                                     const v1::DescribeRouterRequest* request,
                                     v1::RouterDescription* response) override {
    absl::MutexLock lock(&state_.mu);
    *response = state_.description;
    ++state_.num_described;
    if (!state_.silent) return Ok(context);
    state_.unanswered.push_back(context->DefaultReactor());
    return state_.unanswered.back();
  }

  grpc::ServerUnaryReactor* GetStats(grpc::CallbackServerContext* context,
                                     const v1::GetRouterStatsRequest* request,
                                     v1::RouterStats* response) override {
    absl::MutexLock lock(&state_.mu);
    *response = state_.stats;
    return Ok(context);
  }

 private:
  static grpc::ServerUnaryReactor* Ok(grpc::CallbackServerContext* context) {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }
  State& state_;
};

FakeRouter::FakeRouter(std::string model_fingerprint, Behaviour behaviour)
    : state_(std::make_unique<State>()) {
  state_->behaviour = std::move(behaviour);
  state_->address = NewAddress();
  state_->description.set_name(state_->address);
  state_->description.set_model_fingerprint(std::move(model_fingerprint));
  state_->description.set_state(v1::SERVING_STATE_READY);
  state_->description.set_max_context(64);
  state_->stats.set_name(state_->address);
  Start();
}

FakeRouter::~FakeRouter() { Kill(); }

void FakeRouter::Kill() {
  {
    absl::MutexLock lock(&state_->mu);
    state_->killing = true;
  }
  SetSilent(false);
  state_->server = nullptr;
  state_->service = nullptr;
}

void FakeRouter::Start() {
  CHECK(state_->server == nullptr);
  {
    absl::MutexLock lock(&state_->mu);
    state_->killing = false;
  }
  state_->service = std::make_unique<State::Service>(*state_);
  RpcServerOptions options;
  options.listen = {state_->address};
  absl::StatusOr<std::unique_ptr<RpcServer>> server =
      RpcServer::Start(options, {state_->service.get()});
  CHECK(server.ok());
  state_->server = *std::move(server);
}

void FakeRouter::SetSilent(bool silent) {
  std::vector<grpc::ServerUnaryReactor*> unanswered;
  {
    absl::MutexLock lock(&state_->mu);
    state_->silent = silent;
    if (!silent) unanswered.swap(state_->unanswered);
  }
  for (grpc::ServerUnaryReactor* reactor : unanswered) {
    reactor->Finish(grpc::Status::OK);
  }
}

void FakeRouter::SetBehaviour(Behaviour behaviour) {
  absl::MutexLock lock(&state_->mu);
  state_->behaviour = std::move(behaviour);
}

void FakeRouter::SetDescription(const v1::RouterDescription& description) {
  absl::MutexLock lock(&state_->mu);
  state_->description = description;
}

v1::RouterDescription FakeRouter::description() const {
  absl::MutexLock lock(&state_->mu);
  return state_->description;
}

void FakeRouter::SetStats(const v1::RouterStats& stats) {
  absl::MutexLock lock(&state_->mu);
  state_->stats = stats;
}

const std::string& FakeRouter::address() const { return state_->address; }

std::vector<v1::RouterGenerateRequest> FakeRouter::requests() const {
  absl::MutexLock lock(&state_->mu);
  return state_->requests;
}

double FakeRouter::newest_timeout_ms() const {
  absl::MutexLock lock(&state_->mu);
  return state_->newest_timeout_ms;
}

uint64_t FakeRouter::num_written() const {
  absl::MutexLock lock(&state_->mu);
  return state_->num_written;
}

void FakeRouter::AwaitCalls(size_t count) {
  const auto enough = [&] { return state_->requests.size() >= count; };
  absl::MutexLock lock(&state_->mu);
  state_->mu.Await(absl::Condition(&enough));
}

void FakeRouter::AwaitCancelled(size_t count) {
  const auto enough = [&] { return state_->cancelled >= count; };
  absl::MutexLock lock(&state_->mu);
  state_->mu.Await(absl::Condition(&enough));
}

void FakeRouter::AwaitDescribedTwice() {
  absl::MutexLock lock(&state_->mu);
  const uint64_t before = state_->num_described;
  const auto enough = [&] {
    return state_->killing || state_->num_described >= before + 2;
  };
  state_->mu.Await(absl::Condition(&enough));
}

void FakeRouter::AwaitStalled() {
  absl::MutexLock lock(&state_->mu);
  while (true) {
    const uint64_t before = state_->num_written;
    const auto progress = [&] { return state_->num_written != before; };
    if (!state_->mu.AwaitWithTimeout(absl::Condition(&progress),
                                     absl::Milliseconds(250))) {
      return;
    }
  }
}

FakeRouterScript Recite(const std::string& text,
                        const v1::RouterGenerateRequest& request) {
  FakeRouterScript script;
  if (request.prompt_logprobs()) {
    v1::RouterGenerateResponse prompt;
    for (const uint32_t token_id : request.prompt_token_ids()) {
      v1::TokenOutput* token = prompt.add_prompt();
      token->set_token_id(token_id);
      if (prompt.prompt_size() > 1) {
        AddLogprobs(request, static_cast<uint32_t>(prompt.prompt_size()),
                    *token);
      }
    }
    script.responses.push_back(std::move(prompt));
  }
  for (auto position =
           static_cast<uint32_t>(request.generated_token_ids_size());
       position < request.max_tokens(); ++position) {
    v1::RouterGenerateResponse response;
    v1::TokenOutput* token = response.add_tokens();
    const bool over = position >= text.size();
    token->set_token_id(over ? FakeTokenizer::kEos
                             : static_cast<unsigned char>(text[position]));
    if (request.logprobs()) AddLogprobs(request, position, *token);
    if (over || position + 1 == request.max_tokens()) {
      response.set_finish_reason(over ? v1::FINISH_REASON_STOP
                                      : v1::FINISH_REASON_LENGTH);
      response.mutable_usage()->set_queue_ms(1.5);
    }
    script.responses.push_back(std::move(response));
    if (over) break;
  }
  return script;
}

}  // namespace troupe
