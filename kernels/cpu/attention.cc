#include "kernels/attention.h"

#include "kernels/cpu/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention.cc"
#include "hwy/foreach_target.h"
// foreach_target.h stays before the rest.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <limits>
#include <utility>

#include "common/check.h"
#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "kernels/cpu/math-inl.h"
#include "kernels/cpu/row_blocks.h"
#include "kernels/cpu/work_list.h"

#ifndef TROUPE_KERNELS_CPU_ATTENTION_CC_
#define TROUPE_KERNELS_CPU_ATTENTION_CC_
namespace troupe {

// Rows of one sequence that one task computes for one KV head.
struct AttentionChunk {
  const AttentionSequence* sequence;
  size_t first_row;  // of the sequence
  size_t num_rows;
};

struct AttentionArguments {
  ConstFloatMatrix queries;
  size_t num_heads;
  float scale;
  size_t window;
  KvCacheView cache;
  FloatMatrix output;
};

}  // namespace troupe
#endif  // TROUPE_KERNELS_CPU_ATTENTION_CC_

HWY_BEFORE_NAMESPACE();
namespace troupe::HWY_NAMESPACE {

// A tile is a KV block: 16 positions are one block of lanes.
static_assert(kKvBlockSize == kBlockLanes);

// A query is one head of one row. This many queries share the reading of a
// tile; their accumulators stay in registers.
inline constexpr size_t kMaxQueries = kBlockVectors == 1 ? 12 : 6;

// How a tile holds its numbers: words of kLines lines each.
struct FloatWords {
  using Word = float;
  static constexpr size_t kLines = 1;
  // The lanes of a line, from the words at `from` on, of which `count` exist.
  static HWY_INLINE FloatVector Load(const float* from, size_t count,
                                     size_t line) {
    return LoadUpTo(from, count);
  }
};
struct BFloat16Words {
  using Word = uint32_t;
  static constexpr size_t kLines = 2;
  static HWY_INLINE FloatVector Load(const uint32_t* from, size_t count,
                                     size_t line) {
    const hn::RebindToUnsigned<FloatTag> words;
    // Words are moved as floats: their bits stay.
    const auto pair = hn::BitCast(
        words, LoadUpTo(reinterpret_cast<const float*>(from), count));
    return hn::BitCast(kFloats,
                       line == 0 ? hn::ShiftLeft<16>(pair)
                                 : hn::And(pair, hn::Set(words, 0xffff0000u)));
  }
};

// scores[q][position] of a tile, one chain along head_dim each.
// queries [head_dim][kQueries], keys [head_dim / kLines][16]; head_dim is a
// multiple of kLines.
template <class Format, size_t kQueries>
HWY_NOINLINE void ComputeScores(const float* HWY_RESTRICT queries,
                                const void* keys, const void* next_keys,
                                size_t head_dim, float scale,
                                float* HWY_RESTRICT scores) {
  constexpr size_t kLines = Format::kLines;
  const auto* words = static_cast<const typename Format::Word*>(keys);
  const auto* next = static_cast<const typename Format::Word*>(next_keys);
  FloatVector acc[kQueries][kBlockVectors];
  TROUPE_UNROLL for (size_t q = 0; q < kQueries; ++q) {
    TROUPE_UNROLL for (size_t j = 0; j < kBlockVectors; ++j) {
      acc[q][j] = hn::Zero(kFloats);
    }
  }
  for (size_t d = 0; d < head_dim; d += kLines) {
    TROUPE_UNROLL for (size_t line = 0; line < kLines; ++line) {
      FloatVector key[kBlockVectors];
      TROUPE_UNROLL for (size_t j = 0; j < kBlockVectors; ++j) {
        key[j] = Format::Load(words + j * kLanes, kLanes, line);
      }
      TROUPE_UNROLL for (size_t q = 0; q < kQueries; ++q) {
        const FloatVector query =
            hn::Set(kFloats, queries[(d + line) * kQueries + q]);
        TROUPE_UNROLL for (size_t j = 0; j < kBlockVectors; ++j) {
          acc[q][j] = hn::MulAdd(query, key[j], acc[q][j]);
        }
      }
    }
    words += kKvBlockSize;
    hwy::Prefetch(next);
    next += kKvBlockSize;
  }
  const FloatVector factor = hn::Set(kFloats, scale);
  TROUPE_UNROLL for (size_t q = 0; q < kQueries; ++q) {
    TROUPE_UNROLL for (size_t j = 0; j < kBlockVectors; ++j) {
      hn::StoreU(hn::Mul(acc[q][j], factor), kFloats,
                 scores + q * kKvBlockSize + j * kLanes);
    }
  }
}

// kVectors vectors of the values' columns from `values` on:
// sums[q] = sums[q] * corrections[q] + sum over the positions of the tile in
// [begin, end), ascending, of weights[q][position] * values[position].
// Of the columns only `count` exist.
template <class Format, size_t kQueries, size_t kVectors>
HWY_NOINLINE void AccumulateColumns(
    const float* HWY_RESTRICT weights, const float* HWY_RESTRICT corrections,
    size_t begin, size_t end, const typename Format::Word* HWY_RESTRICT values,
    const typename Format::Word* next_values, size_t head_dim, size_t count,
    float* HWY_RESTRICT sums, size_t sums_stride) {
  constexpr size_t kLines = Format::kLines;
  FloatVector acc[kQueries][kVectors];
  TROUPE_UNROLL for (size_t q = 0; q < kQueries; ++q) {
    const FloatVector correction = hn::Set(kFloats, corrections[q]);
    TROUPE_UNROLL for (size_t j = 0; j < kVectors; ++j) {
      acc[q][j] = hn::Mul(
          hn::LoadU(kFloats, sums + q * sums_stride + j * kLanes), correction);
    }
  }
  for (size_t first = begin / kLines * kLines; first < end; first += kLines) {
    const auto* words = values + first / kLines * head_dim;
    hwy::Prefetch(next_values + first / kLines * head_dim);
    TROUPE_UNROLL for (size_t line = 0; line < kLines; ++line) {
      const size_t position = first + line;
      // Half of the first or of the last pair may be outside.
      if (kLines > 1 && (position < begin || position >= end)) continue;
      FloatVector value[kVectors];
      TROUPE_UNROLL for (size_t j = 0; j < kVectors; ++j) {
        value[j] = Format::Load(words + j * kLanes,
                                kVectors > 1 ? kLanes : count, line);
      }
      TROUPE_UNROLL for (size_t q = 0; q < kQueries; ++q) {
        const FloatVector weight =
            hn::Set(kFloats, weights[q * kKvBlockSize + position]);
        TROUPE_UNROLL for (size_t j = 0; j < kVectors; ++j) {
          acc[q][j] = hn::MulAdd(weight, value[j], acc[q][j]);
        }
      }
    }
  }
  TROUPE_UNROLL for (size_t q = 0; q < kQueries; ++q) {
    TROUPE_UNROLL for (size_t j = 0; j < kVectors; ++j) {
      hn::StoreU(acc[q][j], kFloats, sums + q * sums_stride + j * kLanes);
    }
  }
}

template <class Format, size_t kQueries>
void AccumulateValues(const float* weights, const float* corrections,
                      size_t begin, size_t end, const void* tile,
                      const void* next_tile, size_t head_dim, float* sums,
                      size_t sums_stride) {
  constexpr size_t kVectors = 2;
  const auto* values = static_cast<const typename Format::Word*>(tile);
  const auto* next = static_cast<const typename Format::Word*>(next_tile);
  size_t d = 0;
  for (; d + kVectors * kLanes <= head_dim; d += kVectors * kLanes) {
    AccumulateColumns<Format, kQueries, kVectors>(
        weights, corrections, begin, end, values + d, next + d, head_dim,
        kVectors * kLanes, sums + d, sums_stride);
  }
  for (; d < head_dim; d += kLanes) {
    AccumulateColumns<Format, kQueries, 1>(
        weights, corrections, begin, end, values + d, next + d, head_dim,
        std::min(kLanes, head_dim - d), sums + d, sums_stride);
  }
}

// The functions of one format; [q - 1]: for q queries.
struct TileFunctions {
  size_t num_lines;  // that words have
  std::array<void (*)(const float*, const void*, const void*, size_t, float,
                      float*),
             kMaxQueries>
      scores;
  std::array<void (*)(const float*, const float*, size_t, size_t, const void*,
                      const void*, size_t, float*, size_t),
             kMaxQueries>
      values;
};
template <class Format, size_t... kIndices>
constexpr TileFunctions MakeFunctions(std::index_sequence<kIndices...>) {
  return {Format::kLines,
          {&ComputeScores<Format, kIndices + 1>...},
          {&AccumulateValues<Format, kIndices + 1>...}};
}
inline constexpr TileFunctions kFloatFunctions =
    MakeFunctions<FloatWords>(std::make_index_sequence<kMaxQueries>());
inline constexpr TileFunctions kBFloat16Functions =
    MakeFunctions<BFloat16Words>(std::make_index_sequence<kMaxQueries>());

// The online softmax of the queries of one task.
class ChunkAttention {
 public:
  ChunkAttention(const AttentionArguments& arguments,
                 const AttentionChunk& chunk, size_t kv_head, float* scratch)
      : a_(arguments),
        chunk_(chunk),
        kv_head_(kv_head),
        functions_(arguments.cache.dtype == DataType::kBF16 ? kBFloat16Functions
                                                            : kFloatFunctions),
        head_dim_(arguments.cache.head_dim),
        query_dim_(DivideUp(head_dim_, functions_.num_lines) *
                   functions_.num_lines),
        heads_per_kv_(arguments.num_heads / arguments.cache.num_kv_heads),
        blocks_(chunk.num_rows * heads_per_kv_, kMaxQueries),
        last_tile_(Position(chunk.num_rows - 1) / kKvBlockSize),
        sums_stride_(SumsStride(head_dim_)),
        packed_queries_(scratch),
        sums_(packed_queries_ + blocks_.num_rows() * query_dim_),
        max_(sums_ + blocks_.num_rows() * sums_stride_),
        totals_(max_ + blocks_.num_rows()) {}

  // Floats of scratch for `num_queries` queries.
  static size_t ScratchFloats(size_t num_queries, size_t head_dim) {
    return num_queries *
           (head_dim + 1 + SumsStride(head_dim) + 1 + kBlockLanes);
  }

  void Run() {
    PackQueries();
    std::fill_n(sums_, blocks_.num_rows() * sums_stride_, 0.0f);
    std::fill_n(max_, blocks_.num_rows(),
                -std::numeric_limits<float>::infinity());
    std::fill_n(totals_, blocks_.num_rows() * kBlockLanes, 0.0f);
    const size_t first_tile = FirstPosition(0) / kKvBlockSize;
    for (size_t tile = first_tile; tile <= last_tile_; ++tile) {
      for (size_t b = 0; b < blocks_.num_blocks(); ++b) AddTile(tile, b);
    }
    WriteOutput();
  }

 private:
  // Sums past head_dim only fill a vector.
  static size_t SumsStride(size_t head_dim) {
    return DivideUp(head_dim, kBlockLanes) * kBlockLanes;
  }

  size_t RowOf(size_t query) const { return query / heads_per_kv_; }
  size_t Position(size_t row) const {
    return chunk_.sequence->first_position + chunk_.first_row + row;
  }
  // The first position that a row attends to.
  size_t FirstPosition(size_t row) const {
    const size_t position = Position(row);
    return a_.window == 0 || position < a_.window ? 0
                                                  : position - a_.window + 1;
  }
  size_t OutputRow(size_t row) const {
    return chunk_.sequence->first_row + chunk_.first_row + row;
  }
  size_t FirstColumn(size_t query) const {
    return (kv_head_ * heads_per_kv_ + query % heads_per_kv_) * head_dim_;
  }

  void PackQueries() {
    for (size_t b = 0; b < blocks_.num_blocks(); ++b) {
      const float* queries[kMaxQueries];
      for (size_t i = 0; i < blocks_.size(b); ++i) {
        const size_t query = blocks_.begin(b) + i;
        queries[i] =
            a_.queries.row(OutputRow(RowOf(query))) + FirstColumn(query);
      }
      float* packed = packed_queries_ + blocks_.begin(b) * query_dim_;
      TransposeRows(queries, blocks_.size(b), head_dim_, packed);
      std::fill(packed + head_dim_ * blocks_.size(b),
                packed + query_dim_ * blocks_.size(b), 0.0f);
    }
  }

  // The slots [begin, end) of a tile that a row attends to; empty if none.
  std::pair<size_t, size_t> SlotsOf(size_t row, size_t tile) const {
    const size_t first = tile * kKvBlockSize;
    const size_t begin = std::max(FirstPosition(row), first) - first;
    const size_t end = std::min(Position(row) + 1, first + kKvBlockSize);
    return {std::min(begin, kKvBlockSize), end < first ? 0 : end - first};
  }

  void AddTile(size_t tile, size_t b) {
    const size_t first_query = blocks_.begin(b);
    const size_t end_query = first_query + blocks_.size(b);
    const size_t first_row = RowOf(first_query);
    const size_t last_row = RowOf(end_query - 1);
    if (SlotsOf(last_row, tile).second == 0 ||
        SlotsOf(first_row, tile).first == kKvBlockSize) {
      return;
    }
    const size_t block =
        static_cast<size_t>(chunk_.sequence->block_table[tile]);
    const size_t offset =
        block * a_.cache.block_bytes() + kv_head_ * a_.cache.tile_bytes();
    // Tiles lie anywhere: the hardware does not see which one is next.
    const size_t next = static_cast<size_t>(
        chunk_.sequence->block_table[std::min(tile + 1, last_tile_)]);
    const size_t next_offset =
        next * a_.cache.block_bytes() + kv_head_ * a_.cache.tile_bytes();
    HWY_ALIGN float scores[kMaxQueries * kKvBlockSize];
    functions_.scores[blocks_.size(b) - 1](
        packed_queries_ + first_query * query_dim_, a_.cache.keys + offset,
        a_.cache.keys + next_offset, query_dim_, a_.scale, scores);

    // Neighbouring queries that attend to the same slots go together: all of
    // them, except where a window begins or a row ends.
    for (size_t query = first_query; query < end_query;) {
      const auto [begin, end] = SlotsOf(RowOf(query), tile);
      size_t run_end = query + 1;
      while (run_end < end_query &&
             SlotsOf(RowOf(run_end), tile) == std::pair(begin, end)) {
        ++run_end;
      }
      if (begin < end) {
        AddSlots(query, run_end, begin, end,
                 scores + (query - first_query) * kKvBlockSize,
                 a_.cache.values + offset, a_.cache.values + next_offset);
      }
      query = run_end;
    }
  }

  // Slots past `end` may hold anything, NaN too: they are masked before they
  // are used, and their values are not read.
  void AddSlots(size_t first_query, size_t end_query, size_t begin, size_t end,
                float* scores, const uint8_t* values,
                const uint8_t* next_values) {
    const size_t num_queries = end_query - first_query;
    HWY_ALIGN float corrections[kBlockLanes] = {};  // exponents at first
    bool corrects = false;
    for (size_t i = 0; i < num_queries; ++i) {
      float* query_scores = scores + i * kKvBlockSize;
      const Block s = MaskedScores(query_scores, begin, end);
      float& max = max_[first_query + i];
      if (HasLarger(s, max)) {
        const float new_max = MaxOfBlock(s);
        corrections[i] = max - new_max;
        corrects = true;
        max = new_max;
      }
      for (size_t j = 0; j < kBlockVectors; ++j) {
        hn::StoreU(Exp(hn::Sub(s.v[j], hn::Set(kFloats, max))), kFloats,
                   query_scores + j * kLanes);
      }
    }
    // Most tiles have no new maximum: exp(0) = 1.
    for (size_t j = 0; j < kBlockLanes; j += kLanes) {
      const FloatVector correction =
          corrects ? Exp(hn::Load(kFloats, corrections + j))
                   : hn::Set(kFloats, 1.0f);
      hn::Store(correction, kFloats, corrections + j);
    }
    for (size_t i = 0; i < num_queries; ++i) {
      float* total = totals_ + (first_query + i) * kBlockLanes;
      for (size_t j = 0; j < kBlockLanes; j += kLanes) {
        const FloatVector sum = hn::MulAdd(
            hn::LoadU(kFloats, total + j), hn::Set(kFloats, corrections[i]),
            hn::LoadU(kFloats, scores + i * kKvBlockSize + j));
        hn::StoreU(sum, kFloats, total + j);
      }
    }
    functions_.values[num_queries - 1](
        scores, corrections, begin, end, values, next_values, head_dim_,
        sums_ + first_query * sums_stride_, sums_stride_);
  }

  static bool HasLarger(const Block& scores, float max) {
    const FloatVector limit = hn::Set(kFloats, max);
    FloatVector larger = scores.v[0];
    for (size_t j = 1; j < kBlockVectors; ++j) {
      larger = hn::Max(larger, scores.v[j]);
    }
    return !hn::AllFalse(kFloats, hn::Gt(larger, limit));
  }

  static Block MaskedScores(const float* scores, size_t begin, size_t end) {
    if (begin == 0 && end == kKvBlockSize) {
      return LoadBlock(scores, kKvBlockSize);
    }
    constexpr float kMasked = -std::numeric_limits<float>::infinity();
    const hn::RebindToSigned<FloatTag> ints;
    const auto first = hn::Set(ints, static_cast<int32_t>(begin));
    const auto last = hn::Set(ints, static_cast<int32_t>(end) - 1);
    Block block;
    for (size_t j = 0; j < kBlockVectors; ++j) {
      const auto slot = hn::Iota(ints, static_cast<int32_t>(j * kLanes));
      const auto outside = hn::Or(hn::VecFromMask(ints, hn::Lt(slot, first)),
                                  hn::VecFromMask(ints, hn::Gt(slot, last)));
      block.v[j] = hn::IfThenElse(
          hn::RebindMask(kFloats, hn::MaskFromVec(outside)),
          hn::Set(kFloats, kMasked), hn::LoadU(kFloats, scores + j * kLanes));
    }
    return block;
  }

  void WriteOutput() {
    for (size_t query = 0; query < blocks_.num_rows(); ++query) {
      const Block totals =
          LoadBlock(totals_ + query * kBlockLanes, kBlockLanes);
      const FloatVector total = hn::Set(kFloats, SumOfBlock(totals));
      const float* sums = sums_ + query * sums_stride_;
      float* output =
          a_.output.row(OutputRow(RowOf(query))) + FirstColumn(query);
      for (size_t d = 0; d < head_dim_; d += kLanes) {
        StoreUpTo(hn::Div(hn::LoadU(kFloats, sums + d), total), output + d,
                  head_dim_ - d);
      }
    }
  }

  const AttentionArguments& a_;
  const AttentionChunk& chunk_;
  const size_t kv_head_;
  const TileFunctions& functions_;
  const size_t head_dim_;
  const size_t query_dim_;  // rounded up to whole words
  const size_t heads_per_kv_;
  const RowBlocks blocks_;  // of queries: row by row the heads of the KV head
  const size_t last_tile_;
  const size_t sums_stride_;
  float* const packed_queries_;  // blocks of [query_dim_][queries of the block]
  float* const sums_;            // [queries][sums_stride_]
  float* const max_;             // [queries]
  float* const totals_;          // [queries][16]: of weights, slot by slot
};

size_t AttentionScratchFloats(size_t num_queries, size_t head_dim) {
  return ChunkAttention::ScratchFloats(num_queries, head_dim);
}

void AttendChunk(const AttentionArguments& arguments,
                 const AttentionChunk& chunk, size_t kv_head, float* scratch) {
  ChunkAttention(arguments, chunk, kv_head, scratch).Run();
}

}  // namespace troupe::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace troupe {

HWY_EXPORT(AttentionScratchFloats);
HWY_EXPORT(AttendChunk);

namespace {

// Queries of a task: their running sums stay in the second level of cache, and
// they reuse each tile from the first. A task has at least one row.
constexpr size_t kQueriesPerTask = 48;

// One slot of one head, float32.
void WriteFloats(const float* key, const float* value, size_t head_dim,
                 size_t slot, uint8_t* key_tile, uint8_t* value_tile) {
  float* keys = reinterpret_cast<float*>(key_tile) + slot;
  for (size_t d = 0; d < head_dim; ++d) keys[d * kKvBlockSize] = key[d];
  std::copy_n(value, head_dim,
              reinterpret_cast<float*>(value_tile) + slot * head_dim);
}

// The same in bfloat16: half-words of lines 2i and 2i + 1.
void WriteBFloat16s(const float* key, const float* value, size_t head_dim,
                    size_t slot, uint8_t* key_tile, uint8_t* value_tile) {
  uint16_t* keys = reinterpret_cast<uint16_t*>(key_tile) + 2 * slot;
  for (size_t d = 0; d < head_dim; ++d) {
    keys[d / 2 * 2 * kKvBlockSize + d % 2] = BF16FromF32(key[d]);
  }
  if (head_dim % 2 == 1) keys[head_dim / 2 * 2 * kKvBlockSize + 1] = 0;
  uint16_t* values = reinterpret_cast<uint16_t*>(value_tile) +
                     slot / 2 * 2 * head_dim + slot % 2;
  for (size_t d = 0; d < head_dim; ++d) values[2 * d] = BF16FromF32(value[d]);
}

// Keys and values of slots that lie in one KV block.
void WriteSlots(ConstFloatMatrix keys, ConstFloatMatrix values,
                const KvCacheView& cache, size_t first_row, size_t num_rows,
                size_t block, size_t first_slot) {
  const auto write =
      cache.dtype == DataType::kBF16 ? &WriteBFloat16s : &WriteFloats;
  for (size_t head = 0; head < cache.num_kv_heads; ++head) {
    const size_t offset =
        block * cache.block_bytes() + head * cache.tile_bytes();
    for (size_t r = 0; r < num_rows; ++r) {
      write(keys.row(first_row + r) + head * cache.head_dim,
            values.row(first_row + r) + head * cache.head_dim, cache.head_dim,
            first_slot + r, cache.keys + offset, cache.values + offset);
    }
  }
}

size_t NumTiles(const AttentionSequence& sequence) {
  if (sequence.num_rows == 0) return 0;
  const size_t last = sequence.first_position + sequence.num_rows - 1;
  return last / kKvBlockSize - sequence.first_position / kKvBlockSize + 1;
}

void CheckSequence(const AttentionSequence& sequence, size_t num_rows) {
  CHECK_LE(sequence.first_row + sequence.num_rows, num_rows);
  CHECK_LE(sequence.first_position + sequence.num_rows,
           sequence.block_table.size() * kKvBlockSize);
}

}  // namespace

void WriteKvCache(ConstFloatMatrix keys, ConstFloatMatrix values,
                  std::span<const AttentionSequence> sequences,
                  const KvCacheView& cache, ThreadPool& pool) {
  CHECK(cache.dtype == DataType::kF32 || cache.dtype == DataType::kBF16);
  CHECK_EQ(keys.cols, cache.num_kv_heads * cache.head_dim);
  CHECK_EQ(values.cols, keys.cols);
  CHECK_EQ(values.rows, keys.rows);
  size_t num_tiles = 0;
  for (const AttentionSequence& sequence : sequences) {
    CheckSequence(sequence, keys.rows);
    num_tiles += NumTiles(sequence);
  }
  if (num_tiles == 0) return;
  // A task writes a range of the tiles of all sequences. A few rows are not
  // worth another thread.
  constexpr size_t kFloatsPerTask = 16384;
  const size_t num_tasks =
      std::min({num_tiles, 4 * pool.num_threads(),
                1 + 2 * keys.rows * keys.cols / kFloatsPerTask});
  const size_t tiles_per_task = DivideUp(num_tiles, num_tasks);
  pool.ParallelFor(DivideUp(num_tiles, tiles_per_task), [&](size_t task,
                                                            size_t worker) {
    size_t skip = task * tiles_per_task;
    size_t left = tiles_per_task;
    for (const AttentionSequence& s : sequences) {
      const size_t tiles = NumTiles(s);
      if (skip >= tiles) {
        skip -= tiles;
        continue;
      }
      const size_t end_position = s.first_position + s.num_rows;
      size_t tile = s.first_position / kKvBlockSize + skip;
      for (size_t i = skip; i < tiles && left > 0; ++i, ++tile, --left) {
        const size_t begin = std::max(s.first_position, tile * kKvBlockSize);
        const size_t end = std::min(end_position, (tile + 1) * kKvBlockSize);
        WriteSlots(keys, values, cache, s.first_row + begin - s.first_position,
                   end - begin, static_cast<size_t>(s.block_table[tile]),
                   begin % kKvBlockSize);
      }
      if (left == 0) return;
      skip = 0;
    }
  });
}

void PagedAttention(ConstFloatMatrix queries, size_t num_heads, float scale,
                    size_t window, std::span<const AttentionSequence> sequences,
                    const KvCacheView& cache, FloatMatrix output,
                    Workspace& workspace, ThreadPool& pool) {
  CHECK(cache.dtype == DataType::kF32 || cache.dtype == DataType::kBF16);
  CHECK(cache.num_kv_heads > 0);
  CHECK(num_heads > 0);
  CHECK_EQ(num_heads % cache.num_kv_heads, 0u);
  CHECK_EQ(queries.cols, num_heads * cache.head_dim);
  CHECK_EQ(output.cols, queries.cols);
  CHECK_EQ(output.rows, queries.rows);
  const size_t heads_per_kv = num_heads / cache.num_kv_heads;
  const size_t rows_per_chunk =
      std::max<size_t>(1, kQueriesPerTask / heads_per_kv);

  size_t num_chunks = 0;
  for (const AttentionSequence& sequence : sequences) {
    CheckSequence(sequence, queries.rows);
    num_chunks += DivideUp(sequence.num_rows, rows_per_chunk);
  }
  auto* chunks = workspace.Array<AttentionChunk>(kPlanSlot, num_chunks);
  size_t i = 0;
  for (const AttentionSequence& sequence : sequences) {
    for (size_t r = 0; r < sequence.num_rows; r += rows_per_chunk) {
      chunks[i++] = {&sequence, r,
                     std::min(rows_per_chunk, sequence.num_rows - r)};
    }
  }
  // The longest first, so that all threads finish together.
  const auto cost = [&](const AttentionChunk& chunk) {
    const size_t positions =
        chunk.sequence->first_position + chunk.first_row + chunk.num_rows;
    return chunk.num_rows *
           (window == 0 ? positions
                        : std::min(positions, window + chunk.num_rows));
  };
  std::sort(chunks, chunks + num_chunks,
            [&](const AttentionChunk& a, const AttentionChunk& b) {
              return cost(a) > cost(b);
            });

  const AttentionArguments arguments{queries, num_heads, scale,
                                     window,  cache,     output};
  const size_t scratch_floats = HWY_DYNAMIC_DISPATCH(AttentionScratchFloats)(
      rows_per_chunk * heads_per_kv, cache.head_dim);
  float* scratch =
      workspace.Floats(kScratchSlot, pool.num_threads() * scratch_floats);
  pool.ParallelFor(
      num_chunks * cache.num_kv_heads, [&](size_t task, size_t worker) {
        HWY_DYNAMIC_DISPATCH(AttendChunk)
        (arguments, chunks[task / cache.num_kv_heads],
         task % cache.num_kv_heads, scratch + worker * scratch_floats);
      });
}

}  // namespace troupe
#endif  // HWY_ONCE
