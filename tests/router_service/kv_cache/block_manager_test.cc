#include "router_service/kv_cache/block_manager.h"

#include <map>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace troupe {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

// A manager and a model of what its blocks hold: slot by slot, the whole
// history of tokens that its keys and values were computed from.
class Cache {
 public:
  using Slot = std::vector<int32_t>;
  struct User {
    std::vector<int32_t> tokens;
    PrefixKey key;
    std::vector<int32_t> table;
    size_t num_computed = 0;
  };

  explicit Cache(size_t num_blocks, bool prefix_cache = true,
                 decltype(BlockManagerOptions::hash_block) hash = &HashOfBlock)
      : content_(num_blocks, std::vector<Slot>(kKvBlockSize)),
        manager_(Options(num_blocks, prefix_cache, std::move(hash))) {}

  BlockManager& manager() { return manager_; }

  // Takes what is cached, and blocks for the next `num_tokens`; false when they
  // do not fit.
  bool Start(User& user, size_t limit, size_t num_tokens) {
    const PrefixHit hit = manager_.Find(user.key, user.tokens, limit);
    EXPECT_LE(hit.num_tokens(), limit);
    num_tokens = std::min(num_tokens, user.tokens.size() - hit.num_tokens());
    const size_t end = hit.num_tokens() + num_tokens;
    const size_t needed =
        (end + kKvBlockSize - 1) / kKvBlockSize - hit.blocks.size();
    if (!manager_.Adopt(user.key, hit, needed, user.table)) return false;
    user.num_computed = hit.num_tokens();
    ExpectRightContent(user);
    return true;
  }
  bool Reserve(User& user, size_t end) {
    const size_t needed = (end + kKvBlockSize - 1) / kKvBlockSize;
    return needed <= user.table.size() ||
           manager_.Allocate(needed - user.table.size(), user.table);
  }
  // "Computes" up to `end` and publishes it.
  void Compute(User& user, size_t end) {
    for (size_t p = user.num_computed; p < end; ++p) {
      const auto block = static_cast<size_t>(user.table[p / kKvBlockSize]);
      content_[block][p % kKvBlockSize] = History(user, p);
    }
    user.num_computed = end;
    manager_.Publish(user.key, user.tokens, end, user.table);
    ExpectRightContent(user);
  }
  void End(User& user) {
    manager_.Free(user.key, user.table);
    user.num_computed = 0;
  }
  // All at once; returns the tokens that were cached.
  size_t Run(User& user) {
    EXPECT_TRUE(Start(user, user.tokens.size() - 1, user.tokens.size()));
    const size_t num_cached = user.num_computed;
    Compute(user, user.tokens.size());
    return num_cached;
  }

  void ExpectRightContent(const User& user) {
    for (size_t p = 0; p < user.num_computed; ++p) {
      const auto block = static_cast<size_t>(user.table[p / kKvBlockSize]);
      ASSERT_EQ(content_[block][p % kKvBlockSize], History(user, p)) << p;
    }
  }

 private:
  static Slot History(const User& user, size_t position) {
    Slot history(user.tokens.begin(), user.tokens.begin() + position + 1);
    history.insert(history.end(), user.key.salt.begin(), user.key.salt.end());
    return history;
  }
  BlockManagerOptions Options(size_t num_blocks, bool prefix_cache,
                              decltype(BlockManagerOptions::hash_block) hash) {
    BlockManagerOptions options;
    options.num_blocks = num_blocks;
    options.prefix_cache = prefix_cache;
    options.hash_block = std::move(hash);
    options.copy_block = [this](int32_t from, int32_t to) {
      content_[static_cast<size_t>(to)] = content_[static_cast<size_t>(from)];
    };
    return options;
  }

  std::vector<std::vector<Slot>> content_;
  BlockManager manager_;
};

Cache::User UserOf(std::vector<int32_t> tokens, std::string salt = "") {
  Cache::User user;
  user.tokens = std::move(tokens);
  user.key.salt = std::move(salt);
  return user;
}

// first, first + 1, ...
std::vector<int32_t> Count(size_t length, int32_t first = 0) {
  std::vector<int32_t> tokens(length);
  for (size_t i = 0; i < length; ++i) {
    tokens[i] = first + static_cast<int32_t>(i);
  }
  return tokens;
}

std::vector<int32_t> Join(std::vector<int32_t> a,
                          const std::vector<int32_t>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

BlockManagerOptions Plain(size_t num_blocks) {
  BlockManagerOptions options;
  options.num_blocks = num_blocks;
  return options;
}

TEST(BlockManagerTest, HandsOutEachBlockOnce) {
  BlockManager blocks(Plain(5));
  std::vector<int32_t> a;
  std::vector<int32_t> b;
  ASSERT_TRUE(blocks.Allocate(2, a));
  ASSERT_TRUE(blocks.Allocate(3, b));
  EXPECT_EQ(blocks.num_free(), 0u);
  std::set<int32_t> all(a.begin(), a.end());
  all.insert(b.begin(), b.end());
  EXPECT_THAT(all, ElementsAre(0, 1, 2, 3, 4));
  EXPECT_TRUE(blocks.CheckIntegrity({&a, &b}).ok());
}

TEST(BlockManagerTest, TooManyChangesNothing) {
  BlockManager blocks(Plain(3));
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
  BlockManager blocks(Plain(3));
  PrefixKey key;
  std::vector<int32_t> table;
  ASSERT_TRUE(blocks.Allocate(3, table));
  blocks.Free(key, table);
  EXPECT_THAT(table, IsEmpty());
  EXPECT_EQ(blocks.num_free(), 3u);
  EXPECT_EQ(blocks.num_cached(), 0u);  // nothing was computed
  blocks.Free(key, table);
  EXPECT_EQ(blocks.num_free(), 3u);
  EXPECT_TRUE(blocks.CheckIntegrity({}).ok());
}

TEST(BlockManagerDeathTest, FreeingTwiceIsABug) {
  BlockManager blocks(Plain(3));
  PrefixKey key;
  std::vector<int32_t> table;
  ASSERT_TRUE(blocks.Allocate(1, table));
  std::vector<int32_t> copy = table;
  blocks.Free(key, table);
  EXPECT_DEATH(blocks.Free(key, copy), "CHECK");
}

TEST(BlockManagerTest, IntegrityNamesWhatIsWrong) {
  BlockManager blocks(Plain(4));
  std::vector<int32_t> a;
  std::vector<int32_t> b;
  ASSERT_TRUE(blocks.Allocate(2, a));
  ASSERT_TRUE(blocks.Allocate(1, b));
  EXPECT_THAT(std::string(blocks.CheckIntegrity({&a}).message()),
              HasSubstr("KV block 2 counts 1 tables, but is in 0"));
  EXPECT_THAT(std::string(blocks.CheckIntegrity({&a, &b, &b}).message()),
              HasSubstr("KV block 2 counts 1 tables, but is in 2"));
  for (const int32_t odd : {3, 4, -1}) {
    std::vector<int32_t> c = {odd};
    EXPECT_THAT(std::string(blocks.CheckIntegrity({&a, &b, &c}).message()),
                HasSubstr("is in a table but free"))
        << odd;
  }
  EXPECT_TRUE(blocks.CheckIntegrity({&a, &b}).ok());
}

TEST(PrefixCacheTest, FullBlocksAreShared) {
  Cache cache(10);
  Cache::User a = UserOf(Count(50));
  EXPECT_EQ(cache.Run(a), 0u);
  Cache::User b = UserOf(Join(Count(32), Count(20, 900)));
  EXPECT_EQ(cache.Run(b), 32u);
  EXPECT_EQ(b.table[0], a.table[0]);
  EXPECT_EQ(b.table[1], a.table[1]);
  EXPECT_NE(b.table[2], a.table[2]);
  EXPECT_EQ(cache.manager().num_free(), 10u - 4 - 2);
  EXPECT_TRUE(cache.manager().CheckIntegrity({&a.table, &b.table}).ok());
  // Who leaves takes nothing from the other.
  cache.End(a);
  cache.ExpectRightContent(b);
  EXPECT_EQ(cache.manager().num_free(), 10u - 4);
  EXPECT_EQ(cache.manager().num_cached(), 2u);
  EXPECT_TRUE(cache.manager().CheckIntegrity({&b.table}).ok());
}

// The last, partly filled block of one is the beginning of that of the other:
// it is copied, and then each goes its own way.
TEST(PrefixCacheTest, ABlockThatBothWriteIsCopied) {
  Cache cache(10);
  Cache::User a = UserOf(Count(40));
  cache.Run(a);
  Cache::User b = UserOf(Count(40));
  EXPECT_EQ(cache.Run(b), 39u);
  EXPECT_EQ(b.table[1], a.table[1]);
  EXPECT_NE(b.table[2], a.table[2]);
  EXPECT_EQ(cache.manager().stats().copies, 1u);
  for (const auto& [user, next] :
       {std::pair(&a, 100), std::pair(&b, 200), std::pair(&a, 101)}) {
    user->tokens.push_back(next);
    ASSERT_TRUE(cache.Reserve(*user, user->tokens.size()));
    cache.Compute(*user, user->tokens.size());
  }
  cache.ExpectRightContent(a);
  cache.ExpectRightContent(b);
  EXPECT_TRUE(cache.manager().CheckIntegrity({&a.table, &b.table}).ok());
  // A third finds the longer of both.
  Cache::User c = UserOf(Join(a.tokens, {7, 8}));
  EXPECT_EQ(cache.Run(c), a.tokens.size());
}

// The limit cuts a full block: it is copied up to there.
TEST(PrefixCacheTest, TheLastTokenIsComputed) {
  Cache cache(10);
  Cache::User a = UserOf(Count(32));
  cache.Run(a);
  Cache::User b = UserOf(Count(32));
  EXPECT_EQ(cache.Run(b), 31u);
  EXPECT_EQ(cache.manager().stats().copies, 1u);
  // What was copied and completed is the same block again.
  EXPECT_EQ(a.table, b.table);
  EXPECT_EQ(cache.manager().stats().duplicates, 1u);
  EXPECT_TRUE(cache.manager().CheckIntegrity({&a.table, &b.table}).ok());
}

TEST(PrefixCacheTest, WithALimitOfZeroNothingIsFound) {
  Cache cache(10);
  Cache::User a = UserOf(Count(32));
  cache.Run(a);
  Cache::User b = UserOf(Count(32));
  ASSERT_TRUE(cache.Start(b, 0, 32));
  EXPECT_EQ(b.num_computed, 0u);
  EXPECT_THAT(cache.manager().Find(b.key, b.tokens, 15).blocks, IsEmpty());
  EXPECT_EQ(cache.manager().Find(b.key, b.tokens, 15).num_tail_tokens, 15u);
}

// Two that computed the same without knowing of one another end up with the
// same blocks.
TEST(PrefixCacheTest, DuplicatesAreGivenBack) {
  Cache cache(10);
  Cache::User a = UserOf(Count(40));
  Cache::User b = UserOf(Count(40));
  ASSERT_TRUE(cache.Start(a, 39, 40));
  ASSERT_TRUE(cache.Start(b, 39, 40));
  EXPECT_EQ(cache.manager().num_free(), 4u);
  cache.Compute(a, 20);
  cache.Compute(b, 40);
  cache.Compute(a, 40);
  EXPECT_EQ(a.table[0], b.table[0]);
  EXPECT_EQ(a.table[1], b.table[1]);
  EXPECT_NE(a.table[2], b.table[2]);
  EXPECT_EQ(cache.manager().num_free(), 6u);
  EXPECT_EQ(cache.manager().stats().duplicates, 2u);
  EXPECT_TRUE(cache.manager().CheckIntegrity({&a.table, &b.table}).ok());
}

TEST(PrefixCacheTest, TheLongestUnusedLeafIsEvictedFirst) {
  Cache cache(6);
  Cache::User a = UserOf(Count(32));       // blocks x y
  Cache::User b = UserOf(Count(32, 100));  // u v
  cache.Run(a);
  cache.Run(b);
  cache.End(a);
  cache.End(b);
  EXPECT_EQ(cache.manager().num_free(), 6u);
  EXPECT_EQ(cache.manager().num_cached(), 4u);
  // Two empty ones, then y: the older chain, from its end.
  Cache::User c = UserOf(Count(48, 1000));
  cache.Run(c);
  EXPECT_EQ(cache.manager().stats().evictions, 1u);
  EXPECT_EQ(cache.manager().Find(a.key, a.tokens, 32).blocks.size(), 1u);
  EXPECT_EQ(cache.manager().Find(b.key, b.tokens, 32).blocks.size(), 2u);
  // Use makes x younger than v.
  Cache::User again = UserOf(Count(17));
  ASSERT_TRUE(cache.Start(again, 16, 1));
  EXPECT_EQ(again.num_computed, 16u);
  cache.End(again);
  ASSERT_TRUE(cache.Reserve(c, 64));
  EXPECT_EQ(cache.manager().Find(a.key, a.tokens, 32).blocks.size(), 1u);
  EXPECT_EQ(cache.manager().Find(b.key, b.tokens, 32).blocks.size(), 1u);
  EXPECT_TRUE(cache.manager().CheckIntegrity({&c.table}).ok());
}

// The block that is to be copied may be the one that is taken for the copy.
TEST(PrefixCacheTest, ATailThatIsEvictedForItsOwnCopy) {
  for (const size_t num_blocks : {1, 2}) {
    Cache cache(num_blocks);
    Cache::User a = UserOf(Count(10));
    cache.Run(a);
    cache.End(a);
    Cache::User b = UserOf(Join(Count(8), Count(10, 50)));
    b.tokens.resize(num_blocks * kKvBlockSize - 2, 60);
    EXPECT_EQ(cache.Run(b), 8u);
    EXPECT_EQ(cache.manager().num_free(), 0u);
    EXPECT_TRUE(cache.manager().CheckIntegrity({&b.table}).ok());
  }
}

TEST(PrefixCacheTest, WhatDoesNotFitLeavesNothingBehind) {
  Cache cache(4);
  Cache::User a = UserOf(Count(32));
  cache.Run(a);
  cache.End(a);
  Cache::User other = UserOf(Count(20, 500));
  cache.Run(other);
  Cache::User b = UserOf(Count(50));
  EXPECT_FALSE(cache.Start(b, 49, 50));
  EXPECT_THAT(b.table, IsEmpty());
  EXPECT_EQ(cache.manager().num_cached(), 2u);
  EXPECT_TRUE(cache.manager().CheckIntegrity({&other.table}).ok());
  cache.End(other);
  EXPECT_TRUE(cache.Start(b, 49, 50));
  EXPECT_EQ(b.num_computed, 32u);
}

TEST(PrefixCacheTest, SaltsShareNothing) {
  Cache cache(20);
  Cache::User a = UserOf(Count(40), "a");
  Cache::User b = UserOf(Count(40), "b");
  Cache::User none = UserOf(Count(40));
  EXPECT_EQ(cache.Run(a), 0u);
  EXPECT_EQ(cache.Run(b), 0u);
  EXPECT_EQ(cache.Run(none), 0u);
  Cache::User again = UserOf(Count(40), "b");
  EXPECT_EQ(cache.Run(again), 39u);
  EXPECT_TRUE(
      cache.manager()
          .CheckIntegrity({&a.table, &b.table, &none.table, &again.table})
          .ok());
}

// Every block and every salt have one hash: nothing wrong is ever found.
TEST(PrefixCacheTest, CollisionsGiveNoWrongBlock) {
  Cache cache(20, true, [](const PrefixHash&, std::span<const int32_t>) {
    return PrefixHash{1, 2};
  });
  Cache::User a = UserOf(Count(50), "a");
  EXPECT_EQ(cache.Run(a), 0u);
  EXPECT_GT(cache.manager().stats().hash_collisions, 0u);
  Cache::User b = UserOf(Count(50, 1), "a");
  EXPECT_EQ(cache.Run(b), 0u);
  Cache::User c = UserOf(Count(50), "c");
  EXPECT_EQ(cache.Run(c), 0u);
  Cache::User d = UserOf(Count(50), "a");
  EXPECT_EQ(cache.Run(d), 16u);  // the one block that has the hash
  const std::vector<const std::vector<int32_t>*> tables = {&a.table, &b.table,
                                                           &c.table, &d.table};
  EXPECT_TRUE(cache.manager().CheckIntegrity(tables).ok())
      << cache.manager().CheckIntegrity(tables);
}

TEST(PrefixCacheTest, EachBlockIsHashedOnce) {
  int num_hashes = 0;
  Cache cache(20, true,
              [&](const PrefixHash& parent, std::span<const int32_t> tokens) {
                ++num_hashes;
                return HashOfBlock(parent, tokens);
              });
  Cache::User a = UserOf(Count(50));
  for (int i = 0; i < 5; ++i) {
    cache.manager().Find(a.key, a.tokens, 49);
  }
  cache.Run(a);
  EXPECT_EQ(num_hashes, 3);
  cache.End(a);
  cache.Run(a);
  for (int t = 0; t < 14; ++t) {
    a.tokens.push_back(t);
    ASSERT_TRUE(cache.Reserve(a, a.tokens.size()));
    cache.Compute(a, a.tokens.size());
  }
  EXPECT_EQ(num_hashes, 4);
}

TEST(PrefixCacheTest, OffMeansOff) {
  Cache cache(10, false);
  Cache::User a = UserOf(Count(40));
  cache.Run(a);
  Cache::User b = UserOf(Count(40));
  EXPECT_EQ(cache.Run(b), 0u);
  cache.End(a);
  cache.End(b);
  EXPECT_EQ(cache.manager().num_cached(), 0u);
}

// Users that come, grow, leave and give up at random, with prompts that often
// begin alike and blocks that never suffice: every slot that a user reads was
// computed from exactly the tokens that it has.
class RandomUse : public testing::TestWithParam<uint32_t> {};

TEST_P(RandomUse, EverySlotHasTheRightHistory) {
  std::mt19937 random(GetParam());
  // Collisions are common in every third run.
  const uint64_t mask = GetParam() % 3 == 0 ? 7 : ~uint64_t{0};
  Cache cache(24, true,
              [mask](const PrefixHash& parent, std::span<const int32_t> t) {
                PrefixHash hash = HashOfBlock(parent, t);
                hash.low &= mask;
                hash.high &= mask;
                return hash;
              });
  std::vector<Cache::User> users(8);
  std::vector<const std::vector<int32_t>*> tables;
  for (const Cache::User& user : users) tables.push_back(&user.table);
  size_t num_hits = 0;
  for (int i = 0; i < 3000; ++i) {
    Cache::User& user = users[random() % users.size()];
    const uint32_t action = random() % 8;
    if (user.table.empty()) {
      if (user.tokens.empty() || action < 3) {
        user = UserOf({}, random() % 8 == 0 ? "salt" : "");
        // Forks of a few trunks, at any position.
        const size_t length = 1 + random() % 90;
        const size_t fork = random() % 90;
        const int32_t branch = static_cast<int32_t>(random() % 3);
        for (size_t p = 0; p < length; ++p) {
          user.tokens.push_back(p < fork ? static_cast<int32_t>(p)
                                         : 1000 * branch);
        }
      }
      if (cache.Start(user, user.tokens.size() - 1, 1 + random() % 60)) {
        num_hits += user.num_computed > 0;
      }
    } else if (action == 0) {
      cache.End(user);
      if (random() % 2 == 0) user.tokens.clear();
    } else {
      if (user.num_computed == user.tokens.size()) {
        user.tokens.push_back(static_cast<int32_t>(random() % 2));
      }
      const size_t end =
          std::min(user.tokens.size(), user.num_computed + 1 + random() % 40);
      if (cache.Reserve(user, end)) {
        cache.Compute(user, end);
      } else {
        cache.End(user);
      }
    }
    for (const Cache::User& u : users) cache.ExpectRightContent(u);
    ASSERT_FALSE(HasFatalFailure());
    const absl::Status sound = cache.manager().CheckIntegrity(tables);
    ASSERT_TRUE(sound.ok()) << sound;
  }
  EXPECT_GT(num_hits, 50u);
  EXPECT_GT(cache.manager().stats().evictions, 10u);
  EXPECT_GT(cache.manager().stats().copies, 10u);
  EXPECT_EQ(cache.manager().stats().hash_collisions > 0, mask == 7);
}

INSTANTIATE_TEST_SUITE_P(Seeds, RandomUse, testing::Range(0u, 12u));

}  // namespace
}  // namespace troupe
