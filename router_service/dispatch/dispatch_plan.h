// The packing of routed rows: pure functions of values.
#ifndef TROUPE_ROUTER_SERVICE_DISPATCH_DISPATCH_PLAN_H_
#define TROUPE_ROUTER_SERVICE_DISPATCH_DISPATCH_PLAN_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cluster/expert_frame.h"
#include "common/views.h"
#include "router_service/gating/gating.h"

namespace troupe {

// The copies of a layer, sorted by expert, then by token (a counting sort).
struct DispatchPlan {
  // [num_copies]: slot token * top_k + i of each copy.
  std::vector<uint32_t> slot_of_copy;
  // [num_experts + 1], half-open.
  std::vector<uint32_t> expert_offsets;
  // [num_tokens * top_k]: the copy of each slot, -1 = not routed.
  std::vector<int32_t> copy_of_slot;
  std::vector<uint32_t> next_copy;  // scratch

  uint32_t num_copies(size_t expert) const {
    return expert_offsets[expert + 1] - expert_offsets[expert];
  }
};

// Fills `plan`, whose memory is used again.
void MakeDispatchPlan(const RoutingDecision& decision, size_t num_experts,
                      DispatchPlan& plan);

// A run of copies of one expert.
struct CopyRun {
  size_t expert = 0;
  uint32_t begin = 0;  // half-open, in the plan's copies
  uint32_t end = 0;
};

// One message: the runs' copies (ascending by expert, one run per expert) and
// the token of each row of its payload, so that each token that has a copy is
// sent once. Kept and filled again.
struct PackedBatch {
  ExpertBatch batch;
  std::vector<uint32_t> tokens;       // [batch.num_tokens]
  std::vector<int32_t> row_of_token;  // scratch

  size_t payload_bytes(size_t hidden_size) const {
    return tokens.size() * hidden_size * SizeOf(batch.dtype);
  }
};
void PackBatch(size_t layer, size_t num_tokens, size_t top_k,
               const DispatchPlan& plan, const std::vector<CopyRun>& runs,
               PackedBatch& packed);
// The payload: the tokens' rows of hidden_states, rounded to the batch's dtype.
void GatherRows(const PackedBatch& packed, ConstFloatMatrix hidden_states,
                char* to);

}  // namespace troupe

#endif  // TROUPE_ROUTER_SERVICE_DISPATCH_DISPATCH_PLAN_H_
