// TokenDispatcher: copies whose process is late are sent elsewhere, too
// (docs/decisions/0012-failover-of-experts.md). Answers of replicas are the
// same bytes: whichever is there first is used.
#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "router_service/dispatch/exchange.h"
#include "router_service/dispatch/token_dispatcher.h"

namespace troupe {
namespace {

// Before it is tried again to send what is late elsewhere.
constexpr milliseconds kHedgeAgain(20);

}  // namespace

void TokenDispatcher::HedgeLate(const std::shared_ptr<Exchange>& exchange,
                                SteadyTime now) {
  const size_t num_parts = exchange->num_parts;  // hedges follow
  for (size_t i = 0; i < num_parts; ++i) {
    DispatchPart& part = *exchange->parts[i];
    if (part.settled || part.hedge_at > now) continue;
    if (!std::exchange(part.late, true)) {
      experts_.OnLate(part.peer, part.message);
    }
    part.hedge_at = Hedge(exchange, i, now) ? kNoDeadline : now + kHedgeAgain;
  }
}

bool TokenDispatcher::Hedge(const std::shared_ptr<Exchange>& exchange,
                            size_t index, SteadyTime now) {
  DispatchPart& part = *exchange->parts[index];
  const std::shared_ptr<const Placement> placement = experts_.placement();
  std::map<size_t, std::vector<CopyRun>> runs_of_peer;
  for (CopyRun run : part.runs) {
    std::vector<size_t> avoid = {part.peer};
    const auto failed = exchange->avoid.find(run.expert);
    if (failed != exchange->avoid.end()) {
      avoid.insert(avoid.end(), failed->second.begin(), failed->second.end());
    }
    const std::optional<size_t> peer = experts_.ChooseForHedge(
        *placement, exchange->layer, run.expert, avoid, run.version);
    if (!peer.has_value()) return false;
    run.fate = std::max(run.fate, CopyFate::kReplica);
    runs_of_peer[*peer].push_back(run);
  }
  if (!hedge_budget_.TryTake(now)) return false;
  for (const auto& [peer, runs] : runs_of_peer) {
    ++stats_.hedges;
    part.hedges.push_back(exchange->num_parts);
    SendPart(exchange, peer, runs, index);
  }
  return true;
}

bool TokenDispatcher::SettleHedge(Exchange& exchange, DispatchPart& hedge,
                                  SteadyTime now) {
  DispatchPart& primary = *exchange.parts[hedge.primary];
  bool all_answered = true;
  std::string why;
  {
    absl::MutexLock lock(&exchange.mu);
    if (!hedge.answered) {
      if (now - hedge.sent < options_.hop_timeout) return false;
      why = "a hedge was not answered";
    } else if (!hedge.wrong.empty() || !hedge.refused_copies.empty()) {
      why = "a hedge was refused or lost";
    }
    for (const size_t i : primary.hedges) {
      const DispatchPart& sibling = *exchange.parts[i];
      all_answered &= sibling.answered && sibling.wrong.empty() &&
                      sibling.refused_copies.empty();
    }
  }
  if (!why.empty()) {
    // It did not help. The peer's own parts and the pool judge it.
    DropHedges(exchange, primary);
    primary.hedge_at = now + kHedgeAgain;
    return true;
  }
  if (!all_answered) return false;
  {
    absl::MutexLock lock(&exchange.mu);
    primary.settled = true;
    for (const size_t i : primary.hedges) exchange.parts[i]->settled = true;
  }
  for (const size_t i : primary.hedges) {
    ++stats_.hedges_won;
    DispatchPart& part = *exchange.parts[i];
    exchange.slowest_compute_us =
        std::max(exchange.slowest_compute_us, part.compute_us);
    Account(exchange, part, now);
  }
  stats_.copies_resent += primary.num_copies;
  experts_.OnTrouble(
      primary.peer, Trouble::kHedgeWon,
      absl::StrCat("another replica answered first, ",
                   std::chrono::duration_cast<std::chrono::microseconds>(
                       now - primary.sent)
                       .count(),
                   " us after it was asked"));
  return true;
}

void TokenDispatcher::DropHedges(Exchange& exchange, DispatchPart& part) {
  if (part.hedges.empty()) return;
  absl::MutexLock lock(&exchange.mu);
  for (const size_t i : part.hedges) exchange.parts[i]->settled = true;
  part.hedges.clear();
}

bool TokenDispatcher::PromoteHedges(Exchange& exchange, DispatchPart& part,
                                    SteadyTime now) {
  if (part.hedges.empty()) return false;
  for (const CopyRun& run : part.runs) {
    exchange.avoid[run.expert].push_back(part.peer);
  }
  for (const size_t i : part.hedges) {
    DispatchPart& hedge = *exchange.parts[i];
    hedge.primary = kNoPart;
    hedge.hedge_at = now + experts_.HedgeDelay(hedge.peer, hedge.num_copies);
  }
  stats_.copies_resent += part.num_copies;
  part.hedges.clear();
  return true;
}

}  // namespace troupe
