// The gated MLP of experts: down(silu(gate(x)) * up(x)), grouped by expert.
#ifndef TROUPE_KERNELS_EXPERT_FFN_H_
#define TROUPE_KERNELS_EXPERT_FFN_H_

#include <cstdint>
#include <span>

#include "common/thread_pool.h"
#include "common/views.h"
#include "kernels/packed_matrix.h"
#include "kernels/workspace.h"

namespace troupe {

struct GatedMlpWeights {
  PackedMatrix gate_up;  // PackGateUp of [intermediate_size, hidden_size]
  PackedMatrix down;     // [hidden_size, intermediate_size]
};

// Grouped GEMM over the routed copies of one layer.
// hidden_states [num_tokens, hidden_size]
// row_of_copy   [num_copies]: the token of each copy, in [0, num_tokens)
// expert_offsets[num_experts + 1], half-open: copies expert_offsets[e] ..
//               expert_offsets[e+1] go to experts[e]; ascending, from 0 to
//               num_copies
// experts       [num_experts], not null
// output        [num_copies, hidden_size], in the order of the copies
// A copy's bits do not depend on the other copies, threads or instruction set.
void GroupedGatedMlp(ConstFloatMatrix hidden_states,
                     std::span<const uint32_t> row_of_copy,
                     std::span<const uint32_t> expert_offsets,
                     std::span<const GatedMlpWeights* const> experts,
                     FloatMatrix output, Workspace& workspace,
                     ThreadPool& pool);

// One MLP on all rows: dense layers and shared experts.
// input, output [num_rows, hidden_size]
void GatedMlp(ConstFloatMatrix input, const GatedMlpWeights& weights,
              FloatMatrix output, Workspace& workspace, ThreadPool& pool);

}  // namespace troupe

#endif  // TROUPE_KERNELS_EXPERT_FFN_H_
