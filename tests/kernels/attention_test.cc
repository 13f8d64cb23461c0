#include "kernels/attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <vector>

#include "kernels/reference/attention.h"
#include "tests/kernels/kernel_test_util.h"

namespace troupe {
namespace {

struct Shape {
  size_t num_heads;
  size_t num_kv_heads;
  size_t head_dim;
  size_t window;
  DataType dtype = DataType::kF32;
};

// As the cache rounds it.
float Rounded(float value, DataType dtype) {
  return dtype == DataType::kBF16 ? F32FromBF16(BF16FromF32(value)) : value;
}
TestMatrix Rounded(TestMatrix matrix, DataType dtype) {
  for (size_t r = 0; r < matrix.view().rows; ++r) {
    for (size_t c = 0; c < matrix.view().cols; ++c) {
      matrix.view().row(r)[c] = Rounded(matrix.view().row(r)[c], dtype);
    }
  }
  return matrix;
}

const Shape kShapes[] = {{1, 1, 1, 0},    {4, 4, 8, 0},   {4, 1, 16, 0},
                         {8, 2, 64, 0},   {6, 2, 40, 0},  {14, 1, 5, 0},
                         {16, 2, 128, 0}, {3, 3, 33, 0},  {8, 2, 64, 1},
                         {4, 2, 32, 5},   {6, 3, 24, 16}, {8, 1, 16, 21},
                         {4, 4, 48, 40}};

std::vector<Shape> ShapesOfBothTypes() {
  std::vector<Shape> shapes(std::begin(kShapes), std::end(kShapes));
  for (Shape shape : kShapes) {
    shape.dtype = DataType::kBF16;
    shapes.push_back(shape);
  }
  return shapes;
}

// A sequence with keys, values and queries of all its positions, in blocks of
// a cache that it does not have to itself. Slots that were not written hold
// NaN.
class TestSequence {
 public:
  TestSequence(const Shape& shape, size_t num_positions, uint32_t seed)
      : keys(TestMatrix::Random(num_positions,
                                shape.num_kv_heads * shape.head_dim, seed)),
        values(TestMatrix::Random(
            num_positions, shape.num_kv_heads * shape.head_dim, seed + 1)),
        queries(TestMatrix::Random(
            num_positions, shape.num_heads * shape.head_dim, seed + 2)) {}

  TestMatrix keys;
  TestMatrix values;
  TestMatrix queries;
};

class AttentionTest : public ::testing::TestWithParam<Shape> {
 protected:
  static constexpr size_t kBlocks = 24;

  AttentionTest() : shape_(GetParam()) {
    cache_.dtype = shape_.dtype;
    cache_.num_kv_heads = shape_.num_kv_heads;
    cache_.head_dim = shape_.head_dim;
    // Bytes of ones: NaN in both formats. No vector is aligned.
    key_bytes_.assign(4 + kBlocks * cache_.block_bytes(), 0xff);
    value_bytes_ = key_bytes_;
    cache_.keys = key_bytes_.data() + 4;
    cache_.values = value_bytes_.data() + 4;
    free_blocks_.resize(kBlocks);
    std::iota(free_blocks_.begin(), free_blocks_.end(), 0);
    std::shuffle(free_blocks_.begin(), free_blocks_.end(), std::mt19937(5));
  }

  std::vector<int32_t> TakeBlocks(size_t num_positions) {
    std::vector<int32_t> table;
    for (size_t p = 0; p < num_positions; p += kKvBlockSize) {
      table.push_back(free_blocks_.back());
      free_blocks_.pop_back();
    }
    return table;
  }

  float scale() const {
    return 1.0f / std::sqrt(static_cast<float>(shape_.head_dim));
  }

  // Writes and attends to positions [begin, end) of one sequence.
  void Step(const TestSequence& sequence, std::span<const int32_t> table,
            size_t begin, size_t end, FloatMatrix output, ThreadPool& pool) {
    const AttentionSequence rows[] = {{table, 0, end - begin, begin}};
    WriteKvCache(sequence.keys.view().Rows(begin, end),
                 sequence.values.view().Rows(begin, end), rows, cache_, pool);
    PagedAttention(sequence.queries.view().Rows(begin, end), shape_.num_heads,
                   scale(), shape_.window, rows, cache_,
                   output.Rows(begin, end), workspace_, pool);
  }

  // A whole sequence in chunks of these sizes (the last one repeats).
  TestMatrix Run(const TestSequence& sequence, std::vector<size_t> chunks,
                 ThreadPool& pool) {
    const size_t num_positions = sequence.keys.view().rows;
    const std::vector<int32_t> table = TakeBlocks(num_positions);
    TestMatrix output(num_positions, shape_.num_heads * shape_.head_dim);
    size_t begin = 0;
    for (size_t i = 0; begin < num_positions; ++i) {
      const size_t chunk = chunks[std::min(i, chunks.size() - 1)];
      const size_t end = std::min(begin + chunk, num_positions);
      Step(sequence, table, begin, end, output.view(), pool);
      begin = end;
    }
    for (const int32_t block : table) {
      free_blocks_.push_back(block);
      for (uint8_t* half : {cache_.keys, cache_.values}) {
        std::fill_n(half + block * cache_.block_bytes(), cache_.block_bytes(),
                    uint8_t{0xff});
      }
    }
    output.ExpectMarksUntouched();
    return output;
  }

  const Shape shape_;
  KvCacheView cache_;
  std::vector<uint8_t> key_bytes_;
  std::vector<uint8_t> value_bytes_;
  std::vector<int32_t> free_blocks_;
  ThreadPool one_{1};
  ThreadPool two_{2};
  Workspace workspace_;
};

TEST_P(AttentionTest, IsCloseToTheReference) {
  constexpr size_t kPositions = 83;
  const TestSequence sequence(shape_, kPositions, 1);
  const TestMatrix keys = Rounded(sequence.keys, shape_.dtype);
  const TestMatrix values = Rounded(sequence.values, shape_.dtype);
  TestMatrix expected(kPositions, shape_.num_heads * shape_.head_dim);
  for (size_t p = 0; p < kPositions; ++p) {
    reference::AttentionRow(
        {sequence.queries.view().row(p), expected.view().cols},
        keys.view().Rows(0, p + 1), values.view().Rows(0, p + 1),
        shape_.num_heads, shape_.num_kv_heads, scale(), shape_.window,
        {expected.view().row(p), expected.view().cols});
  }
  ForEachInstructionSet([&] {
    const TestMatrix actual = Run(sequence, {kPositions}, two_);
    // An error of a score is a relative error of its weight.
    ExpectClose(actual.view(), expected.view(), [&](size_t r, size_t c) {
      double max_key = 0;
      double max_value = 0;
      const size_t kv_column = c / shape_.head_dim /
                               (shape_.num_heads / shape_.num_kv_heads) *
                               shape_.head_dim;
      for (size_t p = 0; p <= r; ++p) {
        max_key = std::max(
            max_key,
            Norm(sequence.keys.view().row(p) + kv_column, shape_.head_dim));
        max_value = std::max<double>(max_value,
                                     std::abs(sequence.values.view().row(
                                         p)[kv_column + c % shape_.head_dim]));
      }
      const double query_norm = Norm(sequence.queries.view().row(r) +
                                         c / shape_.head_dim * shape_.head_dim,
                                     shape_.head_dim);
      return (2 * scale() * DotTolerance(query_norm, max_key) + 16 * kEpsilon) *
             max_value;
    });
  });
}

TEST_P(AttentionTest, BitsDoNotDependOnChunksThreadsOrInstructionSet) {
  constexpr size_t kPositions = 75;
  const TestSequence sequence(shape_, kPositions, 4);
  const TestMatrix expected = Run(sequence, {1}, one_);
  ForEachInstructionSet([&] {
    for (const std::vector<size_t>& chunks : std::vector<std::vector<size_t>>{
             {1}, {kPositions}, {16}, {5, 30, 1}, {17, 3, 1, 40}, {32, 1}}) {
      SCOPED_TRACE(::testing::PrintToString(chunks));
      for (ThreadPool* pool : {&one_, &two_}) {
        const TestMatrix actual = Run(sequence, chunks, *pool);
        ExpectSameBits(actual.view(), expected.view());
      }
    }
  });
}

// Prefill of one sequence, decode of two, and one without rows in one batch:
// each as if alone.
TEST_P(AttentionTest, BitsDoNotDependOnTheBatch) {
  const size_t positions[] = {50, 33, 16, 20};
  const size_t done[] = {10, 32, 15, 20};
  std::vector<TestSequence> sequences;
  std::vector<TestMatrix> expected;
  std::vector<std::vector<int32_t>> tables;
  for (size_t i = 0; i < 4; ++i) {
    sequences.emplace_back(shape_, positions[i], 10 + 3 * i);
    expected.push_back(Run(sequences[i], {positions[i]}, one_));
  }
  const size_t cols = shape_.num_heads * shape_.head_dim;
  const size_t kv_cols = shape_.num_kv_heads * shape_.head_dim;
  ForEachInstructionSet([&] {
    std::vector<AttentionSequence> rows;
    size_t num_rows = 0;
    tables.clear();
    for (size_t i = 0; i < 4; ++i) {
      tables.push_back(TakeBlocks(positions[i]));
      TestMatrix ignored(positions[i], cols);
      Step(sequences[i], tables[i], 0, done[i], ignored.view(), two_);
      num_rows += positions[i] - done[i];
    }
    TestMatrix keys(num_rows, kv_cols);
    TestMatrix values(num_rows, kv_cols);
    TestMatrix queries(num_rows, cols);
    // The rows of sequence 2 come first: the order of rows is the caller's.
    size_t row = 0;
    for (const size_t i : {2, 0, 3, 1}) {
      rows.push_back({tables[i], row, positions[i] - done[i], done[i]});
      for (size_t p = done[i]; p < positions[i]; ++p, ++row) {
        std::copy_n(sequences[i].keys.view().row(p), kv_cols,
                    keys.view().row(row));
        std::copy_n(sequences[i].values.view().row(p), kv_cols,
                    values.view().row(row));
        std::copy_n(sequences[i].queries.view().row(p), cols,
                    queries.view().row(row));
      }
    }
    TestMatrix output(num_rows, cols);
    WriteKvCache(keys.view(), values.view(), rows, cache_, two_);
    PagedAttention(queries.view(), shape_.num_heads, scale(), shape_.window,
                   rows, cache_, output.view(), workspace_, two_);
    size_t j = 0;
    for (const size_t i : {2, 0, 3, 1}) {
      SCOPED_TRACE(i);
      ExpectSameBits(output.view().Rows(rows[j].first_row,
                                        rows[j].first_row + rows[j].num_rows),
                     expected[i].view().Rows(done[i], positions[i]));
      ++j;
    }
    for (const std::vector<int32_t>& table : tables) {
      free_blocks_.insert(free_blocks_.end(), table.begin(), table.end());
    }
  });
}

// Neither positions after a row nor those before its window reach it, whatever
// they hold: not even in the same tile.
TEST_P(AttentionTest, PositionsOutsideTheMaskDoNotMatter) {
  constexpr size_t kPositions = 45;
  constexpr size_t kRow = 37;
  const TestSequence sequence(shape_, kPositions, 30);
  const TestMatrix expected = Run(sequence, {kPositions}, one_);
  TestSequence poisoned = sequence;
  const size_t first =
      shape_.window == 0 || kRow < shape_.window ? 0 : kRow - shape_.window + 1;
  for (size_t p = 0; p < kPositions; ++p) {
    if (p >= first && p <= kRow) continue;
    for (size_t c = 0; c < poisoned.keys.view().cols; ++c) {
      poisoned.keys.view().row(p)[c] = c % 2 == 0 ? kNan : kInfinity;
      poisoned.values.view().row(p)[c] = c % 2 == 0 ? kInfinity : kNan;
    }
  }
  ForEachInstructionSet([&] {
    for (const size_t chunk : {size_t{1}, kPositions}) {
      const TestMatrix actual = Run(poisoned, {chunk}, two_);
      ExpectSameBits(actual.view().Rows(kRow, kRow + 1),
                     expected.view().Rows(kRow, kRow + 1));
    }
  });
}

TEST_P(AttentionTest, NanReachesTheRowsThatSeeIt) {
  constexpr size_t kPositions = 40;
  constexpr size_t kPoisoned = 20;
  TestSequence sequence(shape_, kPositions, 40);
  for (size_t c = 0; c < sequence.keys.view().cols; ++c) {
    sequence.keys.view().row(kPoisoned)[c] = kNan;
  }
  ForEachInstructionSet([&] {
    const TestMatrix output = Run(sequence, {kPositions}, two_);
    for (size_t p = 0; p < kPositions; ++p) {
      const bool sees = p >= kPoisoned &&
                        (shape_.window == 0 || p < kPoisoned + shape_.window);
      for (size_t c = 0; c < output.view().cols; ++c) {
        ASSERT_EQ(std::isnan(output.view().row(p)[c]), sees) << p << " " << c;
      }
    }
  });
}

// Scores far apart: the largest wins, nothing overflows.
TEST_P(AttentionTest, LargeScores) {
  constexpr size_t kPositions = 35;
  TestSequence sequence(shape_, kPositions, 50);
  for (size_t p = 0; p < kPositions; ++p) {
    for (size_t c = 0; c < sequence.keys.view().cols; ++c) {
      sequence.keys.view().row(p)[c] =
          p % 7 == 3 ? 1e4f : -1e4f * static_cast<float>(p + 1);
    }
    for (size_t c = 0; c < sequence.queries.view().cols; ++c) {
      sequence.queries.view().row(p)[c] = 1e3f;
    }
  }
  const TestMatrix output = Run(sequence, {kPositions}, two_);
  for (size_t p = 0; p < kPositions; ++p) {
    for (size_t c = 0; c < output.view().cols; ++c) {
      ASSERT_TRUE(std::isfinite(output.view().row(p)[c]));
    }
  }
  // Row 3 is its own largest.
  const size_t group = shape_.num_heads / shape_.num_kv_heads;
  for (size_t h = 0; h < shape_.num_heads; ++h) {
    for (size_t d = 0; d < shape_.head_dim; ++d) {
      EXPECT_EQ(output.view().row(3)[h * shape_.head_dim + d],
                Rounded(sequence.values.view().row(
                            3)[h / group * shape_.head_dim + d],
                        shape_.dtype));
    }
  }
}

// Rounding is all that bfloat16 changes: the bits are those of a float32 cache
// that was given the rounded numbers.
TEST_P(AttentionTest, BFloat16IsFloat32OfRoundedNumbers) {
  if (shape_.dtype != DataType::kBF16) return;
  constexpr size_t kPositions = 53;
  TestSequence sequence(shape_, kPositions, 60);
  const TestMatrix actual = Run(sequence, {20, 1, 32}, two_);
  sequence.keys = Rounded(sequence.keys, shape_.dtype);
  sequence.values = Rounded(sequence.values, shape_.dtype);
  key_bytes_.assign(4 + kBlocks * cache_.block_bytes() * 2, 0xff);
  value_bytes_ = key_bytes_;
  cache_.dtype = DataType::kF32;
  cache_.keys = key_bytes_.data() + 4;
  cache_.values = value_bytes_.data() + 4;
  const TestMatrix expected = Run(sequence, {kPositions}, one_);
  ExpectSameBits(actual.view(), expected.view());
}

INSTANTIATE_TEST_SUITE_P(Shapes, AttentionTest,
                         ::testing::ValuesIn(ShapesOfBothTypes()),
                         [](const auto& test) {
                           const Shape& s = test.param;
                           return "heads" + std::to_string(s.num_heads) + "of" +
                                  std::to_string(s.num_kv_heads) + "dim" +
                                  std::to_string(s.head_dim) + "window" +
                                  std::to_string(s.window) + Name(s.dtype);
                         });

}  // namespace
}  // namespace troupe
