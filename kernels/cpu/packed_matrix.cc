#include "kernels/packed_matrix.h"

#include "kernels/cpu/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/packed_matrix.cc"
#include "hwy/foreach_target.h"
// foreach_target.h stays before the rest.
#include <algorithm>
#include <cstring>
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

// Panel of 16-bit numbers. rows[i] is the output at position i of the panel.
inline void PackPanel16(const uint8_t* const* rows, size_t num_k,
                        uint8_t* panel) {
  constexpr size_t kBytesPerK = 2 * kPanelCols;
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
        uint8_t* to = panel + k * kBytesPerK + 2 * i;
        StoreTransposed(low, to, kBytesPerK);
        StoreTransposed(high, to + 4 * kBytesPerK, kBytesPerK);
      }
    }
  }
  for (size_t k = k8; k < num_k; ++k) {
    for (size_t i = 0; i < kPanelCols; ++i) {
      std::memcpy(panel + k * kBytesPerK + 2 * i, rows[i] + 2 * k, 2);
    }
  }
}

inline void PackPanel32(const uint8_t* const* rows, size_t num_k,
                        uint8_t* panel) {
  constexpr size_t kBytesPerK = 4 * kPanelCols;
  const Words words;
  const size_t k4 = num_k / 4 * 4;
  for (size_t begin = 0; begin < k4; begin += kStepK) {
    const size_t end = std::min(begin + kStepK, k4);
    for (size_t i = 0; i < kPanelCols; i += 4) {
      for (size_t k = begin; k < end; k += 4) {
        WordVector a[4];
        for (size_t j = 0; j < 4; ++j) {
          a[j] = hn::BitCast(words, LoadBytes(rows[i + j] + 4 * k));
        }
        StoreTransposed(a, panel + k * kBytesPerK + 4 * i, kBytesPerK);
      }
    }
  }
  for (size_t k = k4; k < num_k; ++k) {
    for (size_t i = 0; i < kPanelCols; ++i) {
      std::memcpy(panel + k * kBytesPerK + 4 * i, rows[i] + 4 * k, 4);
    }
  }
}

// Outputs [first_output, n) of `weights` up to a full panel; those past n are
// read from `zeros`, a row of k.
void PackPanel(DataType dtype, const uint8_t* weights, const uint8_t* zeros,
               size_t n, size_t k, size_t first_output, uint8_t* panel) {
  const uint8_t* rows[kPanelCols];
  for (size_t i = 0; i < kPanelCols; ++i) {
    // A word of bf16 holds outputs j and j + 16: its halves are two vectors of
    // floats by a shift and a mask.
    const size_t col =
        dtype == DataType::kBF16 ? i / 2 + i % 2 * (kPanelCols / 2) : i;
    const size_t output = first_output + col;
    rows[i] = output < n ? weights + output * k * SizeOf(dtype) : zeros;
  }
  if (dtype == DataType::kF32) {
    PackPanel32(rows, k, panel);
  } else {
    PackPanel16(rows, k, panel);
  }
}

}  // namespace troupe::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace troupe {

HWY_EXPORT(PackPanel);

PackedMatrix::PackedMatrix(PackedMatrix&& other) noexcept
    : dtype_(other.dtype_),
      is_gate_up_(other.is_gate_up_),
      n_(std::exchange(other.n_, 0)),
      k_(std::exchange(other.k_, 0)),
      data_(std::exchange(other.data_, nullptr)) {}

PackedMatrix& PackedMatrix::operator=(PackedMatrix&& other) noexcept {
  if (this != &other) {
    FreeAligned(data_);
    dtype_ = other.dtype_;
    is_gate_up_ = other.is_gate_up_;
    n_ = std::exchange(other.n_, 0);
    k_ = std::exchange(other.k_, 0);
    data_ = std::exchange(other.data_, nullptr);
  }
  return *this;
}

PackedMatrix::~PackedMatrix() { FreeAligned(data_); }

PackedMatrix PackedMatrix::PackAll(DataType dtype, const void* const* sources,
                                   size_t num_sources, size_t n, size_t k,
                                   ThreadPool& pool) {
  CHECK(n > 0);
  CHECK(k > 0);
  PackedMatrix packed;
  packed.dtype_ = dtype;
  packed.is_gate_up_ = num_sources == 2;
  packed.n_ = n;
  packed.k_ = k;
  packed.data_ = static_cast<uint8_t*>(AllocateAligned(packed.num_bytes()));
  const std::vector<uint8_t> zeros(n % kPanelCols == 0 ? 0 : k * SizeOf(dtype));
  pool.ParallelFor(packed.num_panels(), [&](size_t panel, size_t worker) {
    HWY_DYNAMIC_DISPATCH(PackPanel)
    (dtype, static_cast<const uint8_t*>(sources[panel % num_sources]),
     zeros.data(), n, k, panel / num_sources * kPanelCols,
     packed.data_ + panel * packed.panel_bytes());
  });
  return packed;
}

PackedMatrix PackedMatrix::Pack(DataType dtype, const void* weights, size_t n,
                                size_t k, ThreadPool& pool) {
  return PackAll(dtype, &weights, 1, n, k, pool);
}

PackedMatrix PackedMatrix::PackGateUp(DataType dtype, const void* gate,
                                      const void* up, size_t n, size_t k,
                                      ThreadPool& pool) {
  const void* const sources[] = {gate, up};
  return PackAll(dtype, sources, 2, n, k, pool);
}

PackedMatrix PackedMatrix::Pack(const StoredMatrix& matrix, ThreadPool& pool) {
  CHECK(!IsQuantized(matrix.format));
  return Pack(static_cast<DataType>(matrix.format), matrix.numbers, matrix.n,
              matrix.k, pool);
}

PackedMatrix PackedMatrix::PackGateUp(const StoredMatrix& gate,
                                      const StoredMatrix& up,
                                      ThreadPool& pool) {
  CHECK(!IsQuantized(gate.format));
  CHECK(gate.format == up.format && gate.n == up.n && gate.k == up.k);
  return PackGateUp(static_cast<DataType>(gate.format), gate.numbers,
                    up.numbers, gate.n, gate.k, pool);
}

}  // namespace troupe
#endif  // HWY_ONCE
