#include "cluster/collapse_detector.h"

#include <algorithm>
#include <numeric>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace troupe {

CollapseDetector::CollapseDetector(CollapseOptions options, size_t num_layers,
                                   size_t top_k)
    : options_(options), top_k_(top_k), layers_(num_layers) {}

std::string CollapseDetector::Look(
    size_t layer, absl::Span<const double> recent_tokens_per_expert,
    SteadyTime now) {
  Layer& state = layers_[layer];
  const absl::Span<const double> tokens = recent_tokens_per_expert;
  const double total = std::accumulate(tokens.begin(), tokens.end(), 0.0);
  // Where a token goes to all experts, few of them cannot be too many.
  if (top_k_ == 0 || top_k_ >= tokens.size() || total < options_.min_copies) {
    state.collapsed = false;
    return "";
  }
  std::vector<size_t> order(tokens.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::partial_sort(
      order.begin(), order.begin() + static_cast<ptrdiff_t>(top_k_),
      order.end(), [&](size_t a, size_t b) {
        return tokens[a] != tokens[b] ? tokens[a] > tokens[b] : a < b;
      });
  order.resize(top_k_);
  double hot = 0;
  for (const size_t expert : order) hot += tokens[expert];
  state.share = hot / total;
  state.hottest = std::move(order);
  const double bound =
      state.collapsed ? options_.share - options_.margin : options_.share;
  if (state.share <= bound) {
    state.collapsed = false;
    return "";
  }
  if (!state.collapsed) {
    state.collapsed = true;
    state.since = now;
    ++num_collapses_;
  }
  if (now < state.next_warning) return "";
  state.next_warning = now + options_.warn_every;
  return absl::StrFormat(
      "routing has collapsed: %.0f%% of the copies of layer %d go to %d of %d "
      "experts (%s; bound %.0f%%)",
      100 * state.share, layer, top_k_, tokens.size(),
      absl::StrJoin(state.hottest, ", "), 100 * options_.share);
}

std::vector<v1::RoutingCollapse> CollapseDetector::Collapsed(
    SteadyTime now) const {
  std::vector<v1::RoutingCollapse> collapsed;
  for (size_t layer = 0; layer < layers_.size(); ++layer) {
    const Layer& state = layers_[layer];
    if (!state.collapsed) continue;
    v1::RoutingCollapse entry;
    entry.set_layer(static_cast<uint32_t>(layer));
    for (const size_t expert : state.hottest) {
      entry.add_experts(static_cast<uint32_t>(expert));
    }
    entry.set_share(state.share);
    entry.set_for_seconds(
        std::chrono::duration<double>(now - state.since).count());
    collapsed.push_back(std::move(entry));
  }
  return collapsed;
}

}  // namespace troupe
