#include "tools/cli/load_generator.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/rpc/rpc_channel.h"
#include "protos/gateway.grpc.pb.h"
#include "tools/cli/gateway_client.h"

namespace troupe {
namespace {

constexpr size_t kRequestsPerConnection = 50;
constexpr size_t kMaxConnections = 16;
constexpr double kNever = 1e18;

}  // namespace

struct LoadGenerator::State {
  class Request;

  double Elapsed() const {
    return std::chrono::duration<double>(Clock::Real().Now() - start).count();
  }

  LoadOptions options;
  std::vector<std::unique_ptr<v1::Gateway::Stub>> stubs;
  SteadyTime start;

  absl::Mutex mu;
  bool stopped ABSL_GUARDED_BY(mu) = false;
  std::set<Request*> running ABSL_GUARDED_BY(mu);
  size_t num_alive ABSL_GUARDED_BY(mu) = 0;  // running or being deleted
  std::vector<BenchRecord> records ABSL_GUARDED_BY(mu);
};

// One call. Deletes itself when done.
class LoadGenerator::State::Request final
    : public grpc::ClientReadReactor<v1::GenerateResponse> {
 public:
  Request(State& state, size_t index, double intended_s)
      : state_(state), request_(state.options.make_request(index)) {
    record_.intended_s = intended_s;
    SetApiKey(context_, state.options.api_key);
    if (state.options.timeout_ms > 0) {
      SetDeadline(context_,
                  Clock::Real().Now() + milliseconds(state.options.timeout_ms));
    }
    state.stubs[index % state.stubs.size()]->async()->Generate(&context_,
                                                               &request_, this);
  }

  void Start() {
    StartRead(&response_);
    StartCall();
  }
  void Cancel() { context_.TryCancel(); }

 private:
  void OnReadDone(bool ok) override {
    if (!ok) return;
    const double now_s = state_.Elapsed();
    if (response_.tokens_size() > 0) {
      if (record_.output_tokens == 0) record_.first_token_s = now_s;
      record_.output_tokens += static_cast<size_t>(response_.tokens_size());
    }
    if (response_.has_usage()) {
      record_.prompt_tokens = response_.usage().prompt_tokens();
      record_.cached_tokens = response_.usage().cached_tokens();
    }
    StartRead(&response_);
  }

  void OnDone(const grpc::Status& status) override {
    record_.end_s = state_.Elapsed();
    record_.ok = status.ok() && record_.output_tokens > 0;
    if (!status.ok()) {
      record_.error = absl::StrCat("code ", status.error_code(), ": ",
                                   status.error_message());
    } else if (!record_.ok) {
      record_.error = "no token came";
    }
    State& state = state_;
    {
      absl::MutexLock lock(&state.mu);
      state.records.push_back(std::move(record_));
      state.running.erase(this);
    }
    // Gone before Run returns: the program may end then, and gRPC with it.
    delete this;
    absl::MutexLock lock(&state.mu);
    --state.num_alive;
  }

  State& state_;
  const v1::GenerateRequest request_;
  grpc::ClientContext context_;
  v1::GenerateResponse response_;
  BenchRecord record_;
};

LoadGenerator::LoadGenerator(LoadOptions options)
    : state_(std::make_unique<State>()) {
  state_->options = std::move(options);
  const size_t at_once = state_->options.arrivals_s.empty()
                             ? state_->options.concurrency
                             : state_->options.num_requests;
  const size_t num_connections = std::clamp<size_t>(
      (at_once + kRequestsPerConnection - 1) / kRequestsPerConnection, 1,
      kMaxConnections);
  for (size_t i = 0; i < num_connections; ++i) {
    state_->stubs.push_back(v1::Gateway::NewStub(
        MakeChannel(state_->options.address, state_->options.credentials)));
  }
}

LoadGenerator::~LoadGenerator() = default;

void LoadGenerator::Stop() {
  absl::MutexLock lock(&state_->mu);
  state_->stopped = true;
  for (State::Request* request : state_->running) request->Cancel();
}

std::vector<BenchRecord> LoadGenerator::Run() {
  State& state = *state_;
  const LoadOptions& options = state.options;
  const bool open_loop = !options.arrivals_s.empty();
  const double last_start_s =
      options.duration_s > 0 ? options.duration_s : kNever;
  state.start = Clock::Real().Now();
  size_t next = 0;
  absl::MutexLock lock(&state.mu);
  const auto over = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(state.mu) {
    return state.stopped || next == options.num_requests ||
           state.Elapsed() >= last_start_s ||
           (open_loop && options.arrivals_s[next] >= last_start_s);
  };
  const auto may_start = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(state.mu) {
    return state.stopped ||
           (!open_loop && state.running.size() < options.concurrency);
  };
  while (!over()) {
    const double due_s = open_loop ? options.arrivals_s[next] : kNever;
    const double wait_s =
        std::clamp(std::min(due_s, last_start_s) - state.Elapsed(), 0.0, 0.5);
    if (!may_start() && wait_s > 0) {
      state.mu.AwaitWithTimeout(absl::Condition(&may_start),
                                absl::Seconds(wait_s));
      if (options.progress) {
        options.progress(state.records.size(), options.num_requests);
      }
      continue;
    }
    if (state.stopped) break;
    auto* request =
        new State::Request(state, next, open_loop ? due_s : state.Elapsed());
    state.running.insert(request);
    ++state.num_alive;
    ++next;
    // Its first callback takes the lock: it cannot be done before it is known.
    request->Start();
  }
  const auto idle = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(state.mu) {
    return state.num_alive == 0;
  };
  state.mu.Await(absl::Condition(&idle));
  return state.records;
}

}  // namespace troupe
