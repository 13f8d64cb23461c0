// Scatters routed copies to expert processes and gathers their outputs.
#ifndef TROUPE_ROUTER_SERVICE_DISPATCH_TOKEN_DISPATCHER_H_
#define TROUPE_ROUTER_SERVICE_DISPATCH_TOKEN_DISPATCHER_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "cluster/expert_pool.h"
#include "cluster/fallback_policy.h"
#include "cluster/retry_budget.h"
#include "common/clock.h"
#include "common/thread_pool.h"
#include "common/views.h"
#include "router_service/dispatch/dispatch_plan.h"
#include "router_service/dispatch/hop_histograms.h"
#include "router_service/gating/capacity.h"
#include "router_service/gating/gating.h"

namespace troupe {

struct DispatchPart;

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
  // How long copies wait for a peer that has gone away with the last replica of
  // their version, before they move to another version of their expert.
  milliseconds version_grace = milliseconds(1000);
  // Of hidden states and outputs between the processes: part of the numeric
  // format of the cluster, whatever the transport.
  DataType wire_dtype = DataType::kF32;
  // Copies per expert in one layer of one step, in shares of the mean; 0:
  // dropless. Only of rows whose policy is not exact (gating/capacity.h).
  double capacity_factor = 0.0;
  // Which copies are refused: by the capacity factor, and by a process that has
  // room for some of a message.
  RefuseBy refuse = RefuseBy::kPosition;
  uint64_t refuse_seed = 0;
  // How long `wait` waits for room when the policy has something behind it.
  milliseconds fallback_wait = milliseconds(20);
  // Whether the copies of a message that is late (ExpertPool::HedgeDelay) are
  // sent to other replicas, too.
  bool hedging = true;
  RetryBudgetOptions hedge_budget = {/*per_send=*/0.05, /*per_second=*/5.0,
                                     /*max_tokens=*/20.0};
  RetryBudgetOptions retry_budget;
};

// The next rows of a step: those of one sequence, and its policy.
struct PolicyRows {
  size_t num_rows = 0;
  FallbackPolicy policy;
};

// A copy that was not computed by the process that was asked first.
struct FatedCopy {
  size_t row = 0;
  size_t layer = 0;
  size_t expert = 0;      // that the gate chose
  int32_t stand_in = -1;  // that computed it in its place
  CopyFate fate = CopyFate::kFirstChoice;
};

// Counters since construction.
struct DispatchStats {
  uint64_t copies_dispatched = 0;  // whose result was used
  uint64_t copies_resent = 0;
  uint64_t copies_refused = 0;
  // Of copies_dispatched, those that another version computed than the one of
  // their sequence's snapshot.
  uint64_t copies_moved_version = 0;
  double wait_seconds = 0.0;  // in Combine
  // Of it, what was not the computing of the slowest peer of each layer.
  double hop_seconds = 0.0;
  uint64_t hops = 0;                  // layers that were waited for
  uint64_t copies_over_capacity = 0;  // whatever became of them
  uint64_t messages = 0;              // sent for the first time
  uint64_t retries = 0;               // sent again after a failure
  uint64_t hedges = 0;                // sent elsewhere, too
  uint64_t hedges_won = 0;            // that answered first
  uint64_t retries_held_back = 0;     // sent later: the budget was spent
  uint64_t hedges_held_back = 0;      // not sent for that reason
};

// The next rows of a step: those of one sequence, and what it is pinned to.
struct SnapshotRows {
  size_t num_rows = 0;
  SnapshotPtr snapshot;
};

// Copies of a sequence that have another version than its snapshot says, since
// that one is gone.
struct VersionMove {
  size_t sequence = 0;  // in the list of set_snapshots
  size_t layer = 0;
  size_t expert = 0;
  uint64_t to = 0;  // key
  size_t num_copies = 0;
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
// another replica of the same version, or waits for one to appear; it moves to
// another version when there is none left. A copy whose peer is late is sent to
// another replica, too: whichever answers first is used. What else may happen
// to it is its row's policy (set_policies). Does not own the pool. One thread
// calls at a time; several dispatches may be in flight.
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

  // What the rows of the next dispatches are pinned to: all rows of a step, in
  // order. Empty: all of them use what is current when they are dispatched.
  void set_snapshots(std::vector<SnapshotRows> rows);
  // Since set_snapshots.
  const std::vector<VersionMove>& moves() const { return moves_; }
  std::shared_ptr<const Placement> placement() const {
    return experts_.placement();
  }
  ExpertPool& experts() { return experts_; }

  // The policies of the rows of the next dispatches: all rows of a step, in
  // order. Empty, and at first: all are exact.
  void set_policies(absl::Span<const PolicyRows> rows);
  // Since set_policies, of layers that were combined; not of first choice.
  const std::vector<FatedCopy>& fates() const { return fates_; }

  // Sends the copies of one layer. hidden_states [num_tokens, hidden_size] must
  // stay until Combine returns or the handle is dropped: what a peer loses is
  // sent again. router_probs [num_tokens, num_experts], too: what the gate
  // chose from; may be empty if all rows are exact.
  DispatchHandle Dispatch(size_t layer, ConstFloatMatrix hidden_states,
                          const RoutingDecision& decision,
                          ConstFloatMatrix router_probs = {});

  // Waits for all outputs, then adds their weighted sum to
  // output [num_tokens, hidden_size], ascending by expert within a token.
  // On an error `output` is unchanged; the message is that of `check`, then
  // what the layer waits for ("expert 3 of layer 0 has no replica").
  absl::Status Combine(DispatchHandle handle, const Check& check,
                       FloatMatrix output, ThreadPool& pool);

  const HopHistograms& histograms() const { return histograms_; }
  // Of one thread with Dispatch and Combine.
  DispatchStats stats() const;
  // Refusals by processes, and by the capacity factor, since construction;
  // [num_experts], or empty: none.
  absl::Span<const uint64_t> refused_per_expert(size_t layer) const;
  absl::Span<const uint64_t> over_capacity_per_expert(size_t layer) const;

 private:
  using Exchange = DispatchHandle::Exchange;

  std::shared_ptr<Exchange> NewExchange();
  // Makes `exchange.homeless` of its plan: a run for each version of an expert.
  void AddRuns(const RoutingDecision& decision, Exchange& exchange);
  // Gives copies whose version is gone for good the one that is current.
  void MoveIfGone(const Exchange& exchange, const Placement& placement,
                  SteadyTime since, SteadyTime now, CopyRun& run);
  // Sends copies that have no peer to those that the pool chooses now, or takes
  // the next step of their policy. Whether anything has changed.
  bool Send(const std::shared_ptr<Exchange>& exchange);
  // None: nobody who is connected has the expert.
  std::optional<size_t> ChoosePeer(Exchange& exchange,
                                   const Placement& placement, CopyRun& run);

  // dispatch/fallback.cc: what happens to copies that nobody computes yet.
  bool IsBounded() const { return is_bounded_; }
  const FallbackPolicy& PolicyOf(const Exchange& exchange, uint32_t copy) const;
  uint64_t VersionOf(const Exchange& exchange, uint32_t copy,
                     size_t expert) const;
  // Before the plan is made: what is over the capacity factor.
  const RoutingDecision& ApplyCapacityFactor(Exchange& exchange,
                                             const RoutingDecision& decision);
  // After it: copies for other replicas get runs of their own.
  void SetApart(Exchange& exchange);
  void SetPriorities(const Exchange& exchange,
                     const std::vector<CopyRun>& runs);
  // The copies of `run` were not computed by `peer`, which had no room or is
  // lost.
  void FallBack(Exchange& exchange, const CopyRun& run, size_t peer,
                bool for_room, const Placement& placement, SteadyTime now);
  // No process has the expert of `run`. Whether anything has changed.
  bool FallBackWithoutReplica(Exchange& exchange, const CopyRun& run,
                              SteadyTime since, const Placement& placement,
                              SteadyTime now);
  // A copy that is to wait for the expert that the gate chose.
  CopyRun OwnRun(Exchange& exchange, uint32_t copy) const;
  // A copy whose policy is not exact gets the token's next best expert or is
  // dropped; false: neither, it is to wait.
  bool Replace(Exchange& exchange, const CopyRun& run, uint32_t copy,
               const Placement& placement, SteadyTime now);
  // The expert that computes a copy in place of `after`; -1: none.
  int32_t FindStandIn(const Exchange& exchange, uint32_t copy, size_t after,
                      const Placement& placement) const;
  // What of an answered part was computed, and what was refused.
  void Account(Exchange& exchange, const DispatchPart& part, SteadyTime now);
  void CountRefused(size_t layer, const CopyRun& run);
  // Weights of rows whose experts have changed; the list of fates.
  void Conclude(Exchange& exchange);

  // dispatch/hedging.cc: messages that are late.
  void HedgeLate(const std::shared_ptr<Exchange>& exchange, SteadyTime now);
  // Whether each run got another peer.
  bool Hedge(const std::shared_ptr<Exchange>& exchange, size_t index,
             SteadyTime now);
  // Settle, for a part that is a hedge.
  bool SettleHedge(Exchange& exchange, DispatchPart& hedge, SteadyTime now);
  // The hedges of `part` are not needed, or did not help.
  void DropHedges(Exchange& exchange, DispatchPart& part);
  // The hedges of `part`, which has failed, take its place; false: none.
  bool PromoteHedges(Exchange& exchange, DispatchPart& part, SteadyTime now);

  // primary: of a hedge, the index of what is late.
  void SendPart(const std::shared_ptr<Exchange>& exchange, size_t peer,
                const std::vector<CopyRun>& runs,
                size_t primary = static_cast<size_t>(-1));
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
  HopHistograms histograms_;
  RetryBudget retry_budget_;
  RetryBudget hedge_budget_;
  // Kept from layer to layer, so that nothing is allocated once they have
  // grown.
  std::vector<std::shared_ptr<Exchange>> exchanges_;
  std::vector<std::vector<CopyRun>> runs_of_peer_;  // [peers so far]
  std::vector<CopyRun> message_;

  // Of the step: see set_snapshots.
  std::vector<SnapshotPtr> snapshots_;  // different ones
  std::vector<uint32_t> snapshot_of_token_;
  std::vector<uint32_t> sequence_of_token_;
  std::vector<VersionMove> moves_;
  PackedBatch packed_;

  // Of the step: see set_policies.
  std::vector<FallbackPolicy> policies_;  // [num_rows], or empty
  bool is_bounded_ = false;               // some of them are not exact
  bool keeps_fates_ = false;
  std::vector<FatedCopy> fates_;
  // Kept, as above.
  CapacityResult capacity_;
  RoutingDecision capped_;
  std::vector<uint32_t> num_replicas_;
  std::vector<size_t> avoid_;
  // Copies for an expert that were decided since the last Send: not yet known
  // to the pool. [num_experts], or empty.
  std::vector<uint32_t> new_stand_ins_;
  uint64_t num_dispatches_ = 0;
  std::vector<std::vector<uint64_t>> refused_per_expert_;  // by layer
  std::vector<std::vector<uint64_t>> over_capacity_per_expert_;
};

}  // namespace troupe

#endif  // TROUPE_ROUTER_SERVICE_DISPATCH_TOKEN_DISPATCHER_H_
