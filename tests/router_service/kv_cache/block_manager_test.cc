#include "router_service/kv_cache/block_manager.h"

#include <random>
#include <set>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace troupe {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

TEST(BlockManagerTest, HandsOutEachBlockOnce) {
  BlockManager blocks(5);
  std::vector<int32_t> a;
  std::vector<int32_t> b;
  ASSERT_TRUE(blocks.Allocate(2, a));
  ASSERT_TRUE(blocks.Allocate(3, b));
  EXPECT_EQ(blocks.num_free(), 0u);
  std::set<int32_t> all(a.begin(), a.end());
  all.insert(b.begin(), b.end());
  EXPECT_THAT(all, testing::ElementsAre(0, 1, 2, 3, 4));
  EXPECT_TRUE(blocks.CheckIntegrity({&a, &b}).ok());
}

TEST(BlockManagerTest, TooManyChangesNothing) {
  BlockManager blocks(3);
  std::vector<int32_t> table;
  ASSERT_TRUE(blocks.Allocate(2, table));
  const std::vector<int32_t> before = table;
  EXPECT_FALSE(blocks.Allocate(2, table));
  EXPECT_EQ(table, before);
  EXPECT_EQ(blocks.num_free(), 1u);
  EXPECT_TRUE(blocks.Allocate(0, table));
  EXPECT_TRUE(blocks.Allocate(1, table));
  EXPECT_THAT(table, SizeIs(3));
  EXPECT_TRUE(blocks.Allocate(0, table));
  EXPECT_FALSE(blocks.Allocate(1, table));
}

TEST(BlockManagerTest, FreeEmptiesTheTable) {
  BlockManager blocks(3);
  std::vector<int32_t> table;
  ASSERT_TRUE(blocks.Allocate(3, table));
  blocks.Free(table);
  EXPECT_THAT(table, IsEmpty());
  EXPECT_EQ(blocks.num_free(), 3u);
  blocks.Free(table);
  EXPECT_EQ(blocks.num_free(), 3u);
  EXPECT_TRUE(blocks.CheckIntegrity({}).ok());
}

TEST(BlockManagerDeathTest, FreeingTwiceIsABug) {
  BlockManager blocks(3);
  std::vector<int32_t> table;
  ASSERT_TRUE(blocks.Allocate(1, table));
  std::vector<int32_t> copy = table;
  blocks.Free(table);
  EXPECT_DEATH(blocks.Free(copy), "CHECK");
}

TEST(BlockManagerTest, IntegrityNamesWhatIsWrong) {
  BlockManager blocks(4);
  std::vector<int32_t> a;
  std::vector<int32_t> b;
  ASSERT_TRUE(blocks.Allocate(2, a));
  ASSERT_TRUE(blocks.Allocate(1, b));
  EXPECT_THAT(std::string(blocks.CheckIntegrity({&a}).message()),
              HasSubstr("1 KV blocks are neither free nor in a table"));
  EXPECT_FALSE(blocks.CheckIntegrity({&a, &b, &b}).ok());
  for (const int32_t odd : {3, 4, -1}) {
    std::vector<int32_t> c = {odd};
    EXPECT_FALSE(blocks.CheckIntegrity({&a, &b, &c}).ok()) << odd;
  }
  EXPECT_TRUE(blocks.CheckIntegrity({&a, &b}).ok());
}

TEST(BlockManagerTest, RandomUseKeepsItsIntegrity) {
  std::mt19937 random(11);
  BlockManager blocks(37);
  std::vector<std::vector<int32_t>> tables(8);
  std::vector<const std::vector<int32_t>*> pointers;
  for (const auto& table : tables) pointers.push_back(&table);
  for (int i = 0; i < 5000; ++i) {
    std::vector<int32_t>& table = tables[random() % tables.size()];
    if (random() % 4 == 0) {
      blocks.Free(table);
    } else {
      const size_t count = random() % 6;
      const size_t free = blocks.num_free();
      const size_t size = table.size();
      const bool fits = blocks.Allocate(count, table);
      EXPECT_EQ(fits, count <= free);
      EXPECT_EQ(table.size(), size + (fits ? count : 0));
    }
    ASSERT_TRUE(blocks.CheckIntegrity(pointers).ok())
        << blocks.CheckIntegrity(pointers);
  }
}

}  // namespace
}  // namespace troupe
