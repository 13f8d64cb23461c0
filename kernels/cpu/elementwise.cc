#include "kernels/elementwise.h"

#include "kernels/cpu/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/elementwise.cc"
#include "hwy/foreach_target.h"
// foreach_target.h stays before the rest.
#include <algorithm>
#include <cmath>
#include <cstddef>

#include "common/check.h"
#include "hwy/highway.h"
#include "kernels/cpu/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace troupe::HWY_NAMESPACE {

// function(i, count) for each vector of `size` floats: it starts at i, and
// `count` of its lanes count.
template <typename Function>
HWY_INLINE void ForEachVector(size_t size, const Function& function) {
  for (size_t i = 0; i < size; i += kLanes) {
    function(i, std::min(kLanes, size - i));
  }
}

// weight * (x / sqrt(mean(x^2) + epsilon)), as x * (1 / sqrt(...)).
void RmsNormRow(const float* input, const float* weight, float epsilon,
                size_t size, float* output) {
  Block squares = SetBlock(0.0f);
  for (size_t i = 0; i < size; i += kBlockLanes) {
    const Block x = LoadBlock(input + i, size - i);
    for (size_t j = 0; j < kBlockVectors; ++j) {
      squares.v[j] = hn::MulAdd(x.v[j], x.v[j], squares.v[j]);
    }
  }
  const float mean = SumOfBlock(squares) / static_cast<float>(size);
  const FloatVector scale = hn::Set(kFloats, 1.0f / std::sqrt(mean + epsilon));
  ForEachVector(size, [&](size_t i, size_t count) HWY_ATTR {
    const FloatVector x = LoadUpTo(input + i, count);
    const FloatVector w = LoadUpTo(weight + i, count);
    StoreUpTo(hn::Mul(w, hn::Mul(x, scale)), output + i, count);
  });
}

// Rotates the pairs (a[i], b[i]) by the angle of cosines[i], sines[i].
void RotatePairs(const float* cosines, const float* sines, size_t size,
                 float* a, float* b) {
  ForEachVector(size, [&](size_t i, size_t count) HWY_ATTR {
    const FloatVector cosine = LoadUpTo(cosines + i, count);
    const FloatVector sine = LoadUpTo(sines + i, count);
    const FloatVector x = LoadUpTo(a + i, count);
    const FloatVector y = LoadUpTo(b + i, count);
    StoreUpTo(hn::NegMulAdd(y, sine, hn::Mul(x, cosine)), a + i, count);
    StoreUpTo(hn::MulAdd(x, sine, hn::Mul(y, cosine)), b + i, count);
  });
}

void ClampRow(float limit, size_t size, float* values) {
  const FloatVector high = hn::Set(kFloats, limit);
  const FloatVector low = hn::Set(kFloats, -limit);
  ForEachVector(size, [&](size_t i, size_t count) HWY_ATTR {
    const FloatVector x = LoadUpTo(values + i, count);
    const FloatVector clamped = hn::Min(hn::Max(x, low), high);
    StoreUpTo(hn::IfThenElse(hn::IsNaN(x), x, clamped), values + i, count);
  });
}

void AddRow(const float* addend, size_t size, float* output) {
  ForEachVector(size, [&](size_t i, size_t count) HWY_ATTR {
    StoreUpTo(hn::Add(LoadUpTo(output + i, count), LoadUpTo(addend + i, count)),
              output + i, count);
  });
}

void AddSigmoidGatedRow(float gate, const float* addend, size_t size,
                        float* output) {
  const FloatVector factor = Sigmoid(hn::Set(kFloats, gate));
  ForEachVector(size, [&](size_t i, size_t count) HWY_ATTR {
    StoreUpTo(hn::MulAdd(factor, LoadUpTo(addend + i, count),
                         LoadUpTo(output + i, count)),
              output + i, count);
  });
}

float MaxOfRow(const float* row, size_t size) {
  constexpr float kLeast = -std::numeric_limits<float>::infinity();
  Block max = SetBlock(kLeast);
  for (size_t i = 0; i < size; i += kBlockLanes) {
    const Block x = LoadBlock(row + i, size - i, kLeast);
    for (size_t j = 0; j < kBlockVectors; ++j) {
      max.v[j] = hn::Max(max.v[j], x.v[j]);
    }
  }
  return MaxOfBlock(max);
}

void SoftmaxRow(size_t size, float* values) {
  constexpr float kLeast = -std::numeric_limits<float>::infinity();
  const FloatVector max = hn::Set(kFloats, MaxOfRow(values, size));
  Block sums = SetBlock(0.0f);
  for (size_t i = 0; i < size; i += kBlockLanes) {
    const Block x = LoadBlock(values + i, size - i, kLeast);
    for (size_t j = 0; j < kBlockVectors; ++j) {
      const FloatVector e = Exp(hn::Sub(x.v[j], max));
      sums.v[j] = hn::Add(sums.v[j], e);
      const size_t at = i + j * kLanes;
      if (at < size) StoreUpTo(e, values + at, size - at);
    }
  }
  const FloatVector sum = hn::Set(kFloats, SumOfBlock(sums));
  ForEachVector(size, [&](size_t i, size_t count) HWY_ATTR {
    StoreUpTo(hn::Div(LoadUpTo(values + i, count), sum), values + i, count);
  });
}

// The exponentials are floats, their sum is double: a vocabulary is long.
double LogSumExpRow(const float* row, size_t size) {
  constexpr float kLeast = -std::numeric_limits<float>::infinity();
  const float max = MaxOfRow(row, size);
  // Infinite: nothing to subtract. NaN may hide behind it, or behind a number.
  const float reference = std::isinf(max) ? 0.0f : max;
  double sums[kBlockLanes] = {};
  for (size_t i = 0; i < size; i += kBlockLanes) {
    const Block x = LoadBlock(row + i, size - i, kLeast);
    HWY_ALIGN float exponentials[kBlockLanes];
    for (size_t j = 0; j < kBlockVectors; ++j) {
      hn::Store(Exp(hn::Sub(x.v[j], hn::Set(kFloats, reference))), kFloats,
                exponentials + j * kLanes);
    }
    for (size_t j = 0; j < kBlockLanes; ++j) sums[j] += exponentials[j];
  }
  return static_cast<double>(reference) + std::log(SumTree(sums));
}

size_t ArgMaxRow(const float* row, size_t size) {
  constexpr float kLeast = -std::numeric_limits<float>::infinity();
  Block max = SetBlock(kLeast);
  for (size_t i = 0; i < size; i += kBlockLanes) {
    const Block x = LoadBlock(row + i, size - i, kLeast);
    for (size_t j = 0; j < kBlockVectors; ++j) {
      // NaN is not greater.
      max.v[j] = hn::IfThenElse(hn::Gt(x.v[j], max.v[j]), x.v[j], max.v[j]);
    }
  }
  const float largest = MaxOfBlock(max);
  if (largest == kLeast) return 0;
  const FloatVector wanted = hn::Set(kFloats, largest);
  for (size_t i = 0; i < size; i += kBlockLanes) {
    const Block x = LoadBlock(row + i, size - i, kLeast);
    for (size_t j = 0; j < kBlockVectors; ++j) {
      const intptr_t lane = hn::FindFirstTrue(kFloats, hn::Eq(x.v[j], wanted));
      if (lane >= 0) return i + j * kLanes + static_cast<size_t>(lane);
    }
  }
  return 0;
}

// output += sum over i of weights[i] * copies.row(slots[i]).
void CombineRow(ConstFloatMatrix copies, const int32_t* slots,
                const float* weights, size_t num_slots, float* output) {
  ForEachVector(copies.cols, [&](size_t i, size_t count) HWY_ATTR {
    FloatVector sum = hn::Zero(kFloats);
    for (size_t s = 0; s < num_slots; ++s) {
      if (slots[s] < 0) continue;
      sum = hn::MulAdd(hn::Set(kFloats, weights[s]),
                       LoadUpTo(copies.row(slots[s]) + i, count), sum);
    }
    StoreUpTo(hn::Add(LoadUpTo(output + i, count), sum), output + i, count);
  });
}

HWY_INLINE FloatVector ToFloats(const int8_t* numbers) {
  const hn::Rebind<int8_t, FloatTag> bytes;
  const hn::RebindToSigned<FloatTag> words;
  return hn::ConvertTo(kFloats,
                       hn::PromoteTo(words, hn::LoadU(bytes, numbers)));
}

void EmbedFloats(DataType dtype, const uint8_t* from, size_t size,
                 float* output) {
  if (dtype == DataType::kF32) {
    std::memcpy(output, from, size * sizeof(float));
    return;
  }
  const hn::Rebind<uint16_t, FloatTag> halves;
  const hn::Rebind<hwy::float16_t, FloatTag> float16s;
  const hn::RebindToUnsigned<FloatTag> words;
  ForEachVector(size, [&](size_t i, size_t count) HWY_ATTR {
    HWY_ALIGN uint16_t buffer[kLanes] = {};
    std::memcpy(buffer, from + 2 * i, 2 * count);  // any alignment
    const auto bits = hn::Load(halves, buffer);
    const FloatVector value =
        dtype == DataType::kF16
            ? hn::PromoteTo(kFloats, hn::BitCast(float16s, bits))
            : hn::BitCast(kFloats,
                          hn::ShiftLeft<16>(hn::PromoteTo(words, bits)));
    StoreUpTo(value, output + i, count);
  });
}

// One group: output[i] = scale * numbers[i]; size is a multiple of 32.
void ScaleGroup(const int8_t* numbers, float scale, size_t size,
                float* output) {
  const FloatVector factor = hn::Set(kFloats, scale);
  for (size_t i = 0; i < size; i += kLanes) {
    hn::StoreU(hn::Mul(factor, ToFloats(numbers + i)), kFloats, output + i);
  }
}

// Row `row` of the table.
void EmbedRow(const StoredMatrix& table, size_t row, float* output) {
  const size_t k = table.k;
  const auto* numbers = static_cast<const uint8_t*>(table.numbers);
  if (!IsQuantized(table.format)) {
    const DataType dtype = static_cast<DataType>(table.format);
    EmbedFloats(dtype, numbers + row * k * SizeOf(dtype), k, output);
    return;
  }
  constexpr size_t kMaxGroup = 64;
  CHECK(table.group_size % 32 == 0 && table.group_size <= kMaxGroup);
  const bool is_int4 = IsInt4(table.format);
  for (size_t g = 0; g < table.num_groups(); ++g) {
    const size_t group = row * table.num_groups() + g;
    const size_t begin = g * table.group_size;
    uint16_t half;
    std::memcpy(&half, static_cast<const uint8_t*>(table.scales) + 2 * group,
                2);
    HWY_ALIGN int8_t unpacked[kMaxGroup];
    const int8_t* from = unpacked;
    if (!is_int4) {
      from = reinterpret_cast<const int8_t*>(numbers) + row * k + begin;
    } else {
      const int zero = table.format == WeightFormat::kInt4
                           ? 8
                           : static_cast<const uint8_t*>(table.zeros)[group];
      const uint8_t* pairs = numbers + (row * k + begin) / 2;
      for (size_t i = 0; i < table.group_size / 2; ++i) {
        unpacked[2 * i] = static_cast<int8_t>((pairs[i] & 15) - zero);
        unpacked[2 * i + 1] = static_cast<int8_t>((pairs[i] >> 4) - zero);
      }
    }
    ScaleGroup(from, F32FromF16(half), table.group_size, output + begin);
  }
}

}  // namespace troupe::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace troupe {

HWY_EXPORT(RmsNormRow);
HWY_EXPORT(RotatePairs);
HWY_EXPORT(ClampRow);
HWY_EXPORT(AddRow);
HWY_EXPORT(AddSigmoidGatedRow);
HWY_EXPORT(SoftmaxRow);
HWY_EXPORT(LogSumExpRow);
HWY_EXPORT(ArgMaxRow);
HWY_EXPORT(CombineRow);
HWY_EXPORT(EmbedRow);

namespace {

// Rows of one task: enough work to be worth handing out, all of them when
// there is little.
constexpr size_t kFloatsPerTask = 16384;

template <typename Function>
void ForEachRow(size_t num_rows, size_t row_floats, ThreadPool& pool,
                const Function& function) {
  const size_t rows_per_task =
      std::max<size_t>(1, kFloatsPerTask / std::max<size_t>(1, row_floats));
  const size_t num_tasks = (num_rows + rows_per_task - 1) / rows_per_task;
  pool.ParallelFor(num_tasks, [&](size_t task, size_t worker) {
    const size_t begin = task * rows_per_task;
    const size_t end = std::min(num_rows, begin + rows_per_task);
    for (size_t r = begin; r < end; ++r) function(r);
  });
}

}  // namespace

void RmsNorm(ConstFloatMatrix input, const float* weight, float epsilon,
             FloatMatrix output, ThreadPool& pool) {
  CHECK_EQ(input.rows, output.rows);
  CHECK_EQ(input.cols, output.cols);
  ForEachRow(input.rows, input.cols, pool, [&](size_t r) {
    HWY_DYNAMIC_DISPATCH(RmsNormRow)
    (input.row(r), weight, epsilon, input.cols, output.row(r));
  });
}

void RmsNormPerHead(FloatMatrix heads, size_t num_heads, const float* weight,
                    float epsilon, ThreadPool& pool) {
  CHECK(num_heads > 0);
  CHECK_EQ(heads.cols % num_heads, 0u);
  const size_t head_dim = heads.cols / num_heads;
  ForEachRow(heads.rows, heads.cols, pool, [&](size_t r) {
    for (size_t h = 0; h < num_heads; ++h) {
      float* head = heads.row(r) + h * head_dim;
      HWY_DYNAMIC_DISPATCH(RmsNormRow)(head, weight, epsilon, head_dim, head);
    }
  });
}

void ApplyRope(FloatMatrix heads, size_t num_heads,
               std::span<const int32_t> positions, ConstFloatMatrix cosines,
               ConstFloatMatrix sines, ThreadPool& pool) {
  const size_t half = cosines.cols;
  CHECK_EQ(heads.cols, num_heads * half * 2);
  CHECK_EQ(sines.cols, half);
  CHECK_EQ(positions.size(), heads.rows);
  ForEachRow(heads.rows, heads.cols, pool, [&](size_t r) {
    const size_t position = static_cast<size_t>(positions[r]);
    CHECK_LT(position, cosines.rows);
    CHECK_LT(position, sines.rows);
    for (size_t h = 0; h < num_heads; ++h) {
      float* head = heads.row(r) + h * half * 2;
      HWY_DYNAMIC_DISPATCH(RotatePairs)
      (cosines.row(position), sines.row(position), half, head, head + half);
    }
  });
}

void Clamp(FloatMatrix values, float limit, ThreadPool& pool) {
  ForEachRow(values.rows, values.cols, pool, [&](size_t r) {
    HWY_DYNAMIC_DISPATCH(ClampRow)(limit, values.cols, values.row(r));
  });
}

void AddInPlace(FloatMatrix output, ConstFloatMatrix addend, ThreadPool& pool) {
  CHECK_EQ(output.rows, addend.rows);
  CHECK_EQ(output.cols, addend.cols);
  ForEachRow(output.rows, output.cols, pool, [&](size_t r) {
    HWY_DYNAMIC_DISPATCH(AddRow)(addend.row(r), output.cols, output.row(r));
  });
}

void AddSigmoidGated(FloatMatrix output, std::span<const float> gate,
                     ConstFloatMatrix addend, ThreadPool& pool) {
  CHECK_EQ(output.rows, addend.rows);
  CHECK_EQ(output.cols, addend.cols);
  CHECK_EQ(gate.size(), output.rows);
  ForEachRow(output.rows, output.cols, pool, [&](size_t r) {
    HWY_DYNAMIC_DISPATCH(AddSigmoidGatedRow)
    (gate[r], addend.row(r), output.cols, output.row(r));
  });
}

void SoftmaxRows(FloatMatrix values, ThreadPool& pool) {
  ForEachRow(values.rows, values.cols, pool, [&](size_t r) {
    HWY_DYNAMIC_DISPATCH(SoftmaxRow)(values.cols, values.row(r));
  });
}

double LogSumExp(std::span<const float> row) {
  return HWY_DYNAMIC_DISPATCH(LogSumExpRow)(row.data(), row.size());
}

size_t ArgMax(std::span<const float> row) {
  return HWY_DYNAMIC_DISPATCH(ArgMaxRow)(row.data(), row.size());
}

void CombineExperts(ConstFloatMatrix copies,
                    std::span<const int32_t> copy_of_slot,
                    ConstFloatMatrix topk_weights, FloatMatrix output,
                    ThreadPool& pool) {
  const size_t top_k = topk_weights.cols;
  CHECK_EQ(topk_weights.rows, output.rows);
  CHECK_EQ(copy_of_slot.size(), output.rows * top_k);
  for (const int32_t copy : copy_of_slot) {
    CHECK(copy < 0 || static_cast<size_t>(copy) < copies.rows);
  }
  // Without copies the view may have no columns either.
  const ConstFloatMatrix rows(copies.data, copies.rows, output.cols,
                              copies.stride);
  CHECK(copies.rows == 0 || copies.cols == output.cols);
  ForEachRow(output.rows, output.cols * (top_k + 1), pool, [&](size_t r) {
    HWY_DYNAMIC_DISPATCH(CombineRow)
    (rows, copy_of_slot.data() + r * top_k, topk_weights.row(r), top_k,
     output.row(r));
  });
}

void EmbedTokens(std::span<const int32_t> token_ids, const StoredMatrix& table,
                 FloatMatrix output, ThreadPool& pool) {
  CHECK_EQ(token_ids.size(), output.rows);
  CHECK_EQ(table.k, output.cols);
  ForEachRow(output.rows, output.cols, pool, [&](size_t r) {
    CHECK(token_ids[r] >= 0);
    const size_t row = static_cast<size_t>(token_ids[r]);
    CHECK_LT(row, table.n);
    HWY_DYNAMIC_DISPATCH(EmbedRow)(table, row, output.row(r));
  });
}

}  // namespace troupe
#endif  // HWY_ONCE
