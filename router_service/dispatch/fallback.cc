// TokenDispatcher: what happens to copies that the process which was asked
// first does not compute. docs/fallback.md.
#include <algorithm>
#include <limits>
#include <span>
#include <utility>

#include "common/check.h"
#include "router_service/dispatch/exchange.h"
#include "router_service/dispatch/token_dispatcher.h"

namespace troupe {
namespace {

void Count(size_t layer, size_t expert, uint64_t count, size_t num_experts,
           std::vector<std::vector<uint64_t>>& counts) {
  if (counts.size() <= layer) counts.resize(layer + 1);
  if (counts[layer].empty()) counts[layer].resize(num_experts);
  counts[layer][expert] += count;
}

absl::Span<const uint64_t> OfLayer(
    const std::vector<std::vector<uint64_t>>& counts, size_t layer) {
  if (layer >= counts.size()) return {};
  return counts[layer];
}

}  // namespace

void TokenDispatcher::set_policies(absl::Span<const PolicyRows> rows) {
  fates_.clear();
  policies_.clear();
  keeps_fates_ = !rows.empty();
  is_bounded_ = std::any_of(
      rows.begin(), rows.end(),
      [](const PolicyRows& range) { return !range.policy.is_exact(); });
  if (!is_bounded_) return;
  for (const PolicyRows& range : rows) {
    policies_.insert(policies_.end(), range.num_rows, range.policy);
  }
  new_stand_ins_.assign(options_.num_experts, 0);
}

absl::Span<const uint64_t> TokenDispatcher::refused_per_expert(
    size_t layer) const {
  return OfLayer(refused_per_expert_, layer);
}

absl::Span<const uint64_t> TokenDispatcher::over_capacity_per_expert(
    size_t layer) const {
  return OfLayer(over_capacity_per_expert_, layer);
}

const FallbackPolicy& TokenDispatcher::PolicyOf(const Exchange& exchange,
                                                uint32_t copy) const {
  return policies_[exchange.plan.slot_of_copy[copy] / exchange.top_k];
}

uint64_t TokenDispatcher::VersionOf(const Exchange& exchange, uint32_t copy,
                                    size_t expert) const {
  if (snapshots_.empty()) {
    return experts_.placement()->current()->key(exchange.layer, expert);
  }
  const size_t row = exchange.plan.slot_of_copy[copy] / exchange.top_k;
  return snapshots_[snapshot_of_token_[row]]->key(exchange.layer, expert);
}

const RoutingDecision& TokenDispatcher::ApplyCapacityFactor(
    Exchange& exchange, const RoutingDecision& decision) {
  CopyLedger& ledger = exchange.ledger;
  ledger.salt = ++num_dispatches_;
  capacity_.num_refused = 0;
  if (options_.capacity_factor <= 0.0) return decision;
  const size_t num_experts = options_.num_experts;
  const std::shared_ptr<const Placement> placement = experts_.placement();
  num_replicas_.resize(num_experts);
  for (size_t e = 0; e < num_experts; ++e) {
    num_replicas_[e] =
        static_cast<uint32_t>(placement->Replicas(exchange.layer, e).size());
  }
  CapacityRule rule;
  rule.capacity = ExpertCapacity(options_.capacity_factor, decision.num_tokens,
                                 decision.top_k, num_experts);
  rule.refuse = options_.refuse;
  rule.seed = options_.refuse_seed;
  rule.salt = ledger.salt;
  ApplyCapacity(decision, exchange.router_probs, policies_, num_replicas_, rule,
                capacity_);
  ledger.capacity = rule.capacity;
  ledger.load = capacity_.load;
  if (capacity_.num_refused == 0) return decision;
  stats_.copies_over_capacity += capacity_.num_refused;
  for (size_t e = 0; e < num_experts; ++e) {
    if (capacity_.refused_per_expert[e] == 0) continue;
    Count(exchange.layer, e, capacity_.refused_per_expert[e], num_experts,
          over_capacity_per_expert_);
  }
  ledger.experts = capacity_.experts;
  for (size_t slot = 0; slot < ledger.experts.size(); ++slot) {
    if (ledger.experts[slot] < 0) ledger.Set(slot, CopyFate::kDropped);
  }
  capped_.num_tokens = decision.num_tokens;
  capped_.top_k = decision.top_k;
  capped_.topk_idx = capacity_.experts;
  return capped_;
}

void TokenDispatcher::SetApart(Exchange& exchange) {
  if (capacity_.num_refused == 0) return;
  exchange.stranded.swap(exchange.homeless);
  exchange.homeless.clear();
  // Those for other replicas last: they need to know who gets the rest.
  for (const bool apart : {false, true}) {
    for (Exchange::Homeless homeless : exchange.stranded) {
      const CopyRun whole = homeless.run;
      for (uint32_t copy = whole.begin; copy < whole.end;) {
        const auto fate_of = [&](uint32_t c) {
          return capacity_.fates[exchange.plan.slot_of_copy[c]];
        };
        CopyRun& piece = homeless.run;
        piece.begin = copy;
        piece.fate = fate_of(copy);
        piece.apart = piece.fate == CopyFate::kReplica;
        while (copy < whole.end && fate_of(copy) == piece.fate) ++copy;
        piece.end = copy;
        if (piece.apart == apart) exchange.homeless.push_back(homeless);
      }
    }
  }
  exchange.stranded.clear();
  exchange.first_peer.assign(options_.num_experts,
                             std::numeric_limits<size_t>::max());
}

void TokenDispatcher::SetPriorities(const Exchange& exchange,
                                    const std::vector<CopyRun>& runs) {
  std::vector<uint32_t>& priorities = packed_.batch.priorities;
  bool all_kept = true;
  for (const CopyRun& run : runs) {
    for (uint32_t copy = run.begin; copy < run.end; ++copy) {
      if (PolicyOf(exchange, copy).is_exact()) {
        priorities.push_back(kKeptCopy);
        continue;
      }
      all_kept = false;
      const size_t row = exchange.plan.slot_of_copy[copy] / exchange.top_k;
      priorities.push_back(CopyPriority(
          options_.refuse, options_.refuse_seed, exchange.ledger.salt, row,
          run.expert, exchange.router_probs.row(row)[run.expert]));
    }
  }
  if (all_kept) priorities.clear();
}

void TokenDispatcher::FallBack(Exchange& exchange, const CopyRun& run,
                               size_t peer, bool for_room,
                               const Placement& placement, SteadyTime now) {
  std::vector<size_t>& avoid = exchange.avoid[run.expert];
  avoid.push_back(peer);
  const auto can_ask = [&](absl::Span<const size_t> but) {
    return experts_
        .Choose(placement, exchange.layer, run.expert, but, run.version)
        .has_value();
  };
  const bool others = can_ask(avoid);
  // At once to another replica; a moment later to the same one.
  const auto ask_again = [&](CopyRun again) {
    again.fate = std::max(again.fate,
                          others ? CopyFate::kReplica : CopyFate::kAfterWait);
    stats_.copies_resent += again.end - again.begin;
    exchange.homeless.push_back({again, others ? now : now + kRetryDelay, now});
  };
  if (!IsBounded()) {
    ask_again(run);
    return;
  }
  const bool can_wait = for_room && (others || can_ask({}));
  for (uint32_t copy = run.begin; copy < run.end;) {
    const FallbackPolicy& policy = PolicyOf(exchange, copy);
    CopyRun piece = run;
    piece.begin = copy;
    while (copy < run.end && PolicyOf(exchange, copy) == policy) ++copy;
    piece.end = copy;
    if (piece.refused_at == kNoDeadline) piece.refused_at = now;
    if (policy.is_exact() || (policy.replica && others) ||
        (policy.wait && can_wait &&
         now - piece.refused_at < options_.fallback_wait)) {
      ask_again(piece);
      continue;
    }
    for (uint32_t c = piece.begin; c < piece.end; ++c) {
      if (Replace(exchange, run, c, placement, now)) continue;
      stats_.copies_resent += 1;
      exchange.homeless.push_back(
          {OwnRun(exchange, c), now + kRetryDelay, now});
    }
  }
}

CopyRun TokenDispatcher::OwnRun(Exchange& exchange, uint32_t copy) const {
  const uint32_t slot = exchange.plan.slot_of_copy[copy];
  exchange.ledger.experts[slot] = exchange.ledger.own[slot];
  CopyRun run;
  run.expert = static_cast<size_t>(exchange.ledger.own[slot]);
  run.begin = copy;
  run.end = copy + 1;
  run.version = VersionOf(exchange, copy, run.expert);
  run.fate = CopyFate::kAfterWait;
  return run;
}

bool TokenDispatcher::FallBackWithoutReplica(Exchange& exchange,
                                             const CopyRun& run,
                                             SteadyTime since,
                                             const Placement& placement,
                                             SteadyTime now) {
  bool any_news = false;
  for (uint32_t copy = run.begin; copy < run.end;) {
    CopyRun piece = run;
    piece.begin = copy;
    while (copy < run.end && PolicyOf(exchange, copy).is_exact()) ++copy;
    piece.end = copy;
    if (piece.begin < piece.end) {
      exchange.homeless.push_back({piece, now, since});
      continue;
    }
    if (Replace(exchange, run, copy, placement, now)) {
      any_news = true;
    } else {
      exchange.homeless.push_back({OwnRun(exchange, copy), now, since});
    }
    ++copy;
  }
  return any_news;
}

bool TokenDispatcher::Replace(Exchange& exchange, const CopyRun& run,
                              uint32_t copy, const Placement& placement,
                              SteadyTime now) {
  const FallbackPolicy& policy = PolicyOf(exchange, copy);
  CopyLedger& ledger = exchange.ledger;
  const uint32_t slot = exchange.plan.slot_of_copy[copy];
  if (policy.next_best) {
    const int32_t expert = FindStandIn(exchange, copy, run.expert, placement);
    if (expert >= 0) {
      CopyRun stand_in;
      stand_in.expert = static_cast<size_t>(expert);
      stand_in.begin = copy;
      stand_in.end = copy + 1;
      stand_in.version = VersionOf(exchange, copy, stand_in.expert);
      stand_in.fate = CopyFate::kNextBest;
      ledger.experts[slot] = expert;
      if (ledger.capacity > 0) ++ledger.load[stand_in.expert];
      ++new_stand_ins_[stand_in.expert];
      stats_.copies_resent += 1;
      exchange.homeless.push_back({stand_in, now, now});
      return true;
    }
  }
  if (!policy.drop) return false;
  ledger.experts[slot] = -1;
  ledger.Set(slot, CopyFate::kDropped);
  exchange.plan.copy_of_slot[slot] = -1;
  return true;
}

int32_t TokenDispatcher::FindStandIn(const Exchange& exchange, uint32_t copy,
                                     size_t after,
                                     const Placement& placement) const {
  const CopyLedger& ledger = exchange.ledger;
  const size_t row = exchange.plan.slot_of_copy[copy] / exchange.top_k;
  return NextBest(
      std::span(exchange.router_probs.row(row), options_.num_experts),
      static_cast<int32_t>(after), ledger.RowOf(ledger.own, row),
      ledger.RowOf(ledger.experts, row), [&](size_t expert) {
        if (ledger.capacity > 0 && ledger.load[expert] >= ledger.capacity) {
          return false;
        }
        return experts_.Room(placement, exchange.layer, expert,
                             VersionOf(exchange, copy, expert)) >
               new_stand_ins_[expert];
      });
}

void TokenDispatcher::CountRefused(size_t layer, const CopyRun& run) {
  const uint64_t count = run.end - run.begin;
  stats_.copies_refused += count;
  Count(layer, run.expert, count, options_.num_experts, refused_per_expert_);
}

void TokenDispatcher::Account(Exchange& exchange, const DispatchPart& part,
                              SteadyTime now) {
  const std::vector<uint32_t>& refused = part.refused_copies;
  std::shared_ptr<const Placement> placement;
  if (!refused.empty()) placement = experts_.placement();
  auto next_refused = refused.begin();
  uint32_t at = 0;  // in the message
  for (const CopyRun& run : part.runs) {
    const CopyFate fate = std::max(
        run.fate, run.moved ? CopyFate::kOtherVersion : CopyFate::kFirstChoice);
    for (uint32_t copy = run.begin; copy < run.end;) {
      const bool is_refused =
          next_refused != refused.end() && *next_refused == at;
      CopyRun piece = run;
      piece.begin = copy;
      if (is_refused) {
        while (copy < run.end && next_refused != refused.end() &&
               *next_refused == at) {
          ++copy, ++at, ++next_refused;
        }
        piece.end = copy;
        CountRefused(exchange.layer, piece);
        FallBack(exchange, piece, part.peer, /*for_room=*/true, *placement,
                 now);
        continue;
      }
      const uint32_t num_left = run.end - copy;
      const uint32_t count = next_refused == refused.end()
                                 ? num_left
                                 : std::min(num_left, *next_refused - at);
      copy += count;
      at += count;
      stats_.copies_dispatched += count;
      if (run.moved) stats_.copies_moved_version += count;
      if (fate == CopyFate::kFirstChoice) continue;
      for (uint32_t c = piece.begin; c < copy; ++c) {
        exchange.ledger.Set(exchange.plan.slot_of_copy[c], fate);
      }
    }
  }
}

void TokenDispatcher::Conclude(Exchange& exchange) {
  const CopyLedger& ledger = exchange.ledger;
  if (ledger.fates.empty()) return;
  const size_t top_k = exchange.top_k;
  for (size_t row = 0; row < exchange.hidden.rows; ++row) {
    bool is_changed = false;
    for (size_t slot = row * top_k; slot < (row + 1) * top_k; ++slot) {
      const CopyFate fate = ledger.fates[slot];
      if (fate == CopyFate::kFirstChoice) continue;
      is_changed |= fate >= CopyFate::kNextBest;
      if (!keeps_fates_) continue;
      fates_.push_back(
          {row, exchange.layer, static_cast<size_t>(ledger.own[slot]),
           fate == CopyFate::kNextBest ? ledger.experts[slot] : -1, fate});
    }
    if (!is_changed) continue;
    Reweigh(std::span(exchange.router_probs.row(row), options_.num_experts),
            ledger.renormalized, ledger.RowOf(ledger.experts, row),
            std::span(exchange.topk_weights).subspan(row * top_k, top_k));
  }
}

}  // namespace troupe
