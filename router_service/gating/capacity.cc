#include "router_service/gating/capacity.h"

#include <cmath>
#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace troupe {
namespace {

// The finaliser of splitmix64.
uint64_t Mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

}  // namespace

absl::StatusOr<RefuseBy> ParseRefuseBy(absl::string_view text) {
  for (const RefuseBy by :
       {RefuseBy::kPosition, RefuseBy::kWeight, RefuseBy::kRandom}) {
    if (text == Name(by)) return by;
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "refuse: \"", text, "\" is none of position, weight, random"));
}

const char* Name(RefuseBy by) {
  switch (by) {
    case RefuseBy::kPosition:
      return "position";
    case RefuseBy::kWeight:
      return "weight";
    case RefuseBy::kRandom:
      return "random";
  }
  return "";
}

uint64_t ExpertCapacity(double factor, size_t num_tokens, size_t top_k,
                        size_t num_experts) {
  const double copies =
      static_cast<double>(num_tokens) * static_cast<double>(top_k);
  const double capacity =
      std::ceil(factor * copies / static_cast<double>(num_experts));
  // No expert gets more than all.
  if (!(capacity < static_cast<double>(num_tokens))) return num_tokens;
  return std::max<uint64_t>(1, static_cast<uint64_t>(capacity));
}

uint32_t CopyPriority(RefuseBy by, uint64_t seed, uint64_t salt, size_t row,
                      size_t expert, float probability) {
  constexpr uint32_t kHighest = kKeptCopy - 1;
  switch (by) {
    case RefuseBy::kPosition:
      return kHighest - static_cast<uint32_t>(std::min<size_t>(row, kHighest));
    case RefuseBy::kWeight: {
      // The bits of floats that are not negative are in their order.
      if (!(probability > 0.0f)) return 0;
      uint32_t bits = 0;
      std::memcpy(&bits, &probability, sizeof(bits));
      return bits;
    }
    case RefuseBy::kRandom:
      return std::min(
          kHighest, static_cast<uint32_t>(Mix(Mix(Mix(seed) ^ salt) ^
                                              (uint64_t{row} << 32 | expert)) >>
                                          32));
  }
  return 0;
}

void Reweigh(std::span<const float> probs, bool renormalize,
             std::span<const int32_t> experts, std::span<float> weights) {
  CHECK_EQ(experts.size(), weights.size());
  float sum = 1.0f;
  if (renormalize) {
    // From the most probable one on, as ChooseTopK adds them.
    sum = 0.0f;
    int32_t last = -1;
    for (size_t i = 0; i < experts.size(); ++i) {
      int32_t next = -1;
      for (const int32_t expert : experts) {
        if (expert < 0 || (last >= 0 && !IsBetter(probs.data(), last, expert)))
          continue;
        if (next < 0 || IsBetter(probs.data(), expert, next)) next = expert;
      }
      if (next < 0) break;
      sum += probs[static_cast<size_t>(next)];
      last = next;
    }
  }
  for (size_t i = 0; i < experts.size(); ++i) {
    if (experts[i] < 0) {
      weights[i] = 0.0f;
      continue;
    }
    const float weight = probs[static_cast<size_t>(experts[i])];
    weights[i] = renormalize ? weight / sum : weight;
  }
}

void ApplyCapacity(const RoutingDecision& decision,
                   ConstFloatMatrix router_probs,
                   std::span<const FallbackPolicy> policies,
                   std::span<const uint32_t> num_replicas,
                   const CapacityRule& rule, CapacityResult& result) {
  const size_t top_k = decision.top_k;
  const size_t num_slots = decision.topk_idx.size();
  const size_t num_experts = router_probs.cols;
  CHECK_EQ(policies.size(), decision.num_tokens);
  CHECK_EQ(router_probs.rows, decision.num_tokens);
  CHECK_EQ(num_replicas.size(), num_experts);
  const auto policy_of = [&](uint32_t slot) -> const FallbackPolicy& {
    return policies[slot / top_k];
  };

  result.experts = decision.topk_idx;
  result.fates.assign(num_slots, CopyFate::kFirstChoice);
  result.num_refused = 0;
  result.refused_per_expert.assign(num_experts, 0);
  result.load.assign(num_experts, 0);
  result.priorities.resize(num_slots);
  result.slots.clear();
  for (uint32_t slot = 0; slot < num_slots; ++slot) {
    const int32_t expert = decision.topk_idx[slot];
    if (expert < 0) continue;
    const size_t e = static_cast<size_t>(expert);
    if (policy_of(slot).is_exact()) {
      ++result.load[e];
      continue;
    }
    const size_t row = slot / top_k;
    result.priorities[slot] = CopyPriority(rule.refuse, rule.seed, rule.salt,
                                           row, e, router_probs.row(row)[e]);
    result.slots.push_back(slot);
  }
  // All experts at once: an expert's copies keep their order among them.
  std::sort(result.slots.begin(), result.slots.end(),
            [&result](uint32_t a, uint32_t b) {
              if (result.priorities[a] != result.priorities[b]) {
                return result.priorities[a] > result.priorities[b];
              }
              return a < b;
            });
  size_t num_refused = 0;
  for (const uint32_t slot : result.slots) {
    const size_t e = static_cast<size_t>(decision.topk_idx[slot]);
    if (result.load[e] < rule.capacity) {
      ++result.load[e];
    } else if (policy_of(slot).replica && num_replicas[e] > 1 &&
               result.load[e] < rule.capacity * num_replicas[e]) {
      ++result.load[e];
      result.fates[slot] = CopyFate::kReplica;
      ++result.num_refused;
      ++result.refused_per_expert[e];
    } else {
      result.slots[num_refused++] = slot;
    }
  }
  result.slots.resize(num_refused);
  for (const uint32_t slot : result.slots) {
    const size_t row = slot / top_k;
    const int32_t own = decision.topk_idx[slot];
    ++result.num_refused;
    ++result.refused_per_expert[static_cast<size_t>(own)];
    if (policy_of(slot).next_best) {
      const int32_t stand_in = NextBest(
          std::span(router_probs.row(row), num_experts), own,
          std::span(decision.topk_idx).subspan(row * top_k, top_k),
          std::span<const int32_t>(result.experts).subspan(row * top_k, top_k),
          [&](size_t e) { return result.load[e] < rule.capacity; });
      if (stand_in >= 0) {
        ++result.load[static_cast<size_t>(stand_in)];
        result.experts[slot] = stand_in;
        result.fates[slot] = CopyFate::kNextBest;
        continue;
      }
    }
    if (policy_of(slot).drop) {
      result.experts[slot] = -1;
      result.fates[slot] = CopyFate::kDropped;
    } else {
      ++result.load[static_cast<size_t>(own)];
    }
  }
}

}  // namespace troupe
