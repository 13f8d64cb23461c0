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

// The layout of packed rows [num_rows, num_cols]: blocks of columns, in them
// blocks of rows, in them column by column the block's rows side by side.
class PackedRowsLayout {
 public:
  // Columns of a block: what a tile reads of one row block stays in the first
  // two levels of cache. A multiple of PackedMatrix::kPanelCols.
  static constexpr size_t kColumnBlock = 512;

  PackedRowsLayout(size_t num_rows, size_t num_cols, size_t max_rows)
      : rows_(num_rows, max_rows),
        num_cols_(num_cols),
        // One row block has nothing to share a block of columns with.
        column_block_(rows_.num_blocks() > 1 ? kColumnBlock : num_cols) {}

  const RowBlocks& rows() const { return rows_; }
  size_t num_cols() const { return num_cols_; }
  size_t num_floats() const { return rows_.num_rows() * num_cols_; }
  size_t column_block() const { return column_block_; }
  // Columns of the block that starts at first_col.
  size_t column_block_size(size_t first_col) const {
    return std::min(column_block_, num_cols_ - first_col);
  }
  // Where the rows of block b stand for column `col`.
  size_t Offset(size_t b, size_t col) const {
    const size_t first_col = col / column_block_ * column_block_;
    return first_col * rows_.num_rows() +
           rows_.begin(b) * column_block_size(first_col) +
           (col - first_col) * rows_.size(b);
  }

 private:
  RowBlocks rows_;
  size_t num_cols_;
  size_t column_block_;
};

}  // namespace troupe

#endif  // TROUPE_KERNELS_CPU_ROW_BLOCKS_H_
