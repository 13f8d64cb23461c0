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

// Written in order, each byte with its own number (modulo a prime); none
// overwrites another.
void Fill(KvStorage& kv, size_t num_layers, size_t half) {
  size_t next = 0;
  for (size_t layer = 0; layer < num_layers; ++layer) {
    for (uint8_t* to : {kv.layer(layer).keys, kv.layer(layer).values}) {
      for (size_t i = 0; i < half; ++i) {
        to[i] = static_cast<uint8_t>(next++ % 251);
      }
    }
  }
}

class KvStorageTypes : public testing::TestWithParam<DataType> {};

TEST_P(KvStorageTypes, EveryByteBelongsToOneLayerAndHalf) {
  constexpr size_t kLayers = 3;
  constexpr size_t kBlocks = 4;
  constexpr size_t kHeads = 2;
  for (const size_t head_dim : {6, 7}) {
    const auto kv =
        *KvStorage::Create(kLayers, kBlocks, kHeads, head_dim, GetParam());
    const bool half_size = GetParam() == DataType::kBF16;
    const size_t half =
        kBlocks * kHeads * kKvBlockSize *
        (half_size ? 2 * (head_dim + head_dim % 2) : 4 * head_dim);
    EXPECT_EQ(kv->num_bytes(), kLayers * 2 * half);
    Fill(*kv, kLayers, half);
    size_t next = 0;
    for (size_t layer = 0; layer < kLayers; ++layer) {
      const KvCacheView view = kv->layer(layer);
      EXPECT_EQ(view.dtype, GetParam());
      EXPECT_EQ(view.num_kv_heads, kHeads);
      EXPECT_EQ(view.head_dim, head_dim);
      EXPECT_EQ(view.block_bytes() * kBlocks, half);
      for (const uint8_t* from : {view.keys, view.values}) {
        for (size_t i = 0; i < half; ++i) ASSERT_EQ(from[i], next++ % 251);
      }
    }
  }
}

TEST_P(KvStorageTypes, CopiesABlockOfAllLayers) {
  constexpr size_t kLayers = 3;
  const auto kv = *KvStorage::Create(kLayers, 4, 2, 6, GetParam());
  const size_t size = kv->layer(0).block_bytes();
  Fill(*kv, kLayers, 4 * size);
  kv->CopyBlock(3, 1);
  size_t next = 0;
  for (size_t layer = 0; layer < kLayers; ++layer) {
    for (const uint8_t* half :
         {kv->layer(layer).keys, kv->layer(layer).values}) {
      for (size_t i = 0; i < 4 * size; ++i, ++next) {
        const size_t from = i / size == 1 ? next + 2 * size : next;
        ASSERT_EQ(half[i], from % 251) << i;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Types, KvStorageTypes,
                         testing::Values(DataType::kF32, DataType::kBF16),
                         [](const auto& test) { return Name(test.param); });

TEST(KvStorageTest, PagesCostNothingBeforeTheyAreWritten) {
  const uint64_t before = ResidentBytes();
  const auto kv = *KvStorage::Create(32, 4096, 8, 128, DataType::kF32);
  EXPECT_EQ(kv->num_bytes(), uint64_t{16} << 30);
  EXPECT_LT(ResidentBytes(), before + (uint64_t{256} << 20));
}

TEST(KvStorageTest, TooLargeIsAnErrorWithTheArithmetic) {
  constexpr size_t kHuge = std::numeric_limits<size_t>::max();
  for (const size_t blocks : {kHuge, kHuge / 2, size_t{1} << 56}) {
    const auto kv = KvStorage::Create(32, blocks, 8, 128, DataType::kF32);
    EXPECT_EQ(kv.status().code(), absl::StatusCode::kResourceExhausted);
    EXPECT_THAT(std::string(kv.status().message()),
                HasSubstr("blocks x 32 layers x 8 heads x 128"));
  }
}

}  // namespace
}  // namespace troupe
