#include "kernels/packed_matrix.h"

#include "kernels/cpu/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/packed_matrix.cc"
#include "hwy/foreach_target.h"
// foreach_target.h stays before the rest.
#include <algorithm>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#include "common/check.h"
#include "hwy/highway.h"
#include "kernels/aligned_memory.h"

HWY_BEFORE_NAMESPACE();
namespace troupe::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

inline constexpr size_t kPanelCols = PackedMatrix::kPanelCols;
// Inputs that are packed before the next outputs are: one cache line of each
// source row, so that rows whose addresses collide in the cache do not matter.
inline constexpr size_t kStepK = 32;

using Words = hn::FixedTag<uint32_t, 4>;
using WordVector = hn::Vec<Words>;

// a[i] holds words k .. k+3 of output i; stores word k + i of the four outputs
// at to + i * stride.
HWY_INLINE void StoreTransposed(const WordVector (&a)[4], uint8_t* to,
                                size_t stride) {
  const Words d;
  const hn::Repartition<uint64_t, Words> d64;
  const auto low01 = hn::BitCast(d64, hn::InterleaveLower(d, a[0], a[1]));
  const auto low23 = hn::BitCast(d64, hn::InterleaveLower(d, a[2], a[3]));
  const auto high01 = hn::BitCast(d64, hn::InterleaveUpper(d, a[0], a[1]));
  const auto high23 = hn::BitCast(d64, hn::InterleaveUpper(d, a[2], a[3]));
  const auto store = [&](size_t i, auto v) HWY_ATTR {
    hn::Store(hn::BitCast(d, v), d,
              reinterpret_cast<uint32_t*>(to + i * stride));
  };
  store(0, hn::InterleaveLower(d64, low01, low23));
  store(1, hn::InterleaveUpper(d64, low01, low23));
  store(2, hn::InterleaveLower(d64, high01, high23));
  store(3, hn::InterleaveUpper(d64, high01, high23));
}

HWY_INLINE hn::Vec<hn::FixedTag<uint8_t, 16>> LoadBytes(const uint8_t* from) {
  return hn::LoadU(hn::FixedTag<uint8_t, 16>(), from);
}

// Where word `w` of an output's inputs goes in a panel: words of a group follow
// one another, groups stand `group_bytes` apart. A word is 32 bits of what the
// checkpoint holds: one float, four int8 or eight int4.
struct WordPlaces {
  size_t words_per_group;
  size_t group_bytes;

  size_t Offset(size_t w) const {
    return w / words_per_group * group_bytes +
           w % words_per_group * (4 * kPanelCols);
  }
};

// Panel of 16-bit numbers, `stride` bytes from one k to the next. rows[i] is
// the output at position i of the panel.
inline void PackPanel16(const uint8_t* const* rows, size_t num_k, size_t stride,
                        uint8_t* panel) {
  const hn::FixedTag<uint16_t, 8> halves;
  const Words words;
  const size_t k8 = num_k / 8 * 8;
  for (size_t begin = 0; begin < k8; begin += kStepK) {
    const size_t end = std::min(begin + kStepK, k8);
    for (size_t i = 0; i < kPanelCols; i += 8) {
      for (size_t k = begin; k < end; k += 8) {
        WordVector low[4];
        WordVector high[4];
        for (size_t j = 0; j < 4; ++j) {
          const auto a =
              hn::BitCast(halves, LoadBytes(rows[i + 2 * j] + 2 * k));
          const auto b =
              hn::BitCast(halves, LoadBytes(rows[i + 2 * j + 1] + 2 * k));
          low[j] = hn::BitCast(words, hn::InterleaveLower(halves, a, b));
          high[j] = hn::BitCast(words, hn::InterleaveUpper(halves, a, b));
        }
        uint8_t* to = panel + k * stride + 2 * i;
        StoreTransposed(low, to, stride);
        StoreTransposed(high, to + 4 * stride, stride);
      }
    }
  }
  for (size_t k = k8; k < num_k; ++k) {
    for (size_t i = 0; i < kPanelCols; ++i) {
      std::memcpy(panel + k * stride + 2 * i, rows[i] + 2 * k, 2);
    }
  }
}

// From eight int4 in the order of k to bytes of k + i and k + 4 + i: the upper
// half's nibbles come between those of the lower half.
HWY_INLINE WordVector SpreadNibbles(WordVector v) {
  const Words d;
  const auto moved = [&](WordVector from, uint32_t keep, uint32_t left,
                         auto shift) HWY_ATTR {
    constexpr int kShift = decltype(shift)::value;
    return hn::Or(
        hn::And(from, hn::Set(d, keep)),
        hn::Or(hn::ShiftLeft<kShift>(hn::And(from, hn::Set(d, left))),
               hn::And(hn::ShiftRight<kShift>(from), hn::Set(d, left))));
  };
  v = moved(v, 0xff0000ffu, 0x0000ff00u, std::integral_constant<int, 8>());
  return moved(v, 0xf00ff00fu, 0x00f000f0u, std::integral_constant<int, 4>());
}

inline uint32_t SpreadNibbles(uint32_t v) {
  v = (v & 0xff0000ffu) | (v & 0x0000ff00u) << 8 | (v >> 8 & 0x0000ff00u);
  return (v & 0xf00ff00fu) | (v & 0x00f000f0u) << 4 | (v >> 4 & 0x00f000f0u);
}

// Panel of words, num_words of each output.
template <bool kIsInt4>
void PackPanel32(const uint8_t* const* rows, size_t num_words,
                 const WordPlaces& places, uint8_t* panel) {
  constexpr size_t kStride = 4 * kPanelCols;
  const Words words;
  // Groups are whole multiples of four words.
  const size_t words4 = num_words / 4 * 4;
  for (size_t begin = 0; begin < words4; begin += kStepK) {
    const size_t end = std::min(begin + kStepK, words4);
    for (size_t i = 0; i < kPanelCols; i += 4) {
      for (size_t w = begin; w < end; w += 4) {
        WordVector a[4];
        for (size_t j = 0; j < 4; ++j) {
          a[j] = hn::BitCast(words, LoadBytes(rows[i + j] + 4 * w));
          if (kIsInt4) a[j] = SpreadNibbles(a[j]);
        }
        StoreTransposed(a, panel + places.Offset(w) + 4 * i, kStride);
      }
    }
  }
  for (size_t w = words4; w < num_words; ++w) {
    for (size_t i = 0; i < kPanelCols; ++i) {
      uint32_t word;
      std::memcpy(&word, rows[i] + 4 * w, 4);
      if (kIsInt4) word = SpreadNibbles(word);
      std::memcpy(panel + places.Offset(w) + 4 * i, &word, 4);
    }
  }
}

// Bytes of an output's numbers.
inline size_t RowBytes(const StoredMatrix& m) {
  if (IsInt4(m.format)) return m.k / 2;
  if (m.format == WeightFormat::kInt8) return m.k;
  return m.k * SizeOf(static_cast<DataType>(m.format));
}

// Outputs [first_output, n) of `matrix` up to a full panel; those past n are
// read from `nothing`, zeros as long as a row.
void PackPanel(const StoredMatrix& matrix, const uint8_t* nothing,
               size_t step_bytes, size_t first_output, uint8_t* panel) {
  const bool is_bf16 = matrix.format == WeightFormat::kBF16;
  // The output at position i of a line. A word of bf16 holds outputs j and
  // j + 16: its halves are two vectors of floats by a shift and a mask.
  const auto output_at = [&](size_t i) {
    return first_output + (is_bf16 ? i / 2 + i % 2 * (kPanelCols / 2) : i);
  };
  const auto rows_of = [&](const void* data, size_t row_bytes,
                           const uint8_t** rows) {
    for (size_t i = 0; i < kPanelCols; ++i) {
      rows[i] = output_at(i) < matrix.n ? static_cast<const uint8_t*>(data) +
                                              output_at(i) * row_bytes
                                        : nothing;
    }
  };
  const uint8_t* rows[kPanelCols];
  rows_of(matrix.numbers, RowBytes(matrix), rows);
  if (matrix.format == WeightFormat::kF32) {
    PackPanel32<false>(rows, matrix.k, {1, step_bytes}, panel);
    return;
  }
  if (!IsQuantized(matrix.format)) {
    PackPanel16(rows, matrix.k, step_bytes, panel);
    return;
  }
  const size_t num_words = RowBytes(matrix) / 4;
  const size_t words_per_group = num_words / matrix.num_groups();
  const WordPlaces places = {words_per_group, step_bytes};
  if (IsInt4(matrix.format)) {
    PackPanel32<true>(rows, num_words, places, panel);
  } else {
    PackPanel32<false>(rows, num_words, places, panel);
  }
  const size_t scales_at = words_per_group * 4 * kPanelCols;
  rows_of(matrix.scales, 2 * matrix.num_groups(), rows);
  PackPanel16(rows, matrix.num_groups(), step_bytes, panel + scales_at);
  if (matrix.format == WeightFormat::kInt4Zero) {
    const size_t zeros_at = scales_at + 2 * kPanelCols;
    rows_of(matrix.zeros, matrix.num_groups(), rows);
    for (size_t g = 0; g < matrix.num_groups(); ++g) {
      for (size_t i = 0; i < kPanelCols; ++i) {
        panel[g * step_bytes + zeros_at + i] = rows[i][g];
      }
    }
  }
}

}  // namespace troupe::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace troupe {

HWY_EXPORT(PackPanel);

PackedMatrix::PackedMatrix(PackedMatrix&& other) noexcept {
  *this = std::move(other);
}

PackedMatrix& PackedMatrix::operator=(PackedMatrix&& other) noexcept {
  if (this != &other) {
    FreeAligned(data_);
    format_ = other.format_;
    is_gate_up_ = other.is_gate_up_;
    group_size_ = other.group_size_;
    n_ = std::exchange(other.n_, 0);
    k_ = std::exchange(other.k_, 0);
    step_bytes_ = other.step_bytes_;
    data_ = std::exchange(other.data_, nullptr);
  }
  return *this;
}

PackedMatrix::~PackedMatrix() { FreeAligned(data_); }

namespace {

// PackedMatrix::step_bytes.
size_t StepBytes(WeightFormat format, size_t group_size) {
  constexpr size_t kCols = PackedMatrix::kPanelCols;
  switch (format) {
    case WeightFormat::kF32:
      return 4 * kCols;
    case WeightFormat::kBF16:
    case WeightFormat::kF16:
      return 2 * kCols;
    case WeightFormat::kInt8:
      return (group_size + 2) * kCols;
    case WeightFormat::kInt4:
      return (group_size / 2 + 2) * kCols;
    case WeightFormat::kInt4Zero:
      return (group_size / 2 + 3) * kCols;
  }
  return 0;
}

}  // namespace

PackedMatrix PackedMatrix::PackAll(const StoredMatrix* sources,
                                   size_t num_sources, ThreadPool& pool) {
  const StoredMatrix& first = sources[0];
  CHECK(first.n > 0);
  CHECK(first.k > 0);
  if (IsQuantized(first.format)) {
    CHECK(first.group_size == 32 || first.group_size == 64);
    CHECK_EQ(first.k % first.group_size, 0u);
  }
  PackedMatrix packed;
  packed.format_ = first.format;
  packed.is_gate_up_ = num_sources == 2;
  packed.group_size_ = IsQuantized(first.format) ? first.group_size : 0;
  packed.n_ = first.n;
  packed.k_ = first.k;
  packed.step_bytes_ = StepBytes(packed.format_, packed.group_size_);
  packed.data_ = static_cast<uint8_t*>(AllocateAligned(packed.num_bytes()));
  const std::vector<uint8_t> nothing(
      first.n % kPanelCols == 0 ? 0 : first.k * sizeof(float));
  pool.ParallelFor(packed.num_panels(), [&](size_t panel, size_t worker) {
    HWY_DYNAMIC_DISPATCH(PackPanel)
    (sources[panel % num_sources], nothing.data(), packed.step_bytes(),
     panel / num_sources * kPanelCols,
     packed.data_ + panel * packed.panel_bytes());
  });
  return packed;
}

PackedMatrix PackedMatrix::Pack(const StoredMatrix& matrix, ThreadPool& pool) {
  return PackAll(&matrix, 1, pool);
}

PackedMatrix PackedMatrix::PackGateUp(const StoredMatrix& gate,
                                      const StoredMatrix& up,
                                      ThreadPool& pool) {
  CHECK(gate.format == up.format);
  CHECK_EQ(gate.n, up.n);
  CHECK_EQ(gate.k, up.k);
  CHECK(!IsQuantized(gate.format) || gate.group_size == up.group_size);
  const StoredMatrix sources[] = {gate, up};
  return PackAll(sources, 2, pool);
}

PackedMatrix PackedMatrix::Pack(DataType dtype, const void* weights, size_t n,
                                size_t k, ThreadPool& pool) {
  return Pack({.format = FormatOf(dtype), .n = n, .k = k, .numbers = weights},
              pool);
}

PackedMatrix PackedMatrix::PackGateUp(DataType dtype, const void* gate,
                                      const void* up, size_t n, size_t k,
                                      ThreadPool& pool) {
  const WeightFormat format = FormatOf(dtype);
  return PackGateUp({.format = format, .n = n, .k = k, .numbers = gate},
                    {.format = format, .n = n, .k = k, .numbers = up}, pool);
}

}  // namespace troupe
#endif  // HWY_ONCE
