// Which experts compute a token, and with what weight.
#ifndef TROUPE_ROUTER_SERVICE_GATING_GATING_H_
#define TROUPE_ROUTER_SERVICE_GATING_GATING_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "common/views.h"

namespace troupe {

// The experts of each token of a layer. A plain value.
struct RoutingDecision {
  size_t num_tokens = 0;
  size_t top_k = 0;
  // [num_tokens, top_k], row-major, ascending by expert within a token;
  // -1 = not routed.
  std::vector<int32_t> topk_idx;
  std::vector<float> topk_weights;
  bool renormalized =
      false;  // the weights of a token were divided by their sum
};

// The order of a gate: the more probable expert, of equals the lower id. NaN
// comes last, so that a broken row cannot break the order.
inline bool IsBetter(const float* probs, int32_t a, int32_t b) {
  const bool a_nan = probs[a] != probs[a];
  const bool b_nan = probs[b] != probs[b];
  if (a_nan != b_nan) return b_nan;
  if (!a_nan && probs[a] != probs[b]) return probs[a] > probs[b];
  return a < b;
}

// The gate of Mixtral, Qwen2-MoE, Qwen3-MoE and OLMoE: softmax over all
// experts, the top_k most probable ones (the lower id wins a tie), their
// probabilities divided by their sum if `renormalize`.
// router_probs [num_tokens, num_experts]: after the softmax.
// `decision` is resized; it allocates only when it grows.
void ChooseTopK(ConstFloatMatrix router_probs, size_t top_k, bool renormalize,
                RoutingDecision& decision);

}  // namespace troupe

#endif  // TROUPE_ROUTER_SERVICE_GATING_GATING_H_
