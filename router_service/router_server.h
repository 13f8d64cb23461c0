// The edge of a router process: validates requests, hands them to the serving
// loop, streams what comes back.
#ifndef TROUPE_ROUTER_SERVICE_ROUTER_SERVER_H_
#define TROUPE_ROUTER_SERVICE_ROUTER_SERVER_H_

#include <atomic>
#include <functional>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cluster/expert_pool.h"
#include "model/config.h"
#include "protos/router.grpc.pb.h"
#include "router_service/scheduler/sequence.h"
#include "router_service/serving_loop.h"

namespace troupe {

// Turns a request into a sequence; InvalidArgument names the field and the
// value. `on_event` and `deadline` are left for the caller.
absl::StatusOr<SequenceRequest> ToSequenceRequest(
    const v1::RouterGenerateRequest& request, const ModelConfig& config,
    size_t max_context,
    const FallbackPolicy& default_fallback = FallbackPolicy::Exact());

struct RouterServerOptions {
  std::string name;
  std::string model_fingerprint;
  std::string numeric_format;  // of RouterDescription
  uint32_t max_queued_sequences = 0;
  // Of requests that do not choose one.
  FallbackPolicy default_fallback = FallbackPolicy::Exact();
  // Told in the statistics.
  double capacity_factor = 0.0;
  RefuseBy refuse = RefuseBy::kPosition;
  // Adds what the process knows besides; may be null. Called from any thread.
  std::function<void(v1::RouterStats& stats)> add_stats;
};

// Thread-safe. Does not own loop and experts (null for a dense model), which
// outlive every call.
class RouterServer final : public v1::Router::CallbackService {
 public:
  RouterServer(RouterServerOptions options, const ModelConfig& config,
               ServingLoop& loop, ExpertPool* experts);

  // Without the integrity of its components. Any thread.
  v1::RouterStats Statistics() const;
  // READY, or what is missing.
  v1::RouterDescription Description() const;
  // Takes no new sequences; tells gateways to move what still runs after
  // `leave_after` to other routers.
  void StartDraining(milliseconds leave_after);

  grpc::ServerWriteReactor<v1::RouterGenerateResponse>* Generate(
      grpc::CallbackServerContext* context,
      const v1::RouterGenerateRequest* request) override;
  grpc::ServerUnaryReactor* GetStats(grpc::CallbackServerContext* context,
                                     const v1::GetRouterStatsRequest* request,
                                     v1::RouterStats* response) override;
  grpc::ServerUnaryReactor* Describe(grpc::CallbackServerContext* context,
                                     const v1::DescribeRouterRequest* request,
                                     v1::RouterDescription* response) override;

 private:
  class Call;

  const RouterServerOptions options_;
  const ModelConfig config_;
  ServingLoop& loop_;
  ExpertPool* const experts_;
  std::atomic<bool> draining_ = false;
  std::atomic<SteadyTime> leave_at_ = kNoDeadline;
};

}  // namespace troupe

#endif  // TROUPE_ROUTER_SERVICE_ROUTER_SERVER_H_
