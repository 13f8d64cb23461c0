// Tiles of quantised weights. The inputs are quantised to int8 with a scale
// per row and group; the dot product of a group is an exact integer, which then
// joins one chain of fused multiply-adds along the groups:
//   acc = fma(float(dot), weight_scale * input_scale, acc)
// Vector lanes run across the outputs. So the bits depend neither on the tile
// nor on the instructions that compute the integer.
//
// Compiled for AVX2 and for AVX-512 with its dot-product instructions (AVX3_DL)
// only: AVX-512 without these has nothing for integers that AVX2 lacks.
#include "kernels/cpu/quantized_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/quantized_tiles.cc"
#include "hwy/foreach_target.h"
// foreach_target.h stays before the rest.
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>

#include "common/check.h"
#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "kernels/cpu/gemm_kernels.h"
#include "kernels/cpu/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace troupe::HWY_NAMESPACE {

inline constexpr size_t kPanelCols = PackedMatrix::kPanelCols;
using IntTag = hn::RebindToSigned<FloatTag>;
using IntVector = hn::Vec<IntTag>;
inline constexpr IntTag kInts;
inline constexpr size_t kPanelVectors = kPanelCols / kLanes;

// Packed inputs of a group and row: its int8 numbers four to a word, the scale,
// and the sum of the numbers with its sign changed. Word by word, the rows of a
// block side by side.
template <size_t kGroupSize>
struct InputGroup {
  static constexpr size_t kQuads = kGroupSize / 4;
  static constexpr size_t kScaleWord = kQuads;
  static constexpr size_t kSumWord = kScaleWord + 1;
  static constexpr size_t kWords = kSumWord + 1;
};

// A group of a panel.
template <WeightFormat kFormat, size_t kGroupSize>
struct PanelGroup {
  static constexpr bool kIsInt4 = IsInt4(kFormat);
  static constexpr size_t kScalesAt =
      kGroupSize * kPanelCols / (kIsInt4 ? 2 : 1);
  static constexpr size_t kZerosAt = kScalesAt + 2 * kPanelCols;
  static constexpr size_t kBytes =
      kZerosAt + (kFormat == WeightFormat::kInt4Zero ? kPanelCols : 0);
};

HWY_INLINE IntVector LoadInts(const void* from) {
  return hn::LoadU(kInts, static_cast<const int32_t*>(from));
}

HWY_INLINE IntVector SetWord(uint32_t word) {
  return hn::Set(kInts, static_cast<int32_t>(word));
}

// GCC reassociates chains of integer additions and hoists the multiplications
// before them, which spills: each sum is made a fixed point.
HWY_INLINE void Pin(IntVector& v) {
#if HWY_TARGET == HWY_AVX2
  asm("" : "+x"(v.raw));
#elif HWY_TARGET == HWY_AVX3_DL
  asm("" : "+v"(v.raw));
#else
  (void)v;
#endif
}

// The zero points of a vector of outputs.
HWY_INLINE IntVector LoadZeros(const uint8_t* from) {
  const hn::Rebind<uint8_t, IntTag> bytes;
  return hn::PromoteTo(kInts, hn::LoadU(bytes, from));
}

// Dot products of a group by instructions that multiply unsigned with signed
// bytes and add four products to a 32-bit sum. int8 weights are made unsigned
// by adding 128, which the sum of the inputs makes good; int4 are unsigned and
// the zero point is made good likewise.
template <bool kEmulated>
struct VnniDot {
  static constexpr size_t MaxRows(WeightFormat format) {
    return kEmulated ? 4 : 12;
  }
  static constexpr size_t Vectors(size_t rows) { return kPanelVectors; }

  // acc + u0 s0 + u1 s1 + u2 s2 + u3 s3 of the bytes of each word.
  static HWY_INLINE IntVector Dot(IntVector acc, IntVector u, IntVector s) {
#if HWY_TARGET == HWY_AVX3_DL
    if constexpr (!kEmulated) {
      // Highway has no name for it, and GCC asks for a target option that
      // Highway does not set.
      asm("vpdpbusd %2, %1, %0" : "+v"(acc.raw) : "v"(u.raw), "v"(s.raw));
      return acc;
    }
#endif
    const IntVector byte = hn::Set(kInts, 0xff);
    acc = hn::Add(acc, hn::Mul(hn::And(u, byte),
                               hn::ShiftRight<24>(hn::ShiftLeft<24>(s))));
    acc = hn::Add(acc, hn::Mul(hn::And(hn::ShiftRight<8>(u), byte),
                               hn::ShiftRight<24>(hn::ShiftLeft<16>(s))));
    acc = hn::Add(acc, hn::Mul(hn::And(hn::ShiftRight<16>(u), byte),
                               hn::ShiftRight<24>(hn::ShiftLeft<8>(s))));
    return hn::Add(acc, hn::Mul(hn::And(hn::ShiftRight<24>(u), byte),
                                hn::ShiftRight<24>(s)));
  }

  template <WeightFormat kFormat, size_t kGroupSize, size_t kRows,
            size_t kVectors>
  static HWY_INLINE void Group(const uint8_t* w, const uint32_t* x,
                               size_t first_vector,
                               IntVector (&dot)[kRows][kVectors]) {
    using Panel = PanelGroup<kFormat, kGroupSize>;
    using Input = InputGroup<kGroupSize>;
    constexpr size_t kQuads = Input::kQuads;
    TROUPE_UNROLL for (size_t r = 0; r < kRows; ++r) {
      const IntVector minus_sum = SetWord(x[Input::kSumWord * kRows + r]);
      TROUPE_UNROLL for (size_t v = 0; v < kVectors; ++v) {
        if constexpr (kFormat == WeightFormat::kInt8) {
          dot[r][v] = hn::ShiftLeft<7>(minus_sum);
        } else if constexpr (kFormat == WeightFormat::kInt4) {
          dot[r][v] = hn::ShiftLeft<3>(minus_sum);
        } else {
          const size_t col = (first_vector + v) * kLanes;
          dot[r][v] = hn::Mul(LoadZeros(w + Panel::kZerosAt + col), minus_sum);
        }
      }
    }
    const uint8_t* line = w + first_vector * 4 * kLanes;
    for (size_t q = 0; q < kQuads; q += Panel::kIsInt4 ? 2 : 1) {
      IntVector u[kVectors];
      TROUPE_UNROLL for (size_t v = 0; v < kVectors; ++v) {
        u[v] = LoadInts(line + v * 4 * kLanes);
        if constexpr (!Panel::kIsInt4) {
          u[v] = hn::Xor(u[v], SetWord(0x80808080u));
        }
      }
      line += 4 * kPanelCols;
      if constexpr (Panel::kIsInt4) {
        const IntVector nibbles = SetWord(0x0f0f0f0fu);
        IntVector upper[kVectors];
        TROUPE_UNROLL for (size_t v = 0; v < kVectors; ++v) {
          upper[v] = hn::And(hn::ShiftRight<4>(u[v]), nibbles);
          u[v] = hn::And(u[v], nibbles);
        }
        AddQuad(x + q * kRows, u, dot);
        AddQuad(x + (q + 1) * kRows, upper, dot);
      } else {
        AddQuad(x + q * kRows, u, dot);
      }
    }
  }

  template <size_t kRows, size_t kVectors>
  static HWY_INLINE void AddQuad(const uint32_t* x,
                                 const IntVector (&u)[kVectors],
                                 IntVector (&dot)[kRows][kVectors]) {
    TROUPE_UNROLL for (size_t r = 0; r < kRows; ++r) {
      const IntVector s = SetWord(x[r]);
      TROUPE_UNROLL for (size_t v = 0; v < kVectors; ++v) {
        dot[r][v] = Dot(dot[r][v], u[v], s);
      }
    }
  }
};

#if HWY_TARGET == HWY_AVX2

// Dot products of a group without such instructions: VPMADDUBSW adds two
// products in 16 bits, with saturation.
struct MultiplyAddPairsDot {
  // As many sums as leave registers for what is added to them.
  static constexpr size_t MaxRows(WeightFormat format) {
    return format == WeightFormat::kInt8 ? 4 : 6;
  }
  static constexpr size_t Vectors(size_t rows) { return rows <= 2 ? 4 : 2; }

  template <WeightFormat kFormat, size_t kGroupSize, size_t kRows,
            size_t kVectors>
  static HWY_INLINE void Group(const uint8_t* w, const uint32_t* x,
                               size_t first_vector,
                               IntVector (&dot)[kRows][kVectors]) {
    if constexpr (kFormat == WeightFormat::kInt8) {
      GroupInt8<kGroupSize>(w, x, first_vector, dot);
    } else {
      GroupInt4<kFormat, kGroupSize>(w, x, first_vector, dot);
    }
  }

  // The sign of a weight goes to the input: |w| x (sign(w) x). Two products are
  // at most 2 x 128 x 127 = 32512 in size: no saturation.
  template <size_t kGroupSize, size_t kRows, size_t kVectors>
  static HWY_INLINE void GroupInt8(const uint8_t* w, const uint32_t* x,
                                   size_t first_vector,
                                   IntVector (&dot)[kRows][kVectors]) {
    const __m256i ones = _mm256_set1_epi16(1);
    TROUPE_UNROLL for (size_t q = 0; q < kGroupSize / 4; ++q) {
      const uint8_t* line = w + q * 4 * kPanelCols + first_vector * 4 * kLanes;
      TROUPE_UNROLL for (size_t v = 0; v < kVectors; ++v) {
        const __m256i weights = LoadInts(line + v * 4 * kLanes).raw;
        const __m256i sizes = _mm256_abs_epi8(weights);
        TROUPE_UNROLL for (size_t r = 0; r < kRows; ++r) {
          const __m256i input = SetWord(x[q * kRows + r]).raw;
          const IntVector products = {_mm256_madd_epi16(
              _mm256_maddubs_epi16(sizes, _mm256_sign_epi8(input, weights)),
              ones)};
          dot[r][v] = q == 0 ? products : hn::Add(dot[r][v], products);
          Pin(dot[r][v]);
        }
      }
    }
  }

  // Two products of unsigned 4 by signed 8 bits are at most 2 x 15 x 127 = 3810
  // in size, so that eight such pairs add up in 16 bits: they are widened once
  // in 32 inputs.
  template <WeightFormat kFormat, size_t kGroupSize, size_t kRows,
            size_t kVectors>
  static HWY_INLINE void GroupInt4(const uint8_t* w, const uint32_t* x,
                                   size_t first_vector,
                                   IntVector (&dot)[kRows][kVectors]) {
    using Panel = PanelGroup<kFormat, kGroupSize>;
    const __m256i ones = _mm256_set1_epi16(1);
    TROUPE_UNROLL for (size_t run = 0; run < kGroupSize / 32; ++run) {
      IntVector pairs[kRows][kVectors];
      TROUPE_UNROLL for (size_t octet = 0; octet < 4; ++octet) {
        const uint8_t* line =
            w + (run * 4 + octet) * 4 * kPanelCols + first_vector * 4 * kLanes;
        const uint32_t* input = x + (run * 8 + octet * 2) * kRows;
        AddPairs<false>(line, input, octet == 0, pairs);
        AddPairs<true>(line, input + kRows, false, pairs);
      }
      TROUPE_UNROLL for (size_t r = 0; r < kRows; ++r) {
        TROUPE_UNROLL for (size_t v = 0; v < kVectors; ++v) {
          const IntVector sum = {_mm256_madd_epi16(pairs[r][v].raw, ones)};
          dot[r][v] = run == 0 ? sum : hn::Add(dot[r][v], sum);
        }
      }
    }
    // What the zero point adds.
    using Input = InputGroup<kGroupSize>;
    TROUPE_UNROLL for (size_t r = 0; r < kRows; ++r) {
      const IntVector minus_sum = SetWord(x[Input::kSumWord * kRows + r]);
      TROUPE_UNROLL for (size_t v = 0; v < kVectors; ++v) {
        if constexpr (kFormat == WeightFormat::kInt4) {
          dot[r][v] = hn::Add(dot[r][v], hn::ShiftLeft<3>(minus_sum));
        } else {
          // The sum fits into 16 bits, and the upper half of a zero is 0.
          const IntVector zeros =
              LoadZeros(w + Panel::kZerosAt + (first_vector + v) * kLanes);
          dot[r][v] =
              hn::Add(dot[r][v],
                      IntVector{_mm256_madd_epi16(zeros.raw, minus_sum.raw)});
        }
      }
    }
  }

  template <bool kUpper, size_t kRows, size_t kVectors>
  static HWY_INLINE void AddPairs(const uint8_t* line, const uint32_t* x,
                                  bool first,
                                  IntVector (&pairs)[kRows][kVectors]) {
    const __m256i nibbles = _mm256_set1_epi8(0x0f);
    IntVector weights[kVectors];
    TROUPE_UNROLL for (size_t v = 0; v < kVectors; ++v) {
      IntVector both = LoadInts(line + v * 4 * kLanes);
      if (kUpper) both = hn::ShiftRight<4>(both);
      weights[v] = {_mm256_and_si256(both.raw, nibbles)};
    }
    TROUPE_UNROLL for (size_t r = 0; r < kRows; ++r) {
      const __m256i input = SetWord(x[r]).raw;
      TROUPE_UNROLL for (size_t v = 0; v < kVectors; ++v) {
        const __m256i products = _mm256_maddubs_epi16(weights[v].raw, input);
        pairs[r][v] = {first ? products
                             : _mm256_add_epi16(pairs[r][v].raw, products)};
        Pin(pairs[r][v]);
      }
    }
  }
};

#endif  // HWY_TARGET == HWY_AVX2

// kRows rows and, of kPanels panels, vectors first_vector .. + kVectors. Not
// inlined: inside a large function GCC spills the sums.
template <class Dot, WeightFormat kFormat, size_t kGroupSize, size_t kRows,
          size_t kPanels, size_t kVectors>
HWY_NOINLINE void QuantizedTile(const uint32_t* HWY_RESTRICT x,
                                const uint8_t* HWY_RESTRICT w,
                                size_t panel_bytes, size_t num_groups,
                                float* HWY_RESTRICT c, size_t c_stride,
                                size_t first_vector, bool resume,
                                const uint8_t* ahead, size_t ahead_per_group) {
  using Panel = PanelGroup<kFormat, kGroupSize>;
  using Input = InputGroup<kGroupSize>;
  const hn::Rebind<hwy::float16_t, FloatTag> halves;
  c += first_vector * kLanes;
  if (!resume) {
    for (size_t r = 0; r < kRows; ++r) {
      for (size_t p = 0; p < kPanels; ++p) {
        std::memset(c + r * c_stride + p * kPanelCols, 0,
                    kVectors * kLanes * sizeof(float));
      }
    }
  }
  for (size_t g = 0; g < num_groups; ++g) {
    for (size_t p = 0; p < kPanels; ++p) {
      const uint8_t* panel = w + p * panel_bytes;
      for (size_t at = 0; at < ahead_per_group; at += 64) {
        hwy::Prefetch(ahead + p * panel_bytes + at);
      }
      IntVector dot[kRows][kVectors];
      Dot::template Group<kFormat, kGroupSize>(panel, x, first_vector, dot);
      const auto* scales =
          reinterpret_cast<const hwy::float16_t*>(panel + Panel::kScalesAt) +
          first_vector * kLanes;
      FloatVector weight_scales[kVectors];
      TROUPE_UNROLL for (size_t v = 0; v < kVectors; ++v) {
        weight_scales[v] =
            hn::PromoteTo(kFloats, hn::LoadU(halves, scales + v * kLanes));
      }
      TROUPE_UNROLL for (size_t r = 0; r < kRows; ++r) {
        const FloatVector input_scale = hn::Set(
            kFloats, std::bit_cast<float>(x[Input::kScaleWord * kRows + r]));
        TROUPE_UNROLL for (size_t v = 0; v < kVectors; ++v) {
          float* at = c + r * c_stride + p * kPanelCols + v * kLanes;
          hn::StoreU(hn::MulAdd(hn::ConvertTo(kFloats, dot[r][v]),
                                hn::Mul(weight_scales[v], input_scale),
                                hn::LoadU(kFloats, at)),
                     kFloats, at);
        }
      }
    }
    ahead += ahead_per_group;
    x += Input::kWords * kRows;
    w += Panel::kBytes;
  }
}

template <class Dot, WeightFormat kFormat, size_t kGroupSize, size_t kRows,
          size_t kPanels>
void ComputePasses(const TileArgs& args, size_t first_panel) {
  constexpr size_t kVectors = HWY_MIN(Dot::Vectors(kRows), kPanelVectors);
  constexpr size_t kPasses = kPanelVectors / kVectors;
  const size_t ahead_per_pass = (args.ahead_bytes + kPasses - 1) / kPasses;
  const size_t ahead_per_group =
      (ahead_per_pass + args.num_steps - 1) / args.num_steps;
  const size_t panel_offset = first_panel * args.panel_bytes;
  for (size_t pass = 0; pass < kPasses; ++pass) {
    QuantizedTile<Dot, kFormat, kGroupSize, kRows, kPanels, kVectors>(
        args.x, args.w + panel_offset, args.panel_bytes, args.num_steps,
        args.c + first_panel * kPanelCols, args.c_stride, pass * kVectors,
        args.resume, args.ahead + panel_offset + pass * ahead_per_pass,
        ahead_per_group);
  }
}

// One row is bound by memory: several streams come faster than one.
constexpr size_t SideBySide(size_t rows) { return rows == 1 ? 4 : 1; }

template <class Dot, WeightFormat kFormat, size_t kGroupSize, size_t kRows>
void ComputePanels(const TileArgs& args) {
  constexpr size_t kPanels = SideBySide(kRows);
  size_t p = 0;
  for (; p + kPanels <= args.num_panels; p += kPanels) {
    ComputePasses<Dot, kFormat, kGroupSize, kRows, kPanels>(args, p);
  }
  for (; p < args.num_panels; ++p) {
    ComputePasses<Dot, kFormat, kGroupSize, kRows, 1>(args, p);
  }
}

// Quantises one group of a row: numbers[i] = round(row[i] / scale) with
// scale = max |row[i]| / 127. A group that is all but zero becomes zero, since
// the reciprocal of its scale may be no float; in one that is not finite the
// scale is NaN, which makes the row's outputs NaN.
struct GroupScale {
  float scale;
  int32_t minus_sum;
};
template <size_t kGroupSize>
HWY_INLINE GroupScale QuantizeGroup(const float* row, int8_t* numbers) {
  const hn::Rebind<int8_t, IntTag> bytes;
  constexpr size_t kVectors = kGroupSize / kLanes;
  IntVector max_bits = hn::Zero(kInts);
  TROUPE_UNROLL for (size_t i = 0; i < kVectors; ++i) {
    // As integers: sizes of floats in their order, infinity and NaN above.
    const IntVector bits =
        hn::BitCast(kInts, hn::Abs(hn::LoadU(kFloats, row + i * kLanes)));
    max_bits = hn::Max(max_bits, bits);
  }
  const float max =
      std::bit_cast<float>(hn::GetLane(hn::MaxOfLanes(kInts, max_bits)));
  constexpr float kLeast = 0x1p-100f;
  if (!(max >= kLeast && max <= std::numeric_limits<float>::max())) {
    std::memset(numbers, 0, kGroupSize);
    return {max < kLeast ? 0.0f : std::numeric_limits<float>::quiet_NaN(), 0};
  }
  const FloatVector factor = hn::Set(kFloats, 127.0f / max);
  IntVector minus_sum = hn::Zero(kInts);
  TROUPE_UNROLL for (size_t i = 0; i < kVectors; ++i) {
    const IntVector rounded =
        hn::NearestInt(hn::Mul(hn::LoadU(kFloats, row + i * kLanes), factor));
    minus_sum = hn::Sub(minus_sum, rounded);
    hn::StoreU(hn::DemoteTo(bytes, rounded), bytes, numbers + i * kLanes);
  }
  return {max / 127.0f, hn::GetLane(hn::SumOfLanes(kInts, minus_sum))};
}

template <size_t kGroupSize>
void QuantizeRows(const float* const* rows, size_t num_rows, size_t num_k,
                  uint32_t* packed) {
  using Input = InputGroup<kGroupSize>;
  for (size_t k = 0; k < num_k; k += kGroupSize) {
    for (size_t r = 0; r < num_rows; ++r) {
      HWY_ALIGN int8_t numbers[kGroupSize];
      const GroupScale group = QuantizeGroup<kGroupSize>(rows[r] + k, numbers);
      for (size_t q = 0; q < Input::kQuads; ++q) {
        std::memcpy(packed + q * num_rows + r, numbers + 4 * q, 4);
      }
      packed[Input::kScaleWord * num_rows + r] =
          std::bit_cast<uint32_t>(group.scale);
      packed[Input::kSumWord * num_rows + r] =
          static_cast<uint32_t>(group.minus_sum);
    }
    packed += Input::kWords * num_rows;
  }
}

// How many rows a tile has at most that reads whole panels.
template <class Dot>
constexpr size_t MaxRowsOfOnePass(size_t max_rows) {
  size_t rows = 0;
  while (rows < max_rows && Dot::Vectors(rows + 1) >= kPanelVectors) {
    ++rows;
  }
  return rows;
}

template <class Dot, WeightFormat kFormat, size_t kGroupSize,
          size_t... kIndices>
const GemmKernels& MakeKernels(std::index_sequence<kIndices...>) {
  static constexpr TileFunction kTiles[] = {
      &ComputePanels<Dot, kFormat, kGroupSize, kIndices + 1>...};
  static constexpr size_t kSideBySide[] = {SideBySide(kIndices + 1)...};
  static constexpr GemmKernels kKernels = {
      kGroupSize,
      InputGroup<kGroupSize>::kWords,
      sizeof...(kIndices),
      MaxRowsOfOnePass<Dot>(sizeof...(kIndices)),
      &QuantizeRows<kGroupSize>,
      kTiles,
      kSideBySide};
  return kKernels;
}

template <class Dot, WeightFormat kFormat>
const GemmKernels& KernelsOfGroup(size_t group_size) {
  constexpr auto kIndices = std::make_index_sequence<Dot::MaxRows(kFormat)>();
  return group_size == 32 ? MakeKernels<Dot, kFormat, 32>(kIndices)
                          : MakeKernels<Dot, kFormat, 64>(kIndices);
}

template <class Dot>
const GemmKernels& KernelsOfFormat(WeightFormat format, size_t group_size) {
  switch (format) {
    case WeightFormat::kInt8:
      return KernelsOfGroup<Dot, WeightFormat::kInt8>(group_size);
    case WeightFormat::kInt4:
      return KernelsOfGroup<Dot, WeightFormat::kInt4>(group_size);
    default:
      return KernelsOfGroup<Dot, WeightFormat::kInt4Zero>(group_size);
  }
}

const GemmKernels& QuantizedKernels(WeightFormat format, size_t group_size) {
#if HWY_TARGET == HWY_AVX2
  using Dot = MultiplyAddPairsDot;
#elif HWY_TARGET == HWY_AVX3_DL
  using Dot = VnniDot<false>;
#else
  using Dot = VnniDot<true>;
#endif
  return KernelsOfFormat<Dot>(format, group_size);
}

const GemmKernels& EmulatedDotKernels(WeightFormat format, size_t group_size) {
  return KernelsOfFormat<VnniDot<true>>(format, group_size);
}

}  // namespace troupe::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace troupe {

const GemmKernels& QuantizedKernels(WeightFormat format, size_t group_size) {
  CHECK(IsQuantized(format));
  CHECK(group_size == 32 || group_size == 64);
#if HWY_TARGETS & HWY_AVX3_DL
  // Not by Highway's table, which has no place for an AVX-512 that is to use
  // the path of AVX2. Asked once: Highway asks the processor, which a virtual
  // machine's host answers, in tens of microseconds.
  static const bool has_dot = (hwy::SupportedTargets() & HWY_AVX3_DL) != 0;
  if (has_dot) return N_AVX3_DL::QuantizedKernels(format, group_size);
#endif
  return HWY_STATIC_DISPATCH(QuantizedKernels)(format, group_size);
}

const GemmKernels& EmulatedDotKernels(WeightFormat format, size_t group_size) {
  return HWY_STATIC_DISPATCH(EmulatedDotKernels)(format, group_size);
}

}  // namespace troupe
#endif  // HWY_ONCE
