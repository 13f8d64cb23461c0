// Asks a server's standard health service, without waiting.
#ifndef TROUPE_TOOLS_CLI_HEALTH_PROBE_H_
#define TROUPE_TOOLS_CLI_HEALTH_PROBE_H_

#include <memory>
#include <string>

#include "grpcpp/security/credentials.h"

namespace troupe {

// One server's health. Owns a channel and at most one call in flight; gRPC's
// threads write the answer. One thread at a time may use it.
class HealthProbe {
 public:
  // credentials: for host:port; null: plain text.
  explicit HealthProbe(
      const std::string& address,
      const std::shared_ptr<grpc::ChannelCredentials>& credentials = nullptr);
  ~HealthProbe();
  HealthProbe(HealthProbe&& other) noexcept;
  HealthProbe& operator=(HealthProbe&& other) noexcept;

  // Whether the newest answer was SERVING; asks again if none is on its way.
  bool Poll();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace troupe

#endif  // TROUPE_TOOLS_CLI_HEALTH_PROBE_H_
