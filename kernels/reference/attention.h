// Naive attention in double: all scores, one softmax, one weighted sum. Tests
// compare the kernels with it.
#ifndef TROUPE_KERNELS_REFERENCE_ATTENTION_H_
#define TROUPE_KERNELS_REFERENCE_ATTENTION_H_

#include <cstddef>
#include <span>

#include "common/views.h"

namespace troupe::reference {

// One row of one sequence. keys, values [num_positions, num_kv_heads *
// head_dim]: every position of the sequence so far, the row's own the last.
// query, output [num_heads * head_dim]. window 0: attends to all.
void AttentionRow(std::span<const float> query, ConstFloatMatrix keys,
                  ConstFloatMatrix values, size_t num_heads,
                  size_t num_kv_heads, float scale, size_t window,
                  std::span<float> output);

}  // namespace troupe::reference

#endif  // TROUPE_KERNELS_REFERENCE_ATTENTION_H_
