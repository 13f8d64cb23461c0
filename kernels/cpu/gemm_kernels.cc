#include "kernels/cpu/gemm_kernels.h"

#include <algorithm>

namespace troupe {
namespace {

// Inputs of a k block: what a tile reads of one row block and of a panel, and
// the part of the next panel that is fetched meanwhile, stay in the first two
// levels of cache.
constexpr size_t kBlockK = 256;

// How far ahead of the weights being read the memory is asked for, where a tile
// reads them once.
constexpr size_t kAheadBytes = 4096;

}  // namespace

PackedRowsLayout GemmKernels::Layout(size_t num_rows, size_t k) const {
  return PackedRowsLayout(num_rows, max_rows, k / k_per_step, words_per_step,
                          kBlockK / k_per_step);
}

namespace {

// One block of rows whose tile reads a panel in one pass: bound by memory, it
// streams, several panels side by side. Weights are fetched at a distance; the
// end of the last panels fetches the beginning of what comes next.
void StreamPanels(const GemmKernels& kernels, const uint32_t* packed_rows,
                  size_t num_rows, const PackedMatrix& weights,
                  size_t first_panel, size_t num_panels, float* c,
                  size_t c_stride, const uint8_t* next) {
  const size_t step_bytes = weights.step_bytes();
  const size_t num_steps = weights.k() / weights.k_per_step();
  const size_t last_panels =
      std::min(num_panels, kernels.side_by_side[num_rows - 1]);
  const size_t last_steps =
      next == nullptr ? 0 : std::min(num_steps, kAheadBytes / step_bytes);
  const auto run = [&](size_t panel, size_t count, size_t step, size_t steps,
                       const uint8_t* ahead) {
    if (count == 0 || steps == 0) return;
    TileArgs args;
    args.x = packed_rows + step * kernels.words_per_step * num_rows;
    args.w = weights.panel(first_panel + panel) + step * step_bytes;
    args.panel_bytes = weights.panel_bytes();
    args.num_panels = count;
    args.num_steps = steps;
    args.c = c + panel * PackedMatrix::kPanelCols;
    args.c_stride = c_stride;
    args.resume = step > 0;
    args.ahead = ahead == nullptr ? args.w + kAheadBytes : ahead;
    args.ahead_bytes = steps * step_bytes;
    kernels.tiles[num_rows - 1](args);
  };
  const size_t before = num_panels - last_panels;
  run(0, before, 0, num_steps, nullptr);
  run(before, last_panels, 0, num_steps - last_steps, nullptr);
  run(before, last_panels, num_steps - last_steps, last_steps, next);
}

}  // namespace

void MultiplyPanels(const GemmKernels& kernels, const uint32_t* packed_rows,
                    const PackedRowsLayout& layout, size_t first_block,
                    size_t last_block, const PackedMatrix& weights,
                    size_t first_panel, size_t num_panels, float* c,
                    size_t c_stride, const uint8_t* next) {
  const RowBlocks& rows = layout.rows();
  if (rows.num_blocks() == 1 &&
      rows.num_rows() <= kernels.max_rows_of_one_pass) {
    StreamPanels(kernels, packed_rows, rows.num_rows(), weights, first_panel,
                 num_panels, c, c_stride, next);
    return;
  }
  const size_t first_row = rows.begin(first_block);
  const size_t num_blocks = last_block - first_block;
  TileArgs args;
  args.panel_bytes = weights.panel_bytes();
  args.num_panels = 1;
  args.c_stride = c_stride;
  for (size_t p = 0; p < num_panels; ++p) {
    const uint8_t* panel = weights.panel(first_panel + p);
    for (size_t step = 0; step < layout.num_steps();
         step += layout.steps_per_block()) {
      args.num_steps = layout.block_steps(step);
      args.w = panel + step * weights.step_bytes();
      args.resume = step > 0;
      const size_t bytes = args.num_steps * weights.step_bytes();
      // Each row block fetches its share of what comes next, so that memory and
      // arithmetic work at the same time. That is as long as this, about.
      const bool is_last =
          p + 1 == num_panels && step + args.num_steps == layout.num_steps();
      const uint8_t* ahead = is_last ? next : args.w + bytes;
      const size_t ahead_bytes = ahead == nullptr ? 0 : bytes;
      for (size_t b = first_block; b < last_block; ++b) {
        const size_t begin = ahead_bytes * (b - first_block) / num_blocks;
        const size_t end = ahead_bytes * (b - first_block + 1) / num_blocks;
        args.x = packed_rows + layout.Offset(b, step);
        args.c = c + (rows.begin(b) - first_row) * c_stride +
                 p * PackedMatrix::kPanelCols;
        args.ahead = ahead + begin;
        args.ahead_bytes = end - begin;
        kernels.tiles[rows.size(b) - 1](args);
      }
    }
  }
}

void MultiplyInto(const GemmKernels& kernels, const uint32_t* packed_rows,
                  const PackedRowsLayout& layout, size_t first_block,
                  size_t last_block, const PackedMatrix& weights,
                  size_t first_panel, size_t num_panels, const float* bias,
                  FloatMatrix output, float* scratch, const uint8_t* next) {
  constexpr size_t kPanelCols = PackedMatrix::kPanelCols;
  const size_t first_row = layout.rows().begin(first_block);
  const size_t last_row = layout.rows().begin(last_block);
  const size_t first_col = first_panel * kPanelCols;
  const size_t last_col =
      std::min(weights.n(), first_col + num_panels * kPanelCols);
  const size_t num_full = (last_col - first_col) / kPanelCols;
  if (num_full > 0) {
    MultiplyPanels(
        kernels, packed_rows, layout, first_block, last_block, weights,
        first_panel, num_full, output.row(first_row) + first_col, output.stride,
        num_full < num_panels ? weights.panel(first_panel + num_full) : next);
  }
  if (num_full < num_panels) {
    MultiplyPanels(kernels, packed_rows, layout, first_block, last_block,
                   weights, first_panel + num_full, 1, scratch, kPanelCols,
                   next);
    const size_t col = first_col + num_full * kPanelCols;
    for (size_t r = first_row; r < last_row; ++r) {
      std::copy_n(scratch + (r - first_row) * kPanelCols, last_col - col,
                  output.row(r) + col);
    }
  }
  if (bias == nullptr) return;
  for (size_t r = first_row; r < last_row; ++r) {
    float* row = output.row(r);
    for (size_t c = first_col; c < last_col; ++c) row[c] += bias[c];
  }
}

}  // namespace troupe
