// Vectors of the instruction set that is being compiled, and functions on them
// whose bits are the same for every instruction set: lane-wise operations with
// explicit fused multiply-adds, and sums over blocks of 16 lanes in one tree.
#if defined(TROUPE_KERNELS_CPU_MATH_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TROUPE_KERNELS_CPU_MATH_INL_H_
#undef TROUPE_KERNELS_CPU_MATH_INL_H_
#else
#define TROUPE_KERNELS_CPU_MATH_INL_H_
#endif

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#include "hwy/highway.h"

#ifndef TROUPE_UNROLL
#ifdef __clang__
#define TROUPE_UNROLL _Pragma("clang loop unroll(full)")
#else
#define TROUPE_UNROLL _Pragma("GCC unroll 16")
#endif
#endif

HWY_BEFORE_NAMESPACE();
namespace troupe::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// At most 16 floats: a block of 16 is one AVX-512 vector, two of AVX2, four of
// NEON.
using FloatTag = hn::CappedTag<float, 16>;
using FloatVector = hn::Vec<FloatTag>;
inline constexpr FloatTag kFloats;
inline constexpr size_t kLanes = hn::MaxLanes(FloatTag());
inline constexpr size_t kBlockLanes = 16;
inline constexpr size_t kBlockVectors = kBlockLanes / kLanes;

struct Block {
  FloatVector v[kBlockVectors];
};

// The first min(count, kLanes) floats at `from`; the other lanes are `fill`.
HWY_INLINE FloatVector LoadUpTo(const float* from, size_t count,
                                float fill = 0.0f) {
  if (HWY_LIKELY(count >= kLanes)) return hn::LoadU(kFloats, from);
  HWY_ALIGN float buffer[kLanes];
  for (size_t i = 0; i < kLanes; ++i) buffer[i] = fill;
  std::memcpy(buffer, from, count * sizeof(float));
  return hn::Load(kFloats, buffer);
}

HWY_INLINE void StoreUpTo(FloatVector value, float* to, size_t count) {
  if (HWY_LIKELY(count >= kLanes)) {
    hn::StoreU(value, kFloats, to);
    return;
  }
  HWY_ALIGN float buffer[kLanes];
  hn::Store(value, kFloats, buffer);
  std::memcpy(to, buffer, count * sizeof(float));
}

HWY_INLINE Block SetBlock(float value) {
  Block block;
  for (FloatVector& v : block.v) v = hn::Set(kFloats, value);
  return block;
}

// Of the first `count` floats at `from`, count > 0; the rest is `fill`.
HWY_INLINE Block LoadBlock(const float* from, size_t count, float fill = 0.0f) {
  Block block;
  if (HWY_LIKELY(count >= kBlockLanes)) {
    for (size_t i = 0; i < kBlockVectors; ++i) {
      block.v[i] = hn::LoadU(kFloats, from + i * kLanes);
    }
    return block;
  }
  HWY_ALIGN float buffer[kBlockLanes];
  for (float& value : buffer) value = fill;
  std::memcpy(buffer, from, count * sizeof(float));
  for (size_t i = 0; i < kBlockVectors; ++i) {
    block.v[i] = hn::Load(kFloats, buffer + i * kLanes);
  }
  return block;
}

// The tree of a block's sum: lanes 8 apart, then 4, 2, 1.
template <typename T>
HWY_INLINE T SumTree(T* values) {
  for (size_t half = kBlockLanes / 2; half > 0; half /= 2) {
    for (size_t i = 0; i < half; ++i) values[i] += values[i + half];
  }
  return values[0];
}

HWY_INLINE float SumOfBlock(const Block& block) {
  HWY_ALIGN float values[kBlockLanes];
  for (size_t i = 0; i < kBlockVectors; ++i) {
    hn::Store(block.v[i], kFloats, values + i * kLanes);
  }
  return SumTree(values);
}

HWY_INLINE float MaxOfBlock(const Block& block) {
  FloatVector max = block.v[0];
  for (size_t i = 1; i < kBlockVectors; ++i) max = hn::Max(max, block.v[i]);
  return hn::GetLane(hn::MaxOfLanes(kFloats, max));
}

// exp(x) within 2 units in the last place; overflow is infinity, underflow
// passes through the subnormals to 0, NaN stays NaN.
//
// x = n ln 2 + r, |r| <= ln(2) / 2, and exp(r) by its Taylor polynomial: the
// term after the last is below 6e-9. ln 2 is split so that n times its upper
// part is exact. 2^n is multiplied in two halves, so that neither overflows.
HWY_INLINE FloatVector Exp(FloatVector x) {
  const hn::RebindToSigned<FloatTag> ints;
  const FloatVector clamped =
      hn::Min(hn::Max(x, hn::Set(kFloats, -110.0f)), hn::Set(kFloats, 90.0f));
  const FloatVector n =
      hn::Round(hn::Mul(clamped, hn::Set(kFloats, 1.44269504f)));
  FloatVector r =
      hn::NegMulAdd(n, hn::Set(kFloats, 0.693145751953125f), clamped);
  r = hn::NegMulAdd(n, hn::Set(kFloats, 1.42860682e-6f), r);

  FloatVector p = hn::Set(kFloats, 1.0f / 5040);
  p = hn::MulAdd(p, r, hn::Set(kFloats, 1.0f / 720));
  p = hn::MulAdd(p, r, hn::Set(kFloats, 1.0f / 120));
  p = hn::MulAdd(p, r, hn::Set(kFloats, 1.0f / 24));
  p = hn::MulAdd(p, r, hn::Set(kFloats, 1.0f / 6));
  p = hn::MulAdd(p, r, hn::Set(kFloats, 0.5f));
  p = hn::MulAdd(p, r, hn::Set(kFloats, 1.0f));
  p = hn::MulAdd(p, r, hn::Set(kFloats, 1.0f));

  const auto exponent = hn::ConvertTo(ints, n);
  const auto half = hn::ShiftRight<1>(exponent);
  const auto bias = hn::Set(ints, 127);
  const auto power = [&](auto e) HWY_ATTR {
    return hn::BitCast(kFloats, hn::ShiftLeft<23>(hn::Add(e, bias)));
  };
  const FloatVector result =
      hn::Mul(hn::Mul(p, power(half)), power(hn::Sub(exponent, half)));
  return hn::IfThenElse(hn::IsNaN(x), x, result);
}

HWY_INLINE FloatVector Sigmoid(FloatVector x) {
  const FloatVector one = hn::Set(kFloats, 1.0f);
  return hn::Div(one, hn::Add(one, Exp(hn::Neg(x))));
}

HWY_INLINE FloatVector Silu(FloatVector x) {
  return hn::Div(x, hn::Add(hn::Set(kFloats, 1.0f), Exp(hn::Neg(x))));
}

// out[c * num_rows + r] = rows[r][c] for c in [0, num_cols): the rows side by
// side, as the tiles read them.
HWY_INLINE void TransposeRows(const float* const* rows, size_t num_rows,
                              size_t num_cols, float* HWY_RESTRICT out) {
  if (num_rows == 1) {
    std::memcpy(out, rows[0], num_cols * sizeof(float));
    return;
  }
  const hn::FixedTag<float, 4> d;
  const hn::Repartition<uint64_t, decltype(d)> d64;
  const size_t rows4 = num_rows / 4 * 4;
  const size_t cols4 = num_cols / 4 * 4;
  for (size_t c = 0; c < cols4; c += 4) {
    for (size_t r = 0; r < rows4; r += 4) {
      const auto a = hn::LoadU(d, rows[r] + c);
      const auto b = hn::LoadU(d, rows[r + 1] + c);
      const auto e = hn::LoadU(d, rows[r + 2] + c);
      const auto f = hn::LoadU(d, rows[r + 3] + c);
      const auto ab0 = hn::BitCast(d64, hn::InterleaveLower(d, a, b));
      const auto ab1 = hn::BitCast(d64, hn::InterleaveUpper(d, a, b));
      const auto ef0 = hn::BitCast(d64, hn::InterleaveLower(d, e, f));
      const auto ef1 = hn::BitCast(d64, hn::InterleaveUpper(d, e, f));
      float* to = out + c * num_rows + r;
      hn::StoreU(hn::BitCast(d, hn::InterleaveLower(d64, ab0, ef0)), d, to);
      hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(d64, ab0, ef0)), d,
                 to + num_rows);
      hn::StoreU(hn::BitCast(d, hn::InterleaveLower(d64, ab1, ef1)), d,
                 to + 2 * num_rows);
      hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(d64, ab1, ef1)), d,
                 to + 3 * num_rows);
    }
    for (size_t i = c; i < c + 4; ++i) {
      for (size_t r = rows4; r < num_rows; ++r) {
        out[i * num_rows + r] = rows[r][i];
      }
    }
  }
  for (size_t c = cols4; c < num_cols; ++c) {
    for (size_t r = 0; r < num_rows; ++r) out[c * num_rows + r] = rows[r][c];
  }
}

}  // namespace troupe::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // TROUPE_KERNELS_CPU_MATH_INL_H_
