#include "router_service/copy_accounts.h"

#include <algorithm>

namespace troupe {
namespace {

using Setter = void (v1::CopyUsage::*)(uint64_t);
using Getter = uint64_t (v1::CopyUsage::*)() const;

void Increment(v1::CopyUsage& usage, Getter get, Setter set) {
  (usage.*set)((usage.*get)() + 1);
}

// From first choice, as which every copy is counted at first, to its fate.
void Move(CopyFate fate, v1::CopyUsage& usage) {
  using Usage = v1::CopyUsage;
  usage.set_first_choice(usage.first_choice() - 1);
  switch (fate) {
    case CopyFate::kFirstChoice:
      return Increment(usage, &Usage::first_choice, &Usage::set_first_choice);
    case CopyFate::kReplica:
      return Increment(usage, &Usage::by_replica, &Usage::set_by_replica);
    case CopyFate::kAfterWait:
      return Increment(usage, &Usage::after_wait, &Usage::set_after_wait);
    case CopyFate::kOtherVersion:
      return Increment(usage, &Usage::other_version, &Usage::set_other_version);
    case CopyFate::kNextBest:
      return Increment(usage, &Usage::next_best, &Usage::set_next_best);
    case CopyFate::kDropped:
      return Increment(usage, &Usage::dropped, &Usage::set_dropped);
  }
}

void AddFirstChoices(uint64_t tokens, uint64_t copies, v1::CopyUsage& usage) {
  usage.set_computed_tokens(usage.computed_tokens() + tokens);
  usage.set_first_choice(usage.first_choice() + copies);
}

uint64_t CopiesPerToken(const ModelConfig& config) {
  if (config.num_experts == 0) return 0;
  return config.top_k *
         static_cast<uint64_t>(std::count(config.is_moe_layer.begin(),
                                          config.is_moe_layer.end(), true));
}

void Assign(const std::vector<uint64_t>& counts,
            google::protobuf::RepeatedField<uint64_t>* list) {
  list->Assign(counts.begin(), counts.end());
}

}  // namespace

CopyAccounts::CopyAccounts(const ModelConfig& config)
    : num_experts_(config.num_experts),
      copies_per_token_(CopiesPerToken(config)),
      by_expert_(config.num_layers) {}

void CopyAccounts::Add(const std::vector<Chunk>& chunks,
                       const TokenDispatcher* dispatcher,
                       v1::RouterStats& totals) {
  v1::CopyUsage& all = *totals.mutable_copies();
  std::vector<size_t> ends;  // of the chunks' rows; only if they are needed
  const bool any_fates = dispatcher != nullptr && !dispatcher->fates().empty();
  for (const Chunk& chunk : chunks) {
    const uint64_t copies = chunk.num_tokens * copies_per_token_;
    AddFirstChoices(chunk.num_tokens, copies, chunk.sequence->copies);
    AddFirstChoices(chunk.num_tokens, copies, all);
    if (any_fates) {
      ends.push_back((ends.empty() ? 0 : ends.back()) + chunk.num_tokens);
    }
  }
  if (!any_fates) return;
  for (const FatedCopy& copy : dispatcher->fates()) {
    const size_t chunk = static_cast<size_t>(
        std::upper_bound(ends.begin(), ends.end(), copy.row) - ends.begin());
    Sequence& sequence = *chunks[chunk].sequence;
    Move(copy.fate, sequence.copies);
    Move(copy.fate, all);
    if (copy.fate >= CopyFate::kNextBest) sequence.prefix.publishes = false;
    Count(copy);
  }
  totals.set_copies_dropped(all.dropped());
  has_news_ = true;
}

void CopyAccounts::Count(const FatedCopy& copy) {
  OfLayer& layer = by_expert_[copy.layer];
  std::vector<uint64_t>& fated = layer.by_fate[static_cast<size_t>(copy.fate)];
  fated.resize(num_experts_);
  ++fated[copy.expert];
  if (copy.stand_in < 0) return;
  layer.stand_ins.resize(num_experts_);
  ++layer.stand_ins[static_cast<size_t>(copy.stand_in)];
}

bool CopyAccounts::TakeNews(const TokenDispatcher* dispatcher) {
  if (dispatcher != nullptr) {
    const DispatchStats stats = dispatcher->stats();
    const uint64_t num_refused =
        stats.copies_refused + stats.copies_over_capacity;
    if (num_refused != num_refused_) {
      num_refused_ = num_refused;
      has_news_ = true;
      for (size_t i = 0; i < by_expert_.size(); ++i) {
        const auto refused = dispatcher->refused_per_expert(i);
        by_expert_[i].refused.assign(refused.begin(), refused.end());
        const auto over = dispatcher->over_capacity_per_expert(i);
        by_expert_[i].over_capacity.assign(over.begin(), over.end());
      }
    }
  }
  const bool news = has_news_;
  has_news_ = false;
  return news;
}

void CopyAccounts::Fill(const ByExpert& by_expert, v1::LayerLoad& load) {
  if (load.layer() >= by_expert.size()) return;  // nothing was counted yet
  const OfLayer& layer = by_expert[load.layer()];
  const auto fated = [&layer](CopyFate fate) -> const std::vector<uint64_t>& {
    return layer.by_fate[static_cast<size_t>(fate)];
  };
  Assign(fated(CopyFate::kReplica), load.mutable_by_replica_per_expert());
  Assign(fated(CopyFate::kAfterWait), load.mutable_after_wait_per_expert());
  Assign(fated(CopyFate::kOtherVersion),
         load.mutable_other_version_per_expert());
  Assign(fated(CopyFate::kNextBest), load.mutable_next_best_per_expert());
  Assign(fated(CopyFate::kDropped), load.mutable_dropped_per_expert());
  Assign(layer.stand_ins, load.mutable_stand_in_per_expert());
  Assign(layer.refused, load.mutable_refused_per_expert());
  Assign(layer.over_capacity, load.mutable_over_capacity_per_expert());
}

}  // namespace troupe
