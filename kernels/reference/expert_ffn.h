// Naive gated MLP in double; tests compare the kernels with it.
#ifndef TROUPE_KERNELS_REFERENCE_EXPERT_FFN_H_
#define TROUPE_KERNELS_REFERENCE_EXPERT_FFN_H_

#include <cstdint>
#include <span>

#include "common/views.h"

namespace troupe::reference {

struct GatedMlpWeights {
  ConstFloatMatrix gate;  // [intermediate_size, hidden_size]
  ConstFloatMatrix up;    // [intermediate_size, hidden_size]
  ConstFloatMatrix down;  // [hidden_size, intermediate_size]
};

// output = down(silu(gate(x)) * up(x)); input, output [num_rows, hidden_size]
void GatedMlp(ConstFloatMatrix input, const GatedMlpWeights& weights,
              FloatMatrix output);

// As troupe::GroupedGatedMlp.
void GroupedGatedMlp(ConstFloatMatrix hidden_states,
                     std::span<const uint32_t> row_of_copy,
                     std::span<const uint32_t> expert_offsets,
                     std::span<const GatedMlpWeights> experts,
                     FloatMatrix output);

}  // namespace troupe::reference

#endif  // TROUPE_KERNELS_REFERENCE_EXPERT_FFN_H_
