#include "tools/cli/health_probe.h"

#include <atomic>

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

// Shared with the call in flight, which may outlast the probe.
struct HealthProbe::State {
  std::unique_ptr<health::Health::Stub> stub;
  std::atomic<bool> serving{false};
  std::atomic<bool> in_flight{false};
};

HealthProbe::HealthProbe(const std::string& address)
    : state_(std::make_shared<State>()) {
  state_->stub = health::Health::NewStub(MakeChannel(address));
}
HealthProbe::~HealthProbe() = default;
HealthProbe::HealthProbe(HealthProbe&&) noexcept = default;
HealthProbe& HealthProbe::operator=(HealthProbe&&) noexcept = default;

bool HealthProbe::Poll() {
  if (!state_->in_flight.exchange(true)) {
    auto check = std::make_shared<Check>();
    SetDeadline(check->context, Clock::Real().Now() + kTimeout);
    state_->stub->async()->Check(
        &check->context, &check->request, &check->response,
        [state = state_, check](const grpc::Status& status) {
          state->serving =
              status.ok() &&
              check->response.status() == health::HealthCheckResponse::SERVING;
          state->in_flight = false;
        });
  }
  return state_->serving;
}

}  // namespace troupe
