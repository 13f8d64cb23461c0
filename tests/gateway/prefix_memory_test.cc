#include "gateway/prefix_memory.h"

#include <map>
#include <numeric>
#include <random>
#include <set>
#include <vector>

#include "gateway/router_choice.h"
#include "gtest/gtest.h"

namespace troupe {
namespace {

std::vector<uint32_t> Tokens(size_t count, uint32_t first = 0) {
  std::vector<uint32_t> token_ids(count);
  std::iota(token_ids.begin(), token_ids.end(), first);
  return token_ids;
}

TEST(PrefixHashesTest, WholeBlocksOfTheSameBeginning) {
  EXPECT_TRUE(PrefixHashes(Tokens(kPrefixBlockTokens - 1)).empty());
  const std::vector<uint64_t> three =
      PrefixHashes(Tokens(3 * kPrefixBlockTokens + 5));
  ASSERT_EQ(three.size(), 3u);
  const std::vector<uint64_t> two =
      PrefixHashes(Tokens(2 * kPrefixBlockTokens));
  EXPECT_EQ(two, std::vector<uint64_t>(three.begin(), three.begin() + 2));
  // A token that differs changes its block and all after it.
  std::vector<uint32_t> other = Tokens(3 * kPrefixBlockTokens);
  ++other[kPrefixBlockTokens];
  const std::vector<uint64_t> differs = PrefixHashes(other);
  EXPECT_EQ(differs[0], three[0]);
  EXPECT_NE(differs[1], three[1]);
  EXPECT_NE(differs[2], three[2]);
}

TEST(PrefixMemoryTest, RoutersAreToldApartAndForgotten) {
  PrefixMemory memory(100);
  const std::vector<uint64_t> prefix =
      PrefixHashes(Tokens(4 * kPrefixBlockTokens));
  memory.Remember({prefix.data(), 2}, 7);
  memory.Remember(prefix, 8);
  EXPECT_EQ(memory.NumKnown(prefix, 7), 2u);
  EXPECT_EQ(memory.NumKnown(prefix, 8), 4u);
  EXPECT_EQ(memory.NumKnown(prefix, 9), 0u);
  memory.Forget(8);
  EXPECT_EQ(memory.NumKnown(prefix, 8), 0u);
  EXPECT_EQ(memory.NumKnown(prefix, 7), 2u);
  EXPECT_EQ(memory.num_blocks(), 2u);
}

// Against what is bounded by the same rule and knows nothing of lists.
TEST(PrefixMemoryTest, TheLeastRecentlyUsedBlockGoes) {
  constexpr size_t kMaxBlocks = 20;
  PrefixMemory memory(kMaxBlocks);
  std::map<uint64_t, std::pair<uint64_t, std::set<uint64_t>>> model;
  uint64_t now = 0;
  std::mt19937 random(3);
  for (int step = 0; step < 2000; ++step) {
    const std::vector<uint64_t> prefix =
        PrefixHashes(Tokens((random() % 6 + 1) * kPrefixBlockTokens,
                            static_cast<uint32_t>(random() % 6)));
    const uint64_t router = random() % 3;
    memory.Remember(prefix, router);
    for (auto hash = prefix.rbegin(); hash != prefix.rend(); ++hash) {
      model[*hash].first = ++now;
      model[*hash].second.insert(router);
    }
    while (model.size() > kMaxBlocks) {
      auto oldest = model.begin();
      for (auto entry = model.begin(); entry != model.end(); ++entry) {
        if (entry->second.first < oldest->second.first) oldest = entry;
      }
      model.erase(oldest);
    }
    ASSERT_EQ(memory.num_blocks(), model.size());
    const uint64_t asked = random() % 3;
    size_t known = 0;
    for (const uint64_t hash : prefix) {
      if (model.count(hash) == 0 || model[hash].second.count(asked) == 0) break;
      ++known;
    }
    ASSERT_EQ(memory.NumKnown(prefix, asked), known);
  }
}

TEST(ChooseRouterTest, APrefixIsWorthSoManySequences) {
  RouterLoad cached = {.ready = true, .active_sequences = 3};
  RouterLoad idle = {
      .ready = true,
      .uncached_tokens = static_cast<uint64_t>(2 * kTokensPerSequence)};
  EXPECT_EQ(ChooseRouter(std::vector<RouterLoad>{cached, idle}, 0), 1u);
  cached.active_sequences = 1;
  EXPECT_EQ(ChooseRouter(std::vector<RouterLoad>{cached, idle}, 0), 0u);
  // Not where there is no room for its keys and values.
  cached.kv_use = 0.99;
  EXPECT_EQ(ChooseRouter(std::vector<RouterLoad>{cached, idle}, 0), 1u);
  idle.kv_use = 0.99;
  EXPECT_EQ(ChooseRouter(std::vector<RouterLoad>{cached, idle}, 0), 0u);
}

}  // namespace
}  // namespace troupe
