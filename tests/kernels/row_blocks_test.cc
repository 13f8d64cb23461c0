#include "kernels/cpu/row_blocks.h"

#include <gtest/gtest.h>

#include <vector>

#include "kernels/cpu/work_list.h"

namespace troupe {
namespace {

TEST(RowBlocksTest, BlocksAreEvenAndCoverTheRows) {
  for (size_t max_rows : {1, 6, 12}) {
    for (size_t rows = 0; rows < 100; ++rows) {
      const RowBlocks blocks(rows, max_rows);
      ASSERT_EQ(blocks.num_blocks(), DivideUp(rows, max_rows));
      size_t next = 0;
      for (size_t b = 0; b < blocks.num_blocks(); ++b) {
        ASSERT_EQ(blocks.begin(b), next);
        ASSERT_LE(blocks.size(b), max_rows);
        ASSERT_LE(blocks.size(0) - blocks.size(b), 1u);
        next += blocks.size(b);
      }
      ASSERT_EQ(next, rows);
      ASSERT_EQ(blocks.begin(blocks.num_blocks()), rows);
    }
  }
}

TEST(RowBlocksTest, LayoutIsABijection) {
  for (size_t rows : {1, 5, 12, 13, 30}) {
    for (size_t cols : {1, 31, 512, 513, 1100}) {
      const PackedRowsLayout layout(rows, cols, 12);
      std::vector<int> used(layout.num_floats());
      for (size_t b = 0; b < layout.rows().num_blocks(); ++b) {
        for (size_t c = 0; c < cols; ++c) {
          for (size_t r = 0; r < layout.rows().size(b); ++r) {
            const size_t at = layout.Offset(b, c) + r;
            ASSERT_LT(at, used.size());
            ++used[at];
          }
        }
      }
      for (const int count : used) ASSERT_EQ(count, 1);
    }
  }
}

TEST(WorkListTest, ChunksOfPanelsLeaveEveryThreadSeveralTasks) {
  for (size_t threads : {1, 2, 8, 64}) {
    for (size_t panels = 1; panels < 3000; panels += 7) {
      const size_t per_task = PanelsPerTask(panels, threads);
      EXPECT_TRUE(per_task == 1 || per_task == 2 || per_task == 4);
      EXPECT_TRUE(threads == 1 || per_task == 1 ||
                  panels / per_task >= 4 * threads);
    }
  }
}

}  // namespace
}  // namespace troupe
