// Scatters routed copies to expert processes and gathers their outputs.
#ifndef TROUPE_ROUTER_SERVICE_DISPATCH_TOKEN_DISPATCHER_H_
#define TROUPE_ROUTER_SERVICE_DISPATCH_TOKEN_DISPATCHER_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "cluster/expert_pool.h"
#include "common/clock.h"
#include "common/thread_pool.h"
#include "common/views.h"
#include "router_service/dispatch/dispatch_plan.h"
#include "router_service/gating/gating.h"

namespace troupe {

struct TokenDispatcherOptions {
  size_t hidden_size = 0;
  size_t num_experts = 0;
  // A peer that has not answered after this is given up for that message: the
  // copies are sent again, elsewhere if possible. Far above the time of the
  // largest batch.
  milliseconds hop_timeout = milliseconds(10000);
  // Combine asks its `check` only when a layer takes longer than this.
  milliseconds check_after = milliseconds(100);
  // A message carries at most this many bytes of outputs.
  size_t max_output_bytes = size_t{16} << 20;
  // Of hidden states and outputs between the processes: part of the numeric
  // format of the cluster, whatever the transport.
  DataType wire_dtype = DataType::kF32;
};

// Counters since construction.
struct DispatchStats {
  uint64_t copies_dispatched = 0;  // whose result was used
  uint64_t copies_resent = 0;
  uint64_t copies_refused = 0;
  double wait_seconds = 0.0;  // in Combine
  // Of it, what was not the computing of the slowest peer of each layer.
  double hop_seconds = 0.0;
  uint64_t hops = 0;  // layers that were waited for
};

// What Dispatch returns and Combine consumes.
class DispatchHandle {
 public:
  DispatchHandle() = default;

 private:
  friend class TokenDispatcher;
  class Exchange;
  std::shared_ptr<Exchange> exchange_;
};

// Every token's hidden state goes once to each process that owns one of its
// experts. A copy whose peer is lost, silent, draining or full is sent again to
// another replica, or waits for one to appear. Does not own the pool. One
// thread calls at a time; several dispatches may be in flight.
class TokenDispatcher {
 public:
  // What a layer lacks: a peer that takes its copies, or the answer of one,
  // which may only be slow.
  enum class WaitingFor { kReplica, kOutput };
  // Asked from time to time while Combine waits; an error ends the wait.
  using Check = std::function<absl::Status(WaitingFor what)>;

  TokenDispatcher(ExpertPool& experts, TokenDispatcherOptions options);

  // When nobody wants the outputs of what is dispatched from now on: batches
  // say so, and a peer passes over those that are too late.
  void set_deadline(SteadyTime deadline) { deadline_ = deadline; }

  // Sends the copies of one layer. hidden_states [num_tokens, hidden_size] must
  // stay until Combine returns or the handle is dropped: what a peer loses is
  // sent again.
  DispatchHandle Dispatch(size_t layer, ConstFloatMatrix hidden_states,
                          const RoutingDecision& decision);

  // Waits for all outputs, then adds their weighted sum to
  // output [num_tokens, hidden_size], ascending by expert within a token.
  // On an error `output` is unchanged; the message is that of `check`, then
  // what the layer waits for ("expert 3 of layer 0 has no replica").
  absl::Status Combine(DispatchHandle handle, const Check& check,
                       FloatMatrix output, ThreadPool& pool);

  DispatchStats stats() const { return stats_; }
  // Changes when an expert computes with other weights from now on.
  uint64_t weights_version() const {
    return experts_.placement()->num_version_changes();
  }

 private:
  using Exchange = DispatchHandle::Exchange;

  std::shared_ptr<Exchange> NewExchange();
  // Sends copies that have no peer to those that the pool chooses now.
  void Send(const std::shared_ptr<Exchange>& exchange);
  void SendPart(const std::shared_ptr<Exchange>& exchange, size_t peer,
                const std::vector<CopyRun>& runs);
  // Takes what the part's peer answered, or gives the peer up; false while
  // neither.
  bool Settle(Exchange& exchange, size_t index, SteadyTime now);
  // Waits for news, at most until something has to be looked at without any.
  void Wait(const Exchange& exchange, uint32_t seen, SteadyTime check_at,
            SteadyTime now);
  std::string WaitsFor(const Exchange& exchange) const;

  ExpertPool& experts_;
  const TokenDispatcherOptions options_;
  SteadyTime deadline_ = kNoDeadline;
  DispatchStats stats_;
  // Kept from layer to layer, so that nothing is allocated once they have
  // grown.
  std::vector<std::shared_ptr<Exchange>> exchanges_;
  std::vector<std::vector<CopyRun>> runs_of_peer_;  // [experts_.size()]
  std::vector<CopyRun> message_;
  PackedBatch packed_;
};

}  // namespace troupe

#endif  // TROUPE_ROUTER_SERVICE_DISPATCH_TOKEN_DISPATCHER_H_
