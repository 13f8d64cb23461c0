// How the rows of a GEMM are cut into blocks and packed.
#ifndef TROUPE_KERNELS_CPU_ROW_BLOCKS_H_
#define TROUPE_KERNELS_CPU_ROW_BLOCKS_H_

#include <algorithm>
#include <cstddef>

namespace troupe {

// `num_rows` rows in blocks of at most `max_rows`, as even as possible
// (8 = 4 + 4, not 6 + 2): a tile of few rows is slower per row.
class RowBlocks {
 public:
  RowBlocks(size_t num_rows, size_t max_rows)
      : num_rows_(num_rows),
        num_blocks_((num_rows + max_rows - 1) / max_rows),
        base_(num_blocks_ == 0 ? 0 : num_rows / num_blocks_),
        num_larger_(num_blocks_ == 0 ? 0 : num_rows % num_blocks_) {}

  size_t num_rows() const { return num_rows_; }
  size_t num_blocks() const { return num_blocks_; }
  // The first row of block b; num_rows for b = num_blocks.
  size_t begin(size_t b) const { return b * base_ + std::min(b, num_larger_); }
  size_t size(size_t b) const { return base_ + (b < num_larger_ ? 1 : 0); }

 private:
  size_t num_rows_;
  size_t num_blocks_;
  size_t base_;
  size_t num_larger_;
};

// The layout of packed rows. A row is a sequence of steps of the same number
// of 32-bit words: a step is one float, or a group of quantised numbers. Blocks
// of steps (k blocks), in them blocks of rows, in them step by step the words
// of the block's rows.
class PackedRowsLayout {
 public:
  PackedRowsLayout(size_t num_rows, size_t max_rows, size_t num_steps,
                   size_t words_per_step, size_t steps_per_block)
      : rows_(num_rows, max_rows),
        num_steps_(num_steps),
        words_per_step_(words_per_step),
        steps_per_block_(steps_per_block) {}

  const RowBlocks& rows() const { return rows_; }
  size_t num_steps() const { return num_steps_; }
  size_t words_per_row() const { return num_steps_ * words_per_step_; }
  size_t num_words() const { return rows_.num_rows() * words_per_row(); }
  size_t steps_per_block() const { return steps_per_block_; }
  // Steps of the k block that starts at first_step.
  size_t block_steps(size_t first_step) const {
    return std::min(steps_per_block_, num_steps_ - first_step);
  }
  // Where the words of row block b for `step` begin.
  size_t Offset(size_t b, size_t step) const {
    const size_t first_step = step / steps_per_block_ * steps_per_block_;
    return words_per_step_ * (first_step * rows_.num_rows() +
                              rows_.begin(b) * block_steps(first_step) +
                              (step - first_step) * rows_.size(b));
  }

 private:
  RowBlocks rows_;
  size_t num_steps_;
  size_t words_per_step_;
  size_t steps_per_block_;
};

}  // namespace troupe

#endif  // TROUPE_KERNELS_CPU_ROW_BLOCKS_H_
