// What the calls of a gateway share.
#ifndef TROUPE_GATEWAY_GATEWAY_CONTEXT_H_
#define TROUPE_GATEWAY_GATEWAY_CONTEXT_H_

#include <atomic>
#include <cstdint>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "cluster/address_source.h"
#include "common/clock.h"
#include "common/log_limiter.h"
#include "gateway/admission.h"
#include "gateway/authenticator.h"
#include "gateway/balance_board.h"
#include "gateway/gateway_metrics.h"
#include "gateway/generate_plan.h"
#include "gateway/router_pool.h"
#include "gateway/served_model.h"
#include "gateway/work_queue.h"
#include "grpcpp/security/credentials.h"

namespace troupe {

// Since the start. Thread-safe.
struct GatewayCounters {
  std::atomic<uint64_t> requests{0};
  std::atomic<uint64_t> ok{0};
  std::atomic<uint64_t> cancelled{0};
  std::atomic<uint64_t> refused{0};
  std::atomic<uint64_t> failed{0};
  std::atomic<uint64_t> prompt_tokens{0};
  std::atomic<uint64_t> completion_tokens{0};
  std::atomic<uint64_t> moved_streams{0};  // to another router
};

// Calls that still use the context. Thread-safe.
class LiveCalls {
 public:
  void Add() {
    absl::MutexLock lock(&mu_);
    ++count_;
  }
  void Remove() {
    absl::MutexLock lock(&mu_);
    --count_;
  }
  // A call is live as long as its guard: make it the first member of the
  // call's object, so that it goes last.
  class Guard {
   public:
    explicit Guard(LiveCalls& calls) : calls_(calls) { calls_.Add(); }
    ~Guard() { calls_.Remove(); }
    Guard(const Guard&) = delete;
    Guard& operator=(const Guard&) = delete;

   private:
    LiveCalls& calls_;
  };

  // False when there still are some after `limit`.
  bool AwaitNone(absl::Duration limit = absl::InfiniteDuration()) {
    const auto none = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
      return count_ == 0;
    };
    absl::MutexLock lock(&mu_);
    return mu_.AwaitWithTimeout(absl::Condition(&none), limit);
  }

 private:
  absl::Mutex mu_;
  size_t count_ ABSL_GUARDED_BY(mu_) = 0;
};

// Outlives every call: its owner stops the server, then waits for live_calls.
struct GatewayContext {
  // Constant after construction.
  std::string name;       // of this process
  int64_t created_s = 0;  // its start, since the epoch
  ServedModel model;
  RequestLimits limits;
  // A sequence without a router waits that long for one.
  milliseconds router_wait{30000};
  // Responses of a call that wait for its client; when that many wait, the
  // call's router streams are not read until some have left.
  size_t max_pending_responses = 64;
  bool vllm_metrics = false;  // under vLLM's names, too

  // Own synchronisation.
  GatewayCounters counters;
  GatewayMetrics metrics;
  LogLimiter early_ends;  // of router calls
  BalanceBoard balance_board;
  Admission& admission;
  Authenticator& authenticator;
  AddressSource& router_addresses;
  RouterPool& routers;
  WorkQueue& work_queue;
  LiveCalls live_calls;
  std::atomic<bool> draining{false};

  // For calls to expert processes; null: plain text. Constant, too.
  std::shared_ptr<grpc::ChannelCredentials> expert_credentials;
};

}  // namespace troupe

#endif  // TROUPE_GATEWAY_GATEWAY_CONTEXT_H_
