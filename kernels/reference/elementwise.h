// Naive row-wise operations in double; tests compare the kernels with them.
// Shapes as in kernels/elementwise.h.
#ifndef TROUPE_KERNELS_REFERENCE_ELEMENTWISE_H_
#define TROUPE_KERNELS_REFERENCE_ELEMENTWISE_H_

#include <cstddef>
#include <cstdint>
#include <span>

#include "common/stored_matrix.h"
#include "common/views.h"

namespace troupe::reference {

void RmsNorm(ConstFloatMatrix input, const float* weight, float epsilon,
             FloatMatrix output);
void RmsNormPerHead(FloatMatrix heads, size_t num_heads, const float* weight,
                    float epsilon);
void ApplyRope(FloatMatrix heads, size_t num_heads,
               std::span<const int32_t> positions, ConstFloatMatrix cosines,
               ConstFloatMatrix sines);
void Clamp(FloatMatrix values, float limit);
void AddInPlace(FloatMatrix output, ConstFloatMatrix addend);
void AddSigmoidGated(FloatMatrix output, std::span<const float> gate,
                     ConstFloatMatrix addend);
void SoftmaxRows(FloatMatrix values);
double LogSumExp(std::span<const float> row);
void CombineExperts(ConstFloatMatrix copies,
                    std::span<const int32_t> copy_of_slot,
                    ConstFloatMatrix topk_weights, FloatMatrix output);
void EmbedTokens(std::span<const int32_t> token_ids, const StoredMatrix& table,
                 FloatMatrix output);

}  // namespace troupe::reference

#endif  // TROUPE_KERNELS_REFERENCE_ELEMENTWISE_H_
