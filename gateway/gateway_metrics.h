// What a gateway counts besides its statistics, and all of it as Prometheus
// reads it (docs/metrics.md).
#ifndef TROUPE_GATEWAY_GATEWAY_METRICS_H_
#define TROUPE_GATEWAY_GATEWAY_METRICS_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "common/metrics/histogram.h"
#include "common/metrics/metric_families.h"
#include "gateway/kv_blocks.h"
#include "grpcpp/support/status.h"
#include "protos/gateway.pb.h"

namespace troupe {

// "ok", "cancelled" (by the client or its deadline), "refused" (for want of
// room) or "failed".
const char* OutcomeOf(grpc::StatusCode code);

// Why a generation was not begun, or ended without any work done: a limit of
// gateway/refusal.h, or one of these.
inline constexpr absl::string_view kInvalidRefusal = "invalid";
inline constexpr absl::string_view kDrainingRefusal = "draining";
inline constexpr absl::string_view kRoutersFullRefusal = "routers_full";
inline constexpr absl::string_view kNoRouterRefusal = "no_router";
// All of them; the last is "other". What the edges refuse before there is a
// generation is counted by them (EdgeRefusals).
inline constexpr size_t kNumRefusals = 11;
extern const std::array<absl::string_view, kNumRefusals> kRefusals;

// By key: who is it, may it, and has it had too much.
struct EdgeRefusals {
  uint64_t unauthenticated = 0;
  uint64_t denied = 0;
  uint64_t limited = 0;
};

// Why a choice ended.
enum class ChoiceEnd { kStop, kLength, kAbort };
inline constexpr size_t kNumChoiceEnds = 3;

// Counted by the generations, on their way: each call is a few atomic
// additions. Thread-safe.
class GatewayMetrics {
 public:
  void CountEnd(grpc::StatusCode code) {
    // A code from outside may be any number: UNKNOWN.
    if (code < 0 || static_cast<size_t>(code) >= kNumCodes) {
      code = grpc::StatusCode::UNKNOWN;
    }
    ++ends_[static_cast<size_t>(code)];
  }
  void CountRefusal(absl::string_view reason);  // one of kRefusals
  void Count(ChoiceEnd end) { ++choices_[static_cast<size_t>(end)]; }

  AtomicHistogram first_token_seconds{kFirstTokenBounds};  // of a call
  AtomicHistogram inter_token_seconds{kInterTokenBounds};  // within a choice
  AtomicHistogram request_seconds{kRequestBounds};         // that ended OK
  // Of a choice, in its router before the first step.
  AtomicHistogram queue_seconds{kFirstTokenBounds};
  AtomicHistogram prompt_tokens{kCountBounds};      // of calls that ended OK
  AtomicHistogram generation_tokens{kCountBounds};  // of all choices together
  std::atomic<int64_t> generating{0};  // calls that have had their first token

  static constexpr size_t kNumCodes = 17;  // of gRPC
  uint64_t ends(size_t code) const { return ends_[code]; }
  uint64_t refusals(size_t reason) const { return refusals_[reason]; }
  uint64_t choices(ChoiceEnd end) const {
    return choices_[static_cast<size_t>(end)];
  }

 private:
  std::array<std::atomic<uint64_t>, kNumCodes> ends_{};
  std::array<std::atomic<uint64_t>, kNumRefusals> refusals_{};
  std::array<std::atomic<uint64_t>, kNumChoiceEnds> choices_{};
};

void AddGatewayMetrics(const v1::GatewayStats& stats,
                       const GatewayMetrics& metrics, const EdgeRefusals& edges,
                       MetricFamilies& families);

// The names of vLLM that dashboards, autoscalers and the Gateway API Inference
// Extension look for, with the label model_name. Those of the KV cache only
// when something is known of it.
void AddVllmMetrics(const v1::GatewayStats& stats,
                    const GatewayMetrics& metrics, const KvBlocks& kv,
                    const std::string& model_name, MetricFamilies& families);

}  // namespace troupe

#endif  // TROUPE_GATEWAY_GATEWAY_METRICS_H_
