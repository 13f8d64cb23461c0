#include "router_service/dispatch/dispatch_plan.h"

#include <cstring>

#include "common/check.h"

namespace troupe {

DispatchPlan MakeDispatchPlan(const RoutingDecision& decision,
                              size_t num_experts) {
  DispatchPlan plan;
  plan.expert_offsets.assign(num_experts + 1, 0);
  for (const int32_t expert : decision.topk_idx) {
    if (expert < 0) continue;
    CHECK_LT(static_cast<size_t>(expert), num_experts);
    ++plan.expert_offsets[static_cast<size_t>(expert) + 1];
  }
  for (size_t e = 0; e < num_experts; ++e) {
    plan.expert_offsets[e + 1] += plan.expert_offsets[e];
  }
  plan.slot_of_copy.resize(plan.expert_offsets[num_experts]);
  plan.copy_of_slot.assign(decision.topk_idx.size(), -1);
  std::vector<uint32_t> next(plan.expert_offsets.begin(),
                             plan.expert_offsets.end() - 1);
  for (size_t slot = 0; slot < decision.topk_idx.size(); ++slot) {
    const int32_t expert = decision.topk_idx[slot];
    if (expert < 0) continue;
    const uint32_t copy = next[static_cast<size_t>(expert)]++;
    plan.slot_of_copy[copy] = static_cast<uint32_t>(slot);
    plan.copy_of_slot[slot] = static_cast<int32_t>(copy);
  }
  return plan;
}

v1::ExpertBatch PackBatch(size_t layer, ConstFloatMatrix hidden_states,
                          size_t top_k, const DispatchPlan& plan,
                          const std::vector<CopyRun>& runs) {
  v1::ExpertBatch batch;
  batch.set_layer(static_cast<uint32_t>(layer));
  int num_copies = 0;
  for (const CopyRun& run : runs) {
    batch.add_expert_ids(static_cast<uint32_t>(run.expert));
    batch.add_copies_per_expert(run.end - run.begin);
    num_copies += static_cast<int>(run.end - run.begin);
  }
  batch.mutable_row_of_copy()->Reserve(num_copies);
  std::vector<int32_t> row_of_token(hidden_states.rows, -1);
  std::vector<size_t> tokens;
  for (const CopyRun& run : runs) {
    for (uint32_t copy = run.begin; copy < run.end; ++copy) {
      const size_t token = plan.slot_of_copy[copy] / top_k;
      if (row_of_token[token] < 0) {
        row_of_token[token] = static_cast<int32_t>(tokens.size());
        tokens.push_back(token);
      }
      batch.add_row_of_copy(static_cast<uint32_t>(row_of_token[token]));
    }
  }
  batch.set_num_tokens(static_cast<uint32_t>(tokens.size()));
  const size_t row_bytes = hidden_states.cols * sizeof(float);
  std::string& bytes = *batch.mutable_hidden_states();
  bytes.resize(tokens.size() * row_bytes);
  for (size_t row = 0; row < tokens.size(); ++row) {
    std::memcpy(bytes.data() + row * row_bytes, hidden_states.row(tokens[row]),
                row_bytes);
  }
  return batch;
}

}  // namespace troupe
