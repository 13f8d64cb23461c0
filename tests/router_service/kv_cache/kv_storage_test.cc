#include "router_service/kv_cache/kv_storage.h"

#include <cstdint>
#include <limits>
#include <string>

#include "common/process_memory.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace troupe {
namespace {

using ::testing::HasSubstr;

TEST(KvStorageTest, EveryFloatBelongsToOneLayerAndHalf) {
  constexpr size_t kLayers = 3;
  constexpr size_t kBlocks = 4;
  constexpr size_t kHeads = 2;
  constexpr size_t kDim = 6;
  const auto kv = *KvStorage::Create(kLayers, kBlocks, kHeads, kDim);
  const size_t half = kBlocks * kHeads * kDim * kKvBlockSize;
  EXPECT_EQ(kv->num_bytes(), kLayers * 2 * half * sizeof(float));
  // Written in order, each with its own number; none overwrites another.
  float next = 0.0f;
  for (size_t layer = 0; layer < kLayers; ++layer) {
    const KvCacheView view = kv->layer(layer);
    EXPECT_EQ(view.num_kv_heads, kHeads);
    EXPECT_EQ(view.head_dim, kDim);
    EXPECT_EQ(view.block_floats() * kBlocks, half);
    for (size_t i = 0; i < half; ++i) view.keys[i] = next++;
    for (size_t i = 0; i < half; ++i) view.values[i] = next++;
  }
  next = 0.0f;
  for (size_t layer = 0; layer < kLayers; ++layer) {
    const KvCacheView view = kv->layer(layer);
    for (size_t i = 0; i < half; ++i) ASSERT_EQ(view.keys[i], next++);
    for (size_t i = 0; i < half; ++i) ASSERT_EQ(view.values[i], next++);
  }
}

TEST(KvStorageTest, CopiesABlockOfAllLayers) {
  constexpr size_t kLayers = 3;
  const auto kv = *KvStorage::Create(kLayers, 4, 2, 6);
  const size_t size = kv->layer(0).block_floats();
  const auto fill = [&] {
    float next = 0.0f;
    for (size_t layer = 0; layer < kLayers; ++layer) {
      for (float* half : {kv->layer(layer).keys, kv->layer(layer).values}) {
        for (size_t i = 0; i < 4 * size; ++i) half[i] = next++;
      }
    }
  };
  fill();
  kv->CopyBlock(3, 1);
  float next = 0.0f;
  for (size_t layer = 0; layer < kLayers; ++layer) {
    for (const float* half : {kv->layer(layer).keys, kv->layer(layer).values}) {
      for (size_t i = 0; i < 4 * size; ++i, ++next) {
        const bool copied = i / size == 1;
        ASSERT_EQ(half[i], next + (copied ? 2.0f * float(size) : 0.0f)) << i;
      }
    }
  }
}

TEST(KvStorageTest, PagesCostNothingBeforeTheyAreWritten) {
  const uint64_t before = ResidentBytes();
  const auto kv = *KvStorage::Create(32, 4096, 8, 128);
  EXPECT_EQ(kv->num_bytes(), uint64_t{16} << 30);
  EXPECT_LT(ResidentBytes(), before + (uint64_t{256} << 20));
}

TEST(KvStorageTest, TooLargeIsAnErrorWithTheArithmetic) {
  constexpr size_t kHuge = std::numeric_limits<size_t>::max();
  for (const size_t blocks : {kHuge, kHuge / 2, size_t{1} << 56}) {
    const auto kv = KvStorage::Create(32, blocks, 8, 128);
    EXPECT_EQ(kv.status().code(), absl::StatusCode::kResourceExhausted);
    EXPECT_THAT(std::string(kv.status().message()),
                HasSubstr("blocks x 32 layers x 8 heads x 128"));
  }
}

}  // namespace
}  // namespace troupe
