// The capacity factor: how many copies an expert takes in one layer of one
// step, which of them are refused, and where those go. Pure functions of
// values; docs/fallback.md has the rule and its sources.
#ifndef TROUPE_ROUTER_SERVICE_GATING_CAPACITY_H_
#define TROUPE_ROUTER_SERVICE_GATING_CAPACITY_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "cluster/fallback_policy.h"
#include "common/views.h"
#include "router_service/gating/gating.h"

namespace troupe {

// Which copies of an expert are refused when it has not room for all.
enum class RefuseBy {
  kPosition,  // the rows that came last (GShard, Switch)
  kWeight,    // those with the lowest router probability
  kRandom,    // any, by a seed
};
absl::StatusOr<RefuseBy> ParseRefuseBy(absl::string_view text);
const char* Name(RefuseBy by);

// What became of a copy. Of several, the last one counts.
enum class CopyFate : uint8_t {
  kFirstChoice = 0,
  kReplica = 1,
  kAfterWait = 2,
  kOtherVersion = 3,
  kNextBest = 4,
  kDropped = 5,
};
inline constexpr size_t kNumCopyFates = 6;

// ceil(factor * num_tokens * top_k / num_experts), at least 1.
uint64_t ExpertCapacity(double factor, size_t num_tokens, size_t top_k,
                        size_t num_experts);

// What copies of rows with an exact policy have; others have less.
inline constexpr uint32_t kKeptCopy = 0xffffffffu;
// The priority of a copy among those of its expert; the lowest are refused, of
// equals the last. `salt` is a number of the layer and step.
uint32_t CopyPriority(RefuseBy by, uint64_t seed, uint64_t salt, size_t row,
                      size_t expert, float probability);

// The token's next expert by router score: the best of those that come after
// `after` in the order of ChooseTopK, that the token does not use (`used`: the
// experts of its copies, -1 for none) and that have room. -1: there is none.
// has_room(expert).
template <typename HasRoom>
int32_t NextBest(std::span<const float> probs, int32_t after,
                 std::span<const int32_t> used,
                 std::span<const int32_t> also_used, const HasRoom& has_room) {
  int32_t best = -1;
  for (size_t e = 0; e < probs.size(); ++e) {
    const int32_t expert = static_cast<int32_t>(e);
    const auto is = [expert](int32_t other) { return other == expert; };
    if (!IsBetter(probs.data(), after, expert) ||
        (best >= 0 && !IsBetter(probs.data(), expert, best)) ||
        std::any_of(used.begin(), used.end(), is) ||
        std::any_of(also_used.begin(), also_used.end(), is) || !has_room(e)) {
      continue;
    }
    best = expert;
  }
  return best;
}

// The weights of a row's copies by the family's rule, for the experts that
// compute them: experts, weights [top_k]; -1 = dropped, whose weight is 0.
void Reweigh(std::span<const float> probs, bool renormalize,
             std::span<const int32_t> experts, std::span<float> weights);

struct CapacityRule {
  uint64_t capacity = 0;  // copies per expert and replica
  RefuseBy refuse = RefuseBy::kPosition;
  uint64_t seed = 0;
  uint64_t salt = 0;
};
// What ApplyCapacity returns; kept and filled again. By slot
// [num_tokens * top_k].
struct CapacityResult {
  std::vector<int32_t> experts;  // -1: dropped
  std::vector<CopyFate> fates;
  uint64_t num_refused = 0;  // over the capacity, whatever became of them
  std::vector<uint32_t> refused_per_expert;  // [num_experts]

  // Scratch.
  std::vector<uint32_t> priorities, load, slots;
};
// Decides where the copies of a layer go. Copies of rows whose policy is exact
// go where the gate says, and take their expert's room before all others. Of
// the others the first `capacity` of an expert by priority stay, and as many
// for each replica but the first if their policy allows replicas. The rest, by
// descending priority: each goes to the token's next best expert that has
// room, else it is dropped, each if its policy allows it; else it stays where
// the gate says, over the capacity. Waiting is of no use: room does not come
// back within the layer.
//   policies [num_tokens]
//   num_replicas [num_experts]
void ApplyCapacity(const RoutingDecision& decision,
                   ConstFloatMatrix router_probs,
                   std::span<const FallbackPolicy> policies,
                   std::span<const uint32_t> num_replicas,
                   const CapacityRule& rule, CapacityResult& result);

}  // namespace troupe

#endif  // TROUPE_ROUTER_SERVICE_GATING_CAPACITY_H_
