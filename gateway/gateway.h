// A gateway as an object: what main and the tests start.
#ifndef TROUPE_GATEWAY_GATEWAY_H_
#define TROUPE_GATEWAY_GATEWAY_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "cluster/address_source.h"
#include "common/clock.h"
#include "common/http/http_server.h"
#include "common/metrics/metric_families.h"
#include "gateway/gateway_security.h"
#include "gateway/generate_plan.h"
#include "gateway/router_health.h"
#include "gateway/served_model.h"

namespace troupe {

struct GatewayOptions {
  std::string name = "gateway";
  // "host:port" (port 0: any free one) or "unix:/path".
  std::vector<std::string> listen = {"127.0.0.1:7070"};
  // The HTTP port; no addresses: none.
  HttpServerOptions http;
  // Addresses, "file:/path" and "dns:name:port": specs of an AddressSource.
  std::vector<std::string> routers;
  AddressSourceOptions discovery;  // without specs
  // Requests in progress; one more is refused with RESOURCE_EXHAUSTED.
  uint32_t max_requests = 256;
  // So when the prompts that wait for their first token have more tokens; 0:
  // no bound.
  uint64_t max_waiting_prompt_tokens = 1 << 20;
  // File of API keys (api_keys.h), watched; empty: none are demanded.
  std::string api_keys;
  // Of the limits of keys and the waits that refusals tell.
  const Clock* limit_clock = &Clock::Real();
  RequestLimits limits;
  // A sequence without a router (none is ready, or its own was lost) waits
  // that long for one, and not longer than the call's deadline.
  milliseconds router_wait{30000};
  milliseconds poll_interval{500};
  RouterHealthOptions router_health;
  // Responses that may wait for a slow client before its streams pause.
  size_t max_pending_responses = 64;
  size_t tokenizer_threads = 1;
  bool reflection = true;
  GatewaySecurity security;
  // Further addresses, for admins alone.
  std::vector<std::string> admin_listen;
  bool allow_plaintext = false;  // see RpcServerOptions
  bool vllm_metrics = false;     // under vLLM's names, too
};

// Serves troupe.v1.Gateway: owns the server, the connections to routers and
// all calls. SERVING in grpc.health.v1 while at least one router is ready.
// Thread-safe.
class Gateway {
 public:
  static absl::StatusOr<std::unique_ptr<Gateway>> Start(
      const GatewayOptions& options, ServedModel model);
  // Ends calls that still run.
  ~Gateway();

  // Of gRPC, and of HTTP.
  const std::vector<std::string>& addresses() const;
  const std::vector<std::string>& http_addresses() const;

  // What the process knows is left out.
  void AddMetrics(MetricFamilies& families) const;
  // Unavailable says why it takes no generations.
  absl::Status Ready() const;

  // NOT_SERVING and no new generations from now on; returns when the running
  // ones have ended, those that outlast `grace` by cancellation. Statistics and
  // health are answered until then.
  void Drain(milliseconds grace);

 private:
  struct State;
  explicit Gateway(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace troupe

#endif  // TROUPE_GATEWAY_GATEWAY_H_
