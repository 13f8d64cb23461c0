// The packing of routed rows: pure functions of values.
#ifndef TROUPE_ROUTER_SERVICE_DISPATCH_DISPATCH_PLAN_H_
#define TROUPE_ROUTER_SERVICE_DISPATCH_DISPATCH_PLAN_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "cluster/expert_frame.h"
#include "common/clock.h"
#include "common/views.h"
#include "router_service/gating/capacity.h"
#include "router_service/gating/gating.h"

namespace troupe {

// The copies of a layer, sorted by expert, then by group, then by token (a
// counting sort). The tokens of a group have one snapshot of the model; mostly
// there is one group.
struct DispatchPlan {
  // [num_copies]: slot token * top_k + i of each copy.
  std::vector<uint32_t> slot_of_copy;
  // [num_experts * num_groups + 1], half-open: of expert e and group g at
  // e * num_groups + g.
  std::vector<uint32_t> expert_offsets;
  // [num_tokens * top_k]: the copy of each slot, -1 = not routed.
  std::vector<int32_t> copy_of_slot;
  std::vector<uint32_t> next_copy;  // scratch
};

// Fills `plan`, whose memory is used again. group_of_token [num_tokens], each
// below num_groups; empty: all are of group 0.
void MakeDispatchPlan(const RoutingDecision& decision, size_t num_experts,
                      DispatchPlan& plan,
                      std::span<const uint32_t> group_of_token = {},
                      size_t num_groups = 1);

// A run of copies of one version of one expert.
struct CopyRun {
  size_t expert = 0;
  uint32_t begin = 0;  // half-open, in the plan's copies
  uint32_t end = 0;
  uint64_t version = 0;  // its key; 0: whichever is there
  bool moved = false;    // it is not the one of the tokens' snapshot
  CopyFate fate = CopyFate::kFirstChoice;  // if they are computed
  // Over the capacity of the peer that gets the others of their expert.
  bool apart = false;
  // When its copies were refused for want of room for the first time.
  SteadyTime refused_at = kNoDeadline;
};

// One message: the runs' copies (ascending by expert and version) and the token
// of each row of its payload, so that each token that has a copy is sent once.
// Kept and filled again.
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
