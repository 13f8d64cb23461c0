// Tiles of float weights: one chain of fused multiply-adds along k for each
// output. Vector lanes run across the outputs, so the bits do not depend on the
// shape of the tile.
#include "kernels/cpu/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/float_tiles.cc"
#include "hwy/foreach_target.h"
// foreach_target.h stays before the rest.
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "kernels/cpu/gemm_kernels.h"
#include "kernels/cpu/math-inl.h"

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
inline constexpr size_t kMaxRowsOfOnePass =
    kBlockVectors == 1 ? kMaxTileRows : 2;

// Steps between two rounds of prefetching.
inline constexpr size_t kStepsPerRound = 4;

// One k of a tile.
template <typename W, size_t kRows, size_t kPanels, size_t kParts>
HWY_INLINE void MultiplyAddStep(const float* HWY_RESTRICT x, const uint8_t* w,
                                size_t panel_bytes, size_t first_part,
                                FloatVector (&acc)[kRows][kPanels][kParts][2]) {
  FloatVector weights[kPanels][kParts][2];
  TROUPE_UNROLL for (size_t p = 0; p < kPanels; ++p) {
    TROUPE_UNROLL for (size_t h = 0; h < kParts; ++h) {
      W::Load(w + p * panel_bytes, first_part + h, weights[p][h][0],
              weights[p][h][1]);
    }
  }
  TROUPE_UNROLL for (size_t r = 0; r < kRows; ++r) {
    const FloatVector value = hn::Set(kFloats, x[r]);
    TROUPE_UNROLL for (size_t p = 0; p < kPanels; ++p) {
      TROUPE_UNROLL for (size_t h = 0; h < kParts; ++h) {
        acc[r][p][h][0] = hn::MulAdd(value, weights[p][h][0], acc[r][p][h][0]);
        acc[r][p][h][1] = hn::MulAdd(value, weights[p][h][1], acc[r][p][h][1]);
      }
    }
  }
}

// kRows rows, kPanels panels and, of these, parts first_part .. + kParts. Not
// inlined: inside a large function GCC spills the accumulators.
template <DataType kDataType, size_t kRows, size_t kPanels, size_t kParts>
HWY_NOINLINE void ComputeTile(const float* HWY_RESTRICT x,
                              const uint8_t* HWY_RESTRICT w, size_t panel_bytes,
                              size_t num_k, float* HWY_RESTRICT c,
                              size_t c_stride, size_t first_part, bool resume,
                              const uint8_t* ahead, size_t ahead_per_round) {
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
  size_t k = 0;
  for (; k + kStepsPerRound <= num_k; k += kStepsPerRound) {
    for (size_t at = 0; at < ahead_per_round; at += 64) {
      TROUPE_UNROLL for (size_t p = 0; p < kPanels; ++p) {
        hwy::Prefetch(ahead + p * panel_bytes + at);
      }
    }
    ahead += ahead_per_round;
    TROUPE_UNROLL for (size_t i = 0; i < kStepsPerRound; ++i) {
      MultiplyAddStep<W>(x, w, panel_bytes, first_part, acc);
      x += kRows;
      w += W::kBytesPerK;
    }
  }
  for (; k < num_k; ++k) {
    MultiplyAddStep<W>(x, w, panel_bytes, first_part, acc);
    x += kRows;
    w += W::kBytesPerK;
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

template <DataType kDataType, size_t kRows, size_t kPanels>
void ComputeParts(const TileArgs& args, size_t first_panel) {
  constexpr size_t kParts = TileParts(kRows);
  constexpr size_t kPasses = kBlockVectors / kParts;
  const size_t rounds = args.num_steps / kStepsPerRound;
  const size_t ahead_per_pass = (args.ahead_bytes + kPasses - 1) / kPasses;
  const size_t ahead_per_round =
      rounds == 0 ? 0 : (ahead_per_pass + rounds - 1) / rounds;
  const size_t panel_offset = first_panel * args.panel_bytes;
  for (size_t pass = 0; pass < kPasses; ++pass) {
    ComputeTile<kDataType, kRows, kPanels, kParts>(
        reinterpret_cast<const float*>(args.x), args.w + panel_offset,
        args.panel_bytes, args.num_steps, args.c + first_panel * kPanelCols,
        args.c_stride, pass * kParts, args.resume,
        args.ahead + panel_offset + pass * ahead_per_pass, ahead_per_round);
  }
}

template <DataType kDataType, size_t kRows>
void ComputePanels(const TileArgs& args) {
  constexpr size_t kPanels = TilePanels(kRows);
  size_t p = 0;
  for (; p + kPanels <= args.num_panels; p += kPanels) {
    ComputeParts<kDataType, kRows, kPanels>(args, p);
  }
  for (; p < args.num_panels; ++p) {
    ComputeParts<kDataType, kRows, 1>(args, p);
  }
}

void PackFloatRows(const float* const* rows, size_t num_rows, size_t num_k,
                   uint32_t* packed) {
  TransposeRows(rows, num_rows, num_k, reinterpret_cast<float*>(packed));
}

template <DataType kDataType, size_t... kIndices>
const GemmKernels& MakeKernels(std::index_sequence<kIndices...>) {
  static constexpr TileFunction kTiles[] = {
      &ComputePanels<kDataType, kIndices + 1>...};
  static constexpr size_t kSideBySide[] = {TilePanels(kIndices + 1)...};
  static constexpr GemmKernels kKernels = {
      1,      1,          kMaxTileRows, kMaxRowsOfOnePass, &PackFloatRows,
      kTiles, kSideBySide};
  return kKernels;
}

const GemmKernels& FloatKernels(DataType dtype) {
  constexpr auto kIndices = std::make_index_sequence<kMaxTileRows>();
  switch (dtype) {
    case DataType::kBF16:
      return MakeKernels<DataType::kBF16>(kIndices);
    case DataType::kF16:
      return MakeKernels<DataType::kF16>(kIndices);
    case DataType::kF32:
      break;
  }
  return MakeKernels<DataType::kF32>(kIndices);
}

}  // namespace troupe::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace troupe {

HWY_EXPORT(FloatKernels);

const GemmKernels& FloatKernels(DataType dtype) {
  return HWY_DYNAMIC_DISPATCH(FloatKernels)(dtype);
}

}  // namespace troupe
#endif  // HWY_ONCE
