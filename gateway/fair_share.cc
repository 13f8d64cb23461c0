#include "gateway/fair_share.h"

#include <algorithm>

namespace troupe {
namespace {

uint64_t Above(uint64_t value, uint64_t bound) {
  return value > bound ? value - bound : 0;
}

}  // namespace

uint64_t WeightOf(uint32_t priority) {
  return uint64_t{1} << std::min(priority, kMaxPriority);
}

uint64_t KeptShare(uint64_t capacity) {
  return capacity < 2 ? 0 : std::max<uint64_t>(1, capacity / 8);
}

uint64_t FairShare(const ShareState& state) {
  const uint64_t weights =
      state.weight + state.other_weight + WeightOf(kDefaultPriority);
  return std::max<uint64_t>(1, state.capacity * state.weight / weights);
}

ShareAnswer AskShare(const ShareState& state, uint64_t cost) {
  const uint64_t after = state.used + cost;
  if (state.used > 0 && after > state.capacity) return ShareAnswer::kFull;
  if (after <= state.capacity - KeptShare(state.capacity) || state.held == 0 ||
      state.held + cost <= FairShare(state)) {
    return ShareAnswer::kEnter;
  }
  return ShareAnswer::kOverShare;
}

double StaysUntilEntry(const ShareState& state, uint64_t cost) {
  const uint64_t after = state.used + cost;
  const auto all = static_cast<double>(std::max<uint64_t>(state.used, 1));
  const bool within_share =
      state.held == 0 || state.held + cost <= FairShare(state);
  const uint64_t open = within_share
                            ? state.capacity
                            : state.capacity - KeptShare(state.capacity);
  // What is larger than all there is enters when all have left.
  double stays = std::min(1.0, static_cast<double>(Above(after, open)) / all);
  if (!within_share) {
    const uint64_t own = state.held + cost - FairShare(state);
    stays = std::min(
        stays, static_cast<double>(own) / static_cast<double>(state.held));
  }
  return stays;
}

}  // namespace troupe
