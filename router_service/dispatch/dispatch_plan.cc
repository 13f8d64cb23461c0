#include "router_service/dispatch/dispatch_plan.h"

#include "common/check.h"

namespace troupe {

void MakeDispatchPlan(const RoutingDecision& decision, size_t num_experts,
                      DispatchPlan& plan,
                      std::span<const uint32_t> group_of_token,
                      size_t num_groups) {
  CHECK(group_of_token.empty() || group_of_token.size() == decision.num_tokens);
  const auto bucket_of = [&](size_t slot) {
    const size_t group =
        group_of_token.empty() ? 0 : group_of_token[slot / decision.top_k];
    return static_cast<size_t>(decision.topk_idx[slot]) * num_groups + group;
  };
  const size_t num_buckets = num_experts * num_groups;
  plan.expert_offsets.assign(num_buckets + 1, 0);
  for (size_t slot = 0; slot < decision.topk_idx.size(); ++slot) {
    if (decision.topk_idx[slot] < 0) continue;
    CHECK_LT(static_cast<size_t>(decision.topk_idx[slot]), num_experts);
    ++plan.expert_offsets[bucket_of(slot) + 1];
  }
  for (size_t bucket = 0; bucket < num_buckets; ++bucket) {
    plan.expert_offsets[bucket + 1] += plan.expert_offsets[bucket];
  }
  plan.slot_of_copy.resize(plan.expert_offsets[num_buckets]);
  plan.copy_of_slot.assign(decision.topk_idx.size(), -1);
  plan.next_copy.assign(plan.expert_offsets.begin(),
                        plan.expert_offsets.end() - 1);
  for (size_t slot = 0; slot < decision.topk_idx.size(); ++slot) {
    if (decision.topk_idx[slot] < 0) continue;
    const uint32_t copy = plan.next_copy[bucket_of(slot)]++;
    plan.slot_of_copy[copy] = static_cast<uint32_t>(slot);
    plan.copy_of_slot[slot] = static_cast<int32_t>(copy);
  }
}

void PackBatch(size_t layer, size_t num_tokens, size_t top_k,
               const DispatchPlan& plan, const std::vector<CopyRun>& runs,
               PackedBatch& packed) {
  ExpertBatch& batch = packed.batch;
  batch.Clear();
  batch.layer = static_cast<uint32_t>(layer);
  packed.tokens.clear();
  packed.row_of_token.assign(num_tokens, -1);
  const CopyRun* previous = nullptr;
  for (const CopyRun& run : runs) {
    // What was refused comes in pieces; a message has each expert once.
    if (previous != nullptr && previous->expert == run.expert &&
        previous->version == run.version) {
      batch.copies_per_expert.back() += run.end - run.begin;
    } else {
      batch.expert_ids.push_back(static_cast<uint32_t>(run.expert));
      batch.copies_per_expert.push_back(run.end - run.begin);
      if (run.version != 0) batch.versions.push_back(run.version);
    }
    previous = &run;
    for (uint32_t copy = run.begin; copy < run.end; ++copy) {
      const size_t token = plan.slot_of_copy[copy] / top_k;
      if (packed.row_of_token[token] < 0) {
        packed.row_of_token[token] = static_cast<int32_t>(packed.tokens.size());
        packed.tokens.push_back(static_cast<uint32_t>(token));
      }
      batch.row_of_copy.push_back(
          static_cast<uint32_t>(packed.row_of_token[token]));
    }
  }
  batch.num_tokens = static_cast<uint32_t>(packed.tokens.size());
}

void GatherRows(const PackedBatch& packed, ConstFloatMatrix hidden_states,
                char* to) {
  const DataType dtype = packed.batch.dtype;
  const size_t row_bytes = hidden_states.cols * SizeOf(dtype);
  for (const uint32_t token : packed.tokens) {
    WriteElements(dtype, hidden_states.row(token), hidden_states.cols, to);
    to += row_bytes;
  }
}

}  // namespace troupe
