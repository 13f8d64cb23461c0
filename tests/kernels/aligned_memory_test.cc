#include "kernels/aligned_memory.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <random>
#include <thread>
#include <utility>
#include <vector>

namespace troupe {
namespace {

struct Allocation {
  uint8_t* memory;
  size_t num_bytes;
  uint8_t mark;
};

Allocation Allocate(size_t num_bytes, uint8_t mark) {
  Allocation a = {static_cast<uint8_t*>(AllocateAligned(num_bytes)), num_bytes,
                  mark};
  EXPECT_EQ(reinterpret_cast<uintptr_t>(a.memory) % 64, 0u);
  std::memset(a.memory, mark, num_bytes);
  return a;
}

void CheckAndFree(const Allocation& a) {
  for (size_t i = 0; i < a.num_bytes; i += i < 4096 ? 1 : 4093) {
    ASSERT_EQ(a.memory[i], a.mark) << i << " of " << a.num_bytes;
  }
  ASSERT_EQ(a.memory[a.num_bytes - 1], a.mark);
  FreeAligned(a.memory);
}

// Sizes on both sides of every border: small ones, those that share slabs, the
// size of a slab, and large ones. Nobody writes into another's memory.
void AllocateAndFreeInAnyOrder(uint32_t seed) {
  std::mt19937 generator(seed);
  const size_t kSizes[] = {1,
                           100,
                           (size_t{64} << 10) - 1,
                           size_t{64} << 10,
                           (size_t{64} << 10) + 1,
                           1'700'000,
                           3'300'001,
                           (size_t{16} << 20) - 1,
                           size_t{16} << 20,
                           (size_t{33} << 20) + 5};
  std::vector<Allocation> live;
  for (int i = 0; i < 300; ++i) {
    if (live.size() > 20 || (!live.empty() && generator() % 3 == 0)) {
      std::swap(live[generator() % live.size()], live.back());
      CheckAndFree(live.back());
      live.pop_back();
    } else {
      live.push_back(Allocate(kSizes[generator() % std::size(kSizes)],
                              static_cast<uint8_t>(generator())));
    }
  }
  for (const Allocation& a : live) CheckAndFree(a);
}

TEST(AlignedMemoryTest, AllocationsDoNotOverlap) {
  AllocateAndFreeInAnyOrder(1);
}

TEST(AlignedMemoryTest, ThreadsMayAllocateAtTheSameTime) {
  std::vector<std::thread> threads;
  for (uint32_t seed = 2; seed < 5; ++seed) {
    threads.emplace_back([seed] { AllocateAndFreeInAnyOrder(seed); });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(AlignedMemoryTest, NothingMayBeFreed) { FreeAligned(nullptr); }

}  // namespace
}  // namespace troupe
