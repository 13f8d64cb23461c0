#include "cluster/replica_choice.h"

#include <algorithm>
#include <random>
#include <set>
#include <vector>

#include "gtest/gtest.h"

namespace troupe {
namespace {

ReplicaLoad Load(uint64_t rows_ahead, double us_per_row = 10,
                 uint64_t chosen_rows = 0) {
  ReplicaLoad load;
  load.rows_ahead = rows_ahead + chosen_rows;
  load.chosen_rows = chosen_rows;
  load.free_rows = 1000;
  load.us_per_row = us_per_row;
  return load;
}

TEST(ReplicaChoice, TheOneThatIsDoneFirst) {
  EXPECT_EQ(ChooseReplica({Load(0)}, 4, 0), 0u);
  EXPECT_EQ(ChooseReplica({Load(9), Load(2)}, 4, 0), 1u);
  // Twice as many rows, but four times as fast.
  EXPECT_EQ(ChooseReplica({Load(10, 10), Load(20, 2)}, 4, 0), 1u);
}

TEST(ReplicaChoice, WithoutRoomItComesLast) {
  std::vector<ReplicaLoad> replicas = {Load(0), Load(50)};
  replicas[0].free_rows = 0;
  EXPECT_EQ(ChooseReplica(replicas, 4, 0), 1u);
  replicas[1].free_rows = -3;
  EXPECT_EQ(ChooseReplica(replicas, 4, 0), 0u);
}

TEST(ReplicaChoice, FewRowsShareAMessageAndManyAreSplit) {
  // 2 rows of 10 us are there already: 2 more are not worth a message.
  EXPECT_EQ(ChooseReplica({Load(0, 10, 2), Load(0)}, 2, 0), 0u);
  // 20 rows are.
  EXPECT_EQ(ChooseReplica({Load(0, 10, 20), Load(0)}, 20, 0), 1u);
}

TEST(ReplicaChoice, EqualsTakeTurns) {
  std::vector<ReplicaLoad> replicas = {Load(0), Load(0)};
  replicas[0].sent = 4;
  replicas[1].sent = 3;
  EXPECT_EQ(ChooseReplica(replicas, 1, 0), 1u);
}

TEST(ReplicaChoice, AnUnknownOneIsTried) {
  EXPECT_EQ(ChooseReplica({Load(1, 10), Load(0, 0)}, 1, 0), 1u);
  // And does not get everything because of it.
  EXPECT_EQ(ChooseReplica({Load(0, 10), Load(9, 0)}, 1, 0), 0u);
}

// Of many, the better one of two: never the worst, and not always the best.
TEST(ReplicaChoice, PowerOfTwoChoices) {
  std::vector<ReplicaLoad> replicas;
  for (uint64_t rows = 0; rows < 6; ++rows) replicas.push_back(Load(rows));
  std::mt19937_64 random(1);
  std::vector<size_t> count(6, 0);
  for (int i = 0; i < 6000; ++i) ++count[ChooseReplica(replicas, 1, random())];
  // The i-th best is chosen with probability 2 (5 - i) / (6 * 5).
  for (size_t i = 0; i < 6; ++i) {
    EXPECT_NEAR(static_cast<double>(count[i]) / 6000,
                2.0 * static_cast<double>(5 - i) / 30, 0.02);
  }
}

// A layer's experts over full replicas, chosen one after the other, the
// largest first: close to the best split there is.
TEST(ReplicaChoice, BalancesALayer) {
  std::mt19937_64 random(2);
  for (int round = 0; round < 200; ++round) {
    std::vector<uint64_t> rows(8);
    uint64_t total = 0;
    for (uint64_t& r : rows) total += r = 20 + random() % 200;
    std::sort(rows.rbegin(), rows.rend());
    std::vector<ReplicaLoad> replicas = {Load(0), Load(0)};
    for (const uint64_t r : rows) {
      const size_t chosen = ChooseReplica(replicas, r, random());
      replicas[chosen].rows_ahead += r;
      replicas[chosen].chosen_rows += r;
    }
    uint64_t best = total;  // over all splits
    for (size_t split = 0; split < 256; ++split) {
      uint64_t part = 0;
      for (size_t i = 0; i < 8; ++i) part += (split >> i & 1) ? rows[i] : 0;
      best = std::min(best, std::max(part, total - part));
    }
    const uint64_t slower =
        std::max(replicas[0].rows_ahead, replicas[1].rows_ahead);
    // Graham's bound for the largest first is 7/6 of the best.
    EXPECT_LE(slower, best * 7 / 6 + 1);
  }
}

}  // namespace
}  // namespace troupe
