// output = input x weights^T (+ bias).
#ifndef TROUPE_KERNELS_GEMM_H_
#define TROUPE_KERNELS_GEMM_H_

#include "common/thread_pool.h"
#include "common/views.h"
#include "kernels/packed_matrix.h"
#include "kernels/workspace.h"

namespace troupe {

// input [num_rows, k], weights [n, k] packed, bias [n] or null,
// output [num_rows, n]. float accumulation: out[r][c] is one chain
// acc = fma(input[r][i], w[c][i], acc) for i = 0 .. k-1 from acc = 0, then
// + bias[c]; the same bits for any num_rows, threads and instruction set.
// output must not overlap input. num_rows may be 0.
void Gemm(ConstFloatMatrix input, const PackedMatrix& weights,
          const float* bias, FloatMatrix output, Workspace& workspace,
          ThreadPool& pool);

}  // namespace troupe

#endif  // TROUPE_KERNELS_GEMM_H_
