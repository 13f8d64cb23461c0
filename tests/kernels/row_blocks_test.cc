#include "kernels/cpu/row_blocks.h"

#include <gtest/gtest.h>

#include <utility>
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
    for (size_t steps : {1, 31, 512, 513, 1100}) {
      for (const auto& [words, steps_per_block] :
           {std::pair<size_t, size_t>{1, 512}, {10, 16}, {18, 8}}) {
        const PackedRowsLayout layout(rows, 12, steps, words, steps_per_block);
        EXPECT_EQ(layout.words_per_row(), steps * words);
        std::vector<int> used(layout.num_words());
        for (size_t b = 0; b < layout.rows().num_blocks(); ++b) {
          for (size_t step = 0; step < steps; ++step) {
            const size_t count = words * layout.rows().size(b);
            for (size_t i = 0; i < count; ++i) {
              const size_t at = layout.Offset(b, step) + i;
              ASSERT_LT(at, used.size());
              ++used[at];
            }
          }
        }
        for (const int count : used) ASSERT_EQ(count, 1);
      }
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
