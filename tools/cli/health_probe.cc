#include "tools/cli/health_probe.h"

#include <utility>

#include "absl/synchronization/mutex.h"
#include "common/rpc/rpc_channel.h"
#include "protos/health.grpc.pb.h"

namespace troupe {
namespace {

namespace health = grpc::health::v1;
constexpr milliseconds kTimeout{1000};

struct Check {
  grpc::ClientContext context;
  health::HealthCheckRequest request;
  health::HealthCheckResponse response;
};

}  // namespace

struct HealthProbe::State {
  std::unique_ptr<health::Health::Stub> stub;
  absl::Mutex mu;
  std::shared_ptr<Check> in_flight ABSL_GUARDED_BY(mu);
  bool busy ABSL_GUARDED_BY(mu) = false;
  bool serving ABSL_GUARDED_BY(mu) = false;
};

HealthProbe::HealthProbe(
    const std::string& address,
    const std::shared_ptr<grpc::ChannelCredentials>& credentials)
    : state_(std::make_unique<State>()) {
  state_->stub = health::Health::NewStub(MakeChannel(address, credentials));
}

HealthProbe::HealthProbe(HealthProbe&& other) noexcept = default;
HealthProbe& HealthProbe::operator=(HealthProbe&& other) noexcept {
  std::swap(state_, other.state_);
  return *this;
}

// The call is over, its context included, before the program may end.
HealthProbe::~HealthProbe() {
  if (state_ == nullptr) return;
  absl::MutexLock lock(&state_->mu);
  if (state_->in_flight != nullptr) state_->in_flight->context.TryCancel();
  const auto idle = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_->mu) {
    return !state_->busy;
  };
  state_->mu.Await(absl::Condition(&idle));
}

bool HealthProbe::Poll() {
  absl::MutexLock lock(&state_->mu);
  if (state_->busy) return state_->serving;
  state_->busy = true;
  state_->in_flight = std::make_shared<Check>();
  Check& check = *state_->in_flight;
  SetDeadline(check.context, Clock::Real().Now() + kTimeout);
  state_->stub->async()->Check(
      &check.context, &check.request, &check.response,
      [state = state_.get()](const grpc::Status& status) {
        std::shared_ptr<Check> ended;
        {
          absl::MutexLock state_lock(&state->mu);
          ended = std::move(state->in_flight);
        }
        const bool serving =
            status.ok() &&
            ended->response.status() == health::HealthCheckResponse::SERVING;
        ended.reset();
        absl::MutexLock state_lock(&state->mu);
        state->serving = serving;
        state->busy = false;
      });
  return state_->serving;
}

}  // namespace troupe
