// The inner loops of the GEMM: one set for each weight format and instruction
// set. What is above them, the cutting into tasks, knows steps and panels only.
#ifndef TROUPE_KERNELS_CPU_GEMM_KERNELS_H_
#define TROUPE_KERNELS_CPU_GEMM_KERNELS_H_

#include <cstddef>
#include <cstdint>

#include "common/stored_matrix.h"
#include "common/thread_pool.h"
#include "common/views.h"
#include "kernels/cpu/row_blocks.h"
#include "kernels/packed_matrix.h"
#include "kernels/workspace.h"

namespace troupe {

// A block of rows times a few panels, over a range of steps along k.
struct TileArgs {
  const uint32_t* x;   // packed rows of the block, at the first step
  const uint8_t* w;    // the first panel, at the first step
  size_t panel_bytes;  // from one panel to the next
  size_t num_panels;
  size_t num_steps;
  float* c;  // [rows of the block, num_panels * 32]
  size_t c_stride;
  bool resume;  // c holds the sums of the steps before, else it is undefined
  // Memory to prefetch evenly on the way: while panel p is read, `ahead_bytes`
  // at `ahead` + p * panel_bytes. It need not be mapped.
  const uint8_t* ahead;
  size_t ahead_bytes;
};
using TileFunction = void (*)(const TileArgs& args);

inline constexpr size_t kMaxBlockRows = 16;

struct GemmKernels {
  size_t k_per_step;      // 1 for floats, else the group size
  size_t words_per_step;  // 32-bit words of a packed row
  size_t max_rows;        // of a block, at most kMaxBlockRows
  // Whether a tile of that many rows reads its panels once, not in parts.
  size_t max_rows_of_one_pass;
  // Packs `num_k` numbers, a multiple of k_per_step, of `num_rows` rows.
  void (*pack_rows)(const float* const* rows, size_t num_rows, size_t num_k,
                    uint32_t* packed);
  const TileFunction* tiles;  // [r - 1]: for r rows
  // [r - 1]: how many panels a tile of r rows reads side by side, at most.
  const size_t* side_by_side;

  PackedRowsLayout Layout(size_t num_rows, size_t k) const;
};

// Of the chosen instruction set.
const GemmKernels& FloatKernels(DataType dtype);
const GemmKernels& QuantizedKernels(WeightFormat format, size_t group_size);
inline const GemmKernels& KernelsFor(const PackedMatrix& matrix) {
  return IsQuantized(matrix.format())
             ? QuantizedKernels(matrix.format(), matrix.group_size())
             : FloatKernels(static_cast<DataType>(matrix.format()));
}

// The path of the dot-product instructions (AVX-512 VNNI) with these emulated,
// for tests on processors without them. x86-64 only needs it; elsewhere it is
// the path of QuantizedKernels.
const GemmKernels& EmulatedDotKernels(WeightFormat format, size_t group_size);

// Packs row block b. row(r) points to the numbers of row r.
template <typename Row>
void PackRowBlock(const GemmKernels& kernels, const Row& row,
                  const PackedRowsLayout& layout, size_t b, uint32_t* packed) {
  const float* rows[kMaxBlockRows];
  const size_t num_rows = layout.rows().size(b);
  for (size_t r = 0; r < num_rows; ++r) {
    rows[r] = row(layout.rows().begin(b) + r);
  }
  for (size_t step = 0; step < layout.num_steps();
       step += layout.steps_per_block()) {
    const size_t num_k = layout.block_steps(step) * kernels.k_per_step;
    kernels.pack_rows(rows, num_rows, num_k, packed + layout.Offset(b, step));
    for (size_t r = 0; r < num_rows; ++r) rows[r] += num_k;
  }
}

// Row blocks [first_block, last_block) times panels [first_panel,
// first_panel + num_panels). c [rows of these blocks, num_panels * 32] takes
// the outputs past n too. A part of a panel goes from memory to cache once, for
// all rows, while the next is fetched; `next` is what will be read after the
// last panel, or null.
void MultiplyPanels(const GemmKernels& kernels, const uint32_t* packed_rows,
                    const PackedRowsLayout& layout, size_t first_block,
                    size_t last_block, const PackedMatrix& weights,
                    size_t first_panel, size_t num_panels, float* c,
                    size_t c_stride, const uint8_t* next);

// As MultiplyPanels, into the columns of `output` (all rows of the layout)
// that these panels compute, plus `bias` unless null. `scratch` [rows of these
// blocks, 32] is for a last panel that is not full.
void MultiplyInto(const GemmKernels& kernels, const uint32_t* packed_rows,
                  const PackedRowsLayout& layout, size_t first_block,
                  size_t last_block, const PackedMatrix& weights,
                  size_t first_panel, size_t num_panels, const float* bias,
                  FloatMatrix output, float* scratch, const uint8_t* next);

// Gemm with `kernels`, which must fit the format of the weights.
void GemmWith(const GemmKernels& kernels, ConstFloatMatrix input,
              const PackedMatrix& weights, const float* bias,
              FloatMatrix output, Workspace& workspace, ThreadPool& pool);

}  // namespace troupe

#endif  // TROUPE_KERNELS_CPU_GEMM_KERNELS_H_
