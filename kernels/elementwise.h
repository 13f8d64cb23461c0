// Row-wise operations of a transformer layer. Every sum has one fixed order
// (16 interleaved partial sums, then a fixed tree), the same for every
// instruction set.
#ifndef TROUPE_KERNELS_ELEMENTWISE_H_
#define TROUPE_KERNELS_ELEMENTWISE_H_

#include <cstdint>
#include <span>

#include "common/stored_matrix.h"
#include "common/thread_pool.h"
#include "common/views.h"

namespace troupe {

// output[r] = weight * (input[r] / sqrt(mean(input[r]^2) + epsilon)).
// input, output [num_rows, size], weight [size]; may be in place.
void RmsNorm(ConstFloatMatrix input, const float* weight, float epsilon,
             FloatMatrix output, ThreadPool& pool);

// RMS norm of each head of each row on its own, in place.
// heads [num_rows, num_heads * head_dim], weight [head_dim]
void RmsNormPerHead(FloatMatrix heads, size_t num_heads, const float* weight,
                    float epsilon, ThreadPool& pool);

// Rotary embedding, rotate-half convention, in place:
// (a, b) = (x[i], x[i + d/2]) -> (a cos - b sin, b cos + a sin).
// heads [num_rows, num_heads * head_dim]; positions [num_rows];
// cosines, sines [max_position, head_dim / 2]
void ApplyRope(FloatMatrix heads, size_t num_heads,
               std::span<const int32_t> positions, ConstFloatMatrix cosines,
               ConstFloatMatrix sines, ThreadPool& pool);

// values = clamp(values, -limit, limit).
void Clamp(FloatMatrix values, float limit, ThreadPool& pool);

// output += addend, both [num_rows, size].
void AddInPlace(FloatMatrix output, ConstFloatMatrix addend, ThreadPool& pool);

// output[r] += sigmoid(gate[r]) * addend[r]; gate [num_rows].
void AddSigmoidGated(FloatMatrix output, std::span<const float> gate,
                     ConstFloatMatrix addend, ThreadPool& pool);

// Each row becomes softmax(row), in place.
void SoftmaxRows(FloatMatrix values, ThreadPool& pool);

// log(sum(exp(row))), computed as max + log(sum(exp(row - max))).
double LogSumExp(std::span<const float> row);

// Index of the largest element, the first of equals; NaN is never the largest.
// 0 when nothing is above -infinity.
size_t ArgMax(std::span<const float> row);

// The weighted sum of expert outputs, added to the residual:
// output[t] += sum over i of topk_weights[t][i] *
//              copies[copy_of_slot[t * top_k + i]]
// one fma chain from 0 in the order of the slots (ascending expert id), then
// one add. copy_of_slot -1: not routed, left out.
// copies [num_copies, size], output [num_tokens, size]
void CombineExperts(ConstFloatMatrix copies,
                    std::span<const int32_t> copy_of_slot,
                    ConstFloatMatrix topk_weights, FloatMatrix output,
                    ThreadPool& pool);

// output[r] = table[token_ids[r]] as float, exact in every format;
// table [vocab_size, size].
void EmbedTokens(std::span<const int32_t> token_ids, const StoredMatrix& table,
                 FloatMatrix output, ThreadPool& pool);

}  // namespace troupe

#endif  // TROUPE_KERNELS_ELEMENTWISE_H_
