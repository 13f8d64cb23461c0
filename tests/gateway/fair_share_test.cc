#include "gateway/fair_share.h"

#include <map>
#include <random>
#include <string>
#include <vector>

#include "gateway/admission.h"
#include "gateway/refusal.h"
#include "gtest/gtest.h"
#include "tests/fakes/manual_clock.h"

namespace troupe {
namespace {

TEST(FairShareTest, KeepsAnEighthAndSharesByWeight) {
  EXPECT_EQ(KeptShare(0), 0u);
  EXPECT_EQ(KeptShare(1), 0u);
  EXPECT_EQ(KeptShare(2), 1u);
  EXPECT_EQ(KeptShare(256), 32u);
  // One of the default priority has 2; two of it: 6 with the next comer.
  EXPECT_EQ(FairShare({.capacity = 60, .weight = 2, .other_weight = 2}), 20u);
  EXPECT_EQ(FairShare({.capacity = 60, .weight = 8, .other_weight = 2}), 40u);
  EXPECT_EQ(FairShare({.capacity = 60, .weight = 1, .other_weight = 1000}), 1u);
}

// What AskShare's comment says, for every small gateway.
TEST(FairShareTest, NoKeyFillsItAndWhoHoldsNothingIsRefusedWhenFullAlone) {
  for (uint64_t capacity = 1; capacity <= 40; ++capacity) {
    for (uint32_t priority = 0; priority <= kMaxPriority; ++priority) {
      ShareState state{.capacity = capacity, .weight = WeightOf(priority)};
      while (AskShare(state, 1) == ShareAnswer::kEnter) {
        ++state.used;
        ++state.held;
      }
      if (capacity == 1) {
        EXPECT_EQ(state.held, 1u);
        continue;
      }
      EXPECT_LT(state.held, capacity);
      EXPECT_GE(state.held, capacity - KeptShare(capacity));
      const ShareState newcomer{.capacity = capacity,
                                .used = state.used,
                                .held = 0,
                                .weight = 1,
                                .other_weight = state.weight};
      EXPECT_EQ(AskShare(newcomer, 1), ShareAnswer::kEnter);
    }
  }
}

TEST(FairShareTest, WhatIsLargerThanTheWholeEntersAlone) {
  ShareState state{.capacity = 100, .weight = 2};
  EXPECT_EQ(AskShare(state, 500), ShareAnswer::kEnter);
  state.used = 1;
  EXPECT_EQ(AskShare(state, 500), ShareAnswer::kFull);
  EXPECT_EQ(StaysUntilEntry(state, 500), 1.0);
}

TEST(FairShareTest, TheWaitIsThatOfTheRequestsWhichMustLeave) {
  // Full; the key holds nothing: one of ten.
  EXPECT_DOUBLE_EQ(StaysUntilEntry({.capacity = 10,
                                    .used = 10,
                                    .held = 0,
                                    .weight = 2,
                                    .other_weight = 2},
                                   1),
                   0.1);
  // The key holds all of 15 (its share is 8): below 14 are the open ones, so
  // two of fifteen must leave.
  EXPECT_DOUBLE_EQ(StaysUntilEntry({.capacity = 16,
                                    .used = 15,
                                    .held = 15,
                                    .weight = 2,
                                    .other_weight = 0},
                                   1),
                   2.0 / 15);
}

// The slow model: a list of requests, everything counted anew.
struct Entry {
  std::string key;
  uint64_t tokens;
};

bool SlowMayEnter(const std::vector<Entry>& in, const std::string& key,
                  uint64_t cost, uint64_t capacity, bool count_tokens,
                  const std::map<std::string, uint32_t>& priorities) {
  uint64_t used = 0;
  uint64_t held = 0;
  std::map<std::string, uint64_t> weights{{key, WeightOf(priorities.at(key))}};
  for (const Entry& entry : in) {
    const uint64_t amount = count_tokens ? entry.tokens : 1;
    used += amount;
    if (entry.key == key) held += amount;
    weights[entry.key] = WeightOf(priorities.at(entry.key));
  }
  if (cost == 0 || used == 0) return true;
  if (used + cost > capacity) return false;
  if (held == 0) return true;
  uint64_t sum = 2;
  for (const auto& [name, weight] : weights) sum += weight;
  const uint64_t share =
      std::max<uint64_t>(1, capacity * weights.at(key) / sum);
  const uint64_t kept = capacity < 2 ? 0 : std::max<uint64_t>(1, capacity / 8);
  return used + cost <= capacity - kept || held + cost <= share;
}

TEST(AdmissionFairnessTest, AgreesWithTheSlowModelOnRandomSchedules) {
  std::mt19937 random(3);
  int refused = 0;
  for (int round = 0; round < 60; ++round) {
    const uint32_t max_requests = 1 + random() % 24;
    const uint64_t max_tokens = 1 + random() % 400;
    ManualClock clock;
    Admission admission(
        {.max_requests = max_requests, .max_waiting_prompt_tokens = max_tokens},
        clock);
    std::map<std::string, uint32_t> priorities;
    for (const char* key : {"a", "b", "c", "d"}) {
      priorities[key] = random() % (kMaxPriority + 1);
    }
    std::vector<Entry> in;
    std::vector<Admission::Ticket> tickets;
    for (int step = 0; step < 400; ++step) {
      clock.Advance(milliseconds(random() % 20));
      if (!in.empty() && random() % 3 == 0) {
        const size_t i = random() % in.size();
        switch (random() % 4) {
          case 0:
            tickets[i].PromptDone();
            in[i].tokens = 0;
            break;
          case 1:
            in[i].tokens = random() % 50;
            tickets[i].SetPromptTokens(in[i].tokens);
            break;
          default:
            in.erase(in.begin() + static_cast<int64_t>(i));
            tickets.erase(tickets.begin() + static_cast<int64_t>(i));
        }
        continue;
      }
      // The first keys ask more often.
      const std::string key(1, "aaaabbcd"[random() % 8]);
      const uint64_t tokens = random() % 4 == 0 ? 0 : random() % 80;
      const bool expected =
          SlowMayEnter(in, key, 1, max_requests, false, priorities) &&
          SlowMayEnter(in, key, tokens, max_tokens, true, priorities);
      absl::StatusOr<Admission::Ticket> ticket = admission.TryEnter(
          {.key = key, .priority = priorities[key], .prompt_tokens = tokens});
      ASSERT_EQ(ticket.ok(), expected) << ticket.status();
      if (ticket.ok()) {
        in.push_back({key, tokens});
        tickets.push_back(*std::move(ticket));
      } else {
        ++refused;
        ASSERT_EQ(ticket.status().code(), absl::StatusCode::kResourceExhausted);
        ASSERT_GE(RetryDelayOf(ticket.status()), 100);
        ASSERT_LE(RetryDelayOf(ticket.status()), 10000);
      }
      ASSERT_EQ(admission.active(), in.size());
      uint64_t waiting = 0;
      for (const Entry& entry : in) waiting += entry.tokens;
      ASSERT_EQ(admission.waiting_prompt_tokens(), waiting);
    }
  }
  EXPECT_GT(refused, 1000);
}

// A gateway of keys that always want more, some of whose requests end at every
// step. They ask in a random order, the greedy one a hundred times as often.
std::map<std::string, uint32_t> HeldUnderPressure(
    Admission& admission, const std::map<std::string, uint32_t>& priorities,
    const std::string& greedy, int rounds) {
  std::mt19937 random(4);
  std::vector<std::pair<std::string, Admission::Ticket>> in;
  std::vector<std::string> askers(100, greedy);
  for (const auto& [key, priority] : priorities) askers.push_back(key);
  for (int round = 0; round < rounds; ++round) {
    for (int i = 0; i < 2000; ++i) {
      const std::string& key = askers[random() % askers.size()];
      absl::StatusOr<Admission::Ticket> ticket = admission.TryEnter(
          {.key = key, .priority = priorities.at(key), .prompt_tokens = 0});
      if (ticket.ok()) in.emplace_back(key, *std::move(ticket));
    }
    if (round + 1 == rounds) break;
    for (int i = 0; i < 4 && !in.empty(); ++i) {
      std::swap(in[random() % in.size()], in.back());
      in.pop_back();
    }
  }
  std::map<std::string, uint32_t> held;
  for (const auto& [key, ticket] : in) ++held[key];
  return held;
}

TEST(AdmissionFairnessTest, ModestKeysReachTheirSharesBesideAGreedyOne) {
  Admission admission(64);
  const std::map<std::string, uint32_t> priorities{
      {"greedy", 1}, {"a", 1}, {"b", 1}};
  const auto held = HeldUnderPressure(admission, priorities, "greedy", 200);
  // 64 * 2 / 8 each, and what is left of the open part to whoever is quickest.
  EXPECT_GE(held.at("a"), 16u);
  EXPECT_GE(held.at("b"), 16u);
  EXPECT_GE(held.at("greedy"), 16u);
  EXPECT_LE(held.at("greedy"), 64u - 32u);
}

TEST(AdmissionFairnessTest, PriorityWeighsAndStarvesNobody) {
  Admission admission(110);
  const std::map<std::string, uint32_t> priorities{{"batch", 0}, {"chat", 3}};
  const auto held = HeldUnderPressure(admission, priorities, "batch", 400);
  // 1 : 8, and 2 for whoever comes next.
  EXPECT_GE(held.at("chat"), 80u);
  EXPECT_GE(held.at("batch"), 10u);
}

// Control: with the total bound alone (no keys), the greedy one has it all.
TEST(AdmissionFairnessTest, WithoutKeysTheGreedyOneTakesNearlyAll) {
  Admission admission(64);
  std::mt19937 random(5);
  std::vector<std::pair<bool, Admission::Ticket>> in;
  for (int round = 0; round < 200; ++round) {
    for (int i = 0; i < 400; ++i) {
      const bool modest = random() % 101 == 0;
      Admission::Ticket ticket = admission.TryEnter();
      if (ticket) in.emplace_back(modest, std::move(ticket));
    }
    for (int i = 0; i < 4; ++i) {
      std::swap(in[random() % in.size()], in.back());
      in.pop_back();
    }
  }
  int modest = 0;
  for (const auto& [is_modest, ticket] : in) modest += is_modest;
  EXPECT_LT(modest, 8);
}

TEST(AdmissionFairnessTest, EveryPromiseIsATurnOfItsOwn) {
  ManualClock clock;
  Admission admission({.max_requests = 8}, clock);
  for (int i = 0; i < 100; ++i) admission.RecordDuration(4000);
  std::vector<Admission::Ticket> tickets;
  const AdmissionRequest a{.key = "a"};
  while (true) {
    absl::StatusOr<Admission::Ticket> ticket = admission.TryEnter(a);
    if (!ticket.ok()) break;  // holds 7; its share is 4: a turn per second
    tickets.push_back(*std::move(ticket));
  }
  ASSERT_EQ(tickets.size(), 7u);
  int last = 572;  // the first was told when one of seven will have left
  for (int i = 0; i < 20; ++i) {
    const absl::Status refused = admission.TryEnter(a).status();
    EXPECT_EQ(RefusedLimit(refused), kFairShare);
    const int delay = RetryDelayOf(refused);
    EXPECT_NEAR(delay, std::min(last + 1000, 10000), 2);
    last = delay;
  }
  // Another key's promises are its own.
  absl::StatusOr<Admission::Ticket> b = admission.TryEnter({.key = "b"});
  ASSERT_TRUE(b.ok());
  const absl::Status full = admission.TryEnter({.key = "c"}).status();
  EXPECT_EQ(RefusedLimit(full), kPlaces);
  // One of eight that stay four seconds must leave.
  EXPECT_NEAR(RetryDelayOf(full), 500, 1);
  // They pass with time. Two must leave before one of seven is open.
  clock.Advance(milliseconds(20000));
  EXPECT_NEAR(RetryDelayOf(admission.TryEnter(a).status()), 1000, 1);
}

// Closed loop: clients that come back when they were told. Most are let in the
// first time that they come back, and none waits for long.
TEST(AdmissionFairnessTest, ThoseWhoComeBackWhenToldAreLetIn) {
  ManualClock clock;
  Admission admission({.max_requests = 16}, clock);
  std::mt19937 random(6);
  std::exponential_distribution<double> stay_ms(1.0 / 1000);
  struct Client {
    std::string key;
    Admission::Ticket ticket;
    int64_t next_ms = 0;  // comes, or leaves
    int tries = 0;
    int64_t stay = 0;
  };
  std::vector<Client> clients(32);  // twice the capacity
  for (size_t i = 0; i < clients.size(); ++i) {
    clients[i].key = std::string(1, static_cast<char>('a' + i % 4));
  }
  int entered = 0;
  int refused = 0;
  int most_tries = 0;
  for (int64_t ms = 0; ms < 600000; ++ms) {
    for (Client& client : clients) {
      if (ms < client.next_ms) continue;
      if (client.ticket) {
        admission.RecordDuration(static_cast<double>(client.stay));
        client.ticket = Admission::Ticket();
      }
      absl::StatusOr<Admission::Ticket> ticket =
          admission.TryEnter({.key = client.key});
      if (ticket.ok()) {
        client.ticket = *std::move(ticket);
        client.stay = static_cast<int64_t>(stay_ms(random)) + 1;
        client.next_ms = ms + client.stay;
        most_tries = std::max(most_tries, std::exchange(client.tries, 0));
        ++entered;
      } else {
        client.next_ms = ms + RetryDelayOf(ticket.status());
        ++client.tries;
        ++refused;
      }
    }
    clock.Advance(milliseconds(1));
  }
  // The places are in use most of the time (16 of them, a second each).
  EXPECT_GT(entered, 600 * 16 * 7 / 10);
  // A refusal per entry or less, at twice the capacity.
  EXPECT_LT(refused, 2 * entered);
  EXPECT_LT(most_tries, 30);
}

}  // namespace
}  // namespace troupe
