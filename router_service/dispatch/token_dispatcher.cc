#include "router_service/dispatch/token_dispatcher.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/logging.h"
#include "kernels/elementwise.h"
#include "router_service/dispatch/exchange.h"

namespace troupe {
namespace {

// While copies wait for a replica, or for an answer that is late.
constexpr milliseconds kPoll(5);

}  // namespace

TokenDispatcher::TokenDispatcher(ExpertPool& experts,
                                 TokenDispatcherOptions options)
    : experts_(experts),
      options_(options),
      retry_budget_(options.retry_budget),
      hedge_budget_(options.hedge_budget) {}

DispatchStats TokenDispatcher::stats() const {
  DispatchStats stats = stats_;
  stats.retries_held_back = retry_budget_.num_exhausted();
  stats.hedges_held_back = hedge_budget_.num_exhausted();
  return stats;
}

// One that nobody holds any more: neither a handle, nor the callback of a
// batch that may still be answered.
std::shared_ptr<DispatchHandle::Exchange> TokenDispatcher::NewExchange() {
  for (const std::shared_ptr<Exchange>& exchange : exchanges_) {
    if (exchange.use_count() > 1) continue;
    // Behind the last callback.
    absl::MutexLock lock(&exchange->mu);
    exchange->homeless.clear();
    exchange->avoid.clear();
    exchange->slowest_compute_us = 0;
    exchange->num_parts = 0;
    exchange->first_peer.clear();
    return exchange;
  }
  exchanges_.push_back(std::make_shared<Exchange>());
  return exchanges_.back();
}

DispatchHandle TokenDispatcher::Dispatch(size_t layer,
                                         ConstFloatMatrix hidden_states,
                                         const RoutingDecision& decision,
                                         ConstFloatMatrix router_probs) {
  CHECK_EQ(hidden_states.rows, decision.num_tokens);
  CHECK_EQ(hidden_states.cols, options_.hidden_size);
  DispatchHandle handle;
  handle.exchange_ = NewExchange();
  Exchange& exchange = *handle.exchange_;
  exchange.layer = layer;
  exchange.top_k = decision.top_k;
  exchange.topk_weights = decision.topk_weights;
  exchange.hidden = hidden_states;
  exchange.ledger.Begin(decision, IsBounded());
  if (IsBounded()) {
    CHECK_EQ(policies_.size(), decision.num_tokens);
    CHECK_EQ(router_probs.rows, decision.num_tokens);
    exchange.router_probs = router_probs;
    AddRuns(ApplyCapacityFactor(exchange, decision), exchange);
    SetApart(exchange);
  } else {
    AddRuns(decision, exchange);
  }
  const size_t num_floats =
      exchange.plan.slot_of_copy.size() * options_.hidden_size;
  if (exchange.copies.size() < num_floats) exchange.copies.resize(num_floats);
  Send(handle.exchange_);
  return handle;
}

void TokenDispatcher::set_snapshots(std::vector<SnapshotRows> rows) {
  moves_.clear();
  snapshots_.clear();
  snapshot_of_token_.clear();
  sequence_of_token_.clear();
  for (size_t sequence = 0; sequence < rows.size(); ++sequence) {
    SnapshotRows& range = rows[sequence];
    const auto same = std::find_if(
        snapshots_.begin(), snapshots_.end(), [&](const SnapshotPtr& snapshot) {
          return snapshot->id() == range.snapshot->id();
        });
    const size_t index = static_cast<size_t>(same - snapshots_.begin());
    if (same == snapshots_.end()) {
      snapshots_.push_back(std::move(range.snapshot));
    }
    snapshot_of_token_.insert(snapshot_of_token_.end(), range.num_rows,
                              static_cast<uint32_t>(index));
    sequence_of_token_.insert(sequence_of_token_.end(), range.num_rows,
                              static_cast<uint32_t>(sequence));
  }
}

void TokenDispatcher::AddRuns(const RoutingDecision& decision,
                              Exchange& exchange) {
  const SteadyTime now = std::chrono::steady_clock::now();
  const SnapshotPtr current =
      snapshots_.empty() ? experts_.placement()->current() : nullptr;
  const absl::Span<const SnapshotPtr> snapshots =
      snapshots_.empty() ? absl::MakeConstSpan(&current, 1)
                         : absl::MakeConstSpan(snapshots_);
  MakeDispatchPlan(decision, options_.num_experts, exchange.plan,
                   snapshot_of_token_, snapshots.size());
  const std::vector<uint32_t>& offsets = exchange.plan.expert_offsets;
  for (size_t expert = 0; expert < options_.num_experts; ++expert) {
    for (size_t i = 0; i < snapshots.size(); ++i) {
      const size_t bucket = expert * snapshots.size() + i;
      if (offsets[bucket] == offsets[bucket + 1]) continue;
      const uint64_t version = snapshots[i]->key(exchange.layer, expert);
      // Snapshots mostly differ in few experts.
      if (!exchange.homeless.empty()) {
        CopyRun& last = exchange.homeless.back().run;
        if (last.expert == expert && last.version == version) {
          last.end = offsets[bucket + 1];
          continue;
        }
      }
      CopyRun run;
      run.expert = expert;
      run.begin = offsets[bucket];
      run.end = offsets[bucket + 1];
      run.version = version;
      exchange.homeless.push_back({run, now, now});
    }
  }
}

void TokenDispatcher::MoveIfGone(const Exchange& exchange,
                                 const Placement& placement, SteadyTime since,
                                 SteadyTime now, CopyRun& run) {
  const size_t layer = exchange.layer;
  const uint64_t current = placement.current()->key(layer, run.expert);
  if (run.version == 0) run.version = current;  // not known until now
  if (run.version == current ||
      !placement.Replicas(layer, run.expert, run.version).empty() ||
      placement.Replicas(layer, run.expert, current).empty()) {
    return;
  }
  if (placement.MayReturn(layer, run.expert, run.version) &&
      now - since < options_.version_grace) {
    return;
  }
  run.version = current;
  run.moved = true;
  for (uint32_t copy = run.begin; copy < run.end; ++copy) {
    if (sequence_of_token_.empty()) return;  // pinned to nothing
    const size_t sequence =
        sequence_of_token_[exchange.plan.slot_of_copy[copy] / exchange.top_k];
    if (moves_.empty() || moves_.back().sequence != sequence ||
        moves_.back().layer != layer || moves_.back().expert != run.expert) {
      moves_.push_back({sequence, layer, run.expert, current, 0});
    }
    ++moves_.back().num_copies;
  }
}

std::optional<size_t> TokenDispatcher::ChoosePeer(Exchange& exchange,
                                                  const Placement& placement,
                                                  CopyRun& run) {
  const uint64_t rows = run.end - run.begin;
  const auto avoid = exchange.avoid.find(run.expert);
  absl::Span<const size_t> avoided;
  if (avoid != exchange.avoid.end()) avoided = avoid->second;
  if (run.apart) {
    avoid_.assign(avoided.begin(), avoided.end());
    avoid_.push_back(exchange.first_peer[run.expert]);
    const std::optional<size_t> peer = experts_.Choose(
        placement, exchange.layer, run.expert, avoid_, run.version, rows);
    run.apart = false;
    if (peer.has_value()) return peer;
    run.fate = CopyFate::kFirstChoice;  // there is no other after all
  }
  std::optional<size_t> peer = experts_.Choose(
      placement, exchange.layer, run.expert, avoided, run.version, rows);
  if (!peer.has_value() && avoid != exchange.avoid.end()) {
    // Nobody else: those that refused or failed may be asked again.
    exchange.avoid.erase(avoid);
    peer = experts_.Choose(placement, exchange.layer, run.expert, {},
                           run.version, rows);
  }
  return peer;
}

bool TokenDispatcher::Send(const std::shared_ptr<Exchange>& exchange) {
  const SteadyTime now = std::chrono::steady_clock::now();
  const std::shared_ptr<const Placement> placement = experts_.placement();
  const uint32_t max_copies = static_cast<uint32_t>(std::max<size_t>(
      1, options_.max_output_bytes /
             (options_.hidden_size * SizeOf(options_.wire_dtype))));
  bool any_news = false;
  // Peers may have come; those of this placement are among them.
  runs_of_peer_.resize(experts_.size());
  for (std::vector<CopyRun>& runs : runs_of_peer_) runs.clear();
  exchange->stranded.clear();
  size_t num_left = 0;
  // The largest first: the small ones then fill up what is uneven.
  std::sort(exchange->homeless.begin(), exchange->homeless.end(),
            [](const Exchange::Homeless& a, const Exchange::Homeless& b) {
              const uint32_t rows_a = a.run.end - a.run.begin;
              const uint32_t rows_b = b.run.end - b.run.begin;
              // Those that are to be apart look where the others went.
              return std::tie(a.run.apart, rows_b, a.run.expert, a.run.begin) <
                     std::tie(b.run.apart, rows_a, b.run.expert, b.run.begin);
            });
  for (Exchange::Homeless& homeless : exchange->homeless) {
    if (homeless.not_before <= now) {
      CopyRun& run = homeless.run;
      MoveIfGone(*exchange, *placement, homeless.since, now, run);
      if (const auto peer = ChoosePeer(*exchange, *placement, run)) {
        if (!exchange->first_peer.empty()) {
          exchange->first_peer[run.expert] = *peer;
        }
        runs_of_peer_[*peer].push_back(run);
        any_news = true;
        continue;
      }
      run.fate = std::max(run.fate, CopyFate::kAfterWait);
      if (IsBounded()) {
        exchange->stranded.push_back(homeless);
        continue;
      }
    }
    exchange->homeless[num_left++] = homeless;
  }
  exchange->homeless.resize(num_left);
  // Nobody has their expert: the policy says what then.
  for (const Exchange::Homeless& stranded : exchange->stranded) {
    any_news |= FallBackWithoutReplica(*exchange, stranded.run, stranded.since,
                                       *placement, now);
  }

  for (size_t peer = 0; peer < runs_of_peer_.size(); ++peer) {
    std::vector<CopyRun>& runs = runs_of_peer_[peer];
    std::sort(runs.begin(), runs.end(), [](const CopyRun& a, const CopyRun& b) {
      return std::tie(a.expert, a.version, a.begin) <
             std::tie(b.expert, b.version, b.begin);
    });
    // Fill messages up to the bound; a run that does not fit is cut.
    message_.clear();
    uint32_t num_copies = 0;
    const auto flush = [&] {
      if (!message_.empty()) SendPart(exchange, peer, message_);
      message_.clear();
      num_copies = 0;
    };
    for (CopyRun run : runs) {
      while (run.begin < run.end) {
        const uint32_t take =
            std::min(run.end - run.begin, max_copies - num_copies);
        message_.push_back(run);
        message_.back().end = run.begin + take;
        num_copies += take;
        run.begin += take;
        if (num_copies == max_copies) flush();
      }
    }
    flush();
  }
  std::fill(new_stand_ins_.begin(), new_stand_ins_.end(), 0u);
  return any_news;
}

void TokenDispatcher::SendPart(const std::shared_ptr<Exchange>& exchange,
                               size_t peer, const std::vector<CopyRun>& runs,
                               size_t primary) {
  const SteadyTime now = std::chrono::steady_clock::now();
  PackBatch(exchange->layer, exchange->hidden.rows, exchange->top_k,
            exchange->plan, runs, packed_);
  packed_.batch.dtype = options_.wire_dtype;
  if (IsBounded()) SetPriorities(*exchange, runs);
  milliseconds timeout = options_.hop_timeout;
  if (deadline_ != kNoDeadline) {
    timeout = std::clamp(std::chrono::ceil<milliseconds>(deadline_ - now),
                         milliseconds(1), timeout);
  }
  packed_.batch.timeout_ms = static_cast<uint32_t>(timeout.count());
  if (exchange->num_parts == exchange->parts.size()) {
    exchange->parts.push_back(std::make_unique<Exchange::Part>());
  }
  Exchange::Part* part = exchange->parts[exchange->num_parts++].get();
  part->peer = peer;
  part->runs = runs;
  part->num_copies = packed_.batch.num_copies();
  part->sent = now;
  part->late = false;
  part->hedges.clear();
  part->primary = primary;
  part->hedge_at = kNoDeadline;
  if (primary == kNoPart) {
    if (options_.hedging) {
      part->hedge_at = now + experts_.HedgeDelay(peer, part->num_copies);
    }
    if (runs.front().fate == CopyFate::kFirstChoice) {
      ++stats_.messages;
      retry_budget_.OnFirstSend();
      hedge_budget_.OnFirstSend();
    }
  }
  {
    absl::MutexLock lock(&exchange->mu);
    part->settled = false;
    part->answered = false;
    part->refused = false;
    part->no_room = false;
    part->lost = false;
    part->refused_copies.clear();
    part->wrong.clear();
  }
  const size_t hidden_size = options_.hidden_size;
  const DataType dtype = options_.wire_dtype;
  // The callback holds the exchange: an answer may come when nobody waits.
  part->message = experts_.Send(
      peer, packed_.batch, packed_.payload_bytes(hidden_size),
      [&](char* to) { GatherRows(packed_, exchange->hidden, to); },
      [exchange, part, hidden_size,
       dtype](const absl::StatusOr<ExpertOutput>& output) {
        exchange->Take(*part, hidden_size, dtype, output);
      });
}

bool TokenDispatcher::Settle(Exchange& exchange, size_t index, SteadyTime now) {
  Exchange::Part& part = *exchange.parts[index];
  if (part.settled) return true;
  if (part.primary != kNoPart) return SettleHedge(exchange, part, now);
  std::string why;
  bool is_lost = false;
  {
    absl::MutexLock lock(&exchange.mu);
    if (part.answered) {
      why = std::move(part.wrong);
      is_lost = part.lost;
    } else if (now - part.sent >= options_.hop_timeout) {
      why =
          absl::StrCat("no answer after ", options_.hop_timeout.count(), " ms");
    } else {
      return false;
    }
    part.settled = true;
  }
  if (why.empty()) {
    DropHedges(exchange, part);
    exchange.slowest_compute_us =
        std::max(exchange.slowest_compute_us, part.compute_us);
    Account(exchange, part, now);
    return true;
  }
  spdlog::debug("layer {}: {}: {}", exchange.layer, experts_.address(part.peer),
                why);
  if (!part.answered || !(is_lost || part.refused)) {
    experts_.OnTrouble(
        part.peer, part.answered ? Trouble::kWrongAnswer : Trouble::kTimeout,
        why);
  }
  if (PromoteHedges(exchange, part, now)) return true;
  const std::shared_ptr<const Placement> placement = experts_.placement();
  const size_t first = exchange.homeless.size();
  for (const CopyRun& run : part.runs) {
    if (part.refused) CountRefused(exchange.layer, run);
    FallBack(exchange, run, part.peer, part.no_room, *placement, now);
  }
  if (part.refused) return true;
  // A failure costs the peers, too: what is sent again for it is bounded.
  ++stats_.retries;
  const SteadyTime retry_at = retry_budget_.Reserve(now);
  for (size_t i = first; i < exchange.homeless.size(); ++i) {
    SteadyTime& not_before = exchange.homeless[i].not_before;
    not_before = std::max(not_before, retry_at);
  }
  return true;
}

std::string TokenDispatcher::WaitsFor(const Exchange& exchange) const {
  if (!exchange.homeless.empty()) {
    return absl::StrCat("expert ", exchange.homeless.front().run.expert,
                        " of layer ", exchange.layer,
                        " has no replica that takes its rows");
  }
  for (size_t i = 0; i < exchange.num_parts; ++i) {
    const Exchange::Part& part = *exchange.parts[i];
    if (part.settled) continue;
    return absl::StrCat("expert ", part.runs.front().expert, " of layer ",
                        exchange.layer, " at ", experts_.address(part.peer),
                        " has not answered");
  }
  return "";
}

void TokenDispatcher::Wait(const Exchange& exchange, uint32_t seen,
                           SteadyTime check_at, SteadyTime now) {
  SteadyTime until = std::max(check_at, now + kPoll);
  if (!exchange.homeless.empty()) until = now + kPoll;
  for (size_t i = 0; i < exchange.num_parts; ++i) {
    const Exchange::Part& part = *exchange.parts[i];
    if (part.settled) continue;
    until = std::min({until, part.sent + options_.hop_timeout, part.hedge_at});
  }
  experts_.bell().Wait(seen, until);
}

absl::Status TokenDispatcher::Combine(DispatchHandle handle, const Check& check,
                                      FloatMatrix output, ThreadPool& pool) {
  CHECK(handle.exchange_ != nullptr);
  Exchange& exchange = *handle.exchange_;
  const SteadyTime start = std::chrono::steady_clock::now();
  SteadyTime now = start;
  absl::Status status;
  while (true) {
    // Whatever is published after this rings the bell again.
    const uint32_t seen = experts_.bell().Current();
    experts_.Poll();
    size_t in_flight = 0;
    for (size_t i = 0; i < exchange.num_parts; ++i) {
      if (!Settle(exchange, i, now)) ++in_flight;
    }
    if (options_.hedging && in_flight > 0) HedgeLate(handle.exchange_, now);
    if (!exchange.homeless.empty()) {
      if (Send(handle.exchange_)) continue;
    } else if (in_flight == 0) {
      break;
    }
    const SteadyTime check_at = start + options_.check_after;
    Wait(exchange, seen, check_at, now);
    now = std::chrono::steady_clock::now();
    if (now < check_at) continue;
    status = check(exchange.homeless.empty() ? WaitingFor::kOutput
                                             : WaitingFor::kReplica);
    if (!status.ok()) {
      const std::string waits_for = WaitsFor(exchange);
      status = absl::Status(status.code(),
                            absl::StrCat(status.message(), waits_for));
      break;
    }
  }
  const double waited =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start)
          .count();
  stats_.wait_seconds += waited;
  if (!status.ok()) {
    // What is still to come is for nobody.
    absl::MutexLock lock(&exchange.mu);
    for (size_t i = 0; i < exchange.num_parts; ++i) {
      exchange.parts[i]->settled = true;
    }
    return status;
  }
  if (exchange.num_parts > 0) {
    ++stats_.hops;
    const double hop =
        std::max(0.0, waited - 1e-6 * exchange.slowest_compute_us);
    stats_.hop_seconds += hop;
    histograms_.wait_seconds.Observe(waited);
    histograms_.hop_seconds.Observe(hop);
  }
  Conclude(exchange);
  CombineExperts(
      ConstFloatMatrix(exchange.copies.data(),
                       exchange.plan.slot_of_copy.size(), options_.hidden_size),
      exchange.plan.copy_of_slot,
      ConstFloatMatrix(exchange.topk_weights.data(), exchange.hidden.rows,
                       exchange.top_k),
      output, pool);
  return absl::OkStatus();
}

}  // namespace troupe
