#include "router_service/gating/gating.h"

#include <algorithm>
#include <utility>

#include "common/check.h"

namespace troupe {

void ChooseTopK(ConstFloatMatrix router_probs, size_t top_k, bool renormalize,
                RoutingDecision& decision) {
  const size_t num_experts = router_probs.cols;
  CHECK(top_k >= 1 && top_k <= num_experts);
  decision.num_tokens = router_probs.rows;
  decision.top_k = top_k;
  decision.renormalized = renormalize;
  decision.topk_idx.resize(router_probs.rows * top_k);
  decision.topk_weights.resize(router_probs.rows * top_k);
  std::vector<int32_t> order(num_experts);
  for (size_t token = 0; token < router_probs.rows; ++token) {
    const float* probs = router_probs.row(token);
    for (size_t e = 0; e < num_experts; ++e) {
      order[e] = static_cast<int32_t>(e);
    }
    const auto better = [probs](int32_t x, int32_t y) {
      return IsBetter(probs, x, y);
    };
    std::partial_sort(order.begin(), order.begin() + top_k, order.end(),
                      better);
    float sum = 0.0f;
    for (size_t i = 0; i < top_k; ++i) sum += probs[order[i]];
    std::sort(order.begin(), order.begin() + top_k);
    for (size_t i = 0; i < top_k; ++i) {
      const float weight = probs[order[i]];
      decision.topk_idx[token * top_k + i] = order[i];
      decision.topk_weights[token * top_k + i] =
          renormalize ? weight / sum : weight;
    }
  }
}

}  // namespace troupe
