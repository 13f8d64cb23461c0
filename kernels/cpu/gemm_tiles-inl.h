// Register tiles of the GEMM: a block of rows times panels of weights.
//
// Vector lanes run across the outputs and each output is one chain of fused
// multiply-adds along k, so the bits do not depend on the shape of the tile.
#if defined(TROUPE_KERNELS_CPU_GEMM_TILES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TROUPE_KERNELS_CPU_GEMM_TILES_INL_H_
#undef TROUPE_KERNELS_CPU_GEMM_TILES_INL_H_
#else
#define TROUPE_KERNELS_CPU_GEMM_TILES_INL_H_
#endif

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "common/dtype.h"
#include "common/views.h"
#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "kernels/cpu/math-inl.h"
#include "kernels/cpu/row_blocks.h"
#include "kernels/packed_matrix.h"

HWY_BEFORE_NAMESPACE();
namespace troupe::HWY_NAMESPACE {

inline constexpr size_t kPanelCols = PackedMatrix::kPanelCols;
static_assert(kPanelCols == 2 * kBlockLanes);

// Loads the weights of one k and part h of a panel: `low` are the outputs
// h * kLanes .., `high` those 16 further.
template <DataType kDataType>
struct Weights;

template <>
struct Weights<DataType::kBF16> {
  static constexpr size_t kBytesPerK = 2 * kPanelCols;
  static HWY_INLINE void Load(const uint8_t* at, size_t h, FloatVector& low,
                              FloatVector& high) {
    const hn::RebindToUnsigned<FloatTag> words;
    const auto pairs =
        hn::Load(words, reinterpret_cast<const uint32_t*>(at) + h * kLanes);
    low = hn::BitCast(kFloats, hn::ShiftLeft<16>(pairs));
    high = hn::BitCast(kFloats, hn::And(pairs, hn::Set(words, 0xffff0000u)));
  }
};

template <>
struct Weights<DataType::kF16> {
  static constexpr size_t kBytesPerK = 2 * kPanelCols;
  static HWY_INLINE void Load(const uint8_t* at, size_t h, FloatVector& low,
                              FloatVector& high) {
    const hn::Rebind<hwy::float16_t, FloatTag> halves;
    const auto* from = reinterpret_cast<const hwy::float16_t*>(at) + h * kLanes;
    low = hn::PromoteTo(kFloats, hn::Load(halves, from));
    high = hn::PromoteTo(kFloats, hn::Load(halves, from + kBlockLanes));
  }
};

template <>
struct Weights<DataType::kF32> {
  static constexpr size_t kBytesPerK = 4 * kPanelCols;
  static HWY_INLINE void Load(const uint8_t* at, size_t h, FloatVector& low,
                              FloatVector& high) {
    const float* from = reinterpret_cast<const float*>(at) + h * kLanes;
    low = hn::Load(kFloats, from);
    high = hn::Load(kFloats, from + kBlockLanes);
  }
};

// Two vectors of weights and one row's value leave the other registers to the
// accumulators: 12 x 2 of 32, 6 x 2 of 16.
inline constexpr bool kManyRegisters =
    HWY_TARGET != HWY_AVX2;  // AVX-512 and NEON have 32
inline constexpr size_t kMaxTileRows = kManyRegisters ? 12 : 6;

// Few rows take several panels, or all parts of one, at a time: a chain has
// the latency of the multiply-add, so that 8 chains keep two units busy, and
// several streams from memory come faster than one.
constexpr size_t TileParts(size_t rows) {
  if (kBlockVectors == 1) return 1;
  if (kBlockVectors == 2) return rows <= 2 ? 2 : 1;
  return rows <= 2 ? 4 : 1;
}
constexpr size_t TilePanels(size_t rows) {
  if (kBlockVectors == 1) return rows == 1 ? 4 : rows <= 6 ? 2 : 1;
  return rows == 1 ? 2 : 1;
}

// Ahead of the weights being read: the hardware's prefetcher starts anew at
// each page. The distance covers the latency of memory also when few rows make
// the multiply-adds of a line take less time than it takes to come.
inline constexpr size_t kPrefetchBytes = 4096;

// c[r][p * 32 + ...] for kRows rows, kPanels panels and kParts parts of a
// panel. x [num_k][kRows]; w points to the first part. Not inlined: inside a
// large function GCC spills the accumulators.
template <DataType kDataType, size_t kRows, size_t kPanels, size_t kParts>
HWY_NOINLINE void ComputeTile(const float* HWY_RESTRICT x,
                              const uint8_t* HWY_RESTRICT w, size_t panel_bytes,
                              size_t num_k, float* HWY_RESTRICT c,
                              size_t c_stride, size_t first_part, bool resume) {
  using W = Weights<kDataType>;
  FloatVector acc[kRows][kPanels][kParts][2];
  TROUPE_UNROLL for (size_t r = 0; r < kRows; ++r) {
    TROUPE_UNROLL for (size_t p = 0; p < kPanels; ++p) {
      TROUPE_UNROLL for (size_t h = 0; h < kParts; ++h) {
        const float* from =
            c + r * c_stride + p * kPanelCols + (first_part + h) * kLanes;
        acc[r][p][h][0] = resume ? hn::LoadU(kFloats, from) : hn::Zero(kFloats);
        acc[r][p][h][1] =
            resume ? hn::LoadU(kFloats, from + kBlockLanes) : hn::Zero(kFloats);
      }
    }
  }
  for (size_t k = 0; k < num_k; ++k) {
    FloatVector weights[kPanels][kParts][2];
    TROUPE_UNROLL for (size_t p = 0; p < kPanels; ++p) {
      const uint8_t* at = w + p * panel_bytes + k * W::kBytesPerK;
      hwy::Prefetch(at + kPrefetchBytes);
      if (W::kBytesPerK > 64) hwy::Prefetch(at + kPrefetchBytes + 64);
      TROUPE_UNROLL for (size_t h = 0; h < kParts; ++h) {
        W::Load(at, first_part + h, weights[p][h][0], weights[p][h][1]);
      }
    }
    TROUPE_UNROLL for (size_t r = 0; r < kRows; ++r) {
      const FloatVector value = hn::Set(kFloats, x[k * kRows + r]);
      TROUPE_UNROLL for (size_t p = 0; p < kPanels; ++p) {
        TROUPE_UNROLL for (size_t h = 0; h < kParts; ++h) {
          acc[r][p][h][0] =
              hn::MulAdd(value, weights[p][h][0], acc[r][p][h][0]);
          acc[r][p][h][1] =
              hn::MulAdd(value, weights[p][h][1], acc[r][p][h][1]);
        }
      }
    }
  }
  TROUPE_UNROLL for (size_t r = 0; r < kRows; ++r) {
    TROUPE_UNROLL for (size_t p = 0; p < kPanels; ++p) {
      TROUPE_UNROLL for (size_t h = 0; h < kParts; ++h) {
        float* to =
            c + r * c_stride + p * kPanelCols + (first_part + h) * kLanes;
        hn::StoreU(acc[r][p][h][0], kFloats, to);
        hn::StoreU(acc[r][p][h][1], kFloats, to + kBlockLanes);
      }
    }
  }
}

// All parts of `num_panels` panels, their outputs side by side in c.
template <DataType kDataType, size_t kRows>
void ComputePanels(const float* x, const uint8_t* w, size_t panel_bytes,
                   size_t num_k, float* c, size_t c_stride, size_t num_panels,
                   bool resume) {
  constexpr size_t kPanels = TilePanels(kRows);
  constexpr size_t kParts = TileParts(kRows);
  size_t p = 0;
  for (; p + kPanels <= num_panels; p += kPanels) {
    for (size_t h = 0; h < kBlockVectors; h += kParts) {
      ComputeTile<kDataType, kRows, kPanels, kParts>(
          x, w + p * panel_bytes, panel_bytes, num_k, c + p * kPanelCols,
          c_stride, h, resume);
    }
  }
  for (; p < num_panels; ++p) {
    for (size_t h = 0; h < kBlockVectors; h += kParts) {
      ComputeTile<kDataType, kRows, 1, kParts>(
          x, w + p * panel_bytes, panel_bytes, num_k, c + p * kPanelCols,
          c_stride, h, resume);
    }
  }
}

using ComputePanelsFunction = void (*)(const float* x, const uint8_t* w,
                                       size_t panel_bytes, size_t num_k,
                                       float* c, size_t c_stride,
                                       size_t num_panels, bool resume);
// [r - 1]: for r rows.
using TileTable = std::array<ComputePanelsFunction, kMaxTileRows>;

template <DataType kDataType, size_t... kIndices>
constexpr TileTable MakeTileTable(std::index_sequence<kIndices...>) {
  return {&ComputePanels<kDataType, kIndices + 1>...};
}

inline const TileTable& TilesFor(DataType dtype) {
  constexpr auto kIndices = std::make_index_sequence<kMaxTileRows>();
  static constexpr TileTable kF32 = MakeTileTable<DataType::kF32>(kIndices);
  static constexpr TileTable kBF16 = MakeTileTable<DataType::kBF16>(kIndices);
  static constexpr TileTable kF16 = MakeTileTable<DataType::kF16>(kIndices);
  switch (dtype) {
    case DataType::kBF16:
      return kBF16;
    case DataType::kF16:
      return kF16;
    case DataType::kF32:
      break;
  }
  return kF32;
}

// Row blocks [first_block, last_block) times panels [first_panel,
// first_panel + num_panels). c [rows of these blocks, num_panels * 32] takes
// the outputs past n too. The panels go from memory to cache once, and a block
// of rows is read once for all of them.
inline void MultiplyPanels(const float* packed_rows,
                           const PackedRowsLayout& layout, size_t first_block,
                           size_t last_block, const PackedMatrix& weights,
                           size_t first_panel, size_t num_panels, float* c,
                           size_t c_stride) {
  const TileTable& tiles = TilesFor(weights.dtype());
  const RowBlocks& rows = layout.rows();
  const size_t bytes_per_k = kPanelCols * SizeOf(weights.dtype());
  const uint8_t* w = weights.panel(first_panel);
  const size_t first_row = rows.begin(first_block);
  for (size_t k = 0; k < weights.k(); k += layout.column_block()) {
    for (size_t b = first_block; b < last_block; ++b) {
      tiles[rows.size(b) - 1](packed_rows + layout.Offset(b, k),
                              w + k * bytes_per_k, weights.panel_bytes(),
                              layout.column_block_size(k),
                              c + (rows.begin(b) - first_row) * c_stride,
                              c_stride, num_panels, k > 0);
    }
  }
}

// As MultiplyPanels, into the columns of `output` (all rows of the layout)
// that these panels compute. `scratch` [rows of these blocks, 32] is for a
// last panel that is not full.
inline void MultiplyInto(const float* packed_rows,
                         const PackedRowsLayout& layout, size_t first_block,
                         size_t last_block, const PackedMatrix& weights,
                         size_t first_panel, size_t num_panels,
                         const float* bias, FloatMatrix output,
                         float* scratch) {
  const size_t first_row = layout.rows().begin(first_block);
  const size_t last_row = layout.rows().begin(last_block);
  const size_t first_col = first_panel * kPanelCols;
  const size_t last_col =
      std::min(weights.n(), first_col + num_panels * kPanelCols);
  const size_t num_full = (last_col - first_col) / kPanelCols;
  if (num_full > 0) {
    MultiplyPanels(packed_rows, layout, first_block, last_block, weights,
                   first_panel, num_full, output.row(first_row) + first_col,
                   output.stride);
  }
  if (num_full < num_panels) {
    MultiplyPanels(packed_rows, layout, first_block, last_block, weights,
                   first_panel + num_full, 1, scratch, kPanelCols);
    const size_t col = first_col + num_full * kPanelCols;
    for (size_t r = first_row; r < last_row; ++r) {
      std::copy_n(scratch + (r - first_row) * kPanelCols, last_col - col,
                  output.row(r) + col);
    }
  }
  if (bias == nullptr) return;
  for (size_t r = first_row; r < last_row; ++r) {
    float* row = output.row(r);
    for (size_t c = first_col; c < last_col; ++c) row[c] += bias[c];
  }
}

// Packs row block b. row(r) points to the numbers of row r.
template <typename Row>
void PackRowBlock(const Row& row, const PackedRowsLayout& layout, size_t b,
                  float* packed) {
  const float* rows[kMaxTileRows];
  const size_t num_rows = layout.rows().size(b);
  for (size_t r = 0; r < num_rows; ++r) {
    rows[r] = row(layout.rows().begin(b) + r);
  }
  for (size_t k = 0; k < layout.num_cols(); k += layout.column_block()) {
    const size_t size = layout.column_block_size(k);
    TransposeRows(rows, num_rows, size, packed + layout.Offset(b, k));
    for (size_t r = 0; r < num_rows; ++r) rows[r] += size;
  }
}

}  // namespace troupe::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // TROUPE_KERNELS_CPU_GEMM_TILES_INL_H_
